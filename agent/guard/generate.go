package guard

//go:generate go tool bpf2go -target bpfel -cflags "-O2 -g -Wall -Wextra -Werror -I/usr/include/x86_64-linux-gnu -I/usr/include/aarch64-linux-gnu" -type reason -type direction -type stack_key -type flow_key -type flow -type neighbor -type counts program bpf/guard.c
