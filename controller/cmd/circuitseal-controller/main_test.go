package main

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/circuitseal/circuitseal/proto/sealed"
)

func TestCommandLine(t *testing.T) {
	file := filepath.Join(t.TempDir(), "none", "data")
	key := filepath.Join(t.TempDir(), "key")
	if err := sealed.Generate(key, time.Now()); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name     string
		args     []string
		code     int
		out, err string
	}{
		{"version", []string{"--version"}, 0, "version unknown", ""},
		{"help", []string{"--help"}, 0, "/var/lib/circuitseal-controller", ""},
		{"unknown flag", []string{"--moon"}, 2, "", "unknown flag: --moon"},
		{"argument", []string{"moon"}, 2, "", `got ["moon"]`},
		{"log format", []string{"--log-format", "xml"}, 2, "", "want text or json"},
		{"log level", []string{"--log-level", "loud"}, 2, "", "want debug, info"},
		{"data directory", []string{"--data-dir", file, "--secret-key-file", key, "--listen", "127.0.0.1:0"}, 1, "", file},
		{"name", []string{"--data-dir", filepath.Join(t.TempDir(), "d"), "--listen", "127.0.0.1:0", "--name", "a_b"}, 2, "", `server name "a_b"`},
		{"address as a name", []string{"--name", "https://seal.example"}, 2, "", "--name"},
		{"advertised without a scheme", []string{"--advertise", "seal.example:8443"}, 2, "", `--advertise "seal.example:8443": want the address by which agents reach this controller`},
		{"advertised wildcard", []string{"--advertise", "https://*.example:8443"}, 2, "", "--advertise"},
		{"no data directory", []string{"--data-dir", ""}, 2, "", "--data-dir is empty"},
		{"port without a colon", []string{"--listen", "18443"}, 2, "", `--listen "18443" is no address`},
		{"port too high", []string{"--listen", ":99999"}, 2, "", "such as :8443"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var out, e bytes.Buffer
			if code := run(tt.args, &out, &e); code != tt.code || !strings.Contains(out.String(), tt.out) || !strings.Contains(e.String(), tt.err) {
				t.Errorf("exit code %d, want %d\nstdout: %s\nstderr: %s", code, tt.code, &out, &e)
			}
			if tt.code == 2 && strings.Contains(e.String(), "starting") {
				t.Errorf("it started before it looked at its flags:\n%s", &e)
			}
		})
	}
}

// asCommand in the environment makes this test's binary the command itself.
const asCommand = "CIRCUITSEAL_TEST_AS_CONTROLLER"

func TestMain(m *testing.M) {
	if os.Getenv(asCommand) != "" {
		os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
	}
	os.Exit(m.Run())
}

// A database that cannot be used ends the controller with a sentence and exit
// code 1, and not with the stacks of what it is built on.
func TestDamagedDatabase(t *testing.T) {
	key := filepath.Join(t.TempDir(), "key")
	if err := sealed.Generate(key, time.Now()); err != nil {
		t.Fatal(err)
	}
	command := func(ctx context.Context, dir string) *exec.Cmd {
		c := exec.CommandContext(ctx, os.Args[0], "--data-dir", dir, "--secret-key-file", key, "--listen", "127.0.0.1:0")
		c.Env = append(os.Environ(), asCommand+"=1")
		return c
	}
	// whole is a data directory of a controller that has run.
	whole := filepath.Join(t.TempDir(), "data")
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	first := command(t.Context(), whole)
	first.Env = append(first.Env, "NOTIFY_SOCKET="+socket)
	if err := first.Start(); err != nil {
		t.Fatal(err)
	}
	// A service manager is told when the controller serves.
	if err := l.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	told := make([]byte, 64)
	if n, err := l.Read(told); err != nil || string(told[:n]) != "READY=1" {
		t.Fatalf("the service manager was told %q, %v", told[:n], err)
	}
	if err := errors.Join(first.Process.Signal(os.Interrupt), first.Wait()); err != nil {
		t.Fatal(err)
	}

	database := filepath.Join("etcd", "member", "snap", "db")
	log := filepath.Join("etcd", "member", "wal", "0000000000000000-0000000000000000.wal")
	tests := []struct {
		name, file string
		damage     func(db *os.File) error
	}{
		{"emptied", database, func(db *os.File) error { return db.Truncate(1) }},
		{"zeros at its start", database, func(db *os.File) error { _, err := db.WriteAt(make([]byte, 64<<10), 0); return err }},
		{"replaced by a directory", database, func(db *os.File) error {
			return errors.Join(os.Remove(db.Name()), os.Mkdir(db.Name(), 0o700))
		}},
		{"garbage in the log", log, func(log *os.File) error { _, err := log.WriteAt(bytes.Repeat([]byte("x"), 64<<10), 0); return err }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "data")
			if err := os.CopyFS(dir, os.DirFS(whole)); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			db, err := os.OpenFile(filepath.Join(dir, tt.file), os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(tt.damage(db), db.Close()); err != nil {
				t.Fatal(err)
			}
			c := command(t.Context(), dir)
			var e strings.Builder
			c.Stderr = &e
			exit := new(exec.ExitError)
			if err := c.Run(); !errors.As(err, &exit) || exit.ExitCode() != 1 {
				t.Errorf("it ended with %v, want exit code 1", err)
			}
			lines := strings.Split(strings.TrimSpace(e.String()), "\n")
			last := lines[len(lines)-1]
			if !strings.HasPrefix(last, "circuitseal-controller: ") || !strings.Contains(last, dir) || !strings.Contains(last, "backup and start with --restored") ||
				strings.Contains(e.String(), "goroutine ") {
				t.Errorf("it said:\n%s", &e)
			}
		})
	}
}
