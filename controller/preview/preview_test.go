package preview

import (
	"flag"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/circuitseal/circuitseal/controller/compile"
	"github.com/circuitseal/circuitseal/controller/document"
	"github.com/circuitseal/circuitseal/controller/model"
	"github.com/circuitseal/circuitseal/proto/desired"
)

var update = flag.Bool("update", false, "write golden files")

// samples are the shipped documents, both nodes enrolled and all keys known.
func samples(t testing.TB) *model.Snapshot {
	t.Helper()
	paths, err := filepath.Glob("../../deploy/samples/*.yaml")
	if err != nil || len(paths) == 0 {
		t.Fatalf("no samples: %v", err)
	}
	var sources []document.Source
	for _, p := range paths {
		b, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		sources = append(sources, document.Source{Name: p, Text: string(b)})
	}
	docs, _, problems := document.Decode(sources)
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	s := &model.Snapshot{Epoch: 1, Revision: 1, Documents: map[model.Key]model.Document{}, Keys: map[model.TunnelEnd]desired.PublicKey{},
		PresharedKeys: map[string]model.PresharedKeys{}, Enrolments: map[string]model.Enrolment{}}
	for _, d := range docs {
		s.Documents[d.Key] = d
		if d.Key.Kind == model.KindNode {
			s.Enrolments[d.Key.Name] = model.Enrolment{Serial: "a"}
		}
	}
	s = numbered(t, s)
	for e := range ends(compile.Compile(s)) {
		s.Keys[e] = desired.PublicKey{1}
		s.PresharedKeys[e.Tunnel] = model.PresharedKeys{Phase: model.PresharedSteady, Keys: []model.PresharedGeneration{
			{PresharedKey: desired.PresharedKey{Generation: 1, Key: desired.Secret{1}}},
		}}
	}
	return s
}

func numbered(t testing.TB, s *model.Snapshot) *model.Snapshot {
	t.Helper()
	numbers, err := compile.Number(s.Documents, s.Numbers)
	if err != nil {
		t.Fatal(err)
	}
	s.Numbers = numbers
	return s
}

// edit is a snapshot after a change.
func edit(t testing.TB, s *model.Snapshot, change func(*model.Snapshot)) *model.Snapshot {
	t.Helper()
	next := *s
	next.Documents, next.Keys, next.Enrolments = maps.Clone(s.Documents), maps.Clone(s.Keys), maps.Clone(s.Enrolments)
	change(&next)
	return numbered(t, &next)
}

func put(s *model.Snapshot, kind model.Kind, name string, spec model.Spec) {
	k := model.Key{Kind: kind, Customer: "contoso", Name: name}
	s.Documents[k] = model.Document{Key: k, Spec: spec}
}

func drop(s *model.Snapshot, kind model.Kind, name string) {
	delete(s.Documents, model.Key{Kind: kind, Customer: "contoso", Name: name})
}

// lines is a report as text.
func lines(r Report) []string {
	var all []string
	fields := func(indent string, fs []Field) {
		for _, f := range fs {
			s := fmt.Sprintf("%s%s: %s -> %s", indent, f.Path, f.Old, f.New)
			if f.Lost != nil || f.Gained != nil {
				s = fmt.Sprintf("%s%s: -%v +%v", indent, f.Path, f.Lost, f.Gained)
			}
			all = append(all, s)
		}
	}
	for _, d := range r.Documents {
		all = append(all, fmt.Sprintf("%s %s", d.Key, d.Action))
		if d.Action == Changed {
			fields("  ", d.Fields)
		}
	}
	for _, n := range r.Nodes {
		all = append(all, fmt.Sprintf("%s %s", n.Name, n.Action))
		for _, o := range n.Objects {
			all = append(all, fmt.Sprintf("  %s %s %s", o.Kind, o.Name, o.What))
			if o.Action == Changed {
				fields("    ", o.Fields)
			}
		}
	}
	for _, f := range r.Flows {
		all = append(all, strings.TrimSpace(fmt.Sprintf("%s %s %v%v -> %v%v: %v -> %v %s", f.Node, f.Interface,
			f.Source.Prefixes, f.Source.Except, f.Destination.Prefixes, f.Destination.Except, f.Before, f.After, f.Why)))
	}
	return all
}

func TestCompare(t *testing.T) {
	prefixes := func(p ...string) []netip.Prefix {
		var all []netip.Prefix
		for _, x := range p {
			all = append(all, netip.MustParsePrefix(x))
		}
		return all
	}
	tests := []struct {
		name   string
		change func(*model.Snapshot)
	}{
		{"nothing", func(*model.Snapshot) {}},
		{"other prefixes of a site", func(s *model.Snapshot) {
			put(s, model.KindSite, "hq", &model.SiteSpec{Type: model.SiteOnPremises, Prefixes: prefixes("10.1.0.0/17", "10.9.0.0/24")})
		}},
		{"a deleted connection", func(s *model.Snapshot) { drop(s, model.KindConnection, "hq-weu") }},
		{"everything is new", func(*model.Snapshot) {}},
		{"everything is new, and one node is not enrolled", func(s *model.Snapshot) { delete(s.Enrolments, "nva-1") }},
		{"no endpoints any more", func(s *model.Snapshot) {
			drop(s, model.KindConnection, "hq-weu")
			drop(s, model.KindEndpoint, "hq")
			drop(s, model.KindEndpoint, "vnet-weu")
		}},
		{"another protocol", func(s *model.Snapshot) {
			policy := &model.EncryptionPolicySpec{Protocol: model.ProtocolIPsec, PostQuantum: model.PostQuantumRequired}
			put(s, model.KindEncryptionPolicy, "standard", policy)
			s.Settled = map[string]model.Settled{"contoso/hq-weu": {Policy: model.EncryptionPolicySpec{Protocol: model.ProtocolWireGuard}}}
		}},
		{"a translated address", func(s *model.Snapshot) {
			put(s, model.KindEndpoint, "vnet-weu", &model.EndpointSpec{Site: "vnet-weu", Node: "nva-1", Underlay: []model.UnderlaySpec{
				{Address: netip.MustParseAddr("172.20.255.4"), TranslatedTo: netip.MustParseAddr("192.0.2.4")}, {Address: netip.MustParseAddr("172.20.255.5")},
			}})
		}},
		{"a gateway", func(s *model.Snapshot) {
			drop(s, model.KindConnection, "hq-weu")
			drop(s, model.KindEndpoint, "vnet-weu")
			put(s, model.KindEndpoint, "gw", &model.EndpointSpec{Site: "vnet-weu", External: &model.ExternalSpec{Type: model.GatewayAzure, Authentication: model.AuthPSK}, Underlay: []model.UnderlaySpec{
				{Address: netip.MustParseAddr("172.20.254.4")},
			}})
			put(s, model.KindEncryptionPolicy, "standard", &model.EncryptionPolicySpec{Protocol: model.ProtocolIPsec})
			put(s, model.KindConnection, "hq-gw", &model.ConnectionSpec{Endpoints: []string{"hq", "gw"}, Circuits: []string{"er-ams"}, EncryptionPolicy: "standard"})
		}},
		{"another path MTU", func(s *model.Snapshot) {
			put(s, model.KindEncryptionPolicy, "standard", &model.EncryptionPolicySpec{Protocol: model.ProtocolWireGuard, PathMTU: 1500})
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			before := samples(t)
			after := edit(t, before, tt.change)
			if strings.HasPrefix(tt.name, "everything is new") {
				before = &model.Snapshot{}
				after.Keys = nil
			}
			golden(t, lines(Compare(before, after)))
		})
	}
}

// The ports of a tunnel's ends are WireGuard's: no packet of IPsec has them.
func TestIPsecHasNoPortsOfWireGuard(t *testing.T) {
	state := func(address string, encapsulated bool, wireguard *desired.WireGuard) desired.State {
		return desired.State{Sections: []desired.Section{{Customer: "contoso", Groups: []desired.Group{{
			ID: "contoso/c", IPsec: &desired.IPsecPolicy{UDPEncapsulation: encapsulated}, Tunnels: []desired.Tunnel{{
				ID: "contoso/c/er/primary", Link: "contoso/er/primary", IPsec: &desired.IPsec{}, WireGuard: wireguard,
				Local: netip.MustParseAddrPort("172.16.10.1:51820"), Remote: netip.AddrPortFrom(netip.MustParseAddr(address), 51820),
			}},
		}}}}}
	}
	for _, tt := range []struct {
		name     string
		old, now desired.State
		want     string
		ports    bool
	}{
		{"ESP", desired.State{}, state("172.20.0.4", false, nil), "IP protocol 50", false},
		{"ESP in UDP", desired.State{}, state("172.20.0.4", true, nil), "ESP in UDP 4500", false},
		{"moved", state("172.20.0.4", false, nil), state("172.20.0.5", false, nil), "moved", false},
		{"both protocols", desired.State{}, state("172.20.0.4", false, &desired.WireGuard{}), "-> 172.20.0.4:51820", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			o := objects(tt.old, tt.now)
			last := o[len(o)-1]
			if text := fmt.Sprint(last); !strings.Contains(last.What, tt.want) || strings.Contains(text, "51820") != tt.ports {
				t.Errorf("want %q, ports %t: %s", tt.want, tt.ports, text)
			}
			if last.Action == Changed && len(last.Fields) != 1 {
				t.Errorf("fields are %+v", last.Fields)
			}
		})
	}
}

// golden compares with testdata/NAME.txt; -update writes it.
func golden(t *testing.T, got []string) {
	t.Helper()
	path := filepath.Join("testdata", strings.ReplaceAll(filepath.Base(t.Name()), ",", "")+".txt")
	text := strings.Join(got, "\n") + "\n"
	if *update {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), text); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

// Whatever a state has is compared, also what is added to it later: every field
// of every struct in it, changed alone, makes a difference that is told.
func TestNoFieldOfAStateIsOverlooked(t *testing.T) {
	count := 0
	full := func() *desired.State {
		s := new(desired.State)
		fill(reflect.ValueOf(s).Elem(), 1)
		return s
	}
	var visit func(path string, v reflect.Value, check func(string))
	visit = func(path string, v reflect.Value, check func(string)) {
		switch {
		case v.Kind() == reflect.Pointer:
			visit(path, v.Elem(), check)
		case v.Kind() == reflect.Struct && !isLeaf(v.Type()):
			for f, x := range v.Fields() {
				visit(path+"."+f.Name, x, check)
			}
		case v.Kind() == reflect.Slice && v.Type().Elem().Kind() != reflect.Uint8:
			visit(path+"[0]", v.Index(0), check)
			old := reflect.ValueOf(v.Interface())
			v.Set(reflect.Zero(v.Type()))
			check(path + " emptied")
			v.Set(old)
		default:
			old := reflect.New(v.Type()).Elem()
			old.Set(v)
			fill(v, 2)
			check(path)
			v.Set(old)
		}
	}
	changed := full()
	visit("State", reflect.ValueOf(changed).Elem(), func(path string) {
		count++
		found := objects(*full(), *changed)
		if len(found) == 0 {
			t.Errorf("a change of %s is not told", path)
		}
		for _, o := range found {
			if o.Action == Changed && len(o.Fields) == 0 {
				t.Errorf("a change of %s is told without what: %+v", path, o)
			}
		}
	})
	if count < 30 {
		t.Errorf("only %d fields were changed", count)
	}
	if found := objects(*full(), *full()); found != nil {
		t.Errorf("nothing is changed, and yet %+v", found)
	}
}

// fill gives a value something that n decides.
func fill(v reflect.Value, n int) {
	switch x := v.Addr().Interface().(type) {
	case *netip.Addr:
		*x = netip.AddrFrom4([4]byte{10, 0, 0, byte(n)})
		return
	case *netip.Prefix:
		*x = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(n)}), 32)
		return
	case *netip.AddrPort:
		*x = netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(n)}), 1)
		return
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString(fmt.Sprint("text-", n))
	case reflect.Bool:
		v.SetBool(n == 1)
	case reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64, reflect.Uint:
		v.SetUint(uint64(n))
	case reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64, reflect.Int:
		v.SetInt(int64(n))
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem(), n)
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		fill(v.Index(0), n)
	case reflect.Array:
		fill(v.Index(0), n)
	case reflect.Struct:
		for f, x := range v.Fields() {
			if f.IsExported() {
				fill(x, n)
			}
		}
	default:
		panic("fill " + v.Type().String())
	}
}

// What is not known how to be shown is not shown, but told.
func TestSecretsAreNotShown(t *testing.T) {
	type secret struct {
		Generation uint64
		Key        [4]byte
	}
	type holder struct{ Secrets []secret }
	for _, tt := range []struct {
		name string
		a, b holder
	}{
		{"another one", holder{[]secret{{1, [4]byte{77, 77}}}}, holder{[]secret{{2, [4]byte{88, 88}}}}},
		{"another one of the same generation", holder{[]secret{{1, [4]byte{77, 77}}}}, holder{[]secret{{1, [4]byte{88, 88}}}}},
	} {
		d := stateFields()
		d.compare("", reflect.ValueOf(tt.a), reflect.ValueOf(tt.b))
		text := fmt.Sprintf("%+v", d.found)
		if len(d.found) != 1 || strings.Contains(text, "77") || strings.Contains(text, "88") || !strings.Contains(text, notShown) {
			t.Errorf("%s: %s", tt.name, text)
		}
	}
}

func TestWords(t *testing.T) {
	for name, want := range map[string]string{
		"PeerKey": "peer key", "MTU": "MTU", "NextHop": "next hop", "OuterVLAN": "outer VLAN", "VLANTag": "VLAN tag", "WireGuard": "WireGuard", "IPsec": "IPsec", "IKEProposals": "IKE proposals", "X": "x",
	} {
		if got := words(name); got != want {
			t.Errorf("words(%q) is %q, want %q", name, got, want)
		}
	}
}

// Lists are bounded, and what is not in them is counted.
func TestBounded(t *testing.T) {
	before := samples(t)
	after := edit(t, before, func(s *model.Snapshot) {
		spec := &model.SiteSpec{Type: model.SiteOnPremises}
		for i := range 100 {
			spec.Prefixes = append(spec.Prefixes, netip.MustParsePrefix(fmt.Sprintf("10.1.%d.0/24", 2*i)))
		}
		put(s, model.KindSite, "hq", spec)
	})
	whole := Compare(before, after)
	r := whole.Bounded(1, 10, 10)
	if len(r.Flows) != 1 || r.FlowsLeftOut != len(whole.Flows)-1 || r.FlowsLeftOut < 1 {
		t.Errorf("%d flows and %d left out of %d", len(r.Flows), r.FlowsLeftOut, len(whole.Flows))
	}
	f := r.Documents[0].Fields[0]
	if len(f.Gained) != 10 || f.LeftOut != 90 {
		t.Errorf("%d gained, %d left out", len(f.Gained), f.LeftOut)
	}
	if all := whole.Bounded(1, 10, 1000); len(all.Documents[0].Fields[0].Gained) != 100 || len(all.Flows[0].Source.Prefixes) > 10 {
		t.Errorf("with all changes: %d gained, a flow with %d prefixes", len(all.Documents[0].Fields[0].Gained), len(all.Flows[0].Source.Prefixes))
	}
	if g := whole.Documents[0].Fields[0].Gained; len(g) != 100 {
		t.Errorf("bounding one report has changed the other: %d gained", len(g))
	}
	if !slices.Equal(r.Flows[0].Source.Prefixes, whole.Flows[0].Source.Prefixes[:min(10, len(whole.Flows[0].Source.Prefixes))]) {
		t.Error("other prefixes are listed than the first")
	}
}
