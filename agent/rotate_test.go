package agent

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/circuitseal/circuitseal/agent/identity"
	"github.com/circuitseal/circuitseal/proto/desired"
	"github.com/circuitseal/circuitseal/proto/sealed"
)

// refused runs an agent that must not come up, and returns why.
func refused(t *testing.T, c Config) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	err := Run(ctx, c)
	if err == nil || ctx.Err() != nil {
		t.Fatalf("the agent ran: %v", err)
	}
	return err.Error()
}

func says(t *testing.T, what, text string, words ...string) {
	t.Helper()
	for _, w := range words {
		if !strings.Contains(text, w) {
			t.Errorf("%s: %q, want %q in it", what, text, w)
		}
	}
}

// sealedBy tells whether all that is secret on the node is sealed with the first
// key of its file.
func (l *liar) sealedBy(t *testing.T) bool {
	t.Helper()
	ring, err := sealed.Load(l.config.secretKeyFile(), "")
	if err != nil {
		t.Fatal(err)
	}
	for path, place := range map[string]string{"identity/key.pem": "session key of a node", "last-good-state": "last good state\x00prem-1"} {
		b, err := os.ReadFile(filepath.Join(l.instance.StateDir(), path))
		if err != nil {
			t.Fatal(err)
		}
		if _, stale, err := ring.Open(place, b); err != nil || stale {
			t.Logf("%s: stale %t, %v", path, stale, err)
			return false
		}
	}
	return true
}

// revision is a run of the agent in which it takes the state of a revision, for
// a host that has none of its interfaces.
func (l *liar) revision(t *testing.T, n uint64) (run func(Config)) {
	t.Helper()
	state := desired.State{Interfaces: []desired.Interface{{Name: "none0", Role: desired.RoleCircuit}}}
	e := l.seal(t, desired.Header{Node: "prem-1", Position: desired.Position{Epoch: 1, Revision: n}, Issued: time.Now()}, state, l.by)
	return func(c Config) {
		t.Helper()
		stop := start(t, c)
		l.until(t, e, "the state is taken", func(s desired.Status) bool { return s.Acknowledged.Revision == n })
		stop()
	}
}

// After `secret-key rotate` and a restart the older key is of no use any more.
func TestSecretKeyRotates(t *testing.T) {
	l := newLiar(t)
	run := l.revision(t, 1)
	run(l.config)
	file := l.config.secretKeyFile()
	old, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := sealed.Rotate(file, time.Now()); err != nil {
		t.Fatal(err)
	}
	if l.sealedBy(t) {
		t.Error("what was sealed before is sealed with the new key")
	}
	run(l.config)
	if !l.sealedBy(t) {
		t.Error("after a start not everything is sealed with the new key")
	}
	both, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(both)), "\n")
	if err := os.WriteFile(file, []byte(strings.Join(lines[:len(lines)-1], "\n")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	run(l.config)
	// With the older one alone nothing starts, and nothing is changed.
	if err := os.WriteFile(file, old, 0o600); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(IdentityDir(l.instance), "key.pem")
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	says(t, "the older key alone", refused(t, l.config), path, "put the key that it was encrypted with into "+file)
	if after, err := os.ReadFile(path); err != nil || !bytes.Equal(after, before) {
		t.Errorf("the key was changed: %v", err)
	}
}

// A node whose secret key file is lost says what to do, and comes back by that:
// its last good state and its tunnels' keys are removed, and it enrols anew.
func TestBackAfterALostSecretKey(t *testing.T) {
	l := newLiar(t)
	l.revision(t, 1)(l.config)
	file := l.config.secretKeyFile()
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	state := filepath.Join(l.instance.StateDir(), "last-good-state")
	says(t, "run", refused(t, l.config), file, "remove "+state+" and "+keyDir(l.instance), "enroll --force")
	// Who looks needs no key.
	if p, err := identity.Describe(IdentityDir(l.instance)); err != nil || p.Node != "prem-1" {
		t.Errorf("described %v, %v", p, err)
	}
	for _, path := range []string{state, keyDir(l.instance)} {
		if err := os.RemoveAll(path); err != nil {
			t.Fatal(err)
		}
	}
	says(t, "run with the session key alone", refused(t, l.config), file, "enroll --force")
	dir := IdentityDir(l.instance)
	if err := identity.Clear(dir, dir+".next"); err != nil {
		t.Fatal(err)
	}
	l.enrol(t, dir+".next")
	if err := identity.Replace(dir, dir+".next"); err != nil {
		t.Fatal(err)
	}
	l.revision(t, 2)(l.config)
	if !l.sealedBy(t) {
		t.Error("not everything is sealed with the new key")
	}
	// Taking everything off needs none.
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if err := Remove(t.Context(), l.config, true); err != nil {
		t.Errorf("remove --purge: %v", err)
	}
	if _, err := os.Stat(l.instance.StateDir()); !os.IsNotExist(err) {
		t.Errorf("after remove --purge: %v", err)
	}
	// A host that is as new enrols without a word.
	l.enrol(t, dir)
	l.revision(t, 3)(l.config)
}
