package main

import (
	"bytes"
	"net"
	"path/filepath"
	"strings"
	"testing"
)

func TestCommandLine(t *testing.T) {
	file := filepath.Join(t.TempDir(), "none", "data")
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
		{"data directory", []string{"--data-dir", file, "--listen", "127.0.0.1:0"}, 1, "", file},
		{"name", []string{"--data-dir", filepath.Join(t.TempDir(), "d"), "--listen", "127.0.0.1:0", "--name", "a_b"}, 1, "", `server name "a_b"`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var out, e bytes.Buffer
			if code := run(tt.args, &out, &e); code != tt.code || !strings.Contains(out.String(), tt.out) || !strings.Contains(e.String(), tt.err) {
				t.Errorf("exit code %d, want %d\nstdout: %s\nstderr: %s", code, tt.code, &out, &e)
			}
		})
	}
}

func TestNotify(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	if err := notify(path, "READY=1"); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 64)
	n, err := l.Read(b)
	if err != nil || string(b[:n]) != "READY=1" {
		t.Errorf("got %q, %v", b[:n], err)
	}
	if err := notify("", "READY=1"); err != nil {
		t.Errorf("without a socket: %v", err)
	}
}
