package kernelvm

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// Config is what Run needs.
type Config struct {
	Kernel Kernel
	// Init is the program vminit.
	Init string
	// Share is a directory, which is made and emptied: order, exits, console log,
	// and whatever jobs write there; the guest has it at the same path.
	Share string
	// Dirs are directories to make in the share.
	Dirs []string
	// Accel is QEMU's accelerator: "tcg", or "kvm" where that works.
	Accel string
	// Limit ends a run. Dead is how long a guest may give no sign of life, two
	// minutes if it is 0: an emulated processor on a busy host stands still at
	// times.
	Limit, Dead time.Duration
	// Output gets what jobs write, as they write it.
	Output io.Writer
}

// The machine. Two processors, since what is tested is full of concurrency.
const (
	processors = "2"
	memoryMiB  = "4096"
)

// ConsoleFile is the kernel's own log in the share.
const ConsoleFile = "console.log"

// A GuestError means that the guest did not run its order to the end. Console
// is the last of what its kernel said.
type GuestError struct {
	Reason  string
	Console string
}

func (e *GuestError) Error() string {
	return fmt.Sprintf("the virtual machine %s; its console's end:\n%s", e.Reason, e.Console)
}

// Run boots a guest, has it run jobs one after another, and returns how each
// that was begun ended. It blocks until the guest is gone. The error is a
// *GuestError when the guest panicked, hung or was out of time; a job that
// failed is none.
func Run(ctx context.Context, c Config, jobs []Job) ([]Exit, error) {
	qemu, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		return nil, errors.New("there is no qemu-system-x86_64: install the Debian package qemu-system-x86 (`make lab-kernel` does)")
	}
	if c.Share, err = filepath.Abs(c.Share); err != nil {
		return nil, fmt.Errorf("make the share: %w", err)
	}
	for _, path := range []string{c.Share, c.Kernel.Modules} {
		if strings.ContainsAny(path, " \t\n\"") {
			return nil, fmt.Errorf("the path %q cannot be told to a kernel: want one without spaces and quotes", path)
		}
	}
	if err := prepare(c, jobs); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, c.Limit, fmt.Errorf("was stopped: it had not ended within %s", c.Limit))
	defer cancel()
	ctx, hung := context.WithCancelCause(ctx)
	defer hung(nil)
	if c.Dead == 0 {
		c.Dead = 2 * time.Minute
	}
	go watch(ctx, c, func() { hung(fmt.Errorf("hung: it gave no sign of life for %s", c.Dead)) })

	cmd := exec.CommandContext(ctx, qemu, arguments(c)...)
	cmd.Stdout = c.Output
	var complaint bytes.Buffer
	cmd.Stderr = &complaint
	// An interrupt of the terminal is ours to handle.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = 5 * time.Second
	err = cmd.Run()
	exits, exitsErr := readExits(c.Share)
	if exitsErr != nil {
		return exits, exitsErr
	}
	if _, statErr := os.Stat(filepath.Join(c.Share, DoneFile)); statErr == nil {
		if len(exits) != len(jobs) {
			return exits, fmt.Errorf("the virtual machine did not say how %s ended", jobs[min(len(exits), len(jobs)-1)].Name)
		}
		return exits, nil
	}
	reason := "ended before its order was done"
	switch {
	case ctx.Err() != nil:
		reason = context.Cause(ctx).Error()
		if errors.Is(ctx.Err(), context.Canceled) && errors.Is(context.Cause(ctx), context.Canceled) {
			return exits, ctx.Err()
		}
	case err != nil:
		reason = fmt.Sprintf("could not be run: %v: %s", err, bytes.TrimSpace(complaint.Bytes()))
	}
	console := tail(filepath.Join(c.Share, ConsoleFile), 60)
	if strings.Contains(console, "Kernel panic") {
		reason = "panicked"
	}
	return exits, &GuestError{Reason: reason, Console: console}
}

func prepare(c Config, jobs []Job) error {
	if err := os.RemoveAll(c.Share); err != nil {
		return fmt.Errorf("empty the share: %w", err)
	}
	if err := os.MkdirAll(c.Share, 0o755); err != nil {
		return fmt.Errorf("make the share: %w", err)
	}
	for _, d := range c.Dirs {
		if err := os.MkdirAll(filepath.Join(c.Share, d), 0o755); err != nil {
			return fmt.Errorf("make the share: %w", err)
		}
	}
	b, err := json.MarshalIndent(Order{jobs}, "", "  ")
	if err != nil {
		return fmt.Errorf("write the order: %w", err)
	}
	if err := os.WriteFile(filepath.Join(c.Share, OrderFile), append(b, '\n'), 0o644); err != nil {
		return fmt.Errorf("write the order: %w", err)
	}
	return initramfs(filepath.Join(c.Share, "initramfs"), c.Init, c.Kernel)
}

// arguments are QEMU's. A panic or an oops ends the machine, since -no-reboot
// makes of a reboot an end.
func arguments(c Config) []string {
	accel := c.Accel
	if accel == "tcg" {
		accel = "tcg,thread=multi"
	}
	kernel := strings.Join([]string{
		"console=ttyS0", "panic=-1", "oops=panic", "quiet", "mitigations=off",
		ShareParam + "=" + c.Share, ModulesParam + "=" + c.Kernel.Modules,
	}, " ")
	return []string{
		"-accel", accel, "-cpu", "max", "-smp", processors, "-m", memoryMiB,
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-kernel", c.Kernel.Image, "-initrd", filepath.Join(c.Share, "initramfs"), "-append", kernel,
		"-serial", "file:" + filepath.Join(c.Share, ConsoleFile), "-serial", "stdio",
		"-virtfs", "local,path=/,mount_tag=" + RootTag + ",security_model=none,readonly=on,multidevs=remap",
		"-virtfs", "local,path=" + strings.ReplaceAll(c.Share, ",", ",,") + ",mount_tag=" + ShareTag + ",security_model=none,multidevs=remap",
	}
}

func readExits(share string) ([]Exit, error) {
	f, err := os.Open(filepath.Join(share, ExitsFile))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read what the guest did: %w", err)
	}
	defer func() { _ = f.Close() }()
	var exits []Exit
	scan := bufio.NewScanner(f)
	for scan.Scan() {
		var e Exit
		if err := json.Unmarshal(scan.Bytes(), &e); err != nil {
			// The guest died while it wrote.
			return exits, nil //nolint:nilerr // the job counts as not ended
		}
		exits = append(exits, e)
	}
	if err := scan.Err(); err != nil {
		return exits, fmt.Errorf("read what the guest did: %w", err)
	}
	return exits, nil
}

// tail is the end of a log.
func tail(path string, lines int) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimSpace(strings.ReplaceAll(string(b), "\r", "")), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// watch calls dead when a guest that had begun to beat has stopped, or has not
// begun.
func watch(ctx context.Context, c Config, dead func()) {
	began := time.Now()
	for tick := time.NewTicker(min(BeatPeriod, c.Dead)); ; {
		select {
		case <-ctx.Done():
			tick.Stop()
			return
		case <-tick.C:
		}
		last := began
		if info, err := os.Stat(filepath.Join(c.Share, BeatFile)); err == nil {
			last = info.ModTime()
		}
		if time.Since(last) > c.Dead {
			dead()
			return
		}
	}
}
