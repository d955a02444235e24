package agent

import (
	"context"
	"errors"
	"os"
	"slices"

	"github.com/circuitseal/circuitseal/agent/liveness"
	"github.com/circuitseal/circuitseal/agent/plan"
)

// targets are the tunnels whose far end answers probes.
func targets(p plan.Plan) []liveness.Target {
	var out []liveness.Target
	for _, g := range p.Classifier.Groups {
		for _, m := range g.Members {
			if !m.External {
				out = append(out, liveness.Target{Tunnel: m.Key(), Device: m.Device, Local: m.LocalProbe, Remote: m.RemoteProbe})
			}
		}
	}
	return out
}

// probed moves a group off a tunnel that died, and back: one map write, whatever
// other groups there are.
func (n *node) probed(key string, _ bool) {
	n.mu.Lock()
	groups := n.plan.Classifier.Groups
	n.mu.Unlock()
	n.steer(with(key, groups))
	n.uplink.Changed()
}

// with are the groups that have a member.
func with(key string, groups []plan.Group) []plan.Group {
	var out []plan.Group
	for _, g := range groups {
		if slices.ContainsFunc(g.Members, func(m plan.Member) bool { return m.Key() == key }) {
			out = append(out, g)
		}
	}
	return out
}

// ask has charon say which gateways are there, since they answer no probes.
func (n *node) ask(ctx context.Context, groups []plan.Group) {
	if !slices.ContainsFunc(groups, func(g plan.Group) bool {
		return slices.ContainsFunc(g.Members, func(m plan.Member) bool { return m.External })
	}) {
		return
	}
	states, err := n.ipsec.Status(ctx)
	if err != nil {
		n.log.Debug("gateways are taken to be as they were", "error", err)
		return
	}
	up := make(map[string]bool, len(states))
	for _, t := range states {
		up[plan.IPsecKey(t.ID)] = t.Up
	}
	n.steering.Lock()
	n.gateways = up
	n.steering.Unlock()
}

// steer tells groups which of their members are alive. A member of which
// nothing is known yet keeps what the kernel has from before. It follows every
// pass for all: a write that failed, or that came before its group, is made up for.
func (n *node) steer(groups []plan.Group) {
	n.steering.Lock()
	defer n.steering.Unlock()
	health := n.probes.Snapshot()
	for key, up := range n.gateways {
		health[key] = liveness.Health{Known: true, Up: up}
	}
	for _, g := range groups {
		if err := n.classifier.SetAlive(g.Number, alive(g, health)); err != nil && !errors.Is(err, os.ErrNotExist) {
			n.log.Error("group keeps its members", "group", g.ID, "error", err)
		}
	}
}

// alive says which members of a group may carry packets, by number. One that is on
// its way out does so only while no other is alive: packets go over to the new
// protocol by one map write, when it carries, and back if it dies.
func alive(g plan.Group, health map[string]liveness.Health) map[uint16]bool {
	out := map[uint16]bool{}
	successor := false
	for _, m := range g.Members {
		if h := health[m.Key()]; h.Known {
			out[m.Number] = h.Up
			successor = successor || h.Up && !m.Retiring
		}
	}
	for _, m := range g.Members {
		if m.Retiring && successor {
			out[m.Number] = false
		}
	}
	return out
}
