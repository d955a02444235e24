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

// Tunnel is what is seen of one tunnel by one protocol, by plan.Member's Key.
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
	// Associations are an IPsec tunnel's, the newest first.
	Associations []desired.SecurityAssociation
}

// Tunnels is the status of every tunnel of a plan, pending ones included, in
// the plan's order. One that changes its protocol has two.
func Tunnels(p plan.Plan, seen map[string]Tunnel, now time.Time) []desired.TunnelStatus {
	out := make([]desired.TunnelStatus, 0, len(p.Tunnels)+len(p.IPsec.Tunnels)+len(p.Pending))
	for _, t := range p.Tunnels {
		s := seen[t.ID]
		status := s.status(t.ID, desired.ProtocolWireGuard, t.Retiring)
		status.Problem = problem(t, s, now)
		out = append(out, status)
	}
	for _, t := range p.IPsec.Tunnels {
		s := seen[plan.IPsecKey(t.ID)]
		status := s.status(t.ID, desired.ProtocolIPsec, t.Retiring)
		status.Problem = ipsecProblem(t, s)
		out = append(out, status)
	}
	for _, t := range p.Pending {
		status := desired.TunnelStatus{
			ID: t.ID, Protocol: t.Protocol, Phase: desired.PhasePending, Retiring: t.Retiring,
			Problem: "tunnel " + t.Reason,
		}
		if t.Protocol == desired.ProtocolWireGuard {
			status.PublicKey = seen[t.ID].PublicKey
		}
		out = append(out, status)
	}
	return out
}

func (s Tunnel) status(id string, protocol desired.Protocol, retiring bool) desired.TunnelStatus {
	status := desired.TunnelStatus{
		ID: id, Protocol: protocol, Phase: desired.PhaseDown, Retiring: retiring, Backend: s.Backend, PublicKey: s.PublicKey,
		LastHandshake: s.LastHandshake, ReceivedBytes: s.ReceivedBytes, SentBytes: s.SentBytes,
		ProbesSent: s.ProbesSent, ProbesLost: s.ProbesLost, RoundTrip: s.RoundTrip,
		PresharedKeyGenerations: s.PresharedHeld, PresharedKeyUsed: s.PresharedUsed,
		Associations: s.Associations,
	}
	if s.Up {
		status.Phase = desired.PhaseUp
	}
	return status
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

// ipsecProblem is problem for a tunnel by IPsec.
func ipsecProblem(t plan.IPsecTunnel, s Tunnel) string {
	switch {
	case s.Problem != "":
		return s.Problem
	case s.Up:
		return ""
	case len(s.Associations) == 0:
		ports := "UDP ports 500 and 4500, and ESP"
		if t.Policy.UDPEncapsulation {
			ports = "UDP ports 500 and 4500"
		}
		return fmt.Sprintf("no SA with %s: is %s running, and does the link carry %s?", t.Remote, t.Policy.RemoteID, ports)
	default:
		return fmt.Sprintf("probe is not answered, though there is an SA with %s since %s: does the link carry its ESP packets, and does the far host's own firewall let ICMPv6 in from its tunnel device?", t.Remote, s.Associations[0].IKEAge.Round(time.Second))
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
