package classifier

//go:generate go tool bpf2go -target bpfel -cflags "-O2 -g -Wall -Wextra -Werror -I/usr/include/x86_64-linux-gnu -I/usr/include/aarch64-linux-gnu" -type port -type port_kind -type prefix_key -type host_key -type local -type remote -type member -type group -type counts -type reason -type direction bpf bpf/classifier.c
