package ipsec

import (
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/circuitseal/circuitseal/agent/plan"
	"github.com/circuitseal/circuitseal/proto/desired"
)

// What must not come up does not, and both ends' status says why.
func TestRefused(t *testing.T) {
	backends(t, func(t *testing.T, _ Backend) {
		usePSK := func(a, b *plan.IPsecTunnel) {
			for _, x := range []*plan.IPsecTunnel{a, b} {
				x.Policy.Authentication, x.Policy.PPKRequired, x.Policy.PeerCertificates = desired.AuthenticationPSK, false, nil
			}
		}
		tests := []struct {
			name   string
			before func(*testing.T, *pair)
			change func(t *testing.T, p *pair, a, b *plan.IPsecTunnel)
			// a and b are what the ends say; an end that hears nothing of it says that it
			// waits.
			a, b string
		}{
			{"wrong PSK", nil, func(t *testing.T, _ *pair, a, b *plan.IPsecTunnel) {
				usePSK(a, b)
				a.PresharedKeys[0].Key[0] ^= 1
			}, "AUTHENTICATION_FAILED", "the pre-shared keys of the two ends differ"},
			{"wrong PPK", nil, func(_ *testing.T, _ *pair, a, _ *plan.IPsecTunnel) { a.PresharedKeys[0].Key[0] ^= 1 },
				"AUTHENTICATION_FAILED", "or the pre-shared keys (PPK) of the two ends differ"},
			{"PPK of another generation", nil, func(t *testing.T, _ *pair, a, _ *plan.IPsecTunnel) { a.PresharedKeys = shared(t, 2) },
				"AUTHENTICATION_FAILED", "does not have the post-quantum pre-shared key"},
			{"PPK on one side only", nil, func(_ *testing.T, _ *pair, a, _ *plan.IPsecTunnel) { a.Policy.PPKRequired = false },
				"AUTHENTICATION_FAILED", "post-quantum"},
			{"expired certificate", func(t *testing.T, p *pair) { p.a.issue(t, p.ca, time.Now().Add(-time.Hour)) }, nil,
				"AUTHENTICATION_FAILED", "certificate is not valid now"},
			{"another tenant's certificate of the same CA", nil, func(t *testing.T, p *pair, _, b *plan.IPsecTunnel) {
				// What is pinned is another's, of the same CA.
				b.Policy.PeerCertificates = [][]byte{p.b.current()}
			}, "AUTHENTICATION_FAILED", "not pinned"},
			{"weaker proposal", nil, func(_ *testing.T, _ *pair, a, _ *plan.IPsecTunnel) {
				a.Policy.IKEProposals = []string{"aes128gcm16-prfsha256-ecp256"}
			}, "NO_PROPOSAL_CHOSEN", ""},
			{"weaker ESP proposal", nil, func(_ *testing.T, _ *pair, a, _ *plan.IPsecTunnel) {
				a.Policy.ESPProposals = []string{"aes128gcm16-ecp256"}
			}, "NO_PROPOSAL_CHOSEN", ""},
			{"another identity", nil, func(_ *testing.T, _ *pair, _, b *plan.IPsecTunnel) { b.Policy.RemoteID = "c.customer.example" },
				"AUTHENTICATION_FAILED", ""},
			{"nobody there", nil, func(_ *testing.T, p *pair, a, _ *plan.IPsecTunnel) { a.Remote = p.a.address.Next().Next() }, "", ""},
		}
		for _, tt := range tests {
			t.Run(tt.name, func(t *testing.T) {
				p := newPair(t)
				if tt.before != nil {
					tt.before(t, p)
				}
				a, b := p.plans(t)
				if tt.change != nil {
					tt.change(t, p, &a.Tunnels[0], &b.Tunnels[0])
				}
				p.b.run(t)
				p.b.sync(t, b)
				p.a.run(t)
				p.a.sync(t, a)
				says := func(want string) func(TunnelState) bool {
					return func(s TunnelState) bool {
						if s.Up || len(s.Associations) > 0 {
							t.Fatalf("the tunnel is up: %+v", s)
						}
						return s.Problem != "" && strings.Contains(s.Problem, want)
					}
				}
				p.a.await(t, tt.a, says(tt.a))
				p.b.await(t, tt.b, says(tt.b))
			})
		}
	})
}

// A charon elsewhere would have its SAs where clear packets are.
func TestCharonElsewhereIsRefused(t *testing.T) {
	p := newPair(t)
	socket := filepath.Join(t.TempDir(), "vici")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	a, _ := p.plans(t)
	a.Socket = socket
	err = p.a.trySync(a)
	if err == nil || !strings.Contains(err.Error(), "is not in the circuit namespace") {
		t.Errorf("error %v", err)
	}
	p.a.driver.want.Socket = ""
}
