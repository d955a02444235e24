package compile_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/circuitseal/circuitseal/controller/compile"
	"github.com/circuitseal/circuitseal/controller/model"
	"github.com/circuitseal/circuitseal/proto/desired"
)

// clone copies documents with their specs, since drawn changes write into them.
func clone(t testing.TB, docs map[model.Key]model.Document) map[model.Key]model.Document {
	t.Helper()
	all := make(map[model.Key]model.Document, len(docs))
	for k, d := range docs {
		b, err := json.Marshal(d.Spec)
		if err != nil {
			t.Fatal(err)
		}
		spec := model.NewSpec(k.Kind)
		if err := json.Unmarshal(b, spec); err != nil {
			t.Fatal(err)
		}
		all[k] = model.Document{Key: k, Spec: spec, Revision: d.Revision}
	}
	return all
}

// Whatever changes, and in whatever order, what is taken from the result before
// is what would have been compiled; and for valid documents both are what a
// compilation of everything in one piece gives.
func TestNextIsCompile(t *testing.T) {
	valid, kept := 0, 0
	rapid.Check(t, func(rt *rapid.T) {
		docs := world(rt)
		numbers, err := compile.Number(docs, model.Numbers{})
		if err != nil {
			rt.Fatal(err)
		}
		s := &model.Snapshot{
			Epoch: 1, Revision: 1, Documents: docs, Numbers: numbers, Keys: map[model.TunnelEnd]desired.PublicKey{},
			Enrolments: map[string]model.Enrolment{}, Revocations: map[model.Fingerprint]model.Revocation{},
			PresharedKeys: map[string]model.PresharedKeys{},
		}
		r := compile.Next(nil, s)
		for range rapid.IntRange(1, 6).Draw(rt, "steps") {
			before := r
			s = step(rt, t, s)
			r = compile.Next(r, s)
			if diff := cmp.Diff(compile.Compile(s), r.States, comparer); diff != "" {
				rt.Fatalf("compiled anew and from the result before (-want +got):\n%s", diff)
			}
			for name, state := range r.States {
				if was, ok := before.States[name]; (!ok || !state.Equal(was)) && !slices.Contains(r.Compiled, name) {
					rt.Fatalf("the state of %s has changed, and it is not among the compiled ones: %v", name, r.Compiled)
				}
			}
			kept += len(r.States) - len(r.Compiled)
			if len(model.Validate(s.Documents)) == 0 {
				valid++
				if diff := cmp.Diff(compile.CompileWhole(s), r.States, comparer); diff != "" {
					rt.Fatalf("compiled in one piece and in parts (-want +got):\n%s", diff)
				}
			}
		}
	})
	if valid == 0 || kept == 0 {
		t.Errorf("%d valid sets and %d nodes that were not compiled: the test shows nothing", valid, kept)
	}
}

// step is the next snapshot: documents changed, added or deleted, keys reported
// or gone, numbers given anew, documents read again, or nothing at all.
func step(rt *rapid.T, t testing.TB, s *model.Snapshot) *model.Snapshot {
	next := &model.Snapshot{Epoch: s.Epoch, Revision: s.Revision + 1, Documents: maps.Clone(s.Documents), Keys: maps.Clone(s.Keys), Numbers: s.Numbers,
		Enrolments: maps.Clone(s.Enrolments), Revocations: maps.Clone(s.Revocations), PresharedKeys: maps.Clone(s.PresharedKeys),
		Identities: maps.Clone(s.Identities), Authorities: s.Authorities, Settled: maps.Clone(s.Settled)}
	switch rapid.IntRange(0, 12).Draw(rt, "step") {
	case 0:
	case 1:
		next.Documents = clone(t, s.Documents)
	case 2, 3:
		for _, c := range connections(s.Documents) {
			for _, id := range tunnelIDs(s, c) {
				switch rapid.IntRange(0, 3).Draw(rt, "shared") {
				case 0:
					next.PresharedKeys[id] = sharedFor(id)
				case 1:
					next.PresharedKeys[id] = sharedFor(fmt.Sprint(id, next.Revision))
				case 2:
					delete(next.PresharedKeys, id)
				}
				for _, node := range slices.Sorted(maps.Keys(compile.Compile(s))) {
					end := model.TunnelEnd{Tunnel: id, Node: node}
					switch rapid.IntRange(0, 5).Draw(rt, "key") {
					case 0:
						next.Keys[end] = keyFor(id, node)
					case 1:
						delete(next.Keys, end)
					}
				}
			}
		}
	case 11:
		certify(rt, next)
	case 12:
		unsettle(rt, next)
	case 4:
		// As after a restore: everything has another number.
		old := model.Numbers{Links: map[string]uint16{}, Tunnels: map[string]uint16{}, Groups: map[string]uint32{}, Tenants: map[string]uint32{}}
		for name, n := range s.Numbers.Links {
			old.Links[name] = n + 1
		}
		for name, n := range s.Numbers.Tenants {
			old.Tenants[name] = n + 7
		}
		next.Numbers = old
	case 6:
		// Nodes are enrolled, anew too, and revoked.
		for _, node := range slices.Sorted(maps.Keys(compile.Compile(s))) {
			switch rapid.IntRange(0, 3).Draw(rt, "identity") {
			case 0:
				next.Enrolments[node] = model.Enrolment{Key: model.Fingerprint(fmt.Sprint(node, next.Revision))}
			case 1:
				if e, ok := next.Enrolments[node]; ok {
					next.Revocations[e.Key] = model.Revocation{Node: node}
				}
			}
		}
	case 5:
		// Only one document, so that most others stay.
		for k, d := range s.Documents {
			if site, ok := d.Spec.(*model.SiteSpec); ok && k.Customer == "customer-0" && site.Type == model.SiteOnPremises {
				next.Documents[k] = model.Document{Key: k, Spec: &model.SiteSpec{Type: site.Type, Prefixes: []netip.Prefix{
					netip.MustParsePrefix(fmt.Sprintf("10.1.%d.0/24", rapid.IntRange(0, 9).Draw(rt, "prefix"))),
				}}}
			}
		}
	default:
		next.Documents = clone(t, s.Documents)
		for range rapid.IntRange(1, 3).Draw(rt, "changes") {
			if len(next.Documents) > 0 {
				change(rt, next.Documents)
			}
		}
		if rapid.Bool().Draw(rt, "repaired") && len(model.Validate(next.Documents)) > 0 {
			next.Documents = s.Documents
		}
	}
	numbers, err := compile.Number(next.Documents, next.Numbers)
	if err != nil {
		rt.Fatal(err)
	}
	next.Numbers = numbers
	return next
}

// fleet is a provider's node on premises with n customers, each with an NVA of
// its own: what 200 customers look like.
func fleet(t testing.TB, n int) *model.Snapshot {
	t.Helper()
	docs := map[model.Key]model.Document{}
	put := func(kind model.Kind, customer, name string, spec model.Spec) {
		k := model.Key{Kind: kind, Customer: customer, Name: name}
		docs[k] = model.Document{Key: k, Spec: spec, Revision: 1}
	}
	shared := &model.NodeSpec{Owner: model.OwnerProvider}
	for i := range n {
		addFleetCustomer(put, shared, i)
	}
	if len(shared.Interfaces) > 256 {
		t.Fatalf("%d interfaces", len(shared.Interfaces))
	}
	put(model.KindNode, "", "shared", shared)
	numbers, err := compile.Number(docs, model.Numbers{})
	if err != nil {
		t.Fatal(err)
	}
	s := &model.Snapshot{Epoch: 1, Revision: 1, Documents: docs, Numbers: numbers, Keys: map[model.TunnelEnd]desired.PublicKey{}, PresharedKeys: map[string]model.PresharedKeys{}}
	for _, c := range connections(docs) {
		tunnels, _ := model.Tunnels(docs, c)
		for _, tunnel := range tunnels {
			s.PresharedKeys[tunnel.ID] = sharedFor(tunnel.ID)
			for _, e := range tunnel.Ends {
				s.Keys[model.TunnelEnd{Tunnel: tunnel.ID, Node: e.Node}] = keyFor(tunnel.ID, e.Node)
			}
		}
	}
	return s
}

// addFleetCustomer adds a customer. The first 60 are on the shared node, which
// has room for so many interfaces, and the rest on nodes of their own.
func addFleetCustomer(put func(model.Kind, string, string, model.Spec), shared *model.NodeSpec, i int) {
	customer, circuit := fmt.Sprintf("customer-%d", i), &model.CircuitSpec{Peering: model.PeeringPrivate, BandwidthMbps: 50}
	prem, name := &model.NodeSpec{Owner: customer}, "prem-"+customer
	if i < 60 {
		prem, name = shared, "shared"
	}
	circuit.Links.Primary.Subnet = netip.MustParsePrefix(fmt.Sprintf("172.16.%d.0/30", i))
	circuit.Links.Secondary.Subnet = netip.MustParsePrefix(fmt.Sprintf("172.16.%d.4/30", i))
	hq := &model.EndpointSpec{Site: "hq", Node: name}
	for j, link := range model.LinkNames() {
		l, _ := circuit.Links.Link(link)
		prem.Interfaces = append(prem.Interfaces, model.InterfaceSpec{
			Name: fmt.Sprintf("c%d-%d", i, j), Role: model.RoleCircuit, Link: &model.LinkRef{Customer: customer, Circuit: "er", Link: link},
		})
		hq.Underlay = append(hq.Underlay, model.UnderlaySpec{Address: l.CustomerAddress(), Circuit: "er", Link: link})
	}
	prem.Interfaces = append(prem.Interfaces, model.InterfaceSpec{Name: fmt.Sprintf("lan%d", i), Role: model.RoleLAN, Customer: customer})
	put(model.KindCustomer, "", customer, &model.CustomerSpec{Model: model.ConnectThrough})
	put(model.KindCircuit, customer, "er", circuit)
	put(model.KindSite, customer, "hq", &model.SiteSpec{Type: model.SiteOnPremises, Prefixes: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/9")}})
	put(model.KindSite, customer, "vnet", &model.SiteSpec{Type: model.SiteAzureVNet, Prefixes: []netip.Prefix{netip.MustParsePrefix("10.128.0.0/9")}})
	put(model.KindEncryptionPolicy, customer, "policy", &model.EncryptionPolicySpec{Protocol: model.ProtocolWireGuard})
	put(model.KindNode, "", "nva-"+customer, &model.NodeSpec{Owner: customer, Interfaces: []model.InterfaceSpec{azureInterface("circ0", i), {Name: "lan0", Role: model.RoleLAN}}})
	if prem != shared {
		put(model.KindNode, "", name, prem)
	}
	put(model.KindEndpoint, customer, "hq", hq)
	put(model.KindEndpoint, customer, "vnet", &model.EndpointSpec{Site: "vnet", Node: "nva-" + customer, Underlay: []model.UnderlaySpec{
		{Address: netip.MustParseAddr(fmt.Sprintf("172.20.%d.4", i))}, {Address: netip.MustParseAddr(fmt.Sprintf("172.20.%d.5", i))},
	}})
	put(model.KindConnection, customer, "hq-vnet", &model.ConnectionSpec{Endpoints: []string{"hq", "vnet"}, Circuits: []string{"er"}, EncryptionPolicy: "policy"})
}

// with is a snapshot with one document changed.
func with(s *model.Snapshot, kind model.Kind, customer, name string, spec model.Spec) *model.Snapshot {
	next := *s
	next.Revision++
	next.Documents = maps.Clone(s.Documents)
	k := model.Key{Kind: kind, Customer: customer, Name: name}
	next.Documents[k] = model.Document{Key: k, Spec: spec, Revision: next.Revision}
	return &next
}

func narrower() *model.SiteSpec {
	return &model.SiteSpec{Type: model.SiteOnPremises, Prefixes: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/10")}}
}

// A change compiles the nodes in its reach, and these alone.
func TestNextCompilesWhatAChangeCanTouch(t *testing.T) {
	s := fleet(t, 200)
	if problems := model.Validate(s.Documents); len(problems) > 0 {
		t.Fatalf("%d problems, the first %+v", len(problems), problems[0])
	}
	first := compile.Next(nil, s)
	if n := len(first.Compiled); n != 341 || n != len(first.States) {
		t.Fatalf("%d of %d nodes were compiled at first, want 341", n, len(first.States))
	}
	node := func(name string) *model.NodeSpec {
		spec, ok := model.Lookup[*model.NodeSpec](s.Documents, model.Key{Kind: model.KindNode, Name: name})
		if !ok {
			t.Fatalf("no node %s", name)
		}
		c := *spec
		c.Interfaces = slices.Clone(c.Interfaces)
		return &c
	}
	onboarded := node("shared")
	onboarded.Interfaces = append(onboarded.Interfaces, model.InterfaceSpec{Name: "lan200", Role: model.RoleLAN, Customer: "customer-150"})
	moved := node("shared")
	moved.Interfaces[slices.IndexFunc(moved.Interfaces, func(i model.InterfaceSpec) bool { return i.Name == "lan7" })].Name = "eth7"
	circuit := &model.CircuitSpec{Peering: model.PeeringPrivate, BandwidthMbps: 100}
	circuit.Links.Primary.Subnet = netip.MustParsePrefix("172.16.3.0/30")
	circuit.Links.Secondary.Subnet = netip.MustParsePrefix("172.16.3.8/30")
	reported := *s
	reported.Keys = maps.Clone(s.Keys)
	reported.Keys[model.TunnelEnd{Tunnel: "customer-5/hq-vnet/er/primary", Node: "shared"}] = keyFor("new", "key")
	enrolled := *s
	enrolled.Revision, enrolled.Epoch = 9, 2
	enrolled.Enrolments = map[string]model.Enrolment{"shared": {Serial: "a"}}
	certified := *s
	certified.Identities = map[string]model.IdentityCertificates{"hq.customer-5.circuitseal.internal": identityOf(s, "hq.customer-5", "shared", model.IdentitySteady)}
	stale := *s
	stale.Identities = map[string]model.IdentityCertificates{"hq.customer-5.circuitseal.internal": {Node: "shared", Enrolment: "another"}}
	changing := *s
	changing.Settled = map[string]model.Settled{"customer-5/hq-vnet": {Policy: model.EncryptionPolicySpec{Protocol: model.ProtocolIPsec}}}
	socket := node("shared")
	socket.CharonSocket = "/run/charon.vici"
	again := *s
	again.Documents = clone(t, s.Documents)
	gone := *s
	gone.Documents = maps.Clone(s.Documents)
	delete(gone.Documents, model.Key{Kind: model.KindConnection, Customer: "customer-199", Name: "hq-vnet"})
	tests := []struct {
		name string
		next *model.Snapshot
		want []string
	}{
		{"a customer's site, on the shared node", with(s, model.KindSite, "customer-7", "hq", narrower()), []string{"nva-customer-7", "shared"}},
		{"a customer's site, on its own nodes", with(s, model.KindSite, "customer-150", "hq", narrower()), []string{"nva-customer-150", "prem-customer-150"}},
		{"a connection deleted", &gone, []string{"nva-customer-199", "prem-customer-199"}},
		{"a link's subnet", with(s, model.KindCircuit, "customer-3", "er", circuit), []string{"nva-customer-3", "shared"}},
		{"a LAN for one more customer on the shared node", with(s, model.KindNode, "", "shared", onboarded), []string{"shared"}},
		{"the LAN of one customer on the shared node", with(s, model.KindNode, "", "shared", moved), []string{"nva-customer-7", "shared"}},
		{"a key that a node reported", &reported, []string{"nva-customer-5", "shared"}},
		{"a certificate of an endpoint", &certified, []string{"nva-customer-5", "shared"}},
		{"a certificate that no longer counts", &stale, nil},
		{"a connection that changes its protocol", &changing, []string{"nva-customer-5", "shared"}},
		{"another strongSwan on the shared node", with(s, model.KindNode, "", "shared", socket), []string{"shared"}},
		{"an enrolment, a revision and an epoch", &enrolled, nil},
		{"documents that were read again", &again, nil},
		{"a customer without anything", with(s, model.KindCustomer, "", "tailspin", &model.CustomerSpec{Model: model.ConnectTo}), nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := compile.Next(first, tt.next)
			if diff := cmp.Diff(tt.want, r.Compiled); diff != "" {
				t.Errorf("compiled (-want +got)\n%s", diff)
			}
			if diff := cmp.Diff(compile.CompileWhole(tt.next), r.States, comparer); diff != "" {
				t.Errorf("states (-want +got)\n%s", diff)
			}
		})
	}
}

// What is added to a snapshot or to a state has to find its way into the parts:
// see nodePart, customerPart and join.
func TestPartsAreOfWholeSnapshots(t *testing.T) {
	for _, tt := range []struct {
		of   reflect.Type
		want []string
	}{
		{reflect.TypeFor[model.Snapshot](), []string{"Epoch", "Revision", "Documents", "Numbers", "Keys", "PresharedKeys", "Identities", "Authorities", "Settled", "Enrolments", "Revocations"}},
		{reflect.TypeFor[model.Numbers](), []string{"Tenants", "Links", "Groups", "Tunnels"}},
		{reflect.TypeFor[desired.State](), []string{"Interfaces", "Links", "Sections", "Identities", "Authorities", "CharonSocket"}},
	} {
		var got []string
		for f := range tt.of.Fields() {
			got = append(got, f.Name)
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%s has other fields than its parts know; give them to whom they belong, say so in differ, and then here (-want +got)\n%s", tt.of, diff)
		}
	}
}

// BenchmarkUpdate200 is what following the store costs with 200 customers: a
// compilation, and the bytes of every state that was compiled.
func BenchmarkUpdate200(b *testing.B) {
	s := fleet(b, 200)
	first := compile.Next(nil, s)
	one := with(s, model.KindSite, "customer-7", "hq", narrower())
	own := with(s, model.KindSite, "customer-150", "hq", narrower())
	for _, bb := range []struct {
		name   string
		before *compile.Result
		next   *model.Snapshot
	}{{"all", nil, s}, {"one-of-the-shared-node", first, one}, {"one-of-its-own-nodes", first, own}} {
		b.Run(bb.name, func(b *testing.B) {
			for b.Loop() {
				r := compile.Next(bb.before, bb.next)
				for _, name := range r.Compiled {
					if _, err := r.States[name].Marshal(); err != nil {
						b.Fatal(err)
					}
				}
			}
		})
	}
}
