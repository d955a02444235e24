package classifier

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// mountBPF mounts a bpffs on directory unless one is there.
func mountBPF(directory string) error {
	if err := os.MkdirAll(directory, 0o700); err != nil {
		return fmt.Errorf("make mount point of the bpffs: %w", err)
	}
	var s unix.Statfs_t
	if err := unix.Statfs(directory, &s); err != nil {
		return fmt.Errorf("examine %s: %w", directory, err)
	}
	if uint32(s.Type) == unix.BPF_FS_MAGIC {
		return nil
	}
	flags := uintptr(unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC)
	err := unix.Mount("bpf", directory, "bpf", flags, "mode=0700")
	if errors.Is(err, unix.EPERM) {
		return fmt.Errorf("mount a bpffs on %s: this needs root: %w", directory, err)
	}
	if err != nil {
		return fmt.Errorf("mount a bpffs on %s: %w", directory, err)
	}
	return nil
}
