package plan

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"flag"
	"math/big"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/circuitseal/circuitseal/proto/desired"
)

var update = flag.Bool("update", false, "write the golden files")

// premises is the on-premises node of deploy/samples: two links, two tunnels.
func premises() desired.State {
	tunnel := func(n uint16, link, local, remote string) desired.Tunnel {
		first, second := desired.ProbeAddresses(n)
		return desired.Tunnel{
			ID: "contoso/hq-weu/er-ams/" + link, Number: n, Link: "contoso/er-ams/" + link,
			Local: netip.MustParseAddrPort(local), Remote: netip.MustParseAddrPort(remote),
			LocalProbe: first, RemoteProbe: second, MTU: 1328,
			WireGuard: &desired.WireGuard{PeerKey: desired.PublicKey{byte(n)}, PresharedKeys: []desired.PresharedKey{
				{Generation: 8, Key: desired.Secret{byte(n), 8}}, {Generation: 7, Key: desired.Secret{byte(n), 7}},
			}},
		}
	}
	return desired.State{
		Interfaces: []desired.Interface{
			{Name: "circ0", Role: desired.RoleCircuit, Addresses: []netip.Prefix{netip.MustParsePrefix("172.16.10.1/30")}},
			{Name: "circ1", Role: desired.RoleCircuit, Addresses: []netip.Prefix{netip.MustParsePrefix("172.16.10.5/30")}},
			{Name: "lan0", Role: desired.RoleLAN, Customer: "contoso"},
			{Name: "mgmt0", Role: desired.RoleManagement},
		},
		Links: []desired.Link{
			{ID: "contoso/er-ams/primary", Number: 1, Interface: "circ0", NextHop: netip.MustParseAddr("172.16.10.2")},
			{ID: "contoso/er-ams/secondary", Number: 2, Interface: "circ1", NextHop: netip.MustParseAddr("172.16.10.6")},
		},
		Sections: []desired.Section{{
			Customer: "contoso", Tenant: 1,
			Locals: []desired.LocalPrefix{
				{Prefix: netip.MustParsePrefix("10.1.0.0/16"), Interface: "lan0"},
				{Prefix: netip.MustParsePrefix("fd00:c0:1::/48"), Interface: "lan0"},
			},
			Groups: []desired.Group{{
				ID: "contoso/hq-weu", Number: 1,
				Remotes: []netip.Prefix{netip.MustParsePrefix("10.2.0.0/16"), netip.MustParsePrefix("fd00:c0:2::/48")},
				Tunnels: []desired.Tunnel{
					tunnel(1, "primary", "172.16.10.1:51820", "172.20.255.4:51820"),
					tunnel(2, "secondary", "172.16.10.5:51821", "172.20.255.5:51821"),
				},
			}},
		}},
	}
}

// certificate is one of nobody in particular.
var certificate = func() []byte {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		panic(err)
	}
	return der
}()

// byIPsec is premises with IPsec.
func byIPsec() desired.State {
	s := premises()
	s.Identities = []desired.Identity{{Name: "hq.contoso.example", Certificates: []desired.IdentityCertificate{{Generation: 1, Certificate: certificate}}}}
	s.Authorities = [][]byte{certificate}
	g := &s.Sections[0].Groups[0]
	g.IPsec = &desired.IPsecPolicy{
		Profile: "cnsa1", LocalID: "hq.contoso.example", RemoteID: "weu.contoso.example",
		Authentication: desired.AuthenticationCertificate, PeerCertificates: [][]byte{certificate},
		IKEProposals: []string{"aes256gcm16-prfsha384-ecp384"}, ESPProposals: []string{"aes256gcm16-ecp384-esn"},
		PPKRequired: true, IKELifetime: 4 * time.Hour, ESPLifetime: time.Hour, DPDDelay: 10 * time.Second,
	}
	for i := range g.Tunnels {
		g.Tunnels[i].IPsec = &desired.IPsec{PresharedKeys: g.Tunnels[i].WireGuard.PresharedKeys}
		g.Tunnels[i].WireGuard = nil
	}
	return s
}

// changing is premises on its way from WireGuard to IPsec.
func changing() desired.State {
	s := byIPsec()
	g := &s.Sections[0].Groups[0]
	g.Retiring = desired.ProtocolWireGuard
	for i, t := range premises().Sections[0].Groups[0].Tunnels {
		g.Tunnels[i].WireGuard = t.WireGuard
	}
	return s
}

// gateway is premises with a far end that has no agent.
func gateway() desired.State {
	s := byIPsec()
	p := s.Sections[0].Groups[0].IPsec
	p.External, p.Authentication, p.PeerCertificates, p.PPKRequired = true, desired.AuthenticationPSK, nil, false
	p.RemoteID, p.UDPEncapsulation = "20.1.2.3", true
	return s
}

func TestBuild(t *testing.T) {
	pending := premises()
	pending.Sections[0].Groups[0].Tunnels[1].WireGuard = &desired.WireGuard{}
	tagged := premises()
	for i, name := range []string{"circ0", "circ1"} {
		l := &tagged.Links[i]
		l.Interface, l.VLAN, l.Addresses = "circ0", uint16(100+i), tagged.Interfaces[i].Addresses
		tagged.Interfaces[i] = desired.Interface{Name: name, Role: desired.RoleCircuit}
	}
	tagged.Links[1].OuterVLAN = 300
	certless := byIPsec()
	certless.Identities[0].Certificates[0].Certificate = nil
	six := premises()
	for i, ends := range [][3]string{{"fd00:16::1", "fd00:16::2", "fd00:20::4"}, {"fd00:16::5", "fd00:16::6", "fd00:20::5"}} {
		six.Interfaces[i].Addresses = []netip.Prefix{netip.PrefixFrom(netip.MustParseAddr(ends[0]), 126)}
		six.Links[i].NextHop = netip.MustParseAddr(ends[1])
		t := &six.Sections[0].Groups[0].Tunnels[i]
		t.Local = netip.AddrPortFrom(netip.MustParseAddr(ends[0]), t.Local.Port())
		t.Remote = netip.AddrPortFrom(netip.MustParseAddr(ends[2]), t.Remote.Port())
	}
	bare := desired.State{Interfaces: premises().Interfaces[:1]}
	tests := []struct {
		name  string
		state desired.State
	}{
		{"premises", premises()},
		{"one-pending", pending},
		{"ipsec", byIPsec()},
		{"changing-to-ipsec", changing()},
		{"gateway", gateway()},
		{"ipsec-pending", certless},
		{"tagged", tagged},
		{"ipv6", six},
		{"interface-without-tunnels", bare},
		{"nothing", desired.State{}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if err := tt.state.Validate(); err != nil {
				t.Fatalf("test's own state: %v", err)
			}
			got := Build("main", tt.state).String()
			golden := filepath.Join("testdata", tt.name+".golden")
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(string(want), got); d != "" {
				t.Errorf("plan (-want +got):\n%s", d)
			}
		})
	}
}

// Whatever the state, a flow carries the mark of a link on that link's own
// interface, and every circuit interface is guarded.
func TestEveryFlowIsPinnedToItsLink(t *testing.T) {
	p := Build("main", premises())
	if len(p.Guard.Flows) != 2 || p.Guard.Flows[0].Mark == p.Guard.Flows[1].Mark || p.Guard.Flows[0].Interface == p.Guard.Flows[1].Interface {
		t.Errorf("flows are not pinned apart: %v", p.Guard.Flows)
	}
	for i, f := range p.Guard.Flows {
		tunnel, table := p.Tunnels[i], p.Tables[i]
		if tunnel.Mark != f.Mark || table.Mark != f.Mark || table.Routes[0].Interface != f.Interface {
			t.Errorf("flow %v, tunnel mark %#x, table %+v", f, tunnel.Mark, table)
		}
	}
}

// A closed group is as if none of its tunnels had a key yet: its prefixes are
// known, so that packets to them are dropped as "no tunnel"; nothing is open.
func TestBuildClosed(t *testing.T) {
	pending := premises()
	for i := range pending.Sections[0].Groups[0].Tunnels {
		pending.Sections[0].Groups[0].Tunnels[i].WireGuard = &desired.WireGuard{}
	}
	want := Build("main", pending)
	got := BuildClosed("main", premises(), map[string]string{"contoso/hq-weu": "closed for a reason", "contoso/other": "x"})
	for i := range want.Pending {
		want.Pending[i].Reason = "closed for a reason"
	}
	if d := cmp.Diff(want.String(), got.String()); d != "" {
		t.Errorf("plan (-want +got):\n%s", d)
	}
	if len(got.Tunnels)+len(got.Guard.Flows) != 0 || len(got.Classifier.Remotes) != 2 {
		t.Errorf("closed: %d tunnels, %d flows, %d remotes; want none open and both prefixes known", len(got.Tunnels), len(got.Guard.Flows), len(got.Classifier.Remotes))
	}
}

// Of a VLAN device nothing is left without the ones below it, and all of what is
// beside it.
func TestOnlyWithAllBelow(t *testing.T) {
	guard := Guard{
		Interfaces: []string{"port", "outer", "inner", "single"},
		VLANs: []VLAN{
			{Interface: "outer", Parent: "port", ID: 300}, {Interface: "inner", Parent: "outer", ID: 100},
			{Interface: "single", Parent: "port", ID: 200},
		},
		Flows:     []Flow{{Interface: "inner"}, {Interface: "single"}},
		Neighbors: []Neighbor{{Interface: "inner"}, {Interface: "single"}},
	}
	for missing, want := range map[string][]string{
		"port": nil, "outer": {"port", "single"}, "inner": {"port", "outer", "single"}, "single": {"port", "outer", "inner"},
	} {
		p := Plan{Guard: guard}
		for _, name := range guard.Interfaces {
			p.Interfaces = append(p.Interfaces, Interface{Name: name})
		}
		p = p.Only(slices.DeleteFunc(slices.Clone(guard.Interfaces), func(s string) bool { return s == missing }))
		if !slices.Equal(p.Guard.Interfaces, want) || len(p.Interfaces) != len(want) {
			t.Errorf("without %s: guarded are %q and configured %v, want %q", missing, p.Guard.Interfaces, p.Interfaces, want)
		}
		for _, f := range p.Guard.Flows {
			if !slices.Contains(want, f.Interface) {
				t.Errorf("without %s: a flow on %s", missing, f.Interface)
			}
		}
		if len(p.Guard.Flows) != len(p.Guard.Neighbors) {
			t.Errorf("without %s: %d flows and %d neighbours", missing, len(p.Guard.Flows), len(p.Guard.Neighbors))
		}
	}
}
