package wireguard

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"

	"github.com/circuitseal/circuitseal/agent/netdev"
	"github.com/circuitseal/circuitseal/agent/plan"
	"github.com/circuitseal/circuitseal/proto/desired"
)

// contract is what every backend does. Each test starts from nothing.
var contract = map[string]func(*testing.T, pair){
	"carries packets":                      carriesPackets,
	"an unchanged tunnel is never touched": neverTouched,
	"changes in place":                     changesInPlace,
	"adjusts prefixes only":                adjustsPrefixes,
	"leftovers go":                         leftoversGo,
	"a broken device is made whole":        madeWhole,
	"one end late":                         oneEndLate,
	"a session that one end has":           halfSession,
	"pre-shared keys change in phases":     presharedInPhases,
	"ends with different keys find one":    presharedFallback,
	"a dead agent's key is found in time":  presharedOverdue,
}

func TestContract(t *testing.T) {
	for _, b := range []Backend{UserSpace, Kernel} {
		t.Run(b.String(), func(t *testing.T) {
			requireBackend(t, b)
			for name, f := range contract {
				t.Run(name, func(t *testing.T) { f(t, newPair(t, b)) })
			}
			for name, f := range map[string]func(*testing.T, pair){
				"carries packets over IPv6":                      carriesPackets,
				"an unchanged tunnel over IPv6 is never touched": neverTouched,
			} {
				t.Run(name, func(t *testing.T) { f(t, newPairAt(t, b, "fd00:77::1", "fd00:77::2")) })
			}
		})
	}
}

// join configures both ends with the numbers and waits for a packet.
func (p pair) join(t *testing.T, numbers ...uint16) (a, b []plan.Tunnel) {
	t.Helper()
	a, b = p.a.tunnels(t, p.b, numbers...), p.b.tunnels(t, p.a, numbers...)
	p.a.run(t)
	p.b.run(t)
	p.a.sync(t, a)
	p.b.sync(t, b)
	for _, x := range a {
		p.a.firstPacket(t, x)
	}
	p.settle(t)
	return a, b
}

// settle waits until no end hastens a handshake any more and all sessions have
// stood still for a second: what crossed or was under way at first is over
// then, and a session that changes later was changed by somebody.
func (p pair) settle(t *testing.T) {
	t.Helper()
	sessions := func() (s []time.Time) {
		for _, e := range []*end{p.a, p.b} {
			if e.driver.hastening() {
				return nil
			}
			for _, x := range e.states(t) {
				s = append(s, x.LastHandshake)
			}
		}
		return s
	}
	var last []time.Time
	still := time.Now()
	for deadline := still.Add(patience); last == nil || time.Since(still) < time.Second; time.Sleep(20 * time.Millisecond) {
		if now := sessions(); !slices.Equal(now, last) {
			last, still = now, time.Now()
		}
		if time.Now().After(deadline) {
			t.Fatalf("sessions do not settle within %s: %v", patience, last)
		}
	}
}

// hastening reports whether a tunnel waits for its first handshake.
func (d *Driver) hastening() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.young) > 0
}

func carriesPackets(t *testing.T, p pair) {
	a, _ := p.join(t, 1, 2)
	states := p.a.states(t)
	if len(states) != 2 {
		t.Fatalf("%d states, want 2", len(states))
	}
	for i, s := range states {
		if s.ID != a[i].ID || s.Device != a[i].Device || s.Backend != p.a.backend || s.Problem != "" ||
			s.Endpoint != a[i].Peer || s.Roamed || s.SentBytes == 0 || s.ReceivedBytes == 0 || time.Since(s.LastHandshake) > time.Minute {
			t.Errorf("state %+v of tunnel %+v", s, a[i])
		}
	}
	h, err := p.a.main.Netlink()
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	l, err := h.LinkByName(a[0].Device)
	if err != nil {
		t.Fatal(err)
	}
	addresses, err := h.AddrList(l, netlink.FAMILY_ALL)
	if err != nil || len(addresses) != 1 || netdev.PrefixOf(addresses[0].IPNet) != single(a[0].LocalProbe) {
		t.Errorf("addresses of %s = %v, %v; want the probe's only", a[0].Device, addresses, err)
	}
	if l.Attrs().MTU != 1380 {
		t.Errorf("MTU = %d, want 1380", l.Attrs().MTU)
	}
}

func neverTouched(t *testing.T, p pair) {
	a, _ := p.join(t, 1)
	before := p.a.states(t)[0]
	for range 50 {
		p.a.sync(t, a)
	}
	p.a.restart()
	for range 50 {
		p.a.sync(t, a)
	}
	after := p.a.states(t)[0]
	if after.LastHandshake != before.LastHandshake || after.ReceivedBytes < before.ReceivedBytes || after.SentBytes < before.SentBytes {
		t.Errorf("the session changed: %+v, then %+v", before, after)
	}
	if steps := p.a.left(t, a); len(steps) > 0 {
		t.Errorf("still to do: %v", steps)
	}
	p.a.firstPacket(t, a[0])
}

// left is what a Sync would do now.
func (e *end) left(t *testing.T, tunnels []plan.Tunnel) []step {
	t.Helper()
	s, err := e.driver.open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	have, err := e.driver.read(s)
	if err != nil {
		t.Fatal(err)
	}
	for name, err := range have.problems {
		t.Errorf("%s: %v", name, err)
	}
	var wanted []want
	for _, x := range tunnels {
		k, err := e.keys.pair(x.ID)
		if err != nil {
			t.Fatal(err)
		}
		e.driver.mu.Lock()
		wanted = append(wanted, want{Tunnel: x, public: k.public, shared: e.driver.pick(x, time.Now())})
		e.driver.mu.Unlock()
	}
	steps, leftovers := diff(wanted, have.devices)
	return append(steps, leftovers...)
}

func changesInPlace(t *testing.T, p pair) {
	a, b := p.join(t, 1)
	before := p.a.states(t)[0]
	a[0].MTU = 1300
	a[0].AllowedIPs = append(a[0].AllowedIPs, netip.MustParsePrefix("2001:db8::/32"))
	p.a.sync(t, a)
	a[0].AllowedIPs = slices.Delete(a[0].AllowedIPs, 0, 1)
	p.a.sync(t, a)
	a[0].Mark++
	p.a.sync(t, a)
	if steps := p.a.left(t, a); len(steps) > 0 {
		t.Errorf("still to do: %v", steps)
	}
	after := p.a.states(t)[0]
	if after.LastHandshake != before.LastHandshake {
		t.Error("a change of MTU, prefixes and mark cost the session")
	}
	p.a.firstPacket(t, a[0])

	// The far end moves to another port: the session goes on there.
	b[0].Local = netip.AddrPortFrom(b[0].Local.Addr(), 60000)
	p.b.sync(t, b)
	a[0].Peer = b[0].Local
	p.a.sync(t, a)
	p.a.firstPacket(t, a[0])
	if s := p.a.states(t)[0]; s.Endpoint != a[0].Peer || s.Roamed {
		t.Errorf("state after the move: %+v", s)
	}

	// The far end has a new key.
	if err := p.b.keys.Forget(nil); err != nil {
		t.Fatal(err)
	}
	a = p.a.tunnels(t, p.b, 1)
	a[0].Peer = b[0].Local
	p.b.sync(t, func() []plan.Tunnel { x := p.b.tunnels(t, p.a, 1); x[0].Local = b[0].Local; return x }())
	p.a.sync(t, a)
	p.a.firstPacket(t, a[0])
}

// Adjust does all that Sync would for other prefixes, and nothing else of what a
// tunnel may differ in.
func adjustsPrefixes(t *testing.T, p pair) {
	a, _ := p.join(t, 1, 2)
	before := p.a.states(t)
	next := slices.Clone(a)
	next[0].AllowedIPs = append(slices.Clone(a[0].AllowedIPs[1:]), netip.MustParsePrefix("2001:db8::/32"))
	if err := p.a.driver.Adjust(t.Context(), next[:1]); err != nil {
		t.Fatal(err)
	}
	if steps := p.a.left(t, next); len(steps) > 0 {
		t.Errorf("still to do: %v", steps)
	}
	if after := p.a.states(t); after[0].LastHandshake != before[0].LastHandshake || after[1].LastHandshake != before[1].LastHandshake {
		t.Error("another prefix cost a session")
	}
	other := slices.Clone(next)
	other[0].Mark++
	other[0].AllowedIPs = a[0].AllowedIPs
	if err := p.a.driver.Adjust(t.Context(), other[:1]); err != nil {
		t.Fatal(err)
	}
	if steps := p.a.left(t, next); len(steps) > 0 {
		t.Errorf("a tunnel with another mark was changed: it takes %v to undo that", steps)
	}
	missing := p.a.tunnels(t, p.b, 3)
	if err := p.a.driver.Adjust(t.Context(), missing); err == nil {
		t.Error("a device that is not there was adjusted")
	}
	if len(p.a.devices(t)) != 2 {
		t.Errorf("devices %v, want two", p.a.devices(t))
	}
}

func leftoversGo(t *testing.T, p pair) {
	a, _ := p.join(t, 1, 2)
	p.a.restart()
	p.a.sync(t, a[1:])
	got := p.a.devices(t)
	if d := cmp.Diff([]string{a[1].Device}, got); d != "" {
		t.Errorf("devices (-want +got):\n%s", d)
	}
	// A port that a leftover holds goes to the tunnel that wants it.
	next := p.a.tunnels(t, p.b, 3)
	next[0].Local = a[1].Local
	p.a.sync(t, next)
	if d := cmp.Diff([]string{next[0].Device}, p.a.devices(t)); d != "" {
		t.Errorf("devices (-want +got):\n%s", d)
	}
	p.a.sync(t, nil)
	if got := p.a.devices(t); len(got) != 0 {
		t.Errorf("devices left: %v", got)
	}
}

func (e *end) devices(t *testing.T) []string {
	t.Helper()
	var names []string
	h, err := e.main.Netlink()
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	links, err := h.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if n := l.Attrs().Name; n != "lo" {
			names = append(names, n)
		}
	}
	return names
}

func madeWhole(t *testing.T, p pair) {
	a, _ := p.join(t, 1)
	h, err := p.a.main.Netlink()
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	l, err := h.LinkByName(a[0].Device)
	if err != nil {
		t.Fatal(err)
	}
	for name, harm := range map[string]func() error{
		"address": func() error { return h.AddrDel(l, &netlink.Addr{IPNet: netdev.NetOf(single(a[0].LocalProbe))}) },
		"foreign address": func() error {
			return h.AddrAdd(l, &netlink.Addr{IPNet: netdev.NetOf(netip.MustParsePrefix("10.0.0.1/32"))})
		},
		"down": func() error { return h.LinkSetDown(l) },
		"MTU":  func() error { return h.LinkSetMTU(l, 1400) },
	} {
		if err := harm(); err != nil {
			t.Fatal(name, err)
		}
		if len(p.a.left(t, a)) == 0 {
			t.Errorf("%s: the damage is not seen", name)
		}
		p.a.sync(t, a)
		if steps := p.a.left(t, a); len(steps) > 0 {
			t.Errorf("%s: still to do: %v", name, steps)
		}
	}
	p.a.firstPacket(t, a[0])
	if err := h.LinkDel(l); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(patience)
	for {
		// The process may not have noticed yet.
		err := p.a.trySync(t, a)
		if err == nil && len(p.a.left(t, a)) == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the device does not come back: %v", err)
		}
		time.Sleep(10 * time.Millisecond)
	}
	p.a.firstPacket(t, a[0])
}

// oneEndLate is the usual case: the first end's handshake meets nobody.
func oneEndLate(t *testing.T, p pair) {
	a, b := p.a.tunnels(t, p.b, 1), p.b.tunnels(t, p.a, 1)
	p.a.run(t)
	p.b.run(t)
	p.hastened(t, 4*time.Second, func() time.Duration {
		p.a.sync(t, a)
		time.Sleep(500 * time.Millisecond)
		p.b.sync(t, b)
		return p.a.firstPacket(t, a[0])
	})
}

// halfSession is a handshake that one end knows of: what that end sends, the
// other cannot read.
func halfSession(t *testing.T, p pair) {
	a, b := p.a.tunnels(t, p.b, 1), p.b.tunnels(t, p.a, 1)
	p.a.sync(t, a)
	p.b.sync(t, b)
	for deadline := time.Now().Add(patience); p.a.states(t)[0].LastHandshake.IsZero(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("no handshake within %s", patience)
		}
	}
	wg, err := p.b.driver.newClient()
	if err != nil {
		t.Fatal(err)
	}
	s := &session{wg: wg}
	defer s.close()
	w := want{Tunnel: b[0], shared: p.b.driver.pick(b[0], time.Now())}
	mute := freshPeer(w)
	mute.timing = false // it begins no handshake
	if err := p.b.driver.configure(s, w, change{drop: []desired.PublicKey{w.PeerKey}, set: mute}); err != nil {
		t.Fatal(err)
	}
	p.a.run(t)
	start := time.Now()
	p.a.sync(t, a)
	p.a.firstPacket(t, a[0])
	// WireGuard alone takes 15 s from the first packet on.
	if took := time.Since(start); took > 12*time.Second {
		t.Errorf("first packet after %s", took)
	}
}

// hastened measures three times at most, since a busy machine may be slow once,
// and wants a first packet sooner than the 5 s that WireGuard alone takes.
func (p pair) hastened(t *testing.T, limit time.Duration, measure func() time.Duration) {
	t.Helper()
	for range 3 {
		took := measure()
		t.Logf("first packet after %s", took)
		if took < limit {
			return
		}
		p.a.sync(t, nil)
		p.b.sync(t, nil)
	}
	t.Errorf("the handshake is not hastened: no first packet within %s", limit)
}
