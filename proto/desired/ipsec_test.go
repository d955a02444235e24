package desired

import (
	"net/netip"
	"strings"
	"testing"
	"time"
)

// Ends that have no name are known by their tunnel's addresses, and that only
// towards gateways without our agent.
func TestEndsKnownByAddresses(t *testing.T) {
	a := netip.MustParseAddrPort
	tunnel := Tunnel{Local: a("172.16.10.1:1"), Remote: a("172.20.254.4:1"), IPsec: &IPsec{}}
	if got := (IPsecPolicy{}).For(tunnel); got.LocalID != "172.16.10.1" || got.RemoteID != "172.20.254.4" {
		t.Errorf("of nobody: %q and %q", got.LocalID, got.RemoteID)
	}
	if got := (IPsecPolicy{LocalID: "a.example", RemoteID: "b.example"}).For(tunnel); got.LocalID != "a.example" || got.RemoteID != "b.example" {
		t.Errorf("with names: %q and %q", got.LocalID, got.RemoteID)
	}
	for _, tt := range []struct {
		name string
		p    IPsecPolicy
		want string
	}{
		{"a gateway with a pre-shared key", IPsecPolicy{External: true, Authentication: AuthenticationPSK}, ""},
		{"a gateway with a certificate", IPsecPolicy{External: true, Authentication: AuthenticationCertificate, LocalID: "a.example"}, ""},
		{"a gateway that cannot tell whose certificate is ours", IPsecPolicy{External: true, Authentication: AuthenticationCertificate}, "local_id"},
		{"one of our own", IPsecPolicy{Authentication: AuthenticationCertificate, LocalID: "a.example"}, "remote_id"},
	} {
		p := tt.p
		p.IKEProposals, p.ESPProposals = []string{"aes256gcm16-prfsha384-ecp384"}, []string{"aes256gcm16-ecp384"}
		p.IKELifetime, p.ESPLifetime, p.DPDDelay = time.Hour, time.Hour, time.Second
		v := &validator{}
		v.policy("ipsec", Group{IPsec: &p, Tunnels: []Tunnel{tunnel}})
		var said []string
		for _, err := range v.errs {
			said = append(said, err.Error())
		}
		if got := strings.Join(said, "\n"); (got == "") != (tt.want == "") || !strings.Contains(got, tt.want) {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
}
