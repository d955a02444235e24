package netns

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// Spec is a process to start.
type Spec struct {
	// Name names the log file; a restart appends to it.
	Name string
	Path string
	Args []string
	// Env is added to this process's environment.
	Env []string
	// Stdin is read until it ends; nil for none.
	Stdin io.Reader
	// Stdout takes standard output instead of the log file.
	Stdout io.Writer
}

// Process is a process that runs in a lab.
type Process struct {
	name string
	log  string
	cmd  *exec.Cmd
	done chan struct{}
	err  error
}

// Start starts a process in a host's namespace. It shares this process's
// mounts, as with `nsenter --net`, but not its session, so that Ctrl-C
// reaches only the caller, which closes the lab in order.
func (l *Lab) Start(h Host, s Spec) (*Process, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil, fmt.Errorf("start %s: the lab is closed", s.Name)
	}
	p := &Process{name: s.Name, log: filepath.Join(l.dir, s.Name+".log"), done: make(chan struct{})}
	logFile, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("open the log of %s: %w", s.Name, err)
	}
	defer func() { _ = logFile.Close() }()
	p.cmd = exec.Command(s.Path, s.Args...)
	p.cmd.Env = append(os.Environ(), s.Env...)
	p.cmd.Dir = l.dir
	p.cmd.Stdin, p.cmd.Stdout, p.cmd.Stderr = s.Stdin, logFile, logFile
	if s.Stdout != nil {
		p.cmd.Stdout = s.Stdout
	}
	// A session of its own, as every daemon has: the scheduler shares the
	// processors among sessions (CONFIG_SCHED_AUTOGROUP), so that a daemon that
	// shared the caller's would be measured as something else.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	// A daemon may leave children that keep the pipes open.
	p.cmd.WaitDelay = time.Second
	if err := Do(l.Namespace(h), p.cmd.Start); err != nil {
		return nil, fmt.Errorf("start %s on %s: %w", s.Name, h, err)
	}
	if start, ok := startTime(p.PID()); ok {
		l.record.Processes = append(l.record.Processes, identity{PID: p.PID(), Start: start})
	}
	l.processes = append(l.processes, p)
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	return p, l.record.save(l.id)
}

// PID is the process's id.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// LogPath is where its output goes.
func (p *Process) LogPath() string { return p.log }

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Alive reports whether the process has not ended.
func (p *Process) Alive() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// Wait blocks until the process has ended, and returns how.
func (p *Process) Wait(ctx context.Context) error {
	select {
	case <-p.done:
		return p.err
	case <-ctx.Done():
		return fmt.Errorf("wait for %s: %w", p.name, ctx.Err())
	}
}

// Kill ends the process with SIGKILL and waits for that.
func (p *Process) Kill() { p.kill(); <-p.done }

func (p *Process) kill() { _ = p.cmd.Process.Kill() }

// Freeze stops the process where it is, until Thaw.
func (p *Process) Freeze() error { return p.signal(syscall.SIGSTOP) }

// Thaw has it go on.
func (p *Process) Thaw() error { return p.signal(syscall.SIGCONT) }

func (p *Process) signal(s syscall.Signal) error {
	if err := p.cmd.Process.Signal(s); err != nil {
		return fmt.Errorf("send %s to %s: %w", s, p.name, err)
	}
	return nil
}

// Stop asks the process to end with SIGTERM and waits; after patience it
// kills it and says so. How a process answers a SIGTERM is its own business:
// its exit status is not an error.
func (p *Process) Stop(patience time.Duration) error {
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stop %s: %w", p.name, err)
	}
	select {
	case <-p.done:
		return nil
	case <-time.After(patience):
		p.Kill()
		return fmt.Errorf("stop %s: it did not end within %s of SIGTERM and was killed", p.name, patience)
	}
}

// Output is what a program that has ended said.
type Output struct {
	Stdout, Stderr string
}

// Run runs a program to its end on a host. The error carries what it wrote to
// standard error.
func (l *Lab) Run(ctx context.Context, h Host, s Spec) (Output, error) {
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, s.Path, s.Args...)
	cmd.Env = append(os.Environ(), s.Env...)
	cmd.Dir = l.dir
	cmd.Stdin, cmd.Stdout, cmd.Stderr = s.Stdin, &stdout, &stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 2 * time.Second
	err := Do(l.Namespace(h), cmd.Start)
	if err == nil {
		err = cmd.Wait()
	}
	out := Output{Stdout: stdout.String(), Stderr: stderr.String()}
	if err != nil {
		return out, fmt.Errorf("run %s on %s: %w: %s", filepath.Base(s.Path), h, err, bytes.TrimSpace(stderr.Bytes()))
	}
	return out, nil
}
