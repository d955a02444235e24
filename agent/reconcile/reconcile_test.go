package reconcile

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/circuitseal/circuitseal/agent/plan"
)

// host stands for the drivers: it keeps what they would have made and notes the
// order of the calls.
type host struct {
	calls []string
	fail  map[string]error
	flows []plan.Flow
	up    []string
	// missing cannot be claimed, unguarded cannot be armed.
	missing, unguarded string
	// gone are tunnel devices that are not there, unchecked ones that the
	// classifier does not judge.
	gone, unchecked []string
	// opened collects what the guard let pass, call by call.
	opened [][]plan.Flow
}

func (h *host) call(name string) error {
	h.calls = append(h.calls, name)
	return h.fail[name]
}

type guard struct{ *host }

func (g guard) Arm(_ context.Context, interfaces []string) ([]string, error) {
	return without(interfaces, g.unguarded), g.call("arm")
}

func (g guard) Sync(_ context.Context, want plan.Guard) error {
	if err := g.call("guard"); err != nil {
		return err
	}
	g.flows = want.Flows
	g.opened = append(g.opened, want.Flows)
	return nil
}

type links struct{ *host }

func (l links) Claim(_ context.Context, interfaces []string) ([]string, error) {
	return without(interfaces, l.missing), l.call("claim")
}

func without(all []string, one string) []string {
	return slices.DeleteFunc(slices.Clone(all), func(s string) bool { return s == one })
}

func (l links) Sync(_ context.Context, interfaces []plan.Interface, _ []plan.Table) error {
	if err := l.call("links"); err != nil {
		return err
	}
	l.up = nil
	for _, i := range interfaces {
		l.up = append(l.up, i.Name)
	}
	return nil
}

type tunnels struct{ *host }

func (t tunnels) Missing([]plan.Tunnel) ([]string, error) { return t.gone, nil }

func (t tunnels) Sync(context.Context, []plan.Tunnel) error { return t.call("tunnels") }

type classifier struct{ *host }

func (c classifier) Sync(context.Context, plan.Classifier) ([]string, error) {
	if err := c.call("classifier"); err != nil {
		return nil, err
	}
	return slices.DeleteFunc([]string{"", "t1", "t2"}, func(s string) bool { return slices.Contains(c.unchecked, s) }), nil
}

func newReconciler(h *host) *Reconciler {
	return New(guard{h}, links{h}, tunnels{h}, classifier{h}, slog.New(slog.DiscardHandler))
}

func onePlan(flows ...plan.Flow) plan.Plan {
	return plan.Plan{
		Interfaces: []plan.Interface{{Name: "circ0"}, {Name: "circ1"}},
		Guard:      plan.Guard{Interfaces: []string{"circ0", "circ1"}, Flows: flows},
	}
}

func TestPassOrder(t *testing.T) {
	h := &host{}
	r := newReconciler(h)
	if err := r.pass(t.Context(), onePlan(plan.Flow{Interface: "circ0", Mark: 1}, plan.Flow{Interface: "circ0", Mark: 2})); err != nil {
		t.Fatal(err)
	}
	if got, want := strings.Join(h.calls, " "), "claim arm links tunnels classifier guard"; got != want {
		t.Errorf("first pass: %s, want %s", got, want)
	}
	h.calls = nil
	if err := r.pass(t.Context(), onePlan(plan.Flow{Interface: "circ0", Mark: 1})); err != nil {
		t.Fatal(err)
	}
	if got, want := strings.Join(h.calls, " "), "claim arm guard classifier links tunnels classifier guard"; got != want {
		t.Errorf("a pass that takes away: %s, want %s", got, want)
	}
	h.calls = nil
	if err := r.pass(t.Context(), onePlan(plan.Flow{Interface: "circ0", Mark: 1})); err != nil {
		t.Fatal(err)
	}
	if got, want := strings.Join(h.calls, " "), "claim arm links tunnels classifier guard"; got != want {
		t.Errorf("a pass that changes nothing: %s, want %s", got, want)
	}
	h.calls = nil
	if err := r.pass(t.Context(), onePlan(plan.Flow{Interface: "circ0", Mark: 3})); err != nil {
		t.Fatal(err)
	}
	if got, want := strings.Join(h.calls, " "), "claim arm guard classifier links tunnels classifier guard"; got != want {
		t.Errorf("replacing pass: %s, want %s", got, want)
	}
}

func TestNoLinkComesUpUnguarded(t *testing.T) {
	both := onePlan(plan.Flow{Interface: "circ0", Mark: 1}, plan.Flow{Interface: "circ1", Mark: 2})
	for _, h := range []*host{{missing: "circ1"}, {unguarded: "circ1"}} {
		h.fail = map[string]error{"arm": errors.New("no"), "claim": errors.New("no")}
		r := newReconciler(h)
		if err := r.pass(t.Context(), both); err == nil {
			t.Fatal("no error")
		}
		if !slices.Equal(h.up, []string{"circ0"}) || len(h.flows) != 1 || h.flows[0].Interface != "circ0" {
			t.Errorf("missing %q, unguarded %q: up %v, flows %v; want circ0 alone", h.missing, h.unguarded, h.up, h.flows)
		}
	}
}

// Nothing comes in from a tunnel whose packets nobody judges: not when its
// device has to be made again, not when the classifier could not check it.
func TestUnjudgedTunnelsStayClosed(t *testing.T) {
	both := onePlan(plan.Flow{Interface: "circ0", Device: "t1"}, plan.Flow{Interface: "circ0", Device: "t2"})
	h := &host{}
	r := newReconciler(h)
	if err := r.pass(t.Context(), both); err != nil {
		t.Fatal(err)
	}
	h.opened, h.gone, h.unchecked = nil, []string{"t2"}, []string{"t2"}
	if err := r.pass(t.Context(), both); err != nil {
		t.Fatal(err)
	}
	for i, flows := range h.opened {
		if len(flows) != 1 || flows[0].Device != "t1" {
			t.Errorf("guard call %d opens %v, want t1 alone", i, flows)
		}
	}
	if i, j := slices.Index(h.calls[6:], "guard"), slices.Index(h.calls[6:], "tunnels"); i < 0 || i > j {
		t.Errorf("%v: a missing device's flow is closed only after the device is made", h.calls[6:])
	}
}

// What could not be found out changes nothing.
func TestUnknownLeavesThingsAsTheyWere(t *testing.T) {
	flow := plan.Flow{Interface: "circ0", Device: "t1"}
	for _, broken := range []string{"classifier", "arm"} {
		h := &host{}
		r := newReconciler(h)
		if err := r.pass(t.Context(), onePlan(flow)); err != nil {
			t.Fatal(err)
		}
		h.fail, h.opened = map[string]error{broken: errors.New("no")}, nil
		if broken == "arm" {
			h.missing, h.unguarded = "circ0", "circ1"
		}
		if err := r.pass(t.Context(), onePlan(flow)); err == nil {
			t.Errorf("%s broken: no error", broken)
		}
		if len(h.opened) != 0 || len(h.up) != 2 {
			t.Errorf("%s broken: guard calls %v, up %v", broken, h.opened, h.up)
		}
	}
}

func TestOneFailureDoesNotStopTheRest(t *testing.T) {
	for _, broken := range []string{"claim", "links", "tunnels"} {
		h := &host{fail: map[string]error{broken: errors.New("broken")}}
		r := newReconciler(h)
		err := r.pass(t.Context(), onePlan(plan.Flow{Interface: "circ0", Mark: 1}))
		if err == nil || !slices.Contains(h.calls, "guard") {
			t.Errorf("%s broken: error %v, calls %v", broken, err, h.calls)
		}
	}
}

func TestRunRetriesAndReports(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &host{fail: map[string]error{"tunnels": errors.New("not yet")}}
		r := newReconciler(h)
		ctx, cancel := context.WithCancel(t.Context())
		reports := 0
		ended := make(chan error, 1)
		go func() {
			ended <- r.Run(ctx, func(changed bool) {
				if changed {
					reports++
				}
			})
		}()

		time.Sleep(5 * time.Second)
		if len(h.calls) != 0 {
			t.Errorf("touched the host without a plan: %v", h.calls)
		}
		r.Want(onePlan(), 7)
		time.Sleep(50 * time.Millisecond)
		if done, err := r.Done(); done != 0 || err == nil {
			t.Errorf("after a failure: done %d, error %v", done, err)
		}
		delete(h.fail, "tunnels")
		time.Sleep(time.Second)
		if done, err := r.Done(); done != 7 || err != nil || reports != 2 {
			t.Errorf("after the retry: done %d, error %v, %d reports", done, err, reports)
		}
		before := len(h.calls)
		time.Sleep(10 * resync)
		if passes := (len(h.calls) - before) / 6; passes < 8 || passes > 11 {
			t.Errorf("%d passes in ten resync periods", passes)
		}
		if reports != 2 {
			t.Errorf("%d reports though nothing changed", reports)
		}
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("Run returned %v", err)
		}
	})
}
