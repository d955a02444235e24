package wireguard

import (
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/circuitseal/circuitseal/agent/plan"
	"github.com/circuitseal/circuitseal/proto/desired"
)

// Whatever the two ends hold of what a rotation may leave them with, one agent
// dead or none, and though they disagree by many seconds about how old the
// session is: a handshake succeeds before the session is over.
func TestEndsMeetBeforeTheSessionIsOver(t *testing.T) {
	holdings := [][2][]int{
		{{1, 2}, {1, 2}}, {{1, 2}, {2, 1}}, {{2, 1}, {1, 2}}, {{2, 1}, {2, 1}},
		{{1}, {1, 2}}, {{1, 2}, {1}}, {{2, 1}, {2}}, {{2}, {2, 1}},
	}
	const retry = 5*time.Second + 334*time.Millisecond // REKEY_TIMEOUT and its jitter
	worst := time.Duration(0)
	for _, h := range holdings {
		for _, dead := range []int{-1, 0, 1} {
			for skew := -4 * time.Second; skew <= 4*time.Second; skew += time.Second {
				for phase := time.Duration(0); phase < retry; phase += 333 * time.Millisecond {
					key := func(end int, at time.Duration) int {
						if end == 1 {
							at += skew
						}
						if len(h[end]) == 1 || end == dead {
							return h[end][0]
						}
						// A pass may be a second late.
						return h[end][choose(at.Truncate(time.Second), end == 1)]
					}
					met := time.Duration(0)
					for at := 120*time.Second + phase; at < rejectAfter+time.Minute; at += retry {
						if key(0, at) == key(1, at) {
							met = at
							break
						}
					}
					if met == 0 || met > rejectAfter-2*time.Second {
						t.Fatalf("holding %v, agent %d dead, skew %s, phase %s: they meet at %s", h, dead, skew, phase, met)
					}
					worst = max(worst, met)
				}
			}
		}
	}
	t.Logf("at the latest %s after the last handshake", worst)
}

func TestChooseGoesBackToTheFirst(t *testing.T) {
	for _, second := range []bool{false, true} {
		for age := time.Duration(0); age < overdue; age += time.Second {
			if choose(age, second) != 0 {
				t.Errorf("the second key %s after a handshake (second end %t)", age, second)
			}
		}
		if choose(unshaken, second) != 0 {
			t.Errorf("a new peer begins with the second key (second end %t)", second)
		}
	}
}

// Evidence is of a handshake that was seen after its key had settled.
func TestObserve(t *testing.T) {
	d := New(Config{})
	at := time.Now()
	wall := time.Unix(1_700_000_000, 0)
	one, two := desired.Secret{1}, desired.Secret{2}
	see := func(after time.Duration, key desired.Secret, handshake time.Duration) desired.Secret {
		p := wgtypes.Peer{PresharedKey: wgtypes.Key(key)}
		if handshake != 0 {
			p.LastHandshakeTime = wall.Add(handshake)
		}
		d.observe("x", p, at.Add(after))
		return d.shared["x"].used
	}
	steps := []struct {
		name             string
		after, handshake time.Duration
		key, want        desired.Secret
	}{
		{"an agent that just begun knows nothing", 0, 1, one, desired.Secret{}},
		{"nothing new", time.Second, 1, one, desired.Secret{}},
		{"a handshake", 5 * time.Second, 2, one, one},
		{"another key, the old session", 6 * time.Second, 2, two, one},
		{"a handshake too soon to tell", 7 * time.Second, 3, two, desired.Secret{}},
		{"a handshake", 130 * time.Second, 4, two, two},
		{"the clock was set back", 250 * time.Second, -9999 * time.Hour, two, two},
		{"the peer was made anew by others", 251 * time.Second, 0, two, desired.Secret{}},
	}
	for _, s := range steps {
		if got := see(s.after, s.key, s.handshake); !got.Equal(s.want) {
			t.Errorf("%s: used %x, want %x", s.name, [32]byte(got), [32]byte(s.want))
		}
	}
	d.bornWith("x", one, at.Add(252*time.Second))
	if got := see(252*time.Second+time.Millisecond, one, 7); !got.Equal(one) {
		t.Error("the first handshake of a new peer is not known to be with its only key")
	}
}

// sharing gives tunnels other pre-shared keys.
func sharingKeys(tunnels []plan.Tunnel, generations ...uint64) []plan.Tunnel {
	changed := slices.Clone(tunnels)
	for i := range changed {
		changed[i].PresharedKeys = shared(changed[i].ID, generations...)
	}
	return changed
}

// shake drops a's session and waits for another, as WireGuard makes one by
// itself every two minutes.
func (p pair) shake(t *testing.T, x plan.Tunnel) {
	t.Helper()
	wg, err := p.a.driver.newClient()
	if err != nil {
		t.Fatal(err)
	}
	s := &session{wg: wg}
	defer s.close()
	p.a.driver.mu.Lock()
	w := want{Tunnel: x, shared: p.a.driver.pick(x, time.Now())}
	err = p.a.driver.configure(s, w, restart(w))
	p.a.driver.mu.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	p.a.firstPacket(t, x)
}

func (e *end) preshared(t *testing.T) string {
	t.Helper()
	s := e.states(t)[0]
	return fmt.Sprintf("%v used %d", s.PresharedHeld, s.PresharedUsed)
}

func presharedInPhases(t *testing.T, p pair) {
	a, b := p.join(t, 1)
	check := func(what, wantA, wantB string) {
		t.Helper()
		if got := p.a.preshared(t); got != wantA {
			t.Errorf("%s: a has %s, want %s", what, got, wantA)
		}
		if got := p.b.preshared(t); got != wantB {
			t.Errorf("%s: b has %s, want %s", what, got, wantB)
		}
	}
	check("steady", "[1] used 1", "[1] used 1")
	before := []TunnelState{p.a.states(t)[0], p.b.states(t)[0]}
	p.a.sync(t, sharingKeys(a, 1, 2))
	p.b.sync(t, sharingKeys(b, 1, 2))
	check("prepare", "[1 2] used 1", "[1 2] used 1")
	// One end long before the other: the session goes on.
	p.a.sync(t, sharingKeys(a, 2, 1))
	p.a.firstPacket(t, a[0])
	p.b.firstPacket(t, b[0])
	p.b.sync(t, sharingKeys(b, 2, 1))
	p.a.firstPacket(t, a[0])
	for i, e := range []*end{p.a, p.b} {
		if now := e.states(t)[0]; now.LastHandshake != before[i].LastHandshake || now.ReceivedBytes <= before[i].ReceivedBytes {
			t.Errorf("the session was disturbed: %+v, then %+v", before[i], now)
		}
	}
	check("activate", "[2 1] used 1", "[2 1] used 1")
	if steps := p.a.left(t, sharingKeys(a, 2, 1)); len(steps) > 0 {
		t.Errorf("still to do: %v", steps)
	}
	time.Sleep(settled)
	p.shake(t, sharingKeys(a, 2, 1)[0])
	p.settle(t)
	check("after a handshake", "[2 1] used 2", "[2 1] used 2")
	p.a.sync(t, sharingKeys(a, 2))
	p.b.sync(t, sharingKeys(b, 2))
	check("retired", "[2] used 2", "[2] used 2")
	p.a.firstPacket(t, a[0])
}

// Neither end has a session, and each prefers, or has, another key.
func presharedFallback(t *testing.T, p pair) {
	a, b := p.a.tunnels(t, p.b, 1), p.b.tunnels(t, p.a, 1)
	for _, tt := range []struct{ a, b []uint64 }{
		{[]uint64{2, 1}, []uint64{1}},
		{[]uint64{1}, []uint64{2, 1}},
		{[]uint64{2, 1}, []uint64{1, 2}},
	} {
		wantA, wantB := sharingKeys(a, tt.a...), sharingKeys(b, tt.b...)
		p.a.sync(t, wantA)
		p.b.sync(t, wantB)
		start := time.Now()
		for p.a.states(t)[0].LastHandshake.IsZero() || p.b.states(t)[0].LastHandshake.IsZero() {
			if time.Since(start) > 4*patience {
				t.Fatalf("%v and %v find no key in %s", tt.a, tt.b, time.Since(start))
			}
			time.Sleep(200 * time.Millisecond)
			p.a.sync(t, wantA)
			p.b.sync(t, wantB)
		}
		t.Logf("%v and %v found one after %s: %s, %s", tt.a, tt.b, time.Since(start), p.a.preshared(t), p.b.preshared(t))
		p.a.firstPacket(t, a[0])
		p.a.sync(t, nil)
		p.b.sync(t, nil)
	}
}

// slowEnv runs what waits for WireGuard's own handshakes, minutes each.
const slowEnv = "CIRCUITSEAL_SLOW"

// A controller activates while the far agent is dead: its device keeps the old
// key. The session is never without an end's key, and loses no probe.
func presharedOverdue(t *testing.T, p pair) {
	if os.Getenv(slowEnv) != "1" {
		t.Skip(slowEnv + " is not 1: this takes four minutes")
	}
	a, _ := p.join(t, 1)
	first := p.a.states(t)[0].LastHandshake
	a = sharingKeys(a, 2, 1)
	lost := func() (uint64, uint64) {
		h := p.a.probes.Snapshot()[a[0].ID]
		return h.Sent, h.Lost
	}
	sent, before := lost()
	for start, seen := time.Now(), before; time.Since(start) < 230*time.Second; time.Sleep(time.Second) {
		p.a.sync(t, a)
		if _, now := lost(); now != seen {
			t.Logf("%d probes lost by %s after the handshake", now-before, time.Since(first))
			seen = now
		}
	}
	now := p.a.states(t)[0]
	after, lostNow := lost()
	t.Logf("%d probes, %d lost; handshakes at %s and %s; %s", after-sent, lostNow-before, first, now.LastHandshake, p.a.preshared(t))
	if lostNow != before || after-sent < 200 {
		t.Errorf("%d of %d probes were lost", lostNow-before, after-sent)
	}
	if got := now.LastHandshake.Sub(first); got < 120*time.Second || got > rejectAfter {
		t.Errorf("the next handshake came after %s", got)
	}
	// It is not reported with which key, since that was set just before.
	if now.PresharedUsed == 2 {
		t.Error("a key that the far end does not have is reported as used")
	}
}
