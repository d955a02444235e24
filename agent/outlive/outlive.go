// Package outlive starts processes that go on when their starter ends: each has a
// session of its own, / as its directory, a log file, and no other open file. It
// knows how to tell that one is ready, from a function that asks it. It refuses to
// know what they do.
package outlive

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// logLimit is when a log has become long.
const logLimit = 1 << 20

// Self executes the running program: os.Executable's path is gone, or another
// build, after an upgrade.
const Self = "/proc/self/exe"

// Process is what is to be started.
type Process struct {
	// Name is for people, with its article.
	Name    string
	Command []string
	// Log takes what it writes; a file that has become long begins anew.
	Log string
	// Timeout is how long it may take until it answers.
	Timeout time.Duration
	// Answers is nil when the process is ready.
	Answers func(ctx context.Context) error
}

// Start starts p and returns when it answers. It reads what begins with
// CIRCUITSEAL_ from the environment, except what is named, and its PATH.
func (p Process) Start(ctx context.Context, log *slog.Logger, except ...string) error {
	output, err := openLog(p.Log)
	if err != nil {
		return fmt.Errorf("start %s: %w", p.Name, err)
	}
	defer func() { _ = output.Close() }()
	// Not CommandContext: the process must not end with its starter's context.
	cmd := exec.Command(p.Command[0], p.Command[1:]...)
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = output, output
	cmd.Env = environment(except)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", p.Name, err)
	}
	log.Info("process started", "process", p.Name, "pid", cmd.Process.Pid)
	ended := make(chan error, 1)
	go func() {
		err := cmd.Wait()
		log.Info("process ended", "process", p.Name, "pid", cmd.Process.Pid, "status", cmd.ProcessState.String())
		ended <- err
	}()
	return p.await(ctx, ended)
}

func (p Process) await(ctx context.Context, ended <-chan error) error {
	ctx, cancel := context.WithTimeout(ctx, p.Timeout)
	defer cancel()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		err := p.Answers(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("start %s: no answer within %s: %w", p.Name, p.Timeout, err)
		case end := <-ended:
			// Another starter may have been faster.
			if p.Answers(ctx) == nil {
				return nil
			}
			return fmt.Errorf("start %s: it ended (%w); the end of %s: %s", p.Name, orDone(end), p.Log, lastLine(p.Log))
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
func environment(except []string) []string {
	var env []string
next:
	for _, e := range os.Environ() {
		name, _, _ := strings.Cut(e, "=")
		for _, x := range except {
			if name == x {
				continue next
			}
		}
		if name == "PATH" || strings.HasPrefix(name, "CIRCUITSEAL_") {
			env = append(env, e)
		}
	}
	return env
}

func openLog(path string) (*os.File, error) {
	if err := TrimLog(path); err != nil {
		return nil, err
	}
	return os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
}

// TrimLog begins a log anew that has become long; none is none. Its writers append,
// and so go on at its beginning. What it said is kept beside it, with the ending ".old",
// in place of what was kept before.
func TrimLog(path string) error {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.Size() <= logLimit:
		return nil
	}
	text, err := os.ReadFile(path)
	if err == nil {
		err = os.WriteFile(path+".old", text, 0o600)
	}
	if err != nil {
		err = fmt.Errorf("keep what a long log says: %w", err)
	}
	// A full disk must not make it longer.
	return errors.Join(err, os.Truncate(path, 0))
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
