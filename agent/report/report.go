// Package report says what a node's data plane has: it joins what the drivers
// read from the kernel into one status. It asks for nothing to be changed, and
// reports nothing that it was merely told to want.
package report

import (
	"fmt"
	"slices"
	"time"

	"github.com/circuitseal/circuitseal/agent/plan"
	"github.com/circuitseal/circuitseal/proto/desired"
)

// Tunnel is what is seen of one tunnel, by its ID.
type Tunnel struct {
	// Problem is what the driver says is wrong, empty when nothing is.
	Problem                  string
	Backend                  string
	LastHandshake            time.Time
	ReceivedBytes, SentBytes uint64
	Up                       bool
	ProbesSent, ProbesLost   uint64
	RoundTrip                time.Duration
	PublicKey                desired.PublicKey
	// PresharedHeld and PresharedUsed are generations of pre-shared keys.
	PresharedHeld []uint64
	PresharedUsed uint64
}

// Tunnels is the status of every tunnel of a plan, pending ones included, in
// the plan's order.
func Tunnels(p plan.Plan, seen map[string]Tunnel, now time.Time) []desired.TunnelStatus {
	out := make([]desired.TunnelStatus, 0, len(p.Tunnels)+len(p.Pending))
	for _, t := range p.Tunnels {
		s := seen[t.ID]
		status := desired.TunnelStatus{
			ID: t.ID, Phase: desired.PhaseDown, Backend: s.Backend, PublicKey: s.PublicKey,
			LastHandshake: s.LastHandshake, ReceivedBytes: s.ReceivedBytes, SentBytes: s.SentBytes,
			ProbesSent: s.ProbesSent, ProbesLost: s.ProbesLost, RoundTrip: s.RoundTrip,
			PresharedKeyGenerations: s.PresharedHeld, PresharedKeyUsed: s.PresharedUsed,
		}
		if s.Up {
			status.Phase = desired.PhaseUp
		}
		status.Problem = problem(t, s, now)
		out = append(out, status)
	}
	for _, t := range p.Pending {
		out = append(out, desired.TunnelStatus{
			ID: t.ID, Phase: desired.PhasePending, PublicKey: seen[t.ID].PublicKey,
			Problem: "tunnel " + t.Reason,
		})
	}
	return out
}

// overdue is when a session has ended without another: REJECT_AFTER_TIME of
// WireGuard.
const overdue = 180 * time.Second

// problem is the sentence that a person reads first, and what to look at.
func problem(t plan.Tunnel, s Tunnel, now time.Time) string {
	switch {
	case s.Problem != "":
		return s.Problem
	case s.Up:
		return ""
	case s.LastHandshake.IsZero():
		return fmt.Sprintf("no handshake with %s yet: is the peer's agent running, does the link carry UDP port %d, and does the peer hold one of the pre-shared key's generations %v?", t.Peer.Addr(), t.Peer.Port(), s.PresharedHeld)
	case now.Sub(s.LastHandshake) > overdue:
		return fmt.Sprintf("no handshake with %s for %s, one is due every 120 s: does the link carry UDP port %d, and does the peer hold one of the pre-shared key's generations %v?", t.Peer.Addr(), now.Sub(s.LastHandshake).Round(time.Second), t.Peer.Port(), s.PresharedHeld)
	default:
		return fmt.Sprintf("probe is not answered; the last handshake with %s was %s ago: does the link still carry it, and does the far host's own firewall let ICMPv6 in from its tunnel device?", t.Peer.Addr(), now.Sub(s.LastHandshake).Round(time.Second))
	}
}

// Capabilities are what a host was seen to do that others cannot, sorted: how it
// attaches programs, and who encrypts its tunnels.
func Capabilities(hooks string, tunnels []desired.TunnelStatus) []string {
	all := []string{hooks}
	for _, t := range tunnels {
		if t.Backend != "" && !slices.Contains(all, t.Backend) {
			all = append(all, t.Backend)
		}
	}
	slices.Sort(all)
	return all
}
