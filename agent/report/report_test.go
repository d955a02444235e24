package report

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/circuitseal/circuitseal/agent/plan"
	"github.com/circuitseal/circuitseal/proto/desired"
)

func TestTunnels(t *testing.T) {
	now := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	peer := netip.MustParseAddrPort("172.20.255.4:51820")
	p := plan.Plan{
		Tunnels: []plan.Tunnel{{ID: "t", Device: "cs-main-1", Peer: peer}},
		Pending: []plan.Pending{{ID: "p", Protocol: desired.ProtocolWireGuard, Reason: "waits for the peer's public key"}},
	}
	key := desired.PublicKey{1}
	tests := []struct {
		name  string
		seen  Tunnel
		phase desired.Phase
		says  string
	}{
		{"no device", Tunnel{Problem: "the device does not exist"}, desired.PhaseDown, "the device does not exist"},
		{"no handshake", Tunnel{}, desired.PhaseDown, "no handshake with 172.20.255.4 yet"},
		{"handshake, no answer", Tunnel{LastHandshake: now.Add(-3 * time.Minute)}, desired.PhaseDown, "was 3m0s ago: does the link still carry it, and does the far host's own firewall let ICMPv6 in"},
		{"no handshake in time", Tunnel{LastHandshake: now.Add(-4 * time.Minute), PresharedHeld: []uint64{7, 6}}, desired.PhaseDown, "one of the pre-shared key's generations [7 6]"},
		{"up", Tunnel{Up: true, PresharedHeld: []uint64{8, 7}, PresharedUsed: 8}, desired.PhaseUp, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := Tunnels(p, map[string]Tunnel{"t": tt.seen, "p": {PublicKey: key}}, now)
			if len(got) != 2 || got[0].Phase != tt.phase || !strings.Contains(got[0].Problem, tt.says) || (tt.says == "") != (got[0].Problem == "") {
				t.Errorf("got %+v", got)
			}
			if !slices.Equal(got[0].PresharedKeyGenerations, tt.seen.PresharedHeld) || got[0].PresharedKeyUsed != tt.seen.PresharedUsed {
				t.Errorf("pre-shared keys of %+v", got[0])
			}
			if got[1].Phase != desired.PhasePending || got[1].PublicKey != key || !strings.Contains(got[1].Problem, "waits for") {
				t.Errorf("pending: %+v", got[1])
			}
		})
	}
}

// A tunnel that changes its protocol has both, told apart.
func TestTunnelsByBothProtocols(t *testing.T) {
	remote := netip.MustParseAddr("172.20.255.4")
	p := plan.Plan{
		Tunnels: []plan.Tunnel{{ID: "t", Retiring: true}},
		IPsec: plan.IPsec{Tunnels: []plan.IPsecTunnel{
			{ID: "t", Remote: remote, Policy: desired.IPsecPolicy{RemoteID: "weu.contoso.example"}},
		}},
		Pending: []plan.Pending{{ID: "p", Protocol: desired.ProtocolIPsec, Reason: "waits for a certificate"}},
	}
	sa := []desired.SecurityAssociation{{IKE: "aes256gcm16-prfsha384-ecp384", IKEAge: time.Minute}}
	for _, tt := range []struct {
		name  string
		seen  Tunnel
		phase desired.Phase
		says  string
	}{
		{"nothing", Tunnel{}, desired.PhaseDown, "no SA with 172.20.255.4: is weu.contoso.example running, and does the link carry UDP ports 500 and 4500, and ESP?"},
		{"the driver knows", Tunnel{Problem: "the peer chose no proposal"}, desired.PhaseDown, "the peer chose no proposal"},
		{"no answer", Tunnel{Associations: sa}, desired.PhaseDown, "there is an SA with 172.20.255.4 since 1m0s"},
		{"up", Tunnel{Associations: sa, Up: true}, desired.PhaseUp, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := Tunnels(p, map[string]Tunnel{"t": {Up: true, PublicKey: desired.PublicKey{1}}, plan.IPsecKey("t"): tt.seen}, time.Now())
			if len(got) != 3 || got[0].Protocol != desired.ProtocolWireGuard || !got[0].Retiring || got[0].Phase != desired.PhaseUp {
				t.Fatalf("got %+v", got)
			}
			i := got[1]
			if i.Protocol != desired.ProtocolIPsec || i.Retiring || i.Phase != tt.phase || !strings.Contains(i.Problem, tt.says) || (tt.says == "") != (i.Problem == "") || len(i.Associations) != len(tt.seen.Associations) {
				t.Errorf("got %+v", i)
			}
			if got[2].Phase != desired.PhasePending || got[2].Protocol != desired.ProtocolIPsec {
				t.Errorf("pending: %+v", got[2])
			}
		})
	}
}
