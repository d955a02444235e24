package ipsec

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/circuitseal/circuitseal/agent/outlive"
)

// endTimeout is how long it may take to end gracefully.
const endTimeout = 10 * time.Second

// startTimeout is how long charon may take until it answers: a tenth of a second as
// a rule.
const startTimeout = 20 * time.Second

// spawn starts the instance's charon and returns when it answers.
func (d *Driver) spawn(ctx context.Context) error {
	inst := d.config.Instance
	if _, err := findDaemon(); err != nil {
		return err
	}
	command := d.config.Command
	if len(command) == 0 {
		command = []string{outlive.Self, "charon", "--instance", string(inst)}
	}
	if err := os.MkdirAll(inst.RunDir(), 0o700); err != nil {
		return fmt.Errorf("make run directory: %w", err)
	}
	return outlive.Process{
		Name: "charon", Command: command, Log: d.logPath(), Timeout: startTimeout,
		Answers: func(ctx context.Context) error {
			c, err := dial(ctx, inst.CharonSocket(), d.config.Circuit)
			if err != nil {
				return err
			}
			// It listens before it answers.
			_, err = c.call(ctx, "version", nil)
			return errors.Join(err, c.Close())
		},
	}.Start(ctx, d.config.Log)
}

func (d *Driver) logPath() string { return filepath.Join(d.config.Instance.RunDir(), "charon.log") }

// stopCharon ends the instance's own charon, gracefully: it removes its SAs. One
// that somebody else runs is not ours to end.
func (d *Driver) stopCharon(ctx context.Context) error {
	c, err := dial(ctx, d.config.Instance.CharonSocket(), d.config.Circuit)
	if errors.Is(err, errNotRunning) {
		return nil
	}
	if err != nil {
		return err
	}
	pid := c.pid
	_ = c.Close()
	// A number may be another process's by now; a descriptor is not.
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("end charon: %w", err)
	}
	defer func() { _ = unix.Close(fd) }()
	if err := inNamespace(pid, d.config.Circuit); err != nil {
		return nil
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGTERM, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("end charon: %w", err)
	}
	patience := time.Now().Add(endTimeout)
	for killed := false; ; {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 50)
		if n > 0 {
			return nil
		}
		if time.Now().After(patience) {
			if killed {
				return fmt.Errorf("charon, process %d, was killed and does not end", pid)
			}
			killed, patience = true, time.Now().Add(endTimeout)
			// What it leaves in the kernel is flushed as what a killed one leaves.
			if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("end charon: %w", err)
			}
		}
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("wait for charon's end: %w", err)
		}
		if ctx.Err() != nil {
			return fmt.Errorf("wait for charon's end: %w", ctx.Err())
		}
	}
}
