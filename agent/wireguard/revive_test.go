package wireguard

import (
	"log/slog"
	"slices"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/circuitseal/circuitseal/agent/plan"
)

// A peer is made anew when no session of it can be left, by the monotonic clock
// and whatever the one on the wall says, and not more often than its turns come.
func TestSessionless(t *testing.T) {
	d := New(Config{Log: slog.New(slog.DiscardHandler)})
	begin := time.Now()
	for _, name := range []string{"fresh", "ended", "young", "unseen"} {
		d.tunnels[name] = plan.Tunnel{Device: name}
	}
	d.young["young"] = &youth{}
	future := begin.Add(10 * 365 * 24 * time.Hour).Round(0)
	for _, name := range []string{"fresh", "ended", "young"} {
		d.observe(name, wgtypes.Peer{}, begin)
		d.observe(name, wgtypes.Peer{LastHandshakeTime: future}, begin)
	}
	if got := d.sessionless(begin.Add(rejectAfter - time.Second)); len(got) > 0 {
		t.Errorf("%q while sessions last", got)
	}
	now := begin.Add(rejectAfter + time.Second)
	d.observe("fresh", wgtypes.Peer{LastHandshakeTime: future.Add(time.Minute)}, now)
	if got := d.sessionless(now); !slices.Equal(got, []string{"ended"}) {
		t.Errorf("%q, want the one whose session is over", got)
	}
	if got := d.sessionless(now.Add(time.Second)); len(got) > 0 {
		t.Errorf("%q again at once", got)
	}
	if got := d.sessionless(now.Add(2 * reviveEvery)); !slices.Equal(got, []string{"ended"}) {
		t.Errorf("%q later, want it again while there is no session", got)
	}
	delete(d.tunnels, "ended")
	d.sessionless(now)
	if len(d.revived) > 0 {
		t.Errorf("remembered: %v", d.revived)
	}
}
