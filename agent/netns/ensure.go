package netns

import (
	"errors"
	"fmt"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Ensure opens the namespace of that name, and makes it as `ip netns add` does
// when there is none; made tells which. Its loopback interface is up. A file
// that an interrupted call left without a mount is used again. Calls of
// several processes at once make one namespace.
func Ensure(name string) (n Namespace, made bool, err error) {
	path, err := pathOf(name)
	if err != nil {
		return Namespace{}, false, err
	}
	unlock, err := lockDirectory()
	if err != nil {
		return Namespace{}, false, fmt.Errorf("make namespace %s: %w", name, err)
	}
	defer unlock()
	n, err = Open(name)
	if errors.Is(err, os.ErrNotExist) {
		made = true
		if err := create(path); err != nil {
			return Namespace{}, false, fmt.Errorf("make namespace %s: %w", name, err)
		}
		n, err = Open(name)
	}
	if err != nil {
		return Namespace{}, false, err
	}
	if err := n.loopbackUp(); err != nil {
		return Namespace{}, false, errors.Join(fmt.Errorf("set loopback of namespace %s up: %w", name, err), n.Close())
	}
	return n, made, nil
}

// Keep makes a name lead to n, whatever it led to, and reports whether it did not:
// somebody may have removed it while n was open, or made another namespace in
// its place.
func Keep(name string, n Namespace) (again bool, err error) {
	path, err := pathOf(name)
	if err != nil {
		return false, err
	}
	if leads, err := leadsTo(name, n); leads || err != nil {
		return false, err
	}
	unlock, err := lockDirectory()
	if err != nil {
		return false, fmt.Errorf("name namespace %s again: %w", name, err)
	}
	defer unlock()
	if err := Remove(name); err != nil {
		return false, err
	}
	f, err := os.OpenFile(path, os.O_RDONLY|os.O_CREATE, 0)
	if err != nil {
		return false, fmt.Errorf("name namespace %s again: %w", name, err)
	}
	if err := f.Close(); err != nil {
		return false, err
	}
	if err := n.Do(func() error { return unix.Mount("/proc/thread-self/ns/net", path, "none", unix.MS_BIND, "") }); err != nil {
		return false, errors.Join(fmt.Errorf("name namespace %s again: bind mount %s: %w", name, path, err), os.Remove(path))
	}
	return true, nil
}

func leadsTo(name string, n Namespace) (bool, error) {
	there, err := Open(name)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	same, err := there.Same(n)
	return same, errors.Join(err, there.Close())
}

// Remove takes the name away. The namespace itself goes with its last process
// and handle; its physical interfaces then return to the initial namespace.
// Removing a name that does not exist does nothing.
func Remove(name string) error {
	path, err := pathOf(name)
	if err != nil {
		return err
	}
	// EINVAL: not a mount point. A file may have been left without its mount.
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmount namespace %s: %w", name, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove namespace %s: %w", name, err)
	}
	return nil
}

// lockDirectory makes Directory a shared mount, so that namespaces reach other
// mount namespaces and leave them again, and locks it, as iproute2 does.
func lockDirectory() (unlock func(), err error) {
	if err := os.MkdirAll(Directory, 0o755); err != nil {
		return nil, err
	}
	dir, err := os.Open(Directory)
	if err != nil {
		return nil, err
	}
	unlock = func() { _ = dir.Close() }
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX); err != nil {
		unlock()
		return nil, fmt.Errorf("lock %s: %w", Directory, err)
	}
	if err := shareDirectory(); err != nil {
		unlock()
		return nil, err
	}
	return unlock, nil
}

func shareDirectory() error {
	err := unix.Mount("", Directory, "none", unix.MS_SHARED|unix.MS_REC, "")
	if errors.Is(err, unix.EINVAL) {
		// Not a mount point yet.
		if err := unix.Mount(Directory, Directory, "none", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return fmt.Errorf("bind mount %s onto itself: %w", Directory, err)
		}
		err = unix.Mount("", Directory, "none", unix.MS_SHARED|unix.MS_REC, "")
	}
	if err != nil {
		return fmt.Errorf("make %s a shared mount: %w", Directory, err)
	}
	return nil
}

func create(path string) error {
	f, err := os.OpenFile(path, os.O_RDONLY|os.O_CREATE, 0)
	if err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	err = onThread(func() (restored bool, err error) {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return true, fmt.Errorf("unshare: %w", err)
		}
		if err := unix.Mount("/proc/thread-self/ns/net", path, "none", unix.MS_BIND, ""); err != nil {
			return false, fmt.Errorf("bind mount %s: %w", path, err)
		}
		return false, nil
	})
	if err != nil {
		return errors.Join(err, os.Remove(path))
	}
	return nil
}

func (n Namespace) loopbackUp() error {
	handle, err := n.Netlink()
	if err != nil {
		return err
	}
	defer handle.Close()
	lo, err := handle.LinkByName("lo")
	if err != nil {
		return err
	}
	if lo.Attrs().RawFlags&unix.IFF_UP != 0 {
		return nil
	}
	return handle.LinkSetUp(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: lo.Attrs().Index}})
}
