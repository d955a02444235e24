// Package bpffs mounts the BPF file system in which an instance's programs and
// maps outlive its agent. It knows nothing of what is pinned there.
package bpffs

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Ensure mounts a BPF file system at dir, for root only, unless there is
// one; dir and its parents are made (0700). What is pinned there outlives the
// process and goes with the mount, at the latest with a reboot.
func Ensure(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make directory for bpffs: %w", err)
	}
	mounted, err := Mounted(dir)
	if err != nil || mounted {
		return err
	}
	err = unix.Mount("bpf", dir, "bpf", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0700")
	switch {
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("mount bpffs at %s: %w: the agent has to run as root with CAP_SYS_ADMIN", dir, err)
	case errors.Is(err, unix.ENODEV):
		return fmt.Errorf("mount bpffs at %s: %w: the kernel was built without CONFIG_BPF_SYSCALL", dir, err)
	case err != nil:
		return fmt.Errorf("mount bpffs at %s: %w", dir, err)
	}
	mounted, err = Mounted(dir)
	if err == nil && !mounted {
		err = fmt.Errorf("mount bpffs at %s: something else is there", dir)
	}
	return err
}

// Mounted reports whether dir is a BPF file system; it is false for a directory that does not exist.
func Mounted(dir string) (bool, error) {
	var s unix.Statfs_t
	err := unix.Statfs(dir, &s)
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("examine %s: %w", dir, err)
	}
	return s.Type == unix.BPF_FS_MAGIC, nil
}
