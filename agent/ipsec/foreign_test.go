package ipsec

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/strongswan/govici/vici"
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
		// It lets an IKE SA have several ESP SAs.
		settings := strings.Replace(configuration(b, socket), "reuse_ikesa = no", "reuse_ikesa = yes", 1)
		if err := writeConfig(config, settings); err != nil {
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
		stop := p.a.start(t)
		p.b.run(t)
		a, z := p.plans(t)
		a.Socket = socket
		p.b.sync(t, z)
		p.a.sync(t, a)
		p.awaitUp(t)
		p.mustCarry(t)
		// It differs, or charon would see that there is one like it.
		name := p.a.one(t).name
		m := p.a.driver.tunnels[7].connection.message
		children := m.Get(name).(*vici.Message).Get("children").(*vici.Message)
		first, second := children.Get(children.Keys()[0]).(*vici.Message), section("inactivity", "1h")
		for _, key := range first.Keys() {
			put(second, key, first.Get(key))
		}
		put(children, "second", second)
		if _, err := c.call(t.Context(), "load-conn", m); err != nil {
			t.Fatal(err)
		}
		if _, err := c.call(t.Context(), "initiate", section("ike", name, "child", "second", "timeout", "-1")); err != nil {
			t.Fatal(err)
		}
		for _, e := range []*end{p.a, p.b} {
			e.awaitChildren(t, 2)
		}
		for _, e := range []*end{p.a, p.b} {
			e.awaitChildren(t, 1)
		}
		p.mustCarry(t)
		if _, err := os.Stat(p.a.inst.CharonSocket()); !os.IsNotExist(err) {
			t.Errorf("the instance has a charon of its own: %v", err)
		}
		left := func(when string) {
			t.Helper()
			d := New(Config{Instance: p.a.inst})
			d.open = c
			have, err := d.readHeld(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(have.connections, []string{"home"}) || !slices.Equal(have.secrets, []string{"home"}) || len(have.keys) != 0 {
				t.Errorf("%s: it has %v, %v and %v left, want home's", when, have.connections, have.secrets, have.keys)
			}
			all, err := d.listSAs(t.Context())
			if err != nil || len(all) != 0 {
				t.Errorf("%s: it has SAs %v, %v", when, all, err)
			}
		}
		p.a.sync(t, plan.IPsec{Socket: socket})
		left("without tunnels")
		p.a.sync(t, a)
		p.awaitUp(t)
		// As `circuitseal-agent remove`, which knows of no policy.
		stop()
		p.a.restart()
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		if err := p.a.driver.Remove(ctx); err != nil {
			t.Error(err)
		}
		left("removed")
		if _, err := os.Stat(p.a.driver.guestsFile()); !os.IsNotExist(err) {
			t.Errorf("it still counts as used: %v", err)
		}
	})
}

// awaitChildren waits until its only IKE SA has so many ESP SAs that carry packets.
func (e *end) awaitChildren(t *testing.T, n int) {
	t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		sas := e.sas(t)
		if len(sas) == 1 && len(sas[0].carriers()) == n {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%s has %+v, want %d ESP SAs", e.inst, sas, n)
		}
	}
}
