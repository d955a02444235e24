package wireguard

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"github.com/circuitseal/circuitseal/agent/instance"
	"github.com/circuitseal/circuitseal/agent/netns"
	"github.com/circuitseal/circuitseal/agent/outlive"
)

// enteredEnv stops a process that cannot get into its namespace from executing
// itself for ever.
const enteredEnv = "CIRCUITSEAL_WIREGUARD_ENTERED"

// startTimeout is how long a new process may take until it answers.
const startTimeout = 5 * time.Second

// Spawn starts the WireGuard process of an instance and returns when it
// answers; when one runs already it does nothing. command is what to execute,
// nil for the running program with the arguments `wireguard --instance <name>`.
// The new process has a session of its own, / as its directory, a log file in
// the run directory and no other open file; it outlives the caller.
func Spawn(ctx context.Context, inst instance.Instance, command []string, log *slog.Logger) error {
	if c, err := dial(ctx, inst); err == nil {
		return c.Close()
	} else if !errors.Is(err, errNotRunning) {
		return err
	}
	if len(command) == 0 {
		command = []string{outlive.Self, "wireguard", "--instance", string(inst)}
	}
	if err := os.MkdirAll(inst.RunDir(), 0o700); err != nil {
		return fmt.Errorf("make run directory: %w", err)
	}
	return outlive.Process{
		Name:    "the WireGuard process",
		Command: command,
		Log:     filepath.Join(inst.RunDir(), "wireguard.log"),
		Timeout: startTimeout,
		Answers: func(ctx context.Context) error {
			c, err := dial(ctx, inst)
			if err != nil {
				return err
			}
			return c.Close()
		},
	}.Start(ctx, log, enteredEnv)
}

// enterNamespace returns when the whole process is in the circuit namespace.
// setns moves one thread only, so the program is executed again from a thread
// that has moved: the new image starts with that thread alone. Files that an
// ancestor left open close on the way.
func enterNamespace(inst instance.Instance) error {
	want, _, err := netns.Ensure(inst.Namespace())
	if err != nil {
		return fmt.Errorf("enter circuit namespace %s: %w", inst.Namespace(), err)
	}
	defer func() { _ = want.Close() }()
	have, err := netns.Current()
	if err != nil {
		return err
	}
	defer func() { _ = have.Close() }()
	same, err := want.Same(have)
	if err != nil {
		return err
	}
	if same {
		return os.Unsetenv(enteredEnv)
	}
	if os.Getenv(enteredEnv) != "" {
		return fmt.Errorf("enter circuit namespace %s: executing again did not enter it", inst.Namespace())
	}
	// The thread is never unlocked: on success the image is gone, on failure the
	// process ends with an error.
	runtime.LockOSThread()
	if err := unix.Setns(want.FD(), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter circuit namespace %s: %w", inst.Namespace(), err)
	}
	if err := unix.CloseRange(3, ^uint(0), unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return fmt.Errorf("close inherited files: %w", err)
	}
	err = unix.Exec(outlive.Self, os.Args, append(os.Environ(), enteredEnv+"=1"))
	return fmt.Errorf("execute again in circuit namespace %s: %w", inst.Namespace(), err)
}
