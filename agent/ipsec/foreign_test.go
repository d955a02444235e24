package ipsec

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/circuitseal/circuitseal/agent/plan"
)

// A charon that somebody else runs in the circuit namespace is used, and nothing of it
// is touched but what carries the instance's prefix.
func TestForeignCharon(t *testing.T) {
	backends(t, func(t *testing.T, b Backend) {
		p := newPair(t)
		dir := t.TempDir()
		socket, config := filepath.Join(dir, "vici"), filepath.Join(dir, "strongswan.conf")
		if err := writeConfig(config, configuration(b, socket)); err != nil {
			t.Fatal(err)
		}
		path, err := findDaemon()
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(path)
		cmd.Env = []string{"PATH=/usr/sbin:/usr/bin", "STRONGSWAN_CONF=" + config}
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS}
		if err := p.a.circuit.Do(cmd.Start); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = cmd.Process.Signal(unix.SIGTERM)
			_ = cmd.Wait()
		})
		var c *client
		for end := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
			if c, err = dial(t.Context(), socket, p.a.circuit); err == nil {
				break
			}
			if !errors.Is(err, errNotRunning) || time.Now().After(end) {
				t.Fatal(err)
			}
		}
		defer func() { _ = c.Close() }()
		if _, err := c.call(t.Context(), "load-conn", section("home", section("local_addrs", []string{"198.51.100.1"}))); err != nil {
			t.Fatal(err)
		}
		if _, err := c.call(t.Context(), "load-shared", section("id", "home", "type", "ike", "data", "secret")); err != nil {
			t.Fatal(err)
		}
		p.a.run(t)
		p.b.run(t)
		a, z := p.plans(t)
		a.Socket = socket
		p.b.sync(t, z)
		p.a.sync(t, a)
		p.awaitUp(t)
		p.mustCarry(t)
		if _, err := os.Stat(p.a.inst.CharonSocket()); !os.IsNotExist(err) {
			t.Errorf("the instance has a charon of its own: %v", err)
		}
		p.a.sync(t, plan.IPsec{Socket: socket})
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		d := New(Config{Instance: p.a.inst})
		d.open = c
		have, err := d.readHeld(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(have.connections, []string{"home"}) || !slices.Equal(have.secrets, []string{"home"}) {
			t.Errorf("it has %v and %v left, want home's", have.connections, have.secrets)
		}
	})
}
