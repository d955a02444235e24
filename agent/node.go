package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/circuitseal/circuitseal/agent/classifier"
	"github.com/circuitseal/circuitseal/agent/guard"
	"github.com/circuitseal/circuitseal/agent/lastgood"
	"github.com/circuitseal/circuitseal/agent/liveness"
	"github.com/circuitseal/circuitseal/agent/plan"
	"github.com/circuitseal/circuitseal/agent/reconcile"
	"github.com/circuitseal/circuitseal/agent/report"
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
	keys       *wireguard.Keys
	guard      *guard.Guard
	classifier *classifier.Classifier
	tunnels    *wireguard.Driver
	probes     *liveness.Monitor
	loop       *reconcile.Reconciler
	uplink     *uplink.Uplink

	mu       sync.Mutex
	plan     plan.Plan
	public   map[string]desired.PublicKey
	keyError error
	rejected *desired.Rejection
	// versions maps the loop's version numbers to positions.
	version   uint64
	positions map[uint64]desired.Position
	applied   desired.Position
}

// Accept takes a received state: verify, keep, then act. It implements
// uplink.Node.
func (n *node) Accept(e *v1.Envelope) {
	h, state, fresh, err := n.kept.Accept(e)
	n.mu.Lock()
	n.rejected = nil
	if err != nil {
		n.rejected = &desired.Rejection{Position: h.Position, Reason: err.Error()}
	}
	n.mu.Unlock()
	if err != nil {
		n.log.Error("state refused; the last good one stays", "position", h.Position.String(), "error", err)
		return
	}
	if fresh {
		n.log.Info("state accepted", "position", h.Position.String())
		n.take(h, state)
	}
}

// take makes the keys that the state names, and hands its plan to the loop.
func (n *node) take(h desired.Header, state desired.State) {
	var ids []string
	for _, s := range state.Sections {
		for _, g := range s.Groups {
			for _, t := range g.Tunnels {
				ids = append(ids, t.ID)
			}
		}
	}
	public, err := n.keys.Ensure(ids)
	err = errors.Join(err, n.keys.Forget(ids))
	p := plan.Build(n.config.Instance, state)

	n.mu.Lock()
	n.plan, n.public, n.keyError = p, public, err
	n.version++
	version := n.version
	if n.positions == nil {
		n.positions = map[uint64]desired.Position{}
	}
	n.positions[version] = h.Position
	n.mu.Unlock()

	n.loop.Want(p, version)
	n.uplink.Changed()
}

// passed follows a pass of the loop that changed something.
func (n *node) passed() {
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
	targets := targets(n.plan)
	n.mu.Unlock()
	n.probes.Set(targets)
	n.uplink.Changed()
}

func targets(p plan.Plan) []liveness.Target {
	var out []liveness.Target
	for _, g := range p.Classifier.Groups {
		for _, m := range g.Members {
			out = append(out, liveness.Target{Tunnel: m.Tunnel, Device: m.Device, Local: m.LocalProbe, Remote: m.RemoteProbe})
		}
	}
	return out
}

// probed moves a group off a tunnel that died, and back: one map write.
func (n *node) probed(tunnel string, up bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, g := range n.plan.Classifier.Groups {
		for i, m := range g.Members {
			if m.Tunnel != tunnel {
				continue
			}
			mask, err := n.classifier.Alive(g.Number)
			if err == nil {
				if up {
					mask |= 1 << i
				} else {
					mask &^= 1 << i
				}
				err = n.classifier.SetAlive(g.Number, mask)
			}
			if err != nil {
				n.log.Error("group keeps its members", "group", g.ID, "tunnel", tunnel, "up", up, "error", err)
			}
		}
	}
	n.uplink.Changed()
}

// Status reads the drivers. It implements uplink.Node.
func (n *node) Status(ctx context.Context) desired.Status {
	now := time.Now()
	n.mu.Lock()
	s := desired.Status{
		Version: n.config.Version, Kernel: kernel(), Time: now,
		Acknowledged: n.kept.Held().Position, Applied: n.applied, Rejection: n.rejected,
	}
	p, public, keyError := n.plan, n.public, n.keyError
	n.mu.Unlock()

	problem := func(what string, err error) {
		if err != nil {
			s.Problems = append(s.Problems, shorten(fmt.Sprintf("%s: %v", what, err)))
		}
	}
	_, passError := n.loop.Done()
	problem("host differs from the plan", passError)
	problem("keys", keyError)

	seen := map[string]report.Tunnel{}
	states, err := n.tunnels.Status(ctx)
	problem("read tunnels", err)
	for _, t := range states {
		seen[t.ID] = report.Tunnel{
			Present: true, Backend: t.Backend.String(), LastHandshake: t.LastHandshake,
			ReceivedBytes: t.ReceivedBytes, SentBytes: t.SentBytes, Endpoint: t.Endpoint,
		}
	}
	for id, h := range n.probes.Snapshot() {
		t := seen[id]
		t.Up, t.ProbesSent, t.ProbesLost, t.RoundTrip = h.Up, h.Sent, h.Lost, h.RTT
		seen[id] = t
	}
	for id, key := range public {
		t := seen[id]
		t.PublicKey = key
		seen[id] = t
	}
	s.Tunnels = report.Tunnels(p, seen, now)

	guards, counters, err := n.guard.Status(ctx)
	problem("read the guard", err)
	s.Guards, s.Counters = guards, counters
	counters, err = n.classifier.Counters()
	problem("read the classifier", err)
	s.Counters = append(s.Counters, counters...)
	return s
}

// shorten keeps a problem within what a status carries.
func shorten(s string) string {
	const most = 1000
	if len(s) > most {
		return s[:most] + "…"
	}
	return s
}

func kernel() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return ""
	}
	return unix.ByteSliceToString(u.Release[:])
}
