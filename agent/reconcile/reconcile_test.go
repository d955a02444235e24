package reconcile

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/circuitseal/circuitseal/agent/drift"
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
	// devices are made and not swept; unmakeable ones cannot be made, unchecked
	// ones the classifier does not judge.
	devices               []string
	unmakeable, unchecked []string
	// drift has what a Sync of links puts right: as often as it was undone.
	drift  *drift.Ledger
	undone int
	// opened collects what the guard let pass, call by call.
	opened [][]plan.Flow
}

func (h *host) ledger() *drift.Ledger {
	if h.drift == nil {
		h.drift = drift.New()
	}
	return h.drift
}

func (h *host) call(name string) error {
	h.calls = append(h.calls, name)
	return h.fail[name]
}

type guard struct{ *host }

func (g guard) Arm(_ context.Context, want plan.Guard) ([]string, error) {
	if err := g.call("arm"); err != nil && g.unguarded == "" {
		return nil, err
	}
	g.flows = slices.DeleteFunc(slices.Clone(g.flows), func(f plan.Flow) bool { return !slices.Contains(want.Flows, f) })
	g.opened = append(g.opened, g.flows)
	return without(want.Interfaces, g.unguarded), g.fail["arm"]
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

func (l links) Claim(_ context.Context, wanted []plan.Interface) ([]string, error) {
	var interfaces []string
	for _, i := range wanted {
		interfaces = append(interfaces, i.Name)
	}
	if err := l.call("claim"); err != nil && l.missing == "" {
		return nil, err
	}
	return without(interfaces, l.missing), l.fail["claim"]
}

func without(all []string, one string) []string {
	return append([]string{}, slices.DeleteFunc(slices.Clone(all), func(s string) bool { return s == one })...)
}

func (l links) Sync(_ context.Context, interfaces []plan.Interface, _ []plan.Table) error {
	if err := l.call("links"); err != nil {
		return err
	}
	if l.undone > 0 {
		l.undone--
		l.drift.Note(drift.Route, drift.Text("route replace 10.0.0.1/32"))
	}
	l.up = nil
	for _, i := range interfaces {
		l.up = append(l.up, i.Name)
	}
	return nil
}

type tunnels struct{ *host }

func (t tunnels) Sync(_ context.Context, want []plan.Tunnel, closing func([]string) error) error {
	if err := t.call("tunnels"); err != nil {
		return err
	}
	var missing []string
	for _, x := range want {
		if !slices.Contains(t.devices, x.Device) {
			missing = append(missing, x.Device)
		}
	}
	if len(missing) > 0 {
		if err := closing(missing); err != nil {
			return err
		}
	}
	for _, name := range missing {
		if slices.Contains(t.unmakeable, name) {
			return errors.New("cannot make " + name)
		}
		t.devices = append(t.devices, name)
	}
	return nil
}

func (t tunnels) Adjust(_ context.Context, want []plan.Tunnel) error {
	for _, x := range want {
		t.calls = append(t.calls, "adjust "+x.Device)
	}
	return t.fail["adjust"]
}

func (t tunnels) Sweep(context.Context) error { return t.call("sweep") }

type ipsec struct{ *host }

func (i ipsec) Sync(_ context.Context, want plan.IPsec, closing func([]string) error) error {
	if err := i.call("ipsec"); err != nil {
		return err
	}
	var missing []string
	for _, x := range want.Tunnels {
		if !slices.Contains(i.devices, x.Device) {
			missing = append(missing, x.Device)
		}
	}
	if len(missing) > 0 {
		if err := closing(missing); err != nil {
			return err
		}
	}
	i.devices = append(i.devices, missing...)
	return nil
}

func (i ipsec) Sweep(context.Context) error { return i.call("sweepipsec") }

type slowPaths struct{ *host }

func (s slowPaths) Sync(context.Context, []plan.LAN) error { return s.call("slow") }

type classifier struct{ *host }

func (c classifier) Sync(context.Context, plan.Classifier) ([]string, error) {
	if err := c.call("classifier"); err != nil {
		return nil, err
	}
	return slices.DeleteFunc([]string{"", "t1", "t2"}, func(s string) bool { return slices.Contains(c.unchecked, s) }), nil
}

func (c classifier) Adjust(_ context.Context, p plan.Classifier, there bool) error {
	for _, r := range p.Remotes {
		c.calls = append(c.calls, fmt.Sprintf("remote %s %t", r.Prefix, there))
	}
	return c.fail["adjust"]
}

func newReconciler(h *host) *Reconciler {
	return New(guard{h}, links{h}, tunnels{h}, ipsec{h}, slowPaths{h}, classifier{h}, h.ledger(), slog.New(slog.DiscardHandler))
}

func onePlan(flows ...plan.Flow) plan.Plan {
	p := plan.Plan{
		Interfaces: []plan.Interface{{Name: "circ0"}, {Name: "circ1"}},
		Guard:      plan.Guard{Interfaces: []string{"circ0", "circ1"}, Flows: flows},
	}
	for _, f := range flows {
		if f.Device != "" {
			p.Tunnels = append(p.Tunnels, plan.Tunnel{Device: f.Device})
		}
	}
	return p
}

func TestPassOrder(t *testing.T) {
	h := &host{}
	r := newReconciler(h)
	one, two := plan.Flow{Interface: "circ0", Device: "t1"}, plan.Flow{Interface: "circ0", Device: "t2"}
	for _, tt := range []struct {
		name, want string
		flows      []plan.Flow
	}{
		{"first", "claim arm links tunnels arm ipsec slow classifier guard sweep sweepipsec", []plan.Flow{one, two}},
		{"taking away", "claim arm links tunnels ipsec slow classifier guard sweep sweepipsec", []plan.Flow{one}},
		{"repeat", "claim arm links tunnels ipsec slow classifier guard sweep sweepipsec", []plan.Flow{one}},
	} {
		h.calls = nil
		if err := r.pass(t.Context(), onePlan(tt.flows...)); err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(h.calls, " "); got != tt.want {
			t.Errorf("%s pass: %s, want %s", tt.name, got, tt.want)
		}
		if !slices.Equal(h.flows, tt.flows) {
			t.Errorf("%s pass: flows %v, want %v", tt.name, h.flows, tt.flows)
		}
	}
	// Whatever goes is closed before anything beneath it changes.
	h.opened = nil
	if err := r.pass(t.Context(), onePlan(two)); err != nil {
		t.Fatal(err)
	}
	if len(h.opened) != 2 || len(h.opened[0]) != 0 {
		t.Errorf("a pass that replaces: guard calls %v, want the first to close", h.opened)
	}
}

func TestNoLinkComesUpUnguarded(t *testing.T) {
	both := onePlan(plan.Flow{Interface: "circ0", Mark: 1}, plan.Flow{Interface: "circ1", Mark: 2})
	no := errors.New("no")
	for _, h := range []*host{
		{missing: "circ1", fail: map[string]error{"claim": no}},
		{unguarded: "circ1", fail: map[string]error{"arm": no}},
	} {
		r := newReconciler(h)
		if err := r.pass(t.Context(), both); err == nil {
			t.Fatal("no error")
		}
		if !slices.Equal(h.up, []string{"circ0"}) || len(h.flows) != 1 || h.flows[0].Interface != "circ0" {
			t.Errorf("missing %q, unguarded %q: up %v, flows %v; want circ0 alone", h.missing, h.unguarded, h.up, h.flows)
		}
	}
}

// Without slow paths all else is there.
func TestSlowPathsHoldNothingUp(t *testing.T) {
	h := &host{fail: map[string]error{"slow": errors.New("no")}}
	if err := newReconciler(h).pass(t.Context(), onePlan(plan.Flow{Interface: "circ0", Device: "t1"})); err == nil {
		t.Error("no error")
	}
	if !slices.Equal(h.devices, []string{"t1"}) || len(h.flows) != 1 {
		t.Errorf("devices %v, flows %v; want t1, open", h.devices, h.flows)
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
	h.opened, h.devices, h.unchecked = nil, []string{"t1"}, []string{"t2"}
	if err := r.pass(t.Context(), both); err != nil {
		t.Fatal(err)
	}
	// The first call precedes the knowledge that t2 is gone: with its device,
	// its socket went too.
	for i, flows := range h.opened[1:] {
		if len(flows) != 1 || flows[0].Device != "t1" {
			t.Errorf("guard call %d opens %v, want t1 alone", i, flows)
		}
	}
}

// Devices that are made again are closed before, whatever they encrypt with.
func TestMadeAgainIsClosedBefore(t *testing.T) {
	both := onePlan(plan.Flow{Interface: "circ0", Device: "t1"}, plan.Flow{Interface: "circ0", Device: "i1"})
	both.Tunnels = both.Tunnels[:1]
	both.IPsec.Tunnels = []plan.IPsecTunnel{{Device: "i1"}}
	h := &host{flows: both.Guard.Flows}
	if err := newReconciler(h).pass(t.Context(), both); err != nil {
		t.Fatal(err)
	}
	// It was known before the first of the two that nothing is missing.
	for i, want := range []int{2, 1, 0} {
		if len(h.opened[i]) != want {
			t.Errorf("guard call %d of %q opens %v, want %d flows", i, h.calls, h.opened[i], want)
		}
	}
	if !slices.Equal(h.devices, []string{"t1", "i1"}) {
		t.Errorf("devices %v, want both", h.devices)
	}
}

// A process that died after it had made a device and before anything judged
// it: the next one opens nothing for that device, whatever else is missing.
func TestNothingOpensBeforeTheClassifierJudges(t *testing.T) {
	both := onePlan(plan.Flow{Interface: "circ0", Device: "t1"}, plan.Flow{Interface: "circ0", Device: "t2"})
	h := &host{devices: []string{"t1"}, unmakeable: []string{"t2"}, fail: map[string]error{"classifier": errors.New("no")}}
	r := newReconciler(h)
	for range 3 {
		if err := r.pass(t.Context(), both); err == nil {
			t.Fatal("no error")
		}
	}
	for i, flows := range h.opened {
		if len(flows) > 0 {
			t.Errorf("guard call %d of %q opens %v", i, h.calls, flows)
		}
	}
}

// A standing fault of one interface keeps nobody's device from being made.
func TestStandingFaultMakesDevices(t *testing.T) {
	h := &host{unguarded: "circ1", fail: map[string]error{"arm": errors.New("no")}}
	if err := newReconciler(h).pass(t.Context(), onePlan(plan.Flow{Interface: "circ0", Device: "t1"})); err == nil {
		t.Error("no error")
	}
	if !slices.Equal(h.devices, []string{"t1"}) || len(h.flows) != 1 {
		t.Errorf("devices %v, flows %v; want t1, open", h.devices, h.flows)
	}
}

// What could not be found out changes nothing that depends on it.
func TestUnknownLeavesThingsAsTheyWere(t *testing.T) {
	flow := plan.Flow{Interface: "circ0", Device: "t1"}
	for broken, want := range map[string]string{
		"claim":      "claim",
		"arm":        "claim arm",
		"classifier": "claim arm links tunnels ipsec slow classifier",
	} {
		h := &host{}
		r := newReconciler(h)
		if err := r.pass(t.Context(), onePlan(flow)); err != nil {
			t.Fatal(err)
		}
		h.fail, h.calls = map[string]error{broken: errors.New("no")}, nil
		if err := r.pass(t.Context(), onePlan(flow)); err == nil {
			t.Errorf("%s broken: no error", broken)
		}
		if got := strings.Join(h.calls, " "); got != want || !slices.Equal(h.flows, []plan.Flow{flow}) || len(h.up) != 2 {
			t.Errorf("%s broken: calls %s, flows %v, up %v; want %s and the rest as it was", broken, got, h.flows, h.up, want)
		}
	}
}

func TestOneFailureDoesNotStopTheRest(t *testing.T) {
	for _, broken := range []string{"links", "tunnels"} {
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
		if passes := (len(h.calls) - before) / 9; passes < 8 || passes > 11 {
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

// What a plan brings about is no repair; what has to be done to it again is.
func TestRepairsAreCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &host{undone: 1}
		r := newReconciler(h)
		stop := run(t, r, func(bool) {})
		defer stop()
		r.Want(onePlan(), 1)
		time.Sleep(5 * resync)
		if d := h.drift.Drift(); len(d) != 0 {
			t.Errorf("a new plan was counted: %v", d)
		}
		h.undone = 1
		time.Sleep(2 * resync)
		if d := h.drift.Drift(); len(d) != 1 || d[0].Count != 1 {
			t.Errorf("one repair was counted as %v", d)
		}
		// A plan that is not there in full yet is still being brought about.
		h.fail, h.undone = map[string]error{"tunnels": errors.New("no")}, 3
		r.Want(onePlan(), 2)
		time.Sleep(5 * resync)
		if d := h.drift.Drift(); d[0].Count != 1 {
			t.Errorf("what a new plan asks for was counted: %v", d)
		}
	})
}

// Whoever undoes at once what a pass does slows passes down to what they are
// without events, but neither a new plan nor the guard.
func TestConflictIsDamped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &host{undone: 1 << 30}
		r := newReconciler(h)
		news := 0
		stop := run(t, r, func(changed bool) {
			if changed {
				news++
			}
			r.Dirty() // the kernel says that routes were changed
		})
		defer stop()
		other := make(chan struct{})
		defer close(other)
		go func() {
			for {
				select {
				case <-other:
					return
				case <-time.After(10 * time.Millisecond):
					r.Dirty()
				}
			}
		}()
		r.Want(onePlan(plan.Flow{Interface: "circ0", Mark: 1}), 1)
		time.Sleep(2 * time.Second)
		h.calls, news = nil, 0
		const long = 20 * time.Second
		time.Sleep(long)
		passes, held := count(h.calls, "links"), count(h.calls, "arm")
		if least := int(long/time.Second) - 1; passes < least || passes > 2*least {
			t.Errorf("%d passes in %s, want about one in %s", passes, long, resync)
		}
		if least := int(long / calm * 3 / 4); held < least || held > 2*least {
			t.Errorf("the guard was armed %d times in %s, want about one in %s", held, long, calm)
		}
		if news != 0 {
			t.Errorf("%d times news though the conflict only goes on", news)
		}
		h.calls = nil
		r.Want(onePlan(), 2)
		time.Sleep(2 * calm)
		if done, _ := r.Done(); done != 2 {
			t.Errorf("a new plan waits for a conflict: done %d", done)
		}
		// It ends by itself.
		h.undone = 0
		time.Sleep(time.Minute)
		if h.drift.Contested() || news != 2 {
			t.Errorf("contested %v, %d times news, want the new plan and the end of the conflict", h.drift.Contested(), news)
		}
	})
}

func count(calls []string, name string) (n int) {
	for _, c := range calls {
		if c == name {
			n++
		}
	}
	return n
}

// run runs a reconciler until stop.
func run(t *testing.T, r *Reconciler, passed func(bool)) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx, passed) }()
	return func() {
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("Run: %v", err)
		}
	}
}
