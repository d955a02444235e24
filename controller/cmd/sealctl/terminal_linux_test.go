package main

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// terminal is a pseudo-terminal: what is written to the second is read from the
// first.
func terminal(t *testing.T) (master, slave *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil && os.Getenv("CI") == "true" {
		t.Fatalf("no pseudo-terminals here: %v", err)
	}
	if err != nil {
		t.Skipf("no pseudo-terminals here: %v", err)
	}
	t.Cleanup(func() { _ = master.Close() })
	fd := int(master.Fd())
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = slave.Close() })
	return master, slave
}

// on runs a command whose output is a terminal; the result is what it drew.
func on(t *testing.T, args ...string) string {
	t.Helper()
	master, slave := terminal(t)
	if code := run(t.Context(), args, strings.NewReader(""), slave, slave); code != exitOK {
		t.Errorf("exit code %d", code)
	}
	b := make([]byte, 64<<10)
	n, err := master.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	return string(b[:n])
}

func TestColoursOnlyOnATerminal(t *testing.T) {
	t.Setenv("NO_COLOR", "")
	t.Setenv("TERM", "xterm")
	const escape = "\x1b["
	if got := on(t, "explain"); !strings.Contains(got, escape+"1mKIND") {
		t.Errorf("on a terminal: %q", got)
	}
	if got := on(t, "explain", "--color", "never"); strings.Contains(got, escape) {
		t.Errorf("--color never: %q", got)
	}
	if got := must(t, "", "explain"); strings.Contains(got, escape) {
		t.Errorf("into a pipe: %q", got)
	}
	if got := must(t, "", "explain", "--color", "always"); !strings.Contains(got, escape) {
		t.Errorf("--color always: %q", got)
	}
	t.Setenv("NO_COLOR", "1")
	if got := on(t, "explain"); strings.Contains(got, escape) {
		t.Errorf("NO_COLOR: %q", got)
	}
	if code, _, stderr := sealctl(t, "", "explain", "--color", "blue"); code != exitUsage || !strings.Contains(stderr, "want auto, always or never") {
		t.Errorf("exit code %d: %s", code, stderr)
	}
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = null.Close() }()
	if isTerminal(null) {
		t.Error("the null device is taken for a terminal")
	}
}

func TestProgressOnlyOnATerminal(t *testing.T) {
	master, slave := terminal(t)
	p := startProgress(slave, "counting sheep")
	b := make([]byte, 1<<10)
	n, err := master.Read(b)
	if err != nil || !strings.Contains(string(b[:n]), clearLine+"counting sheep (") {
		t.Errorf("got %q, %v", b[:n], err)
	}
	p.end()
	if n, err = master.Read(b); err != nil || !strings.HasSuffix(string(b[:n]), clearLine) {
		t.Errorf("at the end: %q, %v", b[:n], err)
	}
	var pipe strings.Builder
	p = startProgress(&pipe, "counting sheep")
	p.say("%d sheep", 2)
	time.Sleep(2 * progressAfter)
	p.end()
	if pipe.Len() > 0 {
		t.Errorf("into a pipe: %q", &pipe)
	}
}
