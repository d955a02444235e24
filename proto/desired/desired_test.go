package desired

import (
	gocmp "cmp"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"net/netip"
	"net/url"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	v1 "github.com/circuitseal/circuitseal/proto/circuitseal/v1"
)

var compare = cmp.Options{
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
	cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b }),
	cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
}

func validState() State {
	first, second := ProbeAddresses(7)
	return State{
		Interfaces: []Interface{
			{Name: "circ0", Role: RoleCircuit, Addresses: []netip.Prefix{netip.MustParsePrefix("172.16.10.1/30")}},
			{Name: "lan0", Role: RoleLAN, Customer: "contoso"},
		},
		Links: []Link{{ID: "contoso/er/primary", Number: 3, Interface: "circ0", NextHop: netip.MustParseAddr("172.16.10.2")}},
		Sections: []Section{{
			Customer: "contoso", Tenant: 1,
			Locals: []LocalPrefix{{Prefix: netip.MustParsePrefix("10.1.0.0/16"), Interface: "lan0"}},
			Groups: []Group{{
				ID: "contoso/hq-weu", Number: 5,
				Remotes: []netip.Prefix{netip.MustParsePrefix("10.2.0.0/16"), netip.MustParsePrefix("fd00::/48")},
				Tunnels: []Tunnel{{
					ID: "contoso/hq-weu/er/primary", Number: 7, Link: "contoso/er/primary",
					Local: netip.MustParseAddrPort("172.16.10.1:51826"), Remote: netip.MustParseAddrPort("172.20.255.4:51826"),
					LocalProbe: first, RemoteProbe: second, MTU: 1328,
					WireGuard: &WireGuard{PeerKey: PublicKey{1, 2, 3}, PresharedKeys: []PresharedKey{
						{Generation: 41, Key: Secret{9}}, {Generation: 40, Key: Secret{8}},
					}},
				}},
			}},
		}},
	}
}

// fill sets every field that reflection can reach to something other than zero,
// so that a field which is added but not converted shows up as a difference.
func fill(v reflect.Value, n *int) {
	*n++
	switch x := v.Addr().Interface().(type) {
	case *netip.Addr:
		*x = netip.AddrFrom4([4]byte{10, 0, 0, byte(*n)})
		return
	case *netip.AddrPort:
		*x = netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(*n)}), uint16(*n))
		return
	case *netip.Prefix:
		*x = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, byte(*n), 0}), 24)
		return
	case *time.Time:
		*x = time.Unix(int64(*n), 0).UTC()
		return
	case *Phase:
		*x = PhaseUp
		return
	case *Protocol:
		*x = ProtocolIPsec
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		for _, f := range v.Fields() {
			fill(f, n)
		}
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		for i := range 2 {
			fill(v.Index(i), n)
		}
	case reflect.Array:
		for i := range v.Len() {
			fill(v.Index(i), n)
		}
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem(), n)
	case reflect.String:
		v.SetString(fmt.Sprintf("s%d", *n))
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int64:
		v.SetInt(int64(*n))
	case reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		v.SetUint(uint64(*n%200 + 1))
	default:
		panic(v.Kind().String())
	}
}

func TestEveryFieldSurvivesTheWire(t *testing.T) {
	var n int
	var state State
	fill(reflect.ValueOf(&state).Elem(), &n)
	got, err := StateFromWire(state.ToWire())
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(state, got, compare); d != "" {
		t.Errorf("state changed on the wire (-want +got):\n%s", d)
	}
	var status Status
	fill(reflect.ValueOf(&status).Elem(), &n)
	back, err := StatusFromWire(status.ToWire())
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(status, back, compare); d != "" {
		t.Errorf("status changed on the wire (-want +got):\n%s", d)
	}
}

func TestEqualSeesEveryField(t *testing.T) {
	base := func() *State { s := validState(); return &s }
	var paths [][]int
	var find func(v reflect.Value, path []int)
	find = func(v reflect.Value, path []int) {
		switch {
		case v.Type().PkgPath() != "" && v.Kind() == reflect.Struct && strings.HasSuffix(v.Type().PkgPath(), "desired"):
			for i := range v.NumField() {
				find(v.Field(i), append(append([]int{}, path...), i))
			}
		case v.Kind() == reflect.Slice && v.Len() > 0 && v.Index(0).Kind() == reflect.Struct:
			find(v.Index(0), append(append([]int{}, path...), 0))
		default:
			paths = append(paths, path)
		}
	}
	find(reflect.ValueOf(base()).Elem(), nil)
	if len(paths) < 20 {
		t.Fatalf("only %d fields were found", len(paths))
	}
	for _, path := range paths {
		changed := base()
		v := reflect.ValueOf(changed).Elem()
		for _, i := range path {
			if v.Kind() == reflect.Slice {
				v = v.Index(i)
			} else {
				v = v.Field(i)
			}
		}
		n := 77
		v.SetZero()
		fill(v, &n)
		if changed.Equal(*base()) {
			t.Errorf("Equal does not see field %v (%s)", path, v.Type())
		}
	}
	if !base().Equal(*base()) {
		t.Error("equal states differ")
	}
}

func wg(s *State) *WireGuard {
	t := &s.Sections[0].Groups[0].Tunnels[0]
	copied := *t.WireGuard
	copied.PresharedKeys = append([]PresharedKey(nil), copied.PresharedKeys...)
	t.WireGuard = &copied
	return t.WireGuard
}

// another adds a second tunnel to the same far address, which is valid, too.
func another(s *State) *Tunnel {
	g := &s.Sections[0].Groups[0]
	t := g.Tunnels[0]
	t.ID, t.Number = g.ID+"/er/second", 8
	t.LocalProbe, t.RemoteProbe = ProbeAddresses(8)
	t.Local = netip.AddrPortFrom(t.Local.Addr(), t.Local.Port()+1)
	g.Tunnels = append(g.Tunnels, t)
	return &g.Tunnels[1]
}

// addTagged makes the state's link one with a tag, and returns another with two on the
// same interface.
func addTagged(s *State) *Link {
	s.Links[0].VLAN, s.Links[0].Addresses = 200, s.Interfaces[0].Addresses
	s.Interfaces[0].Addresses = nil
	s.Links = append(s.Links, Link{
		ID: "fabrikam/er/primary", Number: 4, Interface: "circ0", NextHop: netip.MustParseAddr("172.16.20.2"),
		VLAN: 100, OuterVLAN: 300, Addresses: []netip.Prefix{netip.MustParsePrefix("172.16.20.1/30")},
	})
	return &s.Links[1]
}

func TestValidate(t *testing.T) {
	if err := validState().Validate(); err != nil {
		t.Fatalf("valid state: %v", err)
	}
	two := validState()
	another(&two)
	if err := two.Validate(); err != nil {
		t.Fatalf("two tunnels to one address: %v", err)
	}
	tagged := validState()
	addTagged(&tagged)
	if err := tagged.Validate(); err != nil {
		t.Fatalf("tagged links: %v", err)
	}
	tests := []struct {
		name   string
		change func(*State)
		want   string
	}{
		{"vlan beyond the last", func(s *State) { addTagged(s).VLAN = 4095 }, "links[1].vlan"},
		{"outer vlan beyond the last", func(s *State) { addTagged(s).OuterVLAN = 4095 }, "links[1].outer_vlan"},
		{"outer vlan alone", func(s *State) { addTagged(s).VLAN = 0 }, "links[1].outer_vlan"},
		{"addresses without a tag", func(s *State) { s.Links[0].Addresses = s.Interfaces[0].Addresses }, "links[0].addresses"},
		{"one first tag for two", func(s *State) { addTagged(s).OuterVLAN = 200 }, `links[1].vlan: "200" is the first tag of links[0]`},
		{"one first tag for one and two", func(s *State) { l := addTagged(s); l.OuterVLAN, l.VLAN = 0, 200 }, `links[1].vlan: "200" is the first tag of links[0]`},
		{"tagged and untagged", func(s *State) { addTagged(s); s.Links[0].VLAN, s.Links[0].Addresses = 0, nil }, "links[1].interface"},
		{"interface with an address", func(s *State) {
			addTagged(s)
			s.Interfaces[0].Addresses = []netip.Prefix{netip.MustParsePrefix("192.0.2.1/30")}
		}, "has addresses of its own beside tagged links"},
		{"address of two links", func(s *State) { l := addTagged(s); l.Addresses, l.NextHop = s.Links[0].Addresses, s.Links[0].NextHop }, "links[1].addresses[0]"},
		{"next hop beside a tagged link", func(s *State) { addTagged(s).NextHop = netip.MustParseAddr("172.16.10.2") }, "links[1].next_hop"},
		{"tunnel from another link's address", func(s *State) {
			addTagged(s)
			s.Sections[0].Groups[0].Tunnels[0].Link = s.Links[1].ID
		}, "tunnels[0].local"},
		{"interface name", func(s *State) { s.Interfaces[1].Name = "../etc" }, "interfaces[1].name"},
		{"role", func(s *State) { s.Interfaces[1].Role = 9 }, "interfaces[1].role"},
		{"lan without owner", func(s *State) { s.Interfaces[1].Customer = "" }, "interfaces[1].customer"},
		{"link number 0", func(s *State) { s.Links[0].Number = 0 }, "links[0].number"},
		{"next hop elsewhere", func(s *State) { s.Links[0].NextHop = netip.MustParseAddr("10.9.9.9") }, "links[0].next_hop"},
		{"link on a LAN", func(s *State) { s.Links[0].Interface = "lan0" }, "links[0].interface"},
		{"another customer's LAN", func(s *State) { s.Interfaces[1].Customer = "fabrikam" }, "sections[0].locals[0].interface"},
		{"host bits", func(s *State) { s.Sections[0].Locals[0].Prefix = netip.MustParsePrefix("10.1.0.1/16") }, "locals[0].prefix"},
		{"probe prefix", func(s *State) { s.Sections[0].Groups[0].Remotes[0] = ProbePrefix }, "remotes[0]"},
		{"remote twice", func(s *State) { g := &s.Sections[0].Groups[0]; g.Remotes[1] = g.Remotes[0] }, "belongs to two groups"},
		{"group beyond marks", func(s *State) { s.Sections[0].Groups[0].Number = 1 << 16 }, `groups[0].number: "65536" is more than 65535`},
		{"tunnel of another link", func(s *State) { s.Sections[0].Groups[0].Tunnels[0].Link = "x" }, "tunnels[0].link"},
		{"local address not ours", func(s *State) {
			s.Sections[0].Groups[0].Tunnels[0].Local = netip.MustParseAddrPort("172.16.10.9:1")
		}, "tunnels[0].local"},
		{"probe not derived", func(s *State) { s.Sections[0].Groups[0].Tunnels[0].LocalProbe = netip.MustParseAddr("fd00::1") }, "local_probe"},
		{"mtu", func(s *State) { s.Sections[0].Groups[0].Tunnels[0].MTU = 500 }, "tunnels[0].mtu"},
		{"no protocol", func(s *State) { s.Sections[0].Groups[0].Tunnels[0].WireGuard = nil }, "wireguard"},
		{"peer without a preshared key", func(s *State) { wg(s).PresharedKeys = nil }, `wireguard.preshared_keys: "0" is no key`},
		{"three preshared keys", func(s *State) {
			w := wg(s)
			w.PresharedKeys = append(w.PresharedKeys, PresharedKey{Generation: 1, Key: Secret{1}})
		}, `preshared_keys: "3" is more`},
		{"preshared generation twice", func(s *State) { wg(s).PresharedKeys[1].Generation = 41 }, "preshared_keys[1].generation"},
		{"preshared generation 0", func(s *State) { wg(s).PresharedKeys[0].Generation = 0 }, "preshared_keys[0].generation"},
		{"preshared key twice", func(s *State) { wg(s).PresharedKeys[1].Key = Secret{9} }, `preshared_keys[1].key: "(secret)"`},
		{"preshared key missing", func(s *State) { wg(s).PresharedKeys[0].Key = Secret{} }, "preshared_keys[0].key"},
		{"link-local IPv6 on a circuit", func(s *State) {
			i := &s.Interfaces[0]
			i.Addresses = append(i.Addresses, netip.MustParsePrefix("fe80::1/64"))
		}, "interfaces[0].addresses[1]"},
		{"next hop of another family", func(s *State) {
			s.Interfaces[0].Addresses = append(s.Interfaces[0].Addresses, netip.MustParsePrefix("fd00:16::1/126"))
			s.Links[0].NextHop = netip.MustParseAddr("fd00:16::2")
		}, "tunnels[0].local"},
		{"port twice", func(s *State) {
			second := another(s)
			second.Local = netip.AddrPortFrom(second.Local.Addr(), s.Sections[0].Groups[0].Tunnels[0].Local.Port())
		}, "tunnels[1].local"},
		{"one way to two local addresses", func(s *State) {
			i := &s.Interfaces[0]
			i.Addresses = append(i.Addresses, netip.MustParsePrefix("172.16.11.1/30"))
			second := another(s)
			second.Local = netip.AddrPortFrom(i.Addresses[1].Addr(), second.Local.Port())
		}, "tunnels[1].remote"},
		{"offline too short", func(s *State) {
			g := &s.Sections[0].Groups[0]
			g.MaxOffline, g.OfflineAction = time.Minute, OfflineClose
		}, "groups[0].max_offline"},
		{"offline without action", func(s *State) { s.Sections[0].Groups[0].MaxOffline = time.Hour }, "groups[0].offline_action"},
		{"offline action without limit", func(s *State) { s.Sections[0].Groups[0].OfflineAction = OfflineContinue }, "groups[0].offline_action"},
		{"unknown offline action", func(s *State) {
			g := &s.Sections[0].Groups[0]
			g.MaxOffline, g.OfflineAction = time.Hour, 9
		}, "groups[0].offline_action"},
		{"number twice", func(s *State) {
			g := &s.Sections[0].Groups[0]
			g.Tunnels = append(g.Tunnels, g.Tunnels[0])
		}, "is also the number"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := validState()
			tt.change(&s)
			if err := s.Validate(); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want an error with %q", err, tt.want)
			}
		})
	}
}

type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func issue(t testing.TB, parent *authority, uri string, ca bool) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "test"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: ca, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature,
	}
	if ca {
		template.KeyUsage = x509.KeyUsageCertSign
	}
	if uri != "" {
		u, err := url.Parse(uri)
		if err != nil {
			t.Fatal(err)
		}
		template.URIs = []*url.URL{u}
	}
	signerCert, signerKey := template, crypto.Signer(key)
	if parent != nil {
		signerCert, signerKey = parent.cert, parent.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, signerCert, &key.PublicKey, signerKey)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{cert, key}
}

func seal(t testing.TB, h Header, s State, a *authority) *v1.Envelope {
	t.Helper()
	b, err := s.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	e, err := Seal(h, b, a.key, a.cert.Raw)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func TestEnvelope(t *testing.T) {
	root := issue(t, nil, "", true)
	signer := issue(t, root, StateSigner, false)
	h := Header{Node: "prem-1", Position: Position{2, 9}, Issued: time.Now().UTC().Truncate(time.Second)}
	good := seal(t, h, validState(), signer)

	gotHeader, got, err := OpenEnvelope(good, root.cert, "prem-1")
	if err != nil {
		t.Fatal(err)
	}
	if !got.Equal(validState()) || gotHeader != h {
		t.Errorf("opened %+v %+v", gotHeader, got)
	}

	tests := []struct {
		name     string
		envelope *v1.Envelope
		node     string
		want     error
	}{
		{"another node", good, "nva-1", ErrOtherNode},
		{"unsigned", &v1.Envelope{Signed: good.GetSigned()}, "prem-1", ErrSignature},
		{"empty", &v1.Envelope{}, "prem-1", ErrSignature},
		{"one bit flipped", func() *v1.Envelope {
			e := proto.CloneOf(good)
			e.Signed[len(e.Signed)/2] ^= 1
			return e
		}(), "prem-1", ErrSignature},
		{"truncated", func() *v1.Envelope {
			e := proto.CloneOf(good)
			e.Signed = e.Signed[:len(e.Signed)-1]
			return e
		}(), "prem-1", ErrSignature},
		{"another root", seal(t, h, validState(), issue(t, issue(t, nil, "", true), StateSigner, false)), "prem-1", ErrSignature},
		{"a node's certificate", seal(t, h, validState(), issue(t, root, "spiffe://circuitseal/node/prem-1", false)), "prem-1", ErrSignature},
		{"the root itself", seal(t, h, validState(), root), "prem-1", ErrSignature},
		{"issued after the signer expired", seal(t, Header{Node: "prem-1", Issued: time.Now().Add(2 * time.Hour)}, validState(), signer), "prem-1", ErrSignature},
		{"invalid state", seal(t, h, State{Links: []Link{{ID: "x"}}}, signer), "prem-1", ErrFormat},
		{"future format, well signed", func() *v1.Envelope {
			signed, err := proto.Marshal(&v1.SignedState{Type: "circuitseal.v9.State", Node: "prem-1", Issued: timestamppb.Now()})
			if err != nil {
				t.Fatal(err)
			}
			return resign(t, signed, signer)
		}(), "prem-1", ErrFormat},
		{"future format", func() *v1.Envelope {
			signed, err := proto.Marshal(&v1.SignedState{Type: "circuitseal.v9.State", Node: "prem-1", Issued: nil})
			if err != nil {
				t.Fatal(err)
			}
			return resign(t, signed, issue(t, root, StateSigner, false))
		}(), "prem-1", ErrSignature}, // no time of issue: 1970, before the signer's certificate
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if _, _, err := OpenEnvelope(tt.envelope, root.cert, tt.node); !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
		})
	}
}

func resign(t testing.TB, signed []byte, a *authority) *v1.Envelope {
	t.Helper()
	sig, err := a.key.Sign(rand.Reader, digest(signed), crypto.SHA384)
	if err != nil {
		t.Fatal(err)
	}
	return &v1.Envelope{Signed: signed, Signatures: []*v1.Signature{{Certificate: a.cert.Raw, Signature: sig}}}
}

// A status that is too much is cut by who sends it, not refused by who reads it.
func TestAnyStatusIsTaken(t *testing.T) {
	long := strings.Repeat("é", 2000) + "\xff"
	s := Status{Version: long, Rejection: &Rejection{Reason: long}}
	for range 10_000 {
		s.Problems = append(s.Problems, long)
		s.Counters = append(s.Counters, Counter{Name: "x"})
		s.Guards = append(s.Guards, GuardStatus{Interface: long})
	}
	s.Tunnels = []TunnelStatus{{ID: "t", Phase: PhaseDown, Problem: long}}
	raw, err := proto.Marshal(s.ToWire())
	if err != nil {
		t.Fatal(err)
	}
	var w v1.NodeStatus
	if err := proto.Unmarshal(raw, &w); err != nil {
		t.Fatal(err)
	}
	if _, err := StatusFromWire(&w); err != nil {
		t.Error(err)
	}
}

func TestPositionsOrder(t *testing.T) {
	order := []Position{{}, {0, 1}, {1, 0}, {1, 7}, {2, 1}}
	for i, p := range order {
		for j, q := range order {
			if got, want := p.Compare(q), gocmp.Compare(i, j); got != want {
				t.Errorf("%v.Compare(%v) = %d, want %d", p, q, got, want)
			}
		}
	}
}

func FuzzOpenEnvelope(f *testing.F) {
	root := issue(f, nil, "", true)
	signer := issue(f, root, StateSigner, false)
	e := seal(f, Header{Node: "n", Position: Position{1, 1}, Issued: time.Now()}, validState(), signer)
	raw, err := proto.Marshal(e)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Add(e.GetSigned())
	f.Fuzz(func(t *testing.T, raw []byte) {
		var e v1.Envelope
		if proto.Unmarshal(raw, &e) == nil {
			_, _, _ = OpenEnvelope(&e, root.cert, "n")
		}
		var w v1.State
		if proto.Unmarshal(raw, &w) == nil {
			if s, err := StateFromWire(&w); err == nil && s.Validate() == nil {
				if again, err := StateFromWire(s.ToWire()); err != nil || !again.Equal(s) {
					t.Errorf("valid state changed on the wire: %v", err)
				}
			}
		}
		var st v1.NodeStatus
		if proto.Unmarshal(raw, &st) == nil {
			_, _ = StatusFromWire(&st)
		}
	})
}
