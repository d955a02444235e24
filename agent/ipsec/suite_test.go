package ipsec

import (
	"strings"
	"testing"
	"time"

	"github.com/circuitseal/circuitseal/agent/instance"
	"github.com/circuitseal/circuitseal/agent/plan"
	"github.com/circuitseal/circuitseal/proto/desired"
)

func TestProposals(t *testing.T) {
	gcm := suite{encryption: "aes256gcm16", prf: "prfsha384", exchanges: []string{"ecp384"}}
	cbc := suite{encryption: "aes256", integrity: "sha384", prf: "prfsha384", exchanges: []string{"modp3072"}}
	hybrid := suite{encryption: "aes256gcm16", prf: "prfsha384", exchanges: []string{"ecp384", "ke1_mlkem768"}}
	tests := []struct {
		name, proposal string
		suite          suite
		want           bool
	}{
		{"the same", "aes256gcm16-prfsha384-ecp384", gcm, true},
		{"other names", "aes256gcm-prfsha384-ecp384", gcm, true},
		{"other names with bits", "aes256gcm128-prfsha384-ecp384", gcm, true},
		{"several of a kind", "aes128gcm16-aes256gcm16-prfsha256-prfsha384-x25519-ecp384", gcm, true},
		{"shorter key", "aes128gcm16-prfsha384-ecp384", gcm, false},
		{"shorter check", "aes256gcm8-prfsha384-ecp384", gcm, false},
		{"other PRF", "aes256gcm16-prfsha256-ecp384", gcm, false},
		{"other group", "aes256gcm16-prfsha384-ecp256", gcm, false},
		{"the PRF goes with the integrity", "aes256-sha384-modp3072", cbc, true},
		{"no integrity is proposed", "aes256-prfsha384-modp3072", cbc, false},
		{"additional exchange", "aes256gcm16-prfsha384-ecp384-ke1_mlkem768", hybrid, true},
		{"additional exchange is missing", "aes256gcm16-prfsha384-ecp384-ke1_mlkem768", gcm, false},
		{"additional exchange that nobody asked for", "aes256gcm16-prfsha384-ecp384", hybrid, false},
		{"nothing", "", gcm, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := parseProposal(tt.proposal).ike(tt.suite); got != tt.want {
				t.Errorf("%s takes %s: %t, want %t", tt.proposal, tt.suite, got, tt.want)
			}
		})
	}
}

// good is a tunnel and an SA that is all that it asks for.
func good() (plan.IPsecTunnel, ikeSA) {
	t := plan.IPsecTunnel{
		ID: "c/n/k/l", Number: 7, InterfaceID: instance.InterfaceID(7), Initiates: true,
		Policy: desired.IPsecPolicy{
			LocalID: "a.example", RemoteID: "b.example", PPKRequired: true,
			IKEProposals: []string{"aes256gcm16-prfsha384-ecp384"}, ESPProposals: []string{"aes256gcm16-ecp384-esn"},
		},
	}
	s := ikeSA{
		id: 1, state: ikeEstablished, established: true, localID: "a.example", remoteID: "B.example", ppk: true, age: time.Hour,
		suite: suite{encryption: "aes256gcm16", prf: "prfsha384", exchanges: []string{"ecp384"}},
		children: []childSA{{
			id: 1, state: childInstalled, mode: "TUNNEL", protocol: "ESP", age: time.Hour,
			interfaceIn: t.InterfaceID, interfaceOut: t.InterfaceID, suite: suite{encryption: "aes256gcm16", esn: true},
		}},
	}
	return t, s
}

func TestJudge(t *testing.T) {
	tests := []struct {
		name   string
		change func(*plan.IPsecTunnel, *ikeSA)
		want   string
	}{
		{"all that is asked for", func(*plan.IPsecTunnel, *ikeSA) {}, ""},
		{"rekeyed", func(_ *plan.IPsecTunnel, s *ikeSA) {
			s.children[0].age, s.children[0].suite.exchanges = time.Minute, []string{"ecp384"}
		}, ""},
		{"rekeyed without PFS", func(_ *plan.IPsecTunnel, s *ikeSA) { s.children[0].age = time.Minute }, "PFS"},
		{"rekeyed without PFS, which the policy allows", func(p *plan.IPsecTunnel, s *ikeSA) {
			s.children[0].age = time.Minute
			p.Policy.ESPProposals = []string{"aes256gcm16-esn"}
		}, ""},
		{"PFS by a weaker group", func(_ *plan.IPsecTunnel, s *ikeSA) { s.children[0].suite.exchanges = []string{"ecp256"} }, "aes256gcm16-ecp256-esn"},
		{"IKE cipher", func(_ *plan.IPsecTunnel, s *ikeSA) { s.suite.encryption = "aes128gcm16" }, "IKE negotiated aes128gcm16"},
		{"ESP cipher", func(_ *plan.IPsecTunnel, s *ikeSA) { s.children[0].suite.encryption = "aes128gcm16" }, "ESP negotiated aes128gcm16"},
		{"a cipher that no proposal names", func(_ *plan.IPsecTunnel, s *ikeSA) { s.children[0].suite.encryption = cipherKeyword("RC4", "") }, "?rc4"},
		{"no ESN", func(_ *plan.IPsecTunnel, s *ikeSA) { s.children[0].suite.esn = false }, "ESP negotiated"},
		{"no PPK", func(_ *plan.IPsecTunnel, s *ikeSA) { s.ppk = false }, "PPK"},
		{"another peer", func(_ *plan.IPsecTunnel, s *ikeSA) { s.remoteID = "c.example" }, "c.example"},
		{"transport mode", func(_ *plan.IPsecTunnel, s *ikeSA) { s.children[0].mode = "TRANSPORT" }, "TRANSPORT"},
		{"another tunnel's interface", func(_ *plan.IPsecTunnel, s *ikeSA) { s.children[0].interfaceIn++ }, "interfaces"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p, s := good()
			tt.change(&p, &s)
			got := judge(p, Kernel, s)
			if (tt.want == "") != (got == "") || !strings.Contains(got, tt.want) {
				t.Errorf("judge = %q, want %q", got, tt.want)
			}
		})
	}
}
