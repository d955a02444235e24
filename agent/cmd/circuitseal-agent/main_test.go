package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// asCommand in the environment makes this test's binary the command itself.
const asCommand = "CIRCUITSEAL_TEST_AS_AGENT"

func TestMain(m *testing.M) {
	if os.Getenv(asCommand) != "" {
		os.Exit(run(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
	}
	os.Exit(m.Run())
}

func TestCommandLine(t *testing.T) {
	whole := []string{"enroll", "--controller", "https://controller:8443", "--token-file", "t", "--root-pin", "sha256:" + strings.Repeat("ab", 32)}
	without := func(flag string) []string {
		for i, a := range whole {
			if a == flag {
				return append(whole[:i:i], whole[i+2:]...)
			}
		}
		return nil
	}
	tests := []struct {
		name string
		args []string
		code int
		out  string
		err  string
	}{
		{"version", []string{"--version"}, 0, "version unknown", ""},
		{"help", nil, 0, "Exit status: 0 ok", ""},
		{"unknown command", []string{"enrol"}, 2, "", `there is no command "enrol"; did you mean "enroll"?`},
		{"unknown flag", []string{"run", "--moon"}, 2, "", "unknown flag: --moon"},
		{"argument", []string{"run", "moon"}, 2, "", "moon"},
		{"instance", []string{"run", "--instance", "UPPER"}, 2, "", "--instance: "},
		{"log level", []string{"run", "--log-level", "loud"}, 2, "", "want debug, info"},
		{"log format", []string{"run", "--log-format", "xml"}, 2, "", "want text or json"},
		{"output", []string{"status", "-o", "xml"}, 2, "", "want table or json"},
		{"no controller", without("--controller"), 2, "", "--controller is required"},
		{"no token", without("--token-file"), 2, "", "--token-file is required"},
		{"no pin", without("--root-pin"), 2, "", "--root-pin is required"},
		{"controller without a host", append(whole[:1:1], append([]string{"--controller", "https://:8443"}, whole[3:]...)...), 2, "", "--controller: "},
		{"malformed pin", append(whole[:5:5], "--root-pin", "sha256:00"), 2, "", "--root-pin: "},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var out, e bytes.Buffer
			if code := run(t.Context(), tt.args, strings.NewReader(""), &out, &e); code != tt.code || !strings.Contains(out.String(), tt.out) || !strings.Contains(e.String(), tt.err) {
				t.Errorf("exit code %d, want %d\nstdout: %s\nstderr: %s", code, tt.code, &out, &e)
			}
		})
	}
}

// What needs root says so, instead of what it stumbled over.
func TestOtherUsersAreToldThatRootIsNeeded(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("becoming another user needs root")
		}
		t.Skip("becoming another user needs root")
	}
	// Where that user can reach it.
	dir := t.TempDir()
	binary := filepath.Join(dir, "circuitseal-agent")
	for _, d := range []string{dir, filepath.Dir(dir)} {
		if err := os.Chmod(d, 0o711); err != nil { //nolint:gosec // another user is to get there
			t.Fatal(err)
		}
	}
	from, err := os.Open(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = from.Close() }()
	to, err := os.OpenFile(binary, os.O_WRONLY|os.O_CREATE, 0o755) //nolint:gosec // another user is to run it
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(to, from); err != nil {
		t.Fatal(err)
	}
	if err := to.Close(); err != nil {
		t.Fatal(err)
	}
	for _, command := range []string{"plan", "wireguard", "run"} {
		c := exec.CommandContext(t.Context(), binary, command)
		c.Dir, c.Env = "/", append(os.Environ(), asCommand+"=1")
		c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		out, err := c.CombinedOutput()
		exit := new(exec.ExitError)
		if !errors.As(err, &exit) || exit.ExitCode() != 1 || !strings.Contains(string(out), "must run as root") {
			t.Errorf("%s: %v: %s", command, err, out)
		}
	}
}

func TestUnreadableIdentityIsKept(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "identity")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "identity.json")
	if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := place(dir, false); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("without --force: %v, want an error that names %s", err, path)
	}
	if target, err := place(dir, true); err != nil || target != dir+".next" {
		t.Errorf("with --force: %q, %v", target, err)
	}
	if target, err := place(filepath.Join(dir, "none"), false); err != nil || target != filepath.Join(dir, "none") {
		t.Errorf("not enrolled: %q, %v", target, err)
	}
}
