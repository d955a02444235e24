// Package reconcile brings a node's host in line with its plan: a dirty flag, a
// throttled loop, one visible order across the drivers, retries. It knows what
// the drivers promise and nothing of netlink, eBPF, WireGuard or IKE.
package reconcile

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/circuitseal/circuitseal/agent/drift"
	"github.com/circuitseal/circuitseal/agent/plan"
)

// The drivers, as this loop uses them. Each takes the whole wanted state, so
// that repeats are free and nothing has to be remembered.
type (
	// Guard is the fail-closed layers. Arm guards interfaces and closes what is
	// open and not in want; it opens nothing. armed are those that are guarded;
	// nil when it could not be made sure that the rest is closed. Sync makes
	// exactly want pass.
	Guard interface {
		Arm(ctx context.Context, want plan.Guard) (armed []string, err error)
		Sync(ctx context.Context, want plan.Guard) error
	}
	// Links are the circuit interfaces. Claim takes them, down, into the
	// circuit namespace, where it makes the VLAN devices among them, and says
	// which are there, nil when it cannot tell; Sync
	// gives them addresses and routes and brings them up, and takes all others
	// down.
	Links interface {
		Claim(ctx context.Context, interfaces []plan.Interface) (claimed []string, err error)
		Sync(ctx context.Context, interfaces []plan.Interface, tables []plan.Table) error
	}
	// Tunnels are WireGuard's devices and what they encrypt with. Sync calls
	// closing with the devices that it is about to make, which nobody judges yet,
	// and makes none when that fails. Sweep removes what the last Sync found
	// and did not want.
	//
	// Adjust lets other prefixes through tunnels that are there, and touches
	// nothing else.
	Tunnels interface {
		Adjust(ctx context.Context, tunnels []plan.Tunnel) error
		Sync(ctx context.Context, want []plan.Tunnel, closing func(devices []string) error) error
		Sweep(ctx context.Context) error
	}
	// IPsec is charon and the devices of its tunnels; as Tunnels. Prefixes are not
	// adjusted: an SA carries all that the classifier lets into its device.
	IPsec interface {
		Sync(ctx context.Context, want plan.IPsec, closing func(devices []string) error) error
		Sweep(ctx context.Context) error
	}
	// SlowPaths are where the kernel answers or fragments what is too big for
	// its tunnel. Sync makes one for each LAN; one that is missing costs the LAN
	// no more than that.
	SlowPaths interface {
		Sync(ctx context.Context, want []plan.LAN) error
	}
	// Classifier decides about inner packets. checked are the tunnel devices
	// that it judges; nil when that is not known. Adjust makes prefixes of LANs
	// and groups that are there known, or unknown, and touches nothing else.
	Classifier interface {
		Adjust(ctx context.Context, prefixes plan.Classifier, there bool) error
		Sync(ctx context.Context, want plan.Classifier) (checked []string, err error)
	}
)

const (
	// resync is how often the host is compared with the plan when nothing
	// happens: what leaves no netlink message is found then. The rest of a second
	// is for the repair.
	resync = 800 * time.Millisecond
	// throttle is the least time between the ends of one pass and the start of
	// the next.
	throttle = 20 * time.Millisecond
	// breath follows what was brought about ahead of a pass, which finds little left
	// to do: others on this host's processors may be about the same change.
	breath = 50 * time.Millisecond
	// calm is throttle while somebody else undoes what passes do.
	calm       = 100 * time.Millisecond
	firstRetry = 100 * time.Millisecond
	// lastRetry is no longer than resync: one standing fault must not slow the
	// repair of another.
	lastRetry = resync
)

// Reconciler owns the order in which drivers act.
type Reconciler struct {
	guard      Guard
	links      Links
	tunnels    Tunnels
	ipsec      IPsec
	slowPaths  SlowPaths
	classifier Classifier
	drift      *drift.Ledger
	log        *slog.Logger
	dirty      chan struct{}

	mu      sync.Mutex
	want    *plan.Plan
	version uint64
	done    uint64
	err     error
	// interrupt ends the pass under way; nil while none is, or it must not.
	interrupt context.CancelFunc
}

// New makes a reconciler that does nothing until it has a plan. The drivers note
// in d what they change.
func New(g Guard, l Links, t Tunnels, i IPsec, s SlowPaths, c Classifier, d *drift.Ledger, log *slog.Logger) *Reconciler {
	return &Reconciler{guard: g, links: l, tunnels: t, ipsec: i, slowPaths: s, classifier: c, drift: d, log: log, dirty: make(chan struct{}, 1)}
}

// Want replaces the plan. Nothing on the host is touched before the first call.
// version is the caller's name for the plan; see Done.
func (r *Reconciler) Want(p plan.Plan, version uint64) {
	r.mu.Lock()
	if r.interrupt != nil && r.want != nil {
		if _, ok := p.PrefixesFrom(*r.want); ok {
			r.interrupt()
		}
	}
	r.want, r.version = &p, version
	r.mu.Unlock()
	r.Dirty()
}

// Dirty asks for a pass soon. It never blocks.
func (r *Reconciler) Dirty() {
	select {
	case r.dirty <- struct{}{}:
	default:
	}
}

// Done is the version of the last plan that was brought about in full, and the
// error of the last pass.
func (r *Reconciler) Done() (version uint64, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.done, r.err
}

// Run passes over the host until ctx ends; it leaves everything in place then.
// passed is called after every pass; changed says whether Done says something
// new, or the ledger.
//
// What a pass changes though its plan has been brought about before is a repair.
// Where the same is repaired again and again, somebody else manages it, and
// haste would only have two managers burn the processor: passes then come as if
// nothing happened, every resync. Guarding and closing are not put off.
func (r *Reconciler) Run(ctx context.Context, passed func(changed bool)) error {
	retry := firstRetry
	var carried *plan.Plan
	interrupted := false
	timer := time.NewTimer(0)
	defer timer.Stop()
	var last time.Time
	// news of the ledger wait for the next whole pass.
	news := false
	for {
		woken := false
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-r.dirty:
			woken = true
		case <-timer.C:
		}
		passing, interrupt := context.WithCancel(ctx)
		r.mu.Lock()
		want, version, before, doneBefore := r.want, r.version, r.err, r.done
		if !interrupted {
			r.interrupt = interrupt
		}
		r.mu.Unlock()
		if want == nil {
			interrupt()
			timer.Reset(resync)
			continue
		}
		repairs := version == doneBefore
		pause := throttle
		if rest := resync - time.Since(last); woken && repairs && rest > 0 && r.drift.Contested() {
			r.over(interrupt)
			r.drift.Begin(repairs)
			r.hold(ctx, *want)
			news = r.drift.End() || news
			timer.Reset(rest)
			pause = calm
		} else {
			r.drift.Begin(repairs)
			if carried != nil && carried != want && r.hurry(ctx, *carried, *want) {
				select {
				case <-ctx.Done():
				case <-time.After(breath):
				}
			}
			err := r.pass(passing, *want)
			news = r.drift.End() || news
			// Nobody takes the turn of the pass that follows, so that one ends.
			interrupted = passing.Err() != nil
			r.over(interrupt)
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if interrupted {
				timer.Reset(0)
				continue
			}
			carried = want
			last = time.Now()
			next := resync
			if err != nil {
				next = retry
				retry = min(2*retry, lastRetry)
			} else {
				retry = firstRetry
			}
			r.mu.Lock()
			r.err = err
			if err == nil {
				r.done = version
			}
			changed := r.done != doneBefore || fmt.Sprint(err) != fmt.Sprint(before)
			r.mu.Unlock()
			if changed {
				if err != nil {
					r.log.Error("host differs from the plan", "retry_in", next, "error", err)
				} else {
					r.log.Info("host is as planned", "version", version)
				}
			}
			if news {
				r.log.Warn("who manages this host is in conflict with others, or no longer", "conflicts", r.drift.Conflicts())
			}
			passed(changed || news)
			news = false
			timer.Reset(next)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
	}
}

// hold is the part of a pass that is never put off: circuit interfaces are
// guarded, and nothing is open that is not wanted. What goes wrong with it goes
// wrong with the next pass, which says so.
func (r *Reconciler) hold(ctx context.Context, want plan.Plan) {
	claimed, err := r.links.Claim(ctx, want.Interfaces)
	if claimed == nil {
		r.log.Debug("take circuit interfaces", "error", err)
		return
	}
	if _, err := r.guard.Arm(ctx, want.Only(claimed).Guard); err != nil {
		r.log.Debug("arm the guard", "error", err)
	}
}

// over has no pass interrupted any more, and gives its context up.
func (r *Reconciler) over(interrupt context.CancelFunc) {
	r.mu.Lock()
	r.interrupt = nil
	r.mu.Unlock()
	interrupt()
}

// hurry brings prefixes that come and go about before the pass that follows, so
// that with many customers a change for one waits for no look at the others. It
// goes by the plan of the pass before, and only where that differs in nothing
// but prefixes: what it does is part of what the pass would do, in the pass's order, and
// what it leaves out or cannot do the pass makes up for. Nothing is opened here
// that depends on more than the drivers read at that moment. done tells that all
// of the difference was brought about.
func (r *Reconciler) hurry(ctx context.Context, last, want plan.Plan) (done bool) {
	d, ok := want.PrefixesFrom(last)
	if !ok {
		return false
	}
	start := time.Now()
	err := errors.Join(
		r.classifier.Adjust(ctx, d.Going, false),
		r.tunnels.Adjust(ctx, d.Tunnels),
		r.classifier.Adjust(ctx, d.Coming, true))
	r.log.Debug("prefixes before the pass", "took", time.Since(start), "error", err)
	return err == nil
}

// pass is the order. Circuit interfaces are taken and guarded, and what is open
// and not wanted is closed. Then what comes is built from the bottom up; the
// guard opens last, and only for tunnels whose inner packets the classifier
// judges. What goes is removed at the end, when nothing uses it any more. Every
// step reads what there is and remembers nothing, so that a pass that follows
// a crash is like any other. Dying between any two lines leaves less open than
// before or than wanted, never more.
//
// A step that fails does not stop unrelated ones. No circuit interface gets an
// address or comes up unless it is guarded, and one that is missing leaves the
// others to carry what they can. Where it could not be found out what is closed
// or judged, everything that depends on it stays as it was.
func (r *Reconciler) pass(ctx context.Context, want plan.Plan) error {
	var errs []error
	start := time.Now()
	before := start
	var took []any
	defer func() { r.log.Debug("pass", append(took, "total", time.Since(start))...) }()
	step := func(what string, err error) {
		took = append(took, strings.ReplaceAll(what, " ", "_"), time.Since(before))
		before = time.Now()
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", what, err))
		}
	}
	claimed, err := r.links.Claim(ctx, want.Interfaces)
	step("take circuit interfaces", err)
	if claimed == nil {
		return errors.Join(errs...)
	}
	armed, err := r.guard.Arm(ctx, want.Only(claimed).Guard)
	step("arm the guard", err)
	if armed == nil {
		return errors.Join(errs...)
	}
	carried := want.Only(armed)
	step("configure links", r.links.Sync(ctx, carried.Interfaces, carried.Tables))
	closing := func(devices []string) error {
		// Of what is wrong beside that the pass knows already.
		if armed, err := r.guard.Arm(ctx, carried.Guard.Without(devices)); armed == nil {
			return err
		}
		return nil
	}
	step("configure WireGuard tunnels", r.tunnels.Sync(ctx, want.Tunnels, closing))
	step("configure IPsec tunnels", r.ipsec.Sync(ctx, want.IPsec, closing))
	step("configure slow paths", r.slowPaths.Sync(ctx, want.Classifier.LANs))
	checked, err := r.classifier.Sync(ctx, want.Classifier)
	step("configure the classifier", err)
	if checked == nil {
		return errors.Join(errs...)
	}
	step("open the guard", r.guard.Sync(ctx, carried.Guard.WithDevices(checked)))
	step("remove WireGuard tunnels", r.tunnels.Sweep(ctx))
	step("remove IPsec tunnels", r.ipsec.Sweep(ctx))
	return errors.Join(errs...)
}
