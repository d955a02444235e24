// Package netns makes, opens and removes named network namespaces, and runs
// functions inside them. It knows the mounts in /run/netns, as ip-netns(8)
// keeps them, and threads; it does not know what lies in a namespace.
package netns

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Directory is where named namespaces are mounted; `ip netns` uses the same.
const Directory = "/run/netns"

// namePattern leaves out everything that a path or a shell could take for
// something else.
var namePattern = regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9_.-]{0,62}$`)

// Namespace is a handle on a network namespace. It keeps the namespace alive
// until Close, even when its name has been removed. Copies share one handle.
// The zero value is no namespace.
type Namespace struct {
	file *os.File
}

// Current is the namespace of the calling thread, as a handle to come back to.
// A goroutine that is not locked to a thread is always in the namespace that
// the process started in.
func Current() (Namespace, error) {
	return openPath("/proc/thread-self/ns/net")
}

// Open opens the namespace that Ensure, or `ip netns add`, made. The error
// wraps os.ErrNotExist when there is none.
func Open(name string) (Namespace, error) {
	path, err := pathOf(name)
	if err != nil {
		return Namespace{}, err
	}
	n, err := openPath(path)
	if err != nil {
		return Namespace{}, err
	}
	mounted, err := n.isNamespace()
	if err == nil && !mounted {
		err = fmt.Errorf("open namespace %s: %s is a plain file and no namespace: %w", name, path, os.ErrNotExist)
	}
	if err != nil {
		return Namespace{}, errors.Join(err, n.Close())
	}
	return n, nil
}

// FromFile is the namespace that a file of /proc/PID/ns leads to. The file stays the
// caller's.
func FromFile(f *os.File) Namespace { return Namespace{file: f} }

// Close gives the handle up. Closing the zero value does nothing.
func (n Namespace) Close() error {
	if n.file == nil {
		return nil
	}
	return n.file.Close()
}

// FD is the handle's file descriptor, valid until Close, or -1. The caller must
// keep n reachable while it uses the number.
func (n Namespace) FD() int {
	if n.file == nil {
		return -1
	}
	return int(n.file.Fd())
}

// Same reports whether both are handles on one namespace.
func (n Namespace) Same(other Namespace) (bool, error) {
	var a, b unix.Stat_t
	if err := unix.Fstat(n.FD(), &a); err != nil {
		return false, fmt.Errorf("stat namespace: %w", err)
	}
	if err := unix.Fstat(other.FD(), &b); err != nil {
		return false, fmt.Errorf("stat namespace: %w", err)
	}
	return a.Dev == b.Dev && a.Ino == b.Ino, nil
}

// Do runs f on a thread of its own inside n and returns f's error. The thread
// comes back afterwards, or ends when it cannot. Do blocks until f returns. f
// must not call runtime.Goexit (which testing.T's FailNow does), and
// goroutines that f starts are outside n.
func (n Namespace) Do(f func() error) error {
	if n.file == nil {
		return errors.New("enter namespace: no namespace")
	}
	return onThread(func() (restored bool, err error) {
		home, err := Current()
		if err != nil {
			return true, err
		}
		defer func() { _ = home.Close() }()
		if err := unix.Setns(n.FD(), unix.CLONE_NEWNET); err != nil {
			return true, fmt.Errorf("enter namespace: %w", err)
		}
		err = f()
		// A thread that stays behind must never run other goroutines.
		return unix.Setns(home.FD(), unix.CLONE_NEWNET) == nil, err
	})
}

// Netlink opens a netlink handle in n for the families named, for
// NETLINK_ROUTE when none is. The caller closes it.
func (n Namespace) Netlink(families ...int) (*netlink.Handle, error) {
	if len(families) == 0 {
		families = []int{unix.NETLINK_ROUTE}
	}
	var handle *netlink.Handle
	// A socket belongs to the namespace of the thread that made it.
	// NewHandleAt does the same, but ignores a thread that cannot come back.
	err := n.Do(func() (err error) {
		handle, err = netlink.NewHandle(families...)
		if err != nil {
			return fmt.Errorf("open netlink socket: %w", err)
		}
		return nil
	})
	return handle, err
}

func openPath(path string) (Namespace, error) {
	f, err := os.Open(path)
	if err != nil {
		return Namespace{}, fmt.Errorf("open namespace: %w", err)
	}
	return Namespace{file: f}, nil
}

// isNamespace tells a mounted namespace from the empty file under the mount.
func (n Namespace) isNamespace() (bool, error) {
	var s unix.Statfs_t
	if err := unix.Fstatfs(n.FD(), &s); err != nil {
		return false, fmt.Errorf("examine namespace: %w", err)
	}
	return s.Type == unix.NSFS_MAGIC, nil
}

func pathOf(name string) (string, error) {
	if !namePattern.MatchString(name) {
		return "", fmt.Errorf("namespace name %.64q: want 1 to 63 of a-z, A-Z, 0-9, '_', '.' and '-', the first a letter, digit or '_'", name)
	}
	return filepath.Join(Directory, name), nil
}
