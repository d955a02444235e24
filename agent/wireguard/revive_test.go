package wireguard

import (
	"log/slog"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/circuitseal/circuitseal/agent/netdev"
	"github.com/circuitseal/circuitseal/agent/netns/netnstest"
	"github.com/circuitseal/circuitseal/agent/plan"
)

// A peer is made anew when no session of it can be left, by the monotonic clock
// and whatever the one on the wall says, and not more often than its turns come.
func TestSessionless(t *testing.T) {
	d := New(Config{Log: slog.New(slog.DiscardHandler)})
	begin := time.Now()
	for _, name := range []string{"fresh", "ended", "young", "unseen", "adopted"} {
		d.tunnels[name] = plan.Tunnel{Device: name}
	}
	d.young["young"] = &youth{}
	future := begin.Add(10 * 365 * 24 * time.Hour).Round(0)
	for _, name := range []string{"fresh", "ended", "young"} {
		d.observe(name, wgtypes.Peer{}, begin)
		d.observe(name, wgtypes.Peer{LastHandshakeTime: future}, begin)
	}
	turns := func(from, to time.Time) (names []string) {
		for now := from; now.Before(to); now = now.Add(reviveTick) {
			names = append(names, d.sessionless(now)...)
		}
		return names
	}
	now := begin.Add(rejectAfter)
	if got := turns(begin, now); len(got) > 0 {
		t.Errorf("%q while sessions last", got)
	}
	d.observe("fresh", wgtypes.Peer{LastHandshakeTime: future.Add(time.Minute)}, now)
	// An agent that begins sees a handshake that was an hour ago by a clock which
	// was set since: the session may be a minute old.
	d.observe("adopted", wgtypes.Peer{LastHandshakeTime: now.Add(-time.Hour).Round(0)}, now)
	if got := turns(now, now.Add(reviveEvery/2)); len(got) > 0 {
		t.Errorf("%q at once, want the first turn some time off", got)
	}
	got := turns(now.Add(reviveEvery/2), now.Add(rejectAfter))
	if n := len(got); n < 3 || n > 9 || slices.ContainsFunc(got, func(s string) bool { return s != "ended" }) {
		t.Errorf("%q, want nothing but the one whose session is over, every %s or so", got, reviveEvery)
	}
	if got := turns(now.Add(rejectAfter), now.Add(2*rejectAfter)); !slices.Contains(got, "adopted") || slices.Contains(got, "young") || slices.Contains(got, "unseen") {
		t.Errorf("%q later, want the adopted one too", got)
	}
	clear(d.tunnels)
	d.sessionless(now)
	if len(d.revived) > 0 {
		t.Errorf("remembered: %v", d.revived)
	}
}

// A look before it tells a session that nobody has seen yet from none at all.
func TestReviveLooksFirst(t *testing.T) {
	p := newPair(t, UserSpace)
	a, _ := p.join(t, 1)
	p.a.firstPacket(t, a[0])
	before := p.a.states(t)[0].LastHandshake
	d, name := p.a.driver, a[0].Device
	// revive lets it believe that nothing was read for long.
	revive := func(unseen bool) time.Time {
		t.Helper()
		d.mu.Lock()
		delete(d.young, name)
		s := d.shared[name]
		if s == nil {
			d.mu.Unlock()
			t.Fatal("the tunnel was not seen")
		}
		long := time.Now().Add(-2 * rejectAfter)
		s.begun, s.seen = long, long
		if unseen {
			s.handshake = long
		}
		d.revived[name] = long
		d.mu.Unlock()
		d.revive(t.Context(), time.Now())
		return p.a.states(t)[0].LastHandshake
	}
	if got := revive(true); !got.Equal(before) {
		t.Errorf("a session was thrown away: handshake at %s, want %s", got, before)
	}
	if got := revive(false); got.Equal(before) {
		t.Error("a peer without a session stays as it is")
	}
	p.a.firstPacket(t, a[0])
}

// A kernel whose dump leaves the address mode out is asked for it.
func TestQuietWithoutView(t *testing.T) {
	_, n := netnstest.New(t)
	h, err := n.Netlink()
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "quiet0"}, PeerName: "quiet1"}
	if err := h.LinkAdd(veth); err != nil {
		t.Fatal(err)
	}
	var loud, silent bool
	err = n.Do(func() error {
		loud = netdev.IsQuiet(netdev.View{}, "quiet0")
		if err := netdev.MakeQuiet(h, veth); err != nil {
			return err
		}
		silent = netdev.IsQuiet(netdev.View{}, "quiet0")
		return nil
	})
	if err != nil || loud || !silent {
		t.Errorf("quiet before it was made so: %t, after: %t, %v", loud, silent, err)
	}
}
