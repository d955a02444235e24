package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// room is what the engine may want of its disk at any time, in bytes: two log
// segments, and as much again for its data to grow. An engine that finds the
// disk full dies, so nothing is written when there is less.
const room = 4 * segmentBytes

// roomIn refuses a disk that is nearly full.
func roomIn(dir string) error {
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err != nil {
		return fmt.Errorf("see how much room %s has: %w", dir, err)
	}
	if have := s.Bavail * uint64(s.Bsize); have < room {
		return fmt.Errorf("%w: the disk of %s has %d MiB left, and changes are taken from %d MiB on: make room there", ErrFull, dir, have>>20, room>>20)
	}
	return nil
}

// Usable says what keeps a store from being opened in dir, as far as its disk
// is the cause: it keeps a file there for a moment, of the size that an engine
// wants.
func Usable(dir string) (err error) {
	path := filepath.Join(dir, ".usable")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close(), os.Remove(path)) }()
	if err := unix.Fallocate(int(f.Fd()), 0, 0, room); err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
		return fmt.Errorf("allocate %d MiB in %s: %w", room>>20, path, err)
	}
	if _, err := f.WriteString("usable"); err != nil {
		return err
	}
	return errors.Join(f.Sync(), syncFile(dir))
}
