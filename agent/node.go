package agent

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/circuitseal/circuitseal/agent/classifier"
	"github.com/circuitseal/circuitseal/agent/drift"
	"github.com/circuitseal/circuitseal/agent/guard"
	"github.com/circuitseal/circuitseal/agent/ipsec"
	"github.com/circuitseal/circuitseal/agent/lastgood"
	"github.com/circuitseal/circuitseal/agent/liveness"
	"github.com/circuitseal/circuitseal/agent/offline"
	"github.com/circuitseal/circuitseal/agent/plan"
	"github.com/circuitseal/circuitseal/agent/reconcile"
	"github.com/circuitseal/circuitseal/agent/report"
	"github.com/circuitseal/circuitseal/agent/tchook"
	"github.com/circuitseal/circuitseal/agent/uplink"
	"github.com/circuitseal/circuitseal/agent/wireguard"
	v1 "github.com/circuitseal/circuitseal/proto/circuitseal/v1"
	"github.com/circuitseal/circuitseal/proto/desired"
)

// node is one running agent: what it holds, and what its parts tell each other.
type node struct {
	config     Config
	log        *slog.Logger
	kept       *lastgood.Store
	keys       keys
	guard      *guard.Guard
	classifier *classifier.Classifier
	tunnels    *wireguard.Driver
	ipsec      *ipsec.Driver
	probes     *liveness.Monitor
	loop       *reconcile.Reconciler
	drift      *drift.Ledger
	uplink     *uplink.Uplink
	hooks      tchook.Way
	scrapes    scrapes

	// making is held while keys are made, and the tunnels that they are for read.
	making sync.Mutex
	// steering keeps an older look at the probes from overwriting a newer one.
	steering sync.Mutex
	// gateways are those that answer IKE, by plan.Member's key.
	gateways map[string]bool
	ready    sync.Once

	// contact is when the controller was last heard of; aged wakes watchAge.
	contact *offline.Contact
	aged    chan struct{}

	mu   sync.Mutex
	plan plan.Plan
	// header and state are what the plan was made of, overdue the groups that were
	// without their controller for too long then.
	header   desired.Header
	state    desired.State
	overdue  []desired.Group
	public   publicKeys
	keyError error
	// unread is why the last good state could not be read, until there is another.
	unread   error
	rejected *desired.Rejection
	// versions maps the loop's version numbers to positions.
	version   uint64
	positions map[uint64]desired.Position
	applied   desired.Position
}

// Accept takes a received state: verify, keep, then act. An error means that
// the state could not be kept though nothing is wrong with it, and has to come
// again. It implements uplink.Node.
func (n *node) Accept(e *v1.Envelope) error {
	h, state, fresh, err := n.kept.Accept(e)
	n.mu.Lock()
	n.rejected = nil
	if err != nil {
		n.rejected = &desired.Rejection{Position: h.Position, Reason: err.Error()}
	}
	n.mu.Unlock()
	if err != nil {
		n.log.Error("state refused; the last good one stays", "position", h.Position.String(), "error", err)
		if lastgood.Refused(err) {
			return nil
		}
		return err
	}
	if fresh {
		n.log.Info("state accepted", "position", h.Position.String())
		n.take(h, state)
	}
	return nil
}

// take brings a state about.
func (n *node) take(h desired.Header, state desired.State) {
	n.making.Lock()
	defer n.making.Unlock()
	n.bring(h, state)
	// Its groups may have other limits.
	n.look()
}

// bring makes the keys that a state names, and hands its plan to the loop. It is
// called with making held.
func (n *node) bring(h desired.Header, state desired.State) {
	public, err := n.keys.make(state)
	overdue, _, _ := n.overdueGroups(state)
	p := plan.BuildClosed(n.config.Instance, state, closedGroups(overdue))

	n.mu.Lock()
	n.header, n.state, n.overdue = h, state, overdue
	n.plan, n.public, n.keyError, n.unread = p, public, err, nil
	n.version++
	version := n.version
	n.positions[version] = h.Position
	n.mu.Unlock()

	n.loop.Want(p, version)
	n.uplink.Changed()
}

// remakeKeys tries again what take could not do.
func (n *node) remakeKeys() (done bool) {
	n.mu.Lock()
	failed := n.keyError != nil
	n.mu.Unlock()
	if !failed {
		return false
	}
	n.making.Lock()
	defer n.making.Unlock()
	n.mu.Lock()
	state := n.state
	n.mu.Unlock()
	public, err := n.keys.make(state)
	n.mu.Lock()
	n.public, n.keyError = public, err
	n.mu.Unlock()
	return err == nil
}

// announce says once that the agent is ready.
func (n *node) announce() {
	if n.config.Ready != nil {
		n.ready.Do(n.config.Ready)
	}
}

// passed follows every pass of the loop.
func (n *node) passed(ctx context.Context, changed bool) {
	defer n.announce()
	version, _ := n.loop.Done()
	n.mu.Lock()
	if p, ok := n.positions[version]; ok {
		n.applied = p
		for v := range n.positions {
			if v < version {
				delete(n.positions, v)
			}
		}
	}
	p := n.plan
	n.mu.Unlock()
	changed = n.remakeKeys() || changed
	n.probes.Set(targets(p))
	n.ask(ctx, p.Classifier.Groups)
	n.steer(p.Classifier.Groups)
	if changed {
		n.uplink.Changed()
	}
}

// Status reads the drivers. It implements uplink.Node.
func (n *node) Status(ctx context.Context) desired.Status {
	now := time.Now()
	// Held may wait for the disk; nothing else has to wait with it.
	held := n.kept.Held().Position
	n.mu.Lock()
	s := desired.Status{
		Version: n.config.Version, Kernel: kernel(), Time: now,
		Acknowledged: held, Applied: n.applied, Rejection: n.rejected,
	}
	p, public, keyError, unread, overdue := n.plan, n.public, n.keyError, n.unread, n.overdue
	n.mu.Unlock()
	age, contactError := n.contact.Age()

	problem := func(what string, err error) {
		if err != nil {
			s.Problems = append(s.Problems, fmt.Sprintf("%s: %v", what, err))
		}
	}
	switch {
	case unread != nil:
		problem("last good state cannot be read; what was set up before stays as it is, and the controller is asked for the newest", unread)
	case s.Acknowledged == (desired.Position{}):
		s.Problems = append(s.Problems, "no state yet: no circuit interface is guarded")
	}
	s.Problems = append(s.Problems, n.uplink.Problems(now)...)
	if p := n.probes.Problem(); p != "" {
		s.Problems = append(s.Problems, p)
	}
	problem("metrics cannot be scraped", n.scrapes.problem())
	_, passError := n.loop.Done()
	problem("host differs from the plan", passError)
	problem("keys", keyError)
	problem("time of the last contact", contactError)
	s.Problems = append(s.Problems, offlineProblems(overdue, age)...)
	s.Drift = n.drift.Drift()
	s.Problems = append(s.Problems, n.drift.Conflicts()...)

	seen := map[string]report.Tunnel{}
	states, err := n.tunnels.Status(ctx)
	problem("read tunnels", err)
	for _, t := range states {
		seen[t.ID] = report.Tunnel{
			Backend: t.Backend.String(), Problem: t.Problem, LastHandshake: t.LastHandshake,
			ReceivedBytes: t.ReceivedBytes, SentBytes: t.SentBytes,
			PresharedHeld: t.PresharedHeld, PresharedUsed: t.PresharedUsed,
		}
	}
	charon, err := n.ipsec.Status(ctx)
	problem("read IPsec tunnels", err)
	for _, t := range charon {
		seen[plan.IPsecKey(t.ID)] = report.Tunnel{
			Backend: t.Backend, Problem: t.Problem, LastHandshake: t.Established,
			ReceivedBytes: t.ReceivedBytes, SentBytes: t.SentBytes,
			PresharedHeld: t.PresharedHeld, PresharedUsed: t.PresharedUsed,
			Associations: t.Associations, Up: t.Up,
		}
	}
	for id, h := range n.probes.Snapshot() {
		t := seen[id]
		t.Up, t.ProbesSent, t.ProbesLost, t.RoundTrip = h.Up, h.Sent, h.Lost, h.RTT
		seen[id] = t
	}
	for id, key := range public.tunnels {
		t := seen[id]
		t.PublicKey = key
		seen[id] = t
	}
	s.Tunnels = report.Tunnels(p, seen, now)
	s.IdentityKeys = public.identities
	s.Charon = n.ipsec.Charon(ctx)
	s.Capabilities = report.Capabilities(n.hooks.String(), s.Tunnels)

	guards, counters, err := n.guard.Status(ctx)
	problem("read the guard", err)
	s.Guards, s.Counters = withMissing(guards, p.Guard.Interfaces), counters
	counters, err = n.classifier.Counters()
	problem("read the classifier", err)
	s.Counters = append(s.Counters, counters...)
	return s
}

// withMissing adds the circuit interfaces of the plan that no layer speaks of.
func withMissing(guards []desired.GuardStatus, interfaces []string) []desired.GuardStatus {
	there := make(map[string]bool, len(guards))
	for _, g := range guards {
		there[g.Interface] = true
	}
	for _, i := range interfaces {
		if !there[i] {
			guards = append(guards, desired.GuardStatus{Interface: i, Layer: guard.LayerNamespace})
		}
	}
	return guards
}

func kernel() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return ""
	}
	return unix.ByteSliceToString(u.Release[:])
}
