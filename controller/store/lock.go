package store

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// dirLock is a data directory that belongs to this process.
type dirLock struct{ file *os.File }

// lockDir makes the directory when there is none, checks that nobody else can
// read it, and locks it. The kernel drops the lock with the process, however
// that ends.
func lockDir(dir string) (*dirLock, error) {
	if dir == "" {
		return nil, errors.New("name a data directory")
	}
	if err := os.Mkdir(dir, 0o700); errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("make data directory %s: the directory above it, %s, %w", dir, filepath.Dir(dir), ErrNoParent)
	} else if err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("make data directory: %w", err)
	}
	if err := checkDir(dir); err != nil {
		return nil, err
	}
	path := filepath.Join(dir, "lock")
	// os.OpenFile sets O_CLOEXEC: a child must not keep the lock. O_NOFOLLOW,
	// because what the name leads to is overwritten.
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, explainLock(dir, path, err)
	}
	if err := claim(f); err != nil {
		return nil, errors.Join(fmt.Errorf("data directory %s: %w", dir, err), f.Close())
	}
	return &dirLock{file: f}, nil
}

// explainLock says why a lock file could not be opened.
func explainLock(dir, path string, err error) error {
	var st unix.Stat_t
	if unix.Lstat(path, &st) == nil && int(st.Uid) != os.Geteuid() {
		return fmt.Errorf("lock data directory: %s belongs to user %d, this process runs as %d: %w", path, st.Uid, os.Geteuid(), err)
	}
	if errors.Is(err, unix.EROFS) || errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("data directory %s is read-only: %w", dir, err)
	}
	return fmt.Errorf("lock data directory: %w", err)
}

func checkDir(dir string) error {
	fi, err := os.Stat(dir)
	if err != nil {
		return fmt.Errorf("open data directory: %w", err)
	}
	if !fi.IsDir() {
		return fmt.Errorf("data directory %s %w", dir, ErrFile)
	}
	mode := fi.Mode().Perm()
	if mode&0o077 != 0 {
		return fmt.Errorf("data directory %s has mode %#o: %w", dir, mode, ErrExposed)
	}
	// Root may write whatever the mode says; a mode without write still says
	// that somebody wants this directory left alone.
	if mode&0o300 != 0o300 || errors.Is(unix.Access(dir, unix.W_OK|unix.X_OK), unix.EROFS) {
		return fmt.Errorf("data directory %s is read-only (mode %#o); want a writable one with mode 0700", dir, mode)
	}
	if st, ok := fi.Sys().(*syscall.Stat_t); ok && int(st.Uid) != os.Geteuid() {
		return fmt.Errorf("data directory %s belongs to user %d, this process runs as %d", dir, st.Uid, os.Geteuid())
	}
	return nil
}

// claim takes the lock and writes down who has it.
func claim(f *os.File) error {
	err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return fmt.Errorf("%w by %s", ErrInUse, holder(f))
	}
	if err != nil {
		return fmt.Errorf("lock it: %w", err)
	}
	if err := f.Truncate(0); err != nil {
		return fmt.Errorf("write pid: %w", err)
	}
	if _, err := f.WriteAt(strconv.AppendInt(nil, int64(os.Getpid()), 10), 0); err != nil {
		return fmt.Errorf("write pid: %w", err)
	}
	return nil
}

func holder(f *os.File) string {
	b, err := io.ReadAll(io.LimitReader(f, 20))
	if err != nil {
		return "another process"
	}
	pid, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 31)
	if err != nil {
		return "another process"
	}
	return fmt.Sprintf("pid %d", pid)
}

// Close unlocks. The file stays: removing it could take away the lock that
// another process has just claimed.
func (l *dirLock) Close() error {
	if err := l.file.Truncate(0); err != nil {
		return errors.Join(fmt.Errorf("unlock data directory: %w", err), l.file.Close())
	}
	if err := l.file.Close(); err != nil {
		return fmt.Errorf("unlock data directory: %w", err)
	}
	return nil
}
