// Package guest is the init of the lab's virtual machine: it makes a root of the
// host's files and memory, runs the jobs of an order, and powers the machine
// off. It is the guest's first process and never returns.
package guest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/circuitseal/circuitseal/testlab/kernelvm"
)

// worker is the argument with which the init starts itself again, to run the
// jobs: who waits for jobs by name cannot be who waits for every orphan.
const worker = "work"

// Main never returns in the guest's first process.
func Main() {
	if len(os.Args) == 3 && os.Args[1] == worker {
		if err := work(os.Args[2]); err != nil {
			fmt.Println("vminit:", err)
			os.Exit(1)
		}
		return
	}
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "vminit: this is the first process of the lab's virtual machine; `make lab-kernel` starts it there")
		os.Exit(2)
	}
	if err := run(); err != nil {
		fmt.Println("vminit:", err)
	}
	unix.Sync()
	if err := unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF); err != nil {
		fmt.Println("vminit: power off:", err)
	}
	select {}
}

// run makes the root, starts the worker in it, and buries whoever dies until
// the worker has.
func run() error {
	if err := os.Setenv("PATH", path); err != nil {
		return err
	}
	if err := mountKernelFiles(); err != nil {
		return err
	}
	params, err := commandLine()
	if err != nil {
		return err
	}
	if err := loadModules(); err != nil {
		return err
	}
	share := params[kernelvm.ShareParam]
	if err := makeRoot(share, params[kernelvm.ModulesParam]); err != nil {
		return err
	}
	if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		return fmt.Errorf("bring the loopback up: %w: %s", err, out)
	}
	// The root that this program came from is out of sight.
	child, err := os.StartProcess("/proc/self/exe", []string{"vminit", worker, share}, &os.ProcAttr{
		Files: []*os.File{os.Stdin, os.Stdout, os.Stderr}, Sys: &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return fmt.Errorf("start the worker: %w", err)
	}
	go beat(filepath.Join(share, kernelvm.BeatFile))
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return fmt.Errorf("wait for the worker: %w", err)
		case pid == child.Pid && status.ExitStatus() != 0:
			return fmt.Errorf("the worker ended with %#x", status)
		case pid == child.Pid:
			return nil
		}
	}
}

// work runs the order in the share.
func work(share string) error {
	out, err := openOutput()
	if err != nil {
		return err
	}
	b, err := os.ReadFile(filepath.Join(share, kernelvm.OrderFile))
	if err != nil {
		return fmt.Errorf("read the order: %w", err)
	}
	var order kernelvm.Order
	if err := json.Unmarshal(b, &order); err != nil {
		return fmt.Errorf("read the order: %w", err)
	}
	for _, job := range order.Jobs {
		exit := perform(job, out)
		if err := drain(out); err != nil {
			return err
		}
		if err := record(filepath.Join(share, kernelvm.ExitsFile), exit); err != nil {
			return err
		}
	}
	if err := os.WriteFile(filepath.Join(share, kernelvm.DoneFile), nil, 0o644); err != nil {
		return fmt.Errorf("say that the order is done: %w", err)
	}
	return nil
}

// drain waits until what was written is on its way: nobody is to hear that a job
// ended before its last words. TCSBRK with 1 does that (ioctl_tty(2)); the
// runtime's own signals interrupt it.
func drain(out *os.File) error {
	for {
		err := unix.IoctlSetInt(int(out.Fd()), unix.TCSBRK, 1)
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("drain the output: %w", err)
		}
	}
}

// commandLine reads the parameters of the kernel's command line.
func commandLine() (map[string]string, error) {
	b, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return nil, fmt.Errorf("read the command line: %w", err)
	}
	params := map[string]string{}
	for f := range strings.FieldsSeq(string(b)) {
		key, value, _ := strings.Cut(f, "=")
		params[key] = value
	}
	for _, key := range []string{kernelvm.ShareParam, kernelvm.ModulesParam} {
		if params[key] == "" {
			return nil, fmt.Errorf("the command line has no %s", key)
		}
	}
	return params, nil
}

// openOutput opens the second serial line, whose other end is the host's
// standard output, as a plain stream of bytes.
func openOutput() (*os.File, error) {
	f, err := os.OpenFile("/dev/ttyS1", os.O_WRONLY|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, fmt.Errorf("open the output: %w", err)
	}
	t, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	if err == nil {
		t.Oflag &^= unix.OPOST
		err = unix.IoctlSetTermios(int(f.Fd()), unix.TCSETS, t)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open the output: %w", err), f.Close())
	}
	return f, nil
}

const path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// beat shows for ever that the guest lives. Should it fail, the host finds out.
func beat(path string) {
	for {
		_ = os.WriteFile(path, nil, 0o644)
		time.Sleep(kernelvm.BeatPeriod)
	}
}

// environment is all that jobs have of their own.
var environment = []string{
	"PATH=" + path, "HOME=/root", "LANG=C.UTF-8", "TERM=dumb",
}

// perform runs a job to its end in a session of its own.
func perform(job kernelvm.Job, out *os.File) kernelvm.Exit {
	exit := kernelvm.Exit{Name: job.Name, Code: -1}
	if len(job.Args) == 0 {
		exit.Problem = "the job names no program"
		return exit
	}
	if job.Announce {
		_, _ = fmt.Fprintln(out, "--", job.Name)
	}
	ctx := context.Background()
	if job.LimitSeconds > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(job.LimitSeconds*float64(time.Second)))
		defer cancel()
	}
	cmd := exec.CommandContext(ctx, job.Args[0], job.Args[1:]...)
	cmd.Dir, cmd.Env = job.Dir, append(append([]string(nil), environment...), job.Env...)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	began := time.Now()
	err := cmd.Run()
	exit.Seconds = time.Since(began).Seconds()
	var ended *exec.ExitError
	switch {
	case ctx.Err() != nil:
		exit.Problem = fmt.Sprintf("did not end within %.0f s", job.LimitSeconds)
	case err == nil:
		exit.Code = 0
	case errors.As(err, &ended):
		exit.Code = ended.ExitCode()
		if exit.Code < 0 {
			exit.Problem = ended.String()
		}
	default:
		exit.Problem = err.Error()
	}
	return exit
}

func record(path string, e kernelvm.Exit) error {
	b, err := json.Marshal(e)
	if err != nil {
		return fmt.Errorf("record an exit: %w", err)
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return fmt.Errorf("record an exit: %w", err)
	}
	_, err = f.Write(append(b, '\n'))
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("record an exit: %w", err)
	}
	return nil
}
