package wireguard

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/circuitseal/circuitseal/agent/instance"
	"github.com/circuitseal/circuitseal/agent/netns"
)

const (
	// enteredEnv stops a process that cannot get into its namespace from
	// executing itself for ever.
	enteredEnv = "CIRCUITSEAL_WIREGUARD_ENTERED"

	self = "/proc/self/exe"
	// startTimeout is how long a new process may take until it answers.
	startTimeout = 5 * time.Second
	logLimit     = 1 << 20
)

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
		// Not os.Executable: after an upgrade its path is gone or another build.
		command = []string{self, "wireguard", "--instance", string(inst)}
	}
	if err := os.MkdirAll(inst.RunDir(), 0o700); err != nil {
		return fmt.Errorf("make run directory: %w", err)
	}
	path := filepath.Join(inst.RunDir(), "wireguard.log")
	output, err := openLog(path)
	if err != nil {
		return fmt.Errorf("start the WireGuard process: %w", err)
	}
	defer func() { _ = output.Close() }()
	// Not CommandContext: the process must not end with its starter's context.
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = output, output
	cmd.Env = environment()
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start the WireGuard process: %w", err)
	}
	log.Info("WireGuard process started", "pid", cmd.Process.Pid)
	ended := make(chan error, 1)
	go func() {
		err := cmd.Wait()
		log.Info("WireGuard process ended", "pid", cmd.Process.Pid, "status", cmd.ProcessState.String())
		ended <- err
	}()
	return awaitAnswer(ctx, inst, ended, path)
}

func awaitAnswer(ctx context.Context, inst instance.Instance, ended <-chan error, path string) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		c, err := dial(ctx, inst)
		if err == nil {
			return c.Close()
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("start the WireGuard process: no answer within %s: %w", startTimeout, err)
		case end := <-ended:
			// Another starter may have been faster.
			if c, err := dial(ctx, inst); err == nil {
				return c.Close()
			}
			return fmt.Errorf("start the WireGuard process: it ended (%w); the end of %s: %s", orDone(end), path, lastLine(path))
		case <-tick.C:
		}
	}
}

func orDone(err error) error {
	if err == nil {
		return errors.New("exit status 0")
	}
	return err
}

// environment keeps what the process reads and nothing that the caller's
// service manager meant for the caller.
func environment() []string {
	var env []string
	for _, e := range os.Environ() {
		name, _, _ := strings.Cut(e, "=")
		if name == "PATH" || strings.HasPrefix(name, "CIRCUITSEAL_") && name != enteredEnv {
			env = append(env, e)
		}
	}
	return env
}

func openLog(path string) (*os.File, error) {
	flags := os.O_WRONLY | os.O_CREATE | os.O_APPEND
	if info, err := os.Stat(path); err == nil && info.Size() > logLimit {
		flags |= os.O_TRUNC
	}
	return os.OpenFile(path, flags, 0o600)
}

func lastLine(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	b = bytes.TrimSpace(b)
	b = b[bytes.LastIndexByte(b, '\n')+1:]
	return string(b[:min(len(b), 500)])
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
	err = unix.Exec(self, os.Args, append(os.Environ(), enteredEnv+"=1"))
	return fmt.Errorf("execute again in circuit namespace %s: %w", inst.Namespace(), err)
}
