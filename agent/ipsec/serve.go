package ipsec

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/circuitseal/circuitseal/agent/instance"
	"github.com/circuitseal/circuitseal/agent/netns"
	"github.com/circuitseal/circuitseal/agent/priority"
)

// daemon is strongSwan's, without systemd none the less: it stays in the
// foreground.
const daemon = "charon-systemd"

// ErrRunning means that the instance's charon runs already.
var ErrRunning = errors.New("a charon of this instance runs already")

// errNotInstalled is what status says where there is no strongSwan.
var errNotInstalled = errors.New("strongSwan's " + daemon + " is not installed: install Debian's charon-systemd and libcharon-extra-plugins, or what your distribution calls them")

// sbin is where daemons are that a service manager's PATH may leave out.
var sbin = []string{"/usr/sbin", "/usr/local/sbin", "/sbin"}

func findDaemon() (string, error) {
	if path, err := exec.LookPath(daemon); err == nil {
		return path, nil
	}
	for _, d := range sbin {
		if path, err := exec.LookPath(filepath.Join(d, daemon)); err == nil {
			return path, nil
		}
	}
	return "", errNotInstalled
}

func configPath(inst instance.Instance) string {
	return filepath.Join(inst.RunDir(), "strongswan.conf")
}

// Serve becomes the charon of an instance: in the circuit namespace, with a mount
// namespace in which /run holds nothing but the instance's own directory, and with
// a configuration that it writes. It must be all that its process does, and comes
// back with an error only; ErrRunning means that another has the lock, which lasts
// as long as the process.
func Serve(inst instance.Instance) error {
	unix.Umask(0o077)
	path, err := findDaemon()
	if err != nil {
		return err
	}
	backend, err := Automatic.resolve()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(inst.RunDir(), 0o700); err != nil {
		return fmt.Errorf("make run directory: %w", err)
	}
	lock, err := lockInstance(inst)
	if err != nil {
		return err
	}
	defer func() { _ = lock.Close() }()
	if err := writeConfig(configPath(inst), configuration(backend, inst.CharonSocket())); err != nil {
		return err
	}
	// A socket that a predecessor left would look like one that does not answer.
	if err := os.Remove(inst.CharonSocket()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove the socket of a predecessor: %w", err)
	}
	// What carries packets does not stand back as its agent does.
	if err := priority.Normal(); err != nil {
		return fmt.Errorf("set scheduling policy: %w", err)
	}
	want, _, err := netns.Ensure(inst.Namespace())
	if err != nil {
		return fmt.Errorf("enter circuit namespace %s: %w", inst.Namespace(), err)
	}
	// The thread is never unlocked: what it executes keeps its namespaces, and on
	// failure the process ends with an error.
	runtime.LockOSThread()
	if err := unix.Setns(want.FD(), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter circuit namespace %s: %w", inst.Namespace(), err)
	}
	if err := hideRun(inst.RunDir()); err != nil {
		return err
	}
	if err := unix.CloseRange(3, ^uint(0), unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return fmt.Errorf("close inherited files: %w", err)
	}
	if _, err := unix.FcntlInt(lock.Fd(), unix.F_SETFD, 0); err != nil {
		return fmt.Errorf("keep the instance's lock: %w", err)
	}
	err = unix.Exec(path, []string{daemon}, []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "STRONGSWAN_CONF=" + configPath(inst)})
	return fmt.Errorf("execute %s: %w", path, err)
}

// hideRun gives the calling thread a mount namespace of its own with an empty
// /run, and keep as it is: charon's own files are there, and services that it would
// reach are not.
func hideRun(keep string) error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("make a mount namespace: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	// In this mount namespace: what belongs to another cannot be mounted here.
	keptFD, err := unix.Open(keep, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", keep, err)
	}
	defer func() { _ = unix.Close(keptFD) }()
	if err := unix.Mount("tmpfs", "/run", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0755,size=1m"); err != nil {
		return fmt.Errorf("mount an empty /run: %w", err)
	}
	if err := os.MkdirAll(keep, 0o700); err != nil {
		return fmt.Errorf("make %s: %w", keep, err)
	}
	if err := unix.Mount("/proc/thread-self/fd/"+strconv.Itoa(keptFD), keep, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount %s: %w", keep, err)
	}
	return nil
}

func writeConfig(path, text string) error {
	next := path + ".next"
	err := os.WriteFile(next, []byte(text), 0o600)
	if err == nil {
		err = os.Rename(next, path)
	}
	if err != nil {
		return fmt.Errorf("write charon's configuration: %w", err)
	}
	return nil
}

// lockInstance holds the lock as long as the file is open.
func lockInstance(inst instance.Instance) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(inst.RunDir(), "charon.lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock instance %s: %w", inst, err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = ErrRunning
		}
		return nil, errors.Join(fmt.Errorf("lock instance %s: %w", inst, err), f.Close())
	}
	return f, nil
}
