package compile_test

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/circuitseal/circuitseal/controller/compile"
	"github.com/circuitseal/circuitseal/controller/model"
	"github.com/circuitseal/circuitseal/proto/desired"
)

// world draws a valid set of documents: a few customers with circuits, an
// on-premises node for each, and NVAs that they own or share.
func world(t *rapid.T) map[model.Key]model.Document {
	docs := map[model.Key]model.Document{}
	put := func(kind model.Kind, customer, name string, spec model.Spec) {
		k := model.Key{Kind: kind, Customer: customer, Name: name}
		docs[k] = model.Document{Key: k, Spec: spec}
	}
	shared := &model.NodeSpec{Owner: model.OwnerProvider, Interfaces: []model.InterfaceSpec{azureInterface("circ0", 0)}}
	for c := range rapid.IntRange(1, 3).Draw(t, "customers") {
		customer := fmt.Sprintf("customer-%d", c)
		put(model.KindCustomer, "", customer, &model.CustomerSpec{Model: model.ConnectThrough})
		policy := &model.EncryptionPolicySpec{
			Protocol: model.ProtocolWireGuard, PathMTU: rapid.SampledFrom([]int{0, 1344, 1400, 1500, 9000}).Draw(t, "mtu"),
		}
		if rapid.Bool().Draw(t, "ipsec") {
			policy.Protocol = model.ProtocolIPsec
			policy.CryptoProfile = rapid.SampledFrom([]string{"", "bsi-tr-02102-3", "pq-hybrid-commercial"}).Draw(t, "profile")
			policy.PostQuantum = rapid.SampledFrom([]model.PostQuantum{"", model.PostQuantumRequired, model.PostQuantumPreferred}).Draw(t, "post-quantum")
		}
		put(model.KindEncryptionPolicy, customer, "policy", policy)
		prem := &model.NodeSpec{Owner: customer, Interfaces: []model.InterfaceSpec{{Name: "lan0", Role: model.RoleLAN}, {Name: "mgmt0", Role: model.RoleManagement}}}
		hq := &model.EndpointSpec{Site: "hq", Node: "prem-" + customer}
		var circuits []string
		for n := range rapid.IntRange(1, 3).Draw(t, "circuits") {
			circuit := fmt.Sprintf("er-%d", n)
			circuits = append(circuits, circuit)
			spec := &model.CircuitSpec{Peering: model.PeeringPrivate, BandwidthMbps: 50}
			spec.Links.Primary.Subnet = netip.MustParsePrefix(fmt.Sprintf("172.16.%d.%d/30", c, 8*n))
			spec.Links.Secondary.Subnet = netip.MustParsePrefix(fmt.Sprintf("172.16.%d.%d/30", c, 8*n+4))
			put(model.KindCircuit, customer, circuit, spec)
			for i, link := range model.LinkNames() {
				l, _ := spec.Links.Link(link)
				prem.Interfaces = append(prem.Interfaces, model.InterfaceSpec{
					Name: fmt.Sprintf("circ%d", 2*n+i), Role: model.RoleCircuit,
					Link: &model.LinkRef{Customer: customer, Circuit: circuit, Link: link},
				})
				hq.Underlay = append(hq.Underlay, model.UnderlaySpec{Address: l.CustomerAddress(), Circuit: circuit, Link: link})
			}
		}
		put(model.KindNode, "", "prem-"+customer, prem)
		put(model.KindSite, customer, "hq", &model.SiteSpec{Type: model.SiteOnPremises, Prefixes: []netip.Prefix{netip.MustParsePrefix("fd00:1::/48"), netip.MustParsePrefix("10.1.0.0/16")}})
		put(model.KindEndpoint, customer, "hq", hq)
		for n := range rapid.IntRange(0, 3).Draw(t, "vnets") {
			site := fmt.Sprintf("%s-%d", rapid.SampledFrom([]string{"a", "vnet"}).Draw(t, "site name"), n)
			put(model.KindSite, customer, site, &model.SiteSpec{Type: model.SiteAzureVNet, Prefixes: []netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("10.%d.0.0/16", 2+n))}})
			node, spec := "nva", shared
			if n > 0 {
				node = fmt.Sprintf("nva-%d-%d", c, n)
				spec = &model.NodeSpec{Owner: customer, Interfaces: []model.InterfaceSpec{azureInterface("circ0", 1+3*c+n)}}
			}
			spec.Interfaces = append(spec.Interfaces, model.InterfaceSpec{Name: "lan-" + customer, Role: model.RoleLAN, Customer: customer})
			put(model.KindNode, "", node, spec)
			e := &model.EndpointSpec{Site: site, Node: node}
			for _, p := range spec.Interfaces[0].Addresses[:rapid.IntRange(1, 2).Draw(t, "addresses")] {
				e.Underlay = append(e.Underlay, model.UnderlaySpec{Address: p.Addr()})
			}
			put(model.KindEndpoint, customer, site, e)
			put(model.KindConnection, customer, "to-"+site, &model.ConnectionSpec{
				Endpoints: rapid.Permutation([]string{"hq", site}).Draw(t, "endpoints"), EncryptionPolicy: "policy",
				Circuits: rapid.Permutation(circuits).Draw(t, "order")[:rapid.IntRange(1, len(circuits)).Draw(t, "used")],
			})
		}
	}
	return docs
}

func azureInterface(name string, n int) model.InterfaceSpec {
	return model.InterfaceSpec{
		Name: name, Role: model.RoleCircuit,
		Addresses: []netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("172.20.%d.5/28", n)), netip.MustParsePrefix(fmt.Sprintf("172.20.%d.4/28", n))},
		Gateway:   netip.MustParseAddr(fmt.Sprintf("172.20.%d.1", n)),
	}
}

// Whatever is valid compiles to states that agents take, and both ends of every
// tunnel agree.
func TestCompileProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		docs := world(t)
		for _, p := range model.Validate(docs) {
			t.Fatalf("drawn documents are invalid: %+v", p)
		}
		numbers, err := compile.Number(docs, model.Numbers{})
		if err != nil {
			t.Fatal(err)
		}
		s := &model.Snapshot{Documents: docs, Numbers: numbers, Keys: map[model.TunnelEnd]desired.PublicKey{}, PresharedKeys: map[string]model.PresharedKeys{}}
		for k, d := range docs {
			if k.Kind != model.KindNode {
				continue
			}
			for _, c := range connections(docs) {
				for _, id := range tunnelIDs(s, c) {
					if rapid.Bool().Draw(t, "key known") {
						s.Keys[model.TunnelEnd{Tunnel: id, Node: d.Key.Name}] = keyFor(id, d.Key.Name)
					}
				}
			}
		}
		for id := range numbers.Tunnels {
			if rapid.Bool().Draw(t, "secret known") {
				s.PresharedKeys[id] = sharedFor(id)
			}
		}
		certify(t, s)
		unsettle(t, s)
		states := compile.Compile(s)
		if diff := cmp.Diff(states, compile.Compile(s), comparer); diff != "" {
			t.Fatalf("compiled twice:\n%s", diff)
		}
		check(t, s, states)
	})
}

func connections(docs map[model.Key]model.Document) []model.Key {
	var keys []model.Key
	for k := range docs {
		if k.Kind == model.KindConnection {
			keys = append(keys, k)
		}
	}
	slices.SortFunc(keys, func(a, b model.Key) int { return strings.Compare(a.String(), b.String()) })
	return keys
}

var comparer = cmp.Options{
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
	cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
	cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b }),
}

type end struct {
	node       string
	tunnel     desired.Tunnel
	group      desired.Group
	identities []desired.Identity
}

// check holds for the states of every valid snapshot.
func check(t *rapid.T, s *model.Snapshot, states map[string]desired.State) {
	ends := map[string][]end{}
	for node, state := range states {
		if err := state.Validate(); err != nil {
			t.Fatalf("state of %s: %v", node, err)
		}
		if again, err := desired.StateFromWire(state.ToWire()); err != nil || !state.Equal(again) {
			t.Fatalf("state of %s does not survive the wire: %v", node, err)
		}
		sortedBy(t, node+" interfaces", state.Interfaces, func(x desired.Interface) string { return x.Name })
		sortedBy(t, node+" links", state.Links, func(x desired.Link) string { return x.ID })
		sortedBy(t, node+" sections", state.Sections, func(x desired.Section) string { return x.Customer })
		spec, _ := model.Lookup[*model.NodeSpec](s.Documents, model.Key{Kind: model.KindNode, Name: node})
		for _, in := range spec.Interfaces {
			found := slices.ContainsFunc(state.Interfaces, func(x desired.Interface) bool { return x.Name == in.Name })
			if in.Role == model.RoleCircuit && !found {
				t.Fatalf("circuit interface %s of %s would stay open", in.Name, node)
			}
		}
		used := map[string]bool{}
		for _, x := range state.Sections {
			sortedBy(t, node+" groups", x.Groups, func(g desired.Group) string { return g.ID })
			for _, g := range x.Groups {
				sortedBy(t, g.ID+" tunnels", g.Tunnels, func(x desired.Tunnel) string { return x.ID })
				if len(g.Tunnels) == 0 {
					t.Fatalf("group %s at %s has no tunnels", g.ID, node)
				}
				for _, tn := range g.Tunnels {
					used[tn.Link] = true
					ends[tn.ID] = append(ends[tn.ID], end{node, tn, g, state.Identities})
				}
			}
		}
		for _, l := range state.Links {
			if !used[l.ID] {
				t.Fatalf("state of %s has link %s, which no tunnel uses", node, l.ID)
			}
		}
	}
	want := 0
	for _, c := range connections(s.Documents) {
		spec, _ := model.Lookup[*model.ConnectionSpec](s.Documents, c)
		ids := tunnelIDs(s, c)
		if len(ids) != 2*len(spec.Circuits) {
			t.Fatalf("%s has %d tunnels over %d circuits", c, len(ids), len(spec.Circuits))
		}
		want += len(ids)
		pairs := map[string]bool{}
		for _, id := range ids {
			mirrored(t, s, id, ends[id])
			pairs[fmt.Sprint(ends[id][0].tunnel.Local.Addr(), ends[id][0].tunnel.Remote.Addr())] = true
		}
		if len(pairs) != len(ids) {
			t.Fatalf("%s has %d address pairs for %d tunnels", c, len(pairs), len(ids))
		}
	}
	if len(ends) != want {
		t.Fatalf("%d tunnels in states, want %d", len(ends), want)
	}
}

func mirrored(t *rapid.T, s *model.Snapshot, id string, ends []end) {
	if len(ends) != 2 {
		t.Fatalf("tunnel %s has %d ends", id, len(ends))
	}
	a, b := ends[0].tunnel, ends[1].tunnel
	if a.Number != b.Number || a.Link != b.Link || a.MTU != b.MTU || a.Local != b.Remote || a.Remote != b.Local ||
		a.LocalProbe != b.RemoteProbe || a.RemoteProbe != b.LocalProbe || a.Local.Port() != b.Local.Port() {
		t.Fatalf("the ends of %s do not agree:\n%+v\n%+v", id, a, b)
	}
	customer, connection, _ := strings.Cut(id, "/")
	connection, _, _ = strings.Cut(connection, "/")
	policy, retiring, ok := s.Protocols(model.Key{Kind: model.KindConnection, Customer: customer, Name: connection})
	if !ok {
		t.Fatalf("%s has no policy", id)
	}
	for i, e := range ends {
		for _, protocol := range []model.Protocol{model.ProtocolWireGuard, model.ProtocolIPsec} {
			want := policy.Protocol == protocol || retiring != nil && retiring.Protocol == protocol
			if has := protocol == model.ProtocolWireGuard && e.tunnel.WireGuard != nil || protocol == model.ProtocolIPsec && e.tunnel.IPsec != nil; has != want {
				t.Fatalf("%s at %s has %s: %t, want %t", id, e.node, protocol, has, want)
			}
		}
		if e.tunnel.IPsec != nil {
			negotiates(t, s, id, e, ends[1-i])
		}
		if e.tunnel.WireGuard == nil {
			continue
		}
		want := s.Keys[model.TunnelEnd{Tunnel: id, Node: ends[1-i].node}]
		shared := s.PresharedKeys[id].Desired()
		if want.IsZero() || len(shared) == 0 {
			want, shared = desired.PublicKey{}, nil
		}
		if got := e.tunnel.WireGuard.PeerKey; got != want {
			t.Fatalf("%s at %s has peer key %s, want %s", id, e.node, got, want)
		}
		if !slices.Equal(e.tunnel.WireGuard.PresharedKeys, shared) {
			t.Fatalf("%s at %s has pre-shared keys %v, want %v", id, e.node, e.tunnel.WireGuard.PresharedKeys, shared)
		}
	}
}

// negotiates holds for both ends of an IPsec tunnel.
func negotiates(t *rapid.T, s *model.Snapshot, id string, near, far end) {
	mine, theirs := near.group.IPsec, far.group.IPsec
	if mine.LocalID != theirs.RemoteID || mine.RemoteID != theirs.LocalID || mine.Authentication != theirs.Authentication ||
		!slices.Equal(mine.IKEProposals, theirs.IKEProposals) || !slices.Equal(mine.ESPProposals, theirs.ESPProposals) ||
		mine.PPKRequired != theirs.PPKRequired || near.group.Retiring != far.group.Retiring {
		t.Fatalf("the ends of %s negotiate other things:\n%+v\n%+v", id, mine, theirs)
	}
	if !slices.Equal(near.tunnel.IPsec.PresharedKeys, far.tunnel.IPsec.PresharedKeys) {
		t.Fatalf("the ends of %s have other pre-shared keys", id)
	}
	if mine.PPKRequired && !slices.Equal(near.tunnel.IPsec.PresharedKeys, s.PresharedKeys[id].Desired()) {
		t.Fatalf("%s requires a pre-shared key and has %v", id, near.tunnel.IPsec.PresharedKeys)
	}
	// What the far end may prove itself by is what this one takes, and nothing else.
	var shown [][]byte
	for _, i := range far.identities {
		if i.Name != theirs.LocalID {
			continue
		}
		for _, c := range i.Certificates {
			if len(c.Certificate) > 0 {
				shown = append(shown, c.Certificate)
			}
		}
	}
	in := func(list [][]byte, der []byte) bool {
		return slices.ContainsFunc(list, func(x []byte) bool { return string(x) == string(der) })
	}
	for _, der := range shown {
		if !in(mine.PeerCertificates, der) {
			t.Fatalf("%s at %s does not take %s", id, near.node, nameIn(der))
		}
	}
	if len(shown) != len(mine.PeerCertificates) {
		t.Fatalf("%s at %s takes %d certificates, and there are %d", id, near.node, len(mine.PeerCertificates), len(shown))
	}
}

func sortedBy[T any](t *rapid.T, what string, s []T, name func(T) string) {
	for i := 1; i < len(s); i++ {
		if name(s[i-1]) >= name(s[i]) {
			t.Fatalf("%s are not sorted, or have duplicates: %s, %s", what, name(s[i-1]), name(s[i]))
		}
	}
}

// What Validate lets through compiles, also after documents were changed at
// random: everything that compile relies on is checked before.
func TestValidImpliesCompilable(t *testing.T) {
	valid := 0
	rapid.Check(t, func(t *rapid.T) {
		docs := world(t)
		for range rapid.IntRange(1, 4).Draw(t, "changes") {
			change(t, docs)
		}
		numbers, err := compile.Number(docs, model.Numbers{})
		if err != nil {
			t.Fatal(err)
		}
		s := &model.Snapshot{Documents: docs, Numbers: numbers}
		states := compile.Compile(s)
		if len(model.Validate(docs)) > 0 {
			return
		}
		valid++
		check(t, s, states)
	})
	if valid == 0 {
		t.Error("no changed set was valid: the test shows nothing")
	}
}

// change does to a document what operators do by mistake.
func change(t *rapid.T, docs map[model.Key]model.Document) {
	keys := slices.SortedFunc(maps.Keys(docs), func(a, b model.Key) int { return strings.Compare(a.String(), b.String()) })
	k := rapid.SampledFrom(keys).Draw(t, "document")
	other := rapid.SampledFrom(keys).Draw(t, "other")
	if rapid.IntRange(0, 9).Draw(t, "delete") == 0 {
		delete(docs, k)
		return
	}
	addresses := []string{"172.20.0.4", "172.20.0.5", "172.16.0.1", "172.16.0.5", "172.16.1.1", "fd00::1", "172.20.1.4"}
	address := netip.MustParseAddr(rapid.SampledFrom(addresses).Draw(t, "address"))
	prefix := netip.MustParsePrefix(rapid.SampledFrom([]string{"10.9.0.0/16", "10.1.0.0/24", "172.16.0.0/12", "fd00:9::/48", "0.0.0.0/0", "172.16.9.0/30", "172.16.0.0/30", "fdc5:5ea1:7d10::/64"}).Draw(t, "prefix"))
	link := rapid.SampledFrom([]model.LinkName{model.Primary, model.Secondary, ""}).Draw(t, "link")
	which := rapid.IntRange(0, 3).Draw(t, "which")
	switch spec := docs[k].Spec.(type) {
	case *model.CustomerSpec:
		spec.Model = model.ConnectTo
	case *model.CircuitSpec:
		switch which {
		case 0:
			spec.Peering = model.PeeringMicrosoft
		case 1:
			vlan := rapid.SampledFrom([]int{0, 5, 6})
			spec.Links.Primary.VLAN, spec.Links.Primary.OuterVLAN = vlan.Draw(t, "vlan"), vlan.Draw(t, "outer vlan")
			spec.Links.Secondary.VLAN = vlan.Draw(t, "secondary vlan")
		default:
			spec.Links.Secondary.Subnet = prefix
		}
	case *model.SiteSpec:
		spec.Prefixes = append(slices.Clone(spec.Prefixes), prefix)
	case *model.NodeSpec:
		in := &spec.Interfaces[rapid.IntRange(0, len(spec.Interfaces)-1).Draw(t, "interface")]
		switch which {
		case 0:
			in.Role = rapid.SampledFrom([]model.InterfaceRole{model.RoleCircuit, model.RoleLAN, model.RoleManagement}).Draw(t, "role")
		case 1:
			in.Customer = rapid.SampledFrom([]string{"", "customer-0", "customer-1"}).Draw(t, "customer")
		case 2:
			in.Link = &model.LinkRef{Customer: "customer-0", Circuit: "er-0", Link: link}
		default:
			in.Addresses = []netip.Prefix{netip.PrefixFrom(address, 28)}
		}
	case *model.EndpointSpec:
		u := &spec.Underlay[rapid.IntRange(0, len(spec.Underlay)-1).Draw(t, "underlay")]
		switch which {
		case 0:
			u.Address = address
		case 1:
			u.Circuit, u.Link = rapid.SampledFrom([]string{"er-0", "er-1", ""}).Draw(t, "circuit"), link
		case 2:
			spec.Node = other.Name
		default:
			spec.Site = other.Name
		}
	case *model.EncryptionPolicySpec:
		spec.PathMTU = rapid.IntRange(1270, 9010).Draw(t, "path mtu")
		if which == 0 {
			spec.Protocol = rapid.SampledFrom([]model.Protocol{model.ProtocolWireGuard, model.ProtocolIPsec}).Draw(t, "protocol")
		}
	case *model.ConnectionSpec:
		switch which {
		case 0:
			spec.Endpoints = []string{spec.Endpoints[0], other.Name}
		case 1:
			spec.Circuits = append(slices.Clone(spec.Circuits), other.Name)
		default:
			name := model.Key{Kind: k.Kind, Customer: k.Customer, Name: "again"}
			docs[name] = model.Document{Key: name, Spec: &model.ConnectionSpec{Endpoints: spec.Endpoints, Circuits: spec.Circuits, EncryptionPolicy: spec.EncryptionPolicy}}
		}
	}
}

// tunnelIDs are the tunnels of a connection, sorted.
func tunnelIDs(s *model.Snapshot, connection model.Key) []string {
	tunnels, _ := model.Tunnels(s.Documents, connection)
	ids := make([]string, len(tunnels))
	for i, t := range tunnels {
		ids[i] = t.ID
	}
	return ids
}
