package reconcile

import (
	"context"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/circuitseal/circuitseal/agent/drift"
	"github.com/circuitseal/circuitseal/agent/plan"
)

// Prefixes that come and go are brought about first; the whole pass follows. It
// is part of no pass when anything else differs, and none when nothing does.
func TestPrefixesGoFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &host{}
		r := newReconciler(h)
		with := func(remotes ...string) plan.Plan {
			p := onePlan(plan.Flow{Interface: "circ0", Device: "t1"}, plan.Flow{Interface: "circ0", Device: "t2"})
			for _, text := range remotes {
				prefix := netip.MustParsePrefix(text)
				p.Tunnels[1].AllowedIPs = append(p.Tunnels[1].AllowedIPs, prefix)
				p.Classifier.Remotes = append(p.Classifier.Remotes, plan.Remote{Tenant: 1, Prefix: prefix, Group: 1})
			}
			return p
		}
		ctx, stop := context.WithCancel(t.Context())
		go func() { _ = r.Run(ctx, func(bool) {}) }()
		// Without a plan the loop goes to sleep.
		synctest.Wait()
		const whole = "claim arm links tunnels ipsec slow classifier guard sweep sweepipsec"
		for i, tt := range []struct {
			plan plan.Plan
			want string
		}{
			{with("10.1.0.0/16"), "claim arm links tunnels arm ipsec slow classifier guard sweep sweepipsec"},
			{with("10.2.0.0/16"), "remote 10.1.0.0/16 false adjust t2 remote 10.2.0.0/16 true " + whole},
			{onePlan(plan.Flow{Interface: "circ0", Device: "t1"}), whole},
			{onePlan(plan.Flow{Interface: "circ0", Device: "t1"}), whole},
		} {
			h.calls = nil
			r.Want(tt.plan, uint64(i+1))
			time.Sleep(resync / 2)
			if got := strings.Join(h.calls, " "); got != tt.want {
				t.Errorf("plan %d: %s, want %s", i, got, tt.want)
			}
			if done, err := r.Done(); done != uint64(i+1) || err != nil {
				t.Errorf("plan %d: done %d, %v", i, done, err)
			}
		}
		stop()
		synctest.Wait()
	})
}

// What prefixes that were asked for change is no repair; the same change with
// nothing new asked for is one.
func TestHurryIsNoRepair(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &host{}
		noting := noted{classifier{h}}
		r := New(guard{h}, links{h}, tunnels{h}, ipsec{h}, slowPaths{h}, noting, h.ledger(), slog.New(slog.DiscardHandler))
		ctx, stop := context.WithCancel(t.Context())
		go func() { _ = r.Run(ctx, func(bool) {}) }()
		// The loop's first turn is over, so that nothing wakes it twice for one plan.
		synctest.Wait()
		for i := range 8 {
			p := onePlan(plan.Flow{Interface: "circ0", Device: "t1"})
			p.Classifier.Remotes = []plan.Remote{{Tenant: 1, Group: 1, Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i), 0, 0}), 16)}}
			r.Want(p, uint64(i+1))
			time.Sleep(resync / 2)
		}
		if n := len(h.calls); !slices.Contains(h.calls, "remote 10.6.0.0/16 false") {
			t.Errorf("%d calls %q, want prefixes ahead of the pass", n, h.calls)
		}
		if d := h.ledger().Drift(); len(d) > 0 {
			t.Errorf("counted as repairs: %+v", d)
		}
		time.Sleep(resync)
		if d := h.ledger().Drift(); len(d) != 1 || d[0].What != string(drift.ClassifierMap) {
			t.Errorf("repairs %+v, want those of the passes that nobody asked for", d)
		}
		stop()
		synctest.Wait()
	})
}

// noted is a classifier in which there is always something to put right.
type noted struct{ classifier }

func (n noted) Adjust(ctx context.Context, p plan.Classifier, there bool) error {
	n.ledger().Note(drift.ClassifierMap, drift.Text("adjust"))
	return n.classifier.Adjust(ctx, p, there)
}

func (n noted) Sync(ctx context.Context, p plan.Classifier) ([]string, error) {
	n.ledger().Note(drift.ClassifierMap, drift.Text("sync"))
	return n.classifier.Sync(ctx, p)
}

// A pass that finds nothing to do does not keep prefixes waiting, but what other
// changes began is ended, and so is the pass after one that was not.
func TestPrefixesInterruptOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &host{}
		slow := &slowGuard{host: h}
		r := New(slow, links{h}, tunnels{h}, ipsec{h}, slowPaths{h}, classifier{h}, h.ledger(), slog.New(slog.DiscardHandler))
		with := func(n int) plan.Plan {
			p := onePlan(plan.Flow{Interface: "circ0", Device: "t1"})
			for i := range n {
				p.Classifier.Remotes = append(p.Classifier.Remotes, plan.Remote{Tenant: 1, Group: 1,
					Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i), 0, 0}), 16)})
			}
			return p
		}
		ctx, stop := context.WithCancel(t.Context())
		go func() { _ = r.Run(ctx, func(bool) {}) }()
		r.Want(with(0), 1)
		time.Sleep(resync / 2)
		slow.takes = time.Minute
		time.Sleep(resync)
		// A pass is under way that takes a minute: the next two plans come soon
		// after each other.
		r.Want(with(1), 2)
		time.Sleep(time.Millisecond)
		r.Want(with(2), 3)
		synctest.Wait()
		if !slices.Contains(h.calls, "remote 10.0.0.0/16 true") || slices.Contains(h.calls, "remote 10.1.0.0/16 true") {
			t.Errorf("calls %q, want the first prefix at once and the second after a pass", h.calls)
		}
		time.Sleep(3 * time.Minute)
		if !slices.Contains(h.calls, "remote 10.1.0.0/16 true") {
			t.Errorf("calls %q, want the second prefix too", h.calls)
		}
		if done, err := r.Done(); done < 2 || err != nil {
			t.Errorf("done %d, %v", done, err)
		}
		stop()
		synctest.Wait()
	})
}

// slowGuard takes its time to arm, unless it is told to end.
type slowGuard struct {
	*host
	takes time.Duration
}

func (g *slowGuard) Arm(ctx context.Context, want plan.Guard) ([]string, error) {
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-time.After(g.takes):
	}
	return guard{g.host}.Arm(ctx, want)
}

func (g *slowGuard) Sync(ctx context.Context, want plan.Guard) error {
	return guard{g.host}.Sync(ctx, want)
}
