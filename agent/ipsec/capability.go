package ipsec

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/circuitseal/circuitseal/agent/netns"
	"github.com/circuitseal/circuitseal/proto/desired"
)

// Charon is what the installed strongSwan can do, by asking it: the charon that runs,
// or one that lives for the question, in a network namespace of its own. nil where
// none is installed. What was found is kept as long as the program is the same.
func (d *Driver) Charon(ctx context.Context) *desired.CharonStatus {
	d.mu.Lock()
	defer d.mu.Unlock()
	path, err := findDaemon()
	if err != nil && d.want.Socket == "" {
		return nil
	}
	identity := d.want.Socket
	if info, err := os.Stat(path); err == nil && identity == "" {
		identity = fmt.Sprintf("%s %d %d", path, info.Size(), info.ModTime().UnixNano())
		if s, ok := info.Sys().(*syscall.Stat_t); ok {
			identity += fmt.Sprintf(" %d", s.Ino)
		}
	}
	if d.capable != nil && d.asked == identity {
		s := *d.capable
		return &s
	}
	s, err := d.askCharon(ctx, path)
	if err != nil {
		return &desired.CharonStatus{Problem: err.Error()}
	}
	d.capable, d.asked = &s, identity
	c := s
	return &c
}

func (d *Driver) askCharon(ctx context.Context, path string) (desired.CharonStatus, error) {
	backend, err := d.backend.resolve()
	if err != nil {
		return desired.CharonStatus{}, err
	}
	d.backend = backend
	if _, err := d.session(ctx, false); err == nil {
		return capabilities(ctx, d.open, backend)
	} else if !errors.Is(err, errNotRunning) || d.want.Socket != "" {
		return desired.CharonStatus{}, err
	}
	return askThrowaway(ctx, path, backend)
}

// capabilities asks a charon.
func capabilities(ctx context.Context, c *client, backend Backend) (desired.CharonStatus, error) {
	version, err := c.call(ctx, "version", nil)
	if err != nil {
		return desired.CharonStatus{}, err
	}
	list, err := c.call(ctx, "get-algorithms", nil)
	if err != nil {
		return desired.CharonStatus{}, err
	}
	can := algorithms(list)
	// strongSwan mixes in PPKs since 5.7.0, and the kernel counts on.
	can["ppk"] = true
	if backend == Kernel {
		can["esn"] = true
	}
	v := &fields{m: version}
	return desired.CharonStatus{Version: v.text("version"), Backend: backend.String(), Algorithms: slices.Sorted(maps.Keys(can))}, nil
}

// throwawayTimeout is how long a charon that is asked may take to begin.
const throwawayTimeout = 10 * time.Second

// askThrowaway starts a charon in a network namespace and with a directory that
// both end with it.
func askThrowaway(ctx context.Context, path string, backend Backend) (desired.CharonStatus, error) {
	ctx, cancel := context.WithTimeout(ctx, throwawayTimeout)
	defer cancel()
	dir, err := os.MkdirTemp("", "circuitseal-charon-")
	if err != nil {
		return desired.CharonStatus{}, fmt.Errorf("ask charon what it can do: %w", err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	socket, config := filepath.Join(dir, "vici"), filepath.Join(dir, "strongswan.conf")
	if err := writeConfig(config, configuration(backend, socket)); err != nil {
		return desired.CharonStatus{}, err
	}
	cmd := exec.CommandContext(ctx, path)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "STRONGSWAN_CONF=" + config}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL, Cloneflags: unix.CLONE_NEWNET}
	cmd.Cancel = func() error { return cmd.Process.Signal(unix.SIGTERM) }
	cmd.WaitDelay = time.Second
	// Its parent's thread must live as long as it (Pdeathsig).
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := cmd.Start(); err != nil {
		return desired.CharonStatus{}, fmt.Errorf("ask charon what it can do: %w", err)
	}
	defer func() {
		cancel()
		_ = cmd.Wait()
	}()
	home, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", cmd.Process.Pid))
	if err != nil {
		return desired.CharonStatus{}, fmt.Errorf("ask charon what it can do: %w", err)
	}
	defer func() { _ = home.Close() }()
	for {
		c, err := dial(ctx, socket, netns.FromFile(home))
		if err == nil {
			s, err := capabilities(ctx, c, backend)
			return s, errors.Join(err, c.Close())
		}
		select {
		case <-ctx.Done():
			return desired.CharonStatus{}, fmt.Errorf("ask charon what it can do: it does not answer: %w", err)
		case <-time.After(5 * time.Millisecond):
		}
	}
}
