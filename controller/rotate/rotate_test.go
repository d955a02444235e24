package rotate

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/circuitseal/circuitseal/controller/model"
	"github.com/circuitseal/circuitseal/controller/store"
	"github.com/circuitseal/circuitseal/proto/desired"
)

const tunnelID = "contoso/hq-weu/er/primary"

// documents are one connection with its two tunnels.
func documents() map[model.Key]model.Document {
	docs := map[model.Key]model.Document{}
	put := func(kind model.Kind, customer, name string, spec model.Spec) {
		k := model.Key{Kind: kind, Customer: customer, Name: name}
		docs[k] = model.Document{Key: k, Spec: spec}
	}
	circuit := &model.CircuitSpec{Peering: model.PeeringPrivate, BandwidthMbps: 50}
	circuit.Links.Primary.Subnet = netip.MustParsePrefix("172.16.0.0/30")
	circuit.Links.Secondary.Subnet = netip.MustParsePrefix("172.16.0.4/30")
	put(model.KindCircuit, "contoso", "er", circuit)
	put(model.KindEncryptionPolicy, "contoso", "wg", &model.EncryptionPolicySpec{Protocol: model.ProtocolWireGuard})
	put(model.KindSite, "contoso", "hq", &model.SiteSpec{Type: model.SiteOnPremises})
	put(model.KindSite, "contoso", "weu", &model.SiteSpec{Type: model.SiteAzureVNet})
	prem := &model.NodeSpec{Owner: "contoso"}
	hq := &model.EndpointSpec{Site: "hq", Node: "prem-1"}
	for _, l := range model.LinkNames() {
		link, _ := circuit.Links.Link(l)
		hq.Underlay = append(hq.Underlay, model.UnderlaySpec{Address: link.CustomerAddress(), Circuit: "er", Link: l})
		prem.Interfaces = append(prem.Interfaces, model.InterfaceSpec{Name: "circ-" + string(l), Role: model.RoleCircuit, Link: &model.LinkRef{Customer: "contoso", Circuit: "er", Link: l}})
	}
	put(model.KindNode, "", "prem-1", prem)
	put(model.KindNode, "", "nva-1", &model.NodeSpec{Owner: "contoso", Interfaces: []model.InterfaceSpec{{
		Name: "eth0", Role: model.RoleCircuit, Addresses: []netip.Prefix{netip.MustParsePrefix("10.2.0.4/24")}, Gateway: netip.MustParseAddr("10.2.0.1"),
	}}})
	put(model.KindEndpoint, "contoso", "hq", hq)
	put(model.KindEndpoint, "contoso", "weu", &model.EndpointSpec{Site: "weu", Node: "nva-1", Underlay: []model.UnderlaySpec{{Address: netip.MustParseAddr("10.2.0.4")}}})
	put(model.KindConnection, "contoso", "hq-weu", &model.ConnectionSpec{Endpoints: []string{"hq", "weu"}, Circuits: []string{"er"}, EncryptionPolicy: "wg"})
	return docs
}

// memory is a store of one revision at a time, fenced like the real one.
type memory struct {
	// held is read by tests while a Rotator writes.
	held atomic.Pointer[model.Snapshot]
	news chan struct{}
	// dies, when set, makes the next write one of which the controller does not
	// hear: it was made, or it was not.
	dies *bool
}

var errDied = errors.New("the controller died")

func newMemory() *memory {
	docs := documents()
	s := &model.Snapshot{
		Epoch: 1, Revision: 10, Documents: docs, PresharedKeys: map[string]model.PresharedKeys{},
		Numbers: model.Numbers{Tunnels: map[string]uint16{tunnelID: 1, "contoso/hq-weu/er/secondary": 2}},
	}
	m := &memory{news: make(chan struct{}, 1)}
	m.held.Store(s)
	return m
}

func (m *memory) now() *model.Snapshot { return m.held.Load() }

func (m *memory) Watch(ctx context.Context) iter.Seq2[*model.Snapshot, error] {
	return func(yield func(*model.Snapshot, error) bool) {
		for yield(m.now(), nil) {
			select {
			case <-m.news:
			case <-ctx.Done():
				return
			}
		}
	}
}

func (m *memory) PutPreshared(_ context.Context, keys map[string]model.PresharedKeys) error {
	if m.dies != nil && !*m.dies {
		m.dies = nil
		return errDied
	}
	next := *m.now()
	next.Revision++
	next.PresharedKeys = maps.Clone(m.now().PresharedKeys)
	for id, k := range keys {
		if !k.Valid() {
			return fmt.Errorf("tunnel %s: %v in phase %s", id, k.Generations(), k.Phase)
		}
		if m.now().PresharedKeys[id].Revision != k.Revision {
			return store.ErrConflict
		}
		k.Revision = next.Revision
		next.PresharedKeys[id] = k
	}
	m.held.Store(&next)
	select {
	case m.news <- struct{}{}:
	default:
	}
	if m.dies != nil {
		m.dies = nil
		return errDied
	}
	return nil
}

// appliance is a node as far as rotations see it: it takes states in order,
// keeps them, and hands over the generation of its last handshake.
type appliance struct {
	online   bool
	position desired.Position
	// kept are the keys of the state at position, keys are those that its agent
	// has come to act on, device the one with which its device shakes hands.
	kept, keys   []desired.PresharedKey
	device, used desired.Secret
	reported     *desired.Status
}

func (a *appliance) take(s *model.Snapshot) {
	a.position = desired.Position{Epoch: s.Epoch, Revision: s.Revision}
	a.kept = s.PresharedKeys[tunnelID].Desired()
}

// act begins to act on what is kept; the device may not take the key yet.
func (a *appliance) act() { a.keys = a.kept }

func (a *appliance) configure() {
	if len(a.keys) > 0 {
		a.device = a.keys[0].Key
	}
}

func (a *appliance) report() {
	t := desired.TunnelStatus{ID: tunnelID}
	for _, k := range a.keys {
		t.PresharedKeyGenerations = append(t.PresharedKeyGenerations, k.Generation)
		if k.Key.Equal(a.used) {
			t.PresharedKeyUsed = k.Generation
		}
	}
	a.reported = &desired.Status{Acknowledged: a.position, Tunnels: []desired.TunnelStatus{t}}
}

type fleet map[string]*appliance

func (f fleet) Report(name string) (bool, desired.Position, *desired.Status) {
	a := f[name]
	return a.online, desired.Position{}, a.reported
}

func holds(a *appliance, k desired.Secret) bool {
	return slices.ContainsFunc(a.keys, func(x desired.PresharedKey) bool { return x.Key.Equal(k) })
}

// However states, reports, handshakes, deaths of controllers (two of them at
// once), restores and absences fall together: what one end uses, the other
// holds, so that they can always shake hands; and once all is well a rotation
// comes to its end.
func TestWhatOneEndUsesTheOtherHolds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := newMemory()
		f := fleet{"prem-1": {online: true}, "nva-1": {online: true}}
		wall := time.Unix(1_700_000_000, 0)
		controller := func() *Rotator {
			return New(Config{Store: m, Sessions: f, Log: slog.New(slog.DiscardHandler), Now: func() time.Time { return wall }})
		}
		controllers := []*Rotator{controller(), controller()}
		// Each decides on what it saw last, which may be old.
		seen := []*model.Snapshot{m.now(), m.now()}
		shake := func(with desired.Secret) {
			if holds(f["prem-1"], with) && holds(f["nva-1"], with) {
				for _, a := range f {
					a.used = with
				}
			}
		}
		step := func(i int) {
			err := controllers[i].pass(context.Background(), seen[i])
			if err != nil && !errors.Is(err, store.ErrConflict) && !errors.Is(err, errDied) {
				t.Fatal(err)
			}
			if errors.Is(err, errDied) {
				// Another one starts, and knows nothing.
				controllers[i] = controller()
			}
		}
		names := []string{"prem-1", "nva-1"}
		for range rapid.IntRange(200, 1000).Draw(t, "events") {
			name := rapid.SampledFrom(names).Draw(t, "node")
			a := f[name]
			i := rapid.IntRange(0, 1).Draw(t, "controller")
			switch rapid.IntRange(0, 11).Draw(t, "event") {
			case 0, 1:
				seen[i] = m.now()
				step(i)
			case 2:
				step(i)
			case 3:
				written := rapid.Bool().Draw(t, "written")
				m.dies = &written
				seen[i] = m.now()
				step(i)
				m.dies = nil
			case 4, 5:
				if a.online {
					a.take(m.now())
				}
			case 6:
				if a.online {
					a.report()
				}
			case 7:
				// Falling back, which lasts a moment and ends at the first key, is
				// left out: it must not be needed.
				if d := f["prem-1"].device; !d.IsZero() && d.Equal(f["nva-1"].device) {
					shake(d)
				}
			case 8:
				a.online = rapid.IntRange(0, 2).Draw(t, "online") > 0
			case 10:
				a.act()
			case 11:
				a.configure()
			case 9:
				wall = wall.Add(time.Duration(rapid.IntRange(-48, 48).Draw(t, "hours")) * time.Hour)
				controllers[i] = controller()
			}
			one, other := f["prem-1"], f["nva-1"]
			if len(one.keys) > 0 && len(other.keys) > 0 && (!holds(other, one.keys[0].Key) || !holds(one, other.keys[0].Key)) {
				t.Fatalf("prem-1 has %v, nva-1 has %v: they may not meet", one.keys, other.keys)
			}
			for _, pair := range [][2]*appliance{{one, other}, {other, one}} {
				if !pair[0].device.IsZero() && len(pair[1].keys) > 0 && !holds(pair[1], pair[0].device) {
					t.Fatalf("a device has a key that is not among the far end's %v", pair[1].keys)
				}
			}
		}
		before := m.now().PresharedKeys[tunnelID]
		for range 12 {
			for _, a := range f {
				a.online = true
				a.take(m.now())
				a.act()
				a.configure()
				if len(a.keys) > 0 {
					shake(a.keys[0].Key)
				}
				a.report()
			}
			for _, a := range f {
				a.report()
			}
			seen[0] = m.now()
			step(0)
		}
		after := m.now().PresharedKeys[tunnelID]
		if after.Phase == model.PresharedPrepare || len(before.Keys) > 0 && before.Phase != model.PresharedSteady && after.Generations()[0] < before.Generations()[1] {
			t.Fatalf("with all well it stays at %s %v, before %s %v", after.Phase, after.Generations(), before.Phase, before.Generations())
		}
	})
}

func TestNext(t *testing.T) {
	g := func(n uint64) model.PresharedGeneration {
		return model.PresharedGeneration{PresharedKey: desired.PresharedKey{Generation: n, Key: desired.Secret{byte(n)}}}
	}
	steady := model.PresharedKeys{Phase: model.PresharedSteady, Keys: []model.PresharedGeneration{g(1)}, Revision: 5}
	prepare := model.PresharedKeys{Phase: model.PresharedPrepare, Keys: []model.PresharedGeneration{g(1), g(2)}, Revision: 6}
	activate := model.PresharedKeys{Phase: model.PresharedActivate, Keys: []model.PresharedGeneration{g(2), g(1)}, Revision: 7}
	at := func(revision uint64, used uint64, held ...uint64) End {
		return End{Node: "n", Connected: true, Acknowledged: desired.Position{Epoch: 1, Revision: revision}, Held: held, Used: used}
	}
	away := func(e End) End { e.Connected = false; return e }
	tests := []struct {
		name  string
		keys  model.PresharedKeys
		ends  [2]End
		epoch uint64
		due   bool
		want  Move
	}{
		{"no key", model.PresharedKeys{}, [2]End{}, 1, false, Create},
		{"a gateway is told by hand, ours holds the next", prepare, [2]End{at(6, 1, 1, 2), {Gateway: true}}, 1, false, Activate},
		{"ours does not hold the next", prepare, [2]End{at(5, 1, 1), {Gateway: true}}, 1, false, Stay},
		{"the gateway was told the new", activate, [2]End{at(7, 2, 2, 1), {Gateway: true}}, 1, false, Retire},
		{"the gateway has the old still", activate, [2]End{at(7, 1, 2, 1), {Gateway: true}}, 1, false, Stay},
		{"young", steady, [2]End{at(5, 1, 1), at(5, 1, 1)}, 1, false, Stay},
		{"due", steady, [2]End{at(5, 1, 1), at(5, 1, 1)}, 1, true, Prepare},
		{"due, one end away", steady, [2]End{at(5, 1, 1), away(at(5, 1, 1))}, 1, true, Stay},
		{"both hold the next", prepare, [2]End{at(6, 1, 1, 2), at(9, 0, 1, 2)}, 1, false, Activate},
		{"one holds the next", prepare, [2]End{at(6, 1, 1, 2), at(5, 1, 1)}, 1, false, Stay},
		{"one held the next and is away", prepare, [2]End{at(6, 1, 1, 2), away(at(6, 1, 1, 2))}, 1, false, Stay},
		{"generations of another time", prepare, [2]End{at(6, 1, 1, 2), at(5, 1, 1, 2)}, 1, false, Stay},
		{"before a restore", prepare, [2]End{at(6, 1, 1, 2), at(6, 1, 1, 2)}, 2, false, Stay},
		{"both used the new", activate, [2]End{at(7, 2, 2, 1), at(7, 2, 2, 1)}, 1, false, Retire},
		{"both used the new, one is away by now", activate, [2]End{at(7, 2, 2, 1), away(at(7, 2, 2, 1))}, 1, false, Retire},
		{"one used the old", activate, [2]End{at(7, 2, 2, 1), at(7, 1, 2, 1)}, 1, false, Stay},
		{"one does not know", activate, [2]End{at(7, 0, 2, 1), at(7, 2, 2, 1)}, 1, false, Stay},
		{"one was not told", activate, [2]End{at(7, 2, 2, 1), at(6, 2, 1, 2)}, 1, false, Stay},
	}
	for _, tt := range tests {
		for _, ends := range [][2]End{tt.ends, {tt.ends[1], tt.ends[0]}} {
			got, waits := Next(tt.keys, ends, tt.epoch, tt.due)
			if got != tt.want {
				t.Errorf("%s: %s, want %s (%s)", tt.name, got, tt.want, waits)
			}
			if (waits != "") != (got == Stay && (tt.due || tt.keys.Phase != model.PresharedSteady)) {
				t.Errorf("%s: %s waits for %q", tt.name, got, waits)
			}
		}
	}
}

// Which tunnels have pre-shared keys, and when these change.
func TestWhichTunnelsHaveKeys(t *testing.T) {
	key := func(kind model.Kind, name string) model.Key {
		return model.Key{Kind: kind, Customer: "contoso", Name: name}
	}
	policy := func(p model.EncryptionPolicySpec) func(*model.Snapshot) {
		return func(s *model.Snapshot) {
			s.Documents[key(model.KindEncryptionPolicy, "wg")] = model.Document{Spec: &p}
		}
	}
	gateway := func(a model.GatewayAuthentication) func(*model.Snapshot) {
		return func(s *model.Snapshot) {
			policy(model.EncryptionPolicySpec{Protocol: model.ProtocolIPsec})(s)
			s.Documents[key(model.KindEndpoint, "weu")] = model.Document{Spec: &model.EndpointSpec{
				Site: "weu", External: &model.ExternalSpec{Type: model.GatewayIKEv2, Authentication: a, Identity: "gw.example"},
				Underlay: []model.UnderlaySpec{{Address: netip.MustParseAddr("10.2.0.4")}},
			}}
		}
	}
	settled := func(protocol, was model.Protocol) func(*model.Snapshot) {
		return func(s *model.Snapshot) {
			policy(model.EncryptionPolicySpec{Protocol: protocol})(s)
			s.Settled = map[string]model.Settled{"contoso/hq-weu": {Policy: model.EncryptionPolicySpec{Protocol: was}}}
		}
	}
	ours, theirs := [2]string{"prem-1", "nva-1"}, [2]string{"prem-1", ""}
	for _, tt := range []struct {
		name   string
		change func(*model.Snapshot)
		want   map[string]tunnel
	}{
		{"WireGuard", policy(model.EncryptionPolicySpec{Protocol: model.ProtocolWireGuard}), map[string]tunnel{tunnelID: {ours, rotation{interval: time.Hour}}}},
		{"IPsec", policy(model.EncryptionPolicySpec{Protocol: model.ProtocolIPsec}), map[string]tunnel{}},
		{"IPsec with PPK", policy(model.EncryptionPolicySpec{Protocol: model.ProtocolIPsec, PostQuantum: model.PostQuantumRequired, PSKRotation: "2h"}), map[string]tunnel{tunnelID: {ours, rotation{interval: 2 * time.Hour}}}},
		{"IPsec, the profile wants PPK", policy(model.EncryptionPolicySpec{Protocol: model.ProtocolIPsec, CryptoProfile: "pq-hybrid-commercial"}), map[string]tunnel{tunnelID: {ours, rotation{interval: time.Hour}}}},
		{"a gateway with a certificate", gateway(model.AuthCertificate), map[string]tunnel{}},
		{"a gateway with a pre-shared key", gateway(model.AuthPSK), map[string]tunnel{tunnelID: {theirs, rotation{interval: time.Hour, asked: true, gateway: "contoso/weu"}}}},
		{"on the way from WireGuard", settled(model.ProtocolIPsec, model.ProtocolWireGuard), map[string]tunnel{tunnelID: {ours, rotation{interval: time.Hour, held: true}}}},
		{"on the way to WireGuard", settled(model.ProtocolWireGuard, model.ProtocolIPsec), map[string]tunnel{tunnelID: {ours, rotation{interval: time.Hour, held: true}}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newMemory().now()
			s.Numbers.Tunnels = map[string]uint16{tunnelID: 1}
			tt.change(s)
			r := New(Config{})
			r.derive(s)
			if !maps.Equal(r.ends, tt.want) {
				t.Errorf("got %+v, want %+v", r.ends, tt.want)
			}
		})
	}
}

// A gateway has one key for all its tunnels, by which it is found, and those that come
// later get it, too. Each tunnel of ours has its own.
func TestOneKeyOfAGateway(t *testing.T) {
	const second = "contoso/hq-weu/er/secondary"
	for _, gateway := range []bool{true, false} {
		m := newMemory()
		s := *m.now()
		if gateway {
			s.Documents[model.Key{Kind: model.KindEncryptionPolicy, Customer: "contoso", Name: "wg"}] = model.Document{Spec: &model.EncryptionPolicySpec{Protocol: model.ProtocolIPsec}}
			s.Documents[model.Key{Kind: model.KindEndpoint, Customer: "contoso", Name: "weu"}] = model.Document{Spec: &model.EndpointSpec{
				Site: "weu", External: &model.ExternalSpec{Type: model.GatewayIKEv2, Authentication: model.AuthPSK},
				Underlay: []model.UnderlaySpec{{Address: netip.MustParseAddr("10.2.0.4")}},
			}}
		}
		r := New(Config{Sessions: fleet{"prem-1": {online: true}, "nva-1": {online: true}}, Now: time.Now})
		key := func(moves map[string]decision, id string) desired.Secret {
			t.Helper()
			d, ok := moves[id]
			if !ok || d.move != Create || len(d.keys.Keys) != 1 {
				t.Fatalf("gateway %t: tunnel %s: %+v, want it to be made", gateway, id, d)
			}
			return d.keys.Keys[0].Key
		}
		both, err := r.decide(&s)
		if err != nil {
			t.Fatal(err)
		}
		first := key(both, tunnelID)
		if same := first.Equal(key(both, second)); same != gateway {
			t.Errorf("gateway %t: the same key is %t", gateway, same)
		}
		later := s
		later.PresharedKeys = map[string]model.PresharedKeys{tunnelID: both[tunnelID].keys}
		rest, err := r.decide(&later)
		if err != nil {
			t.Fatal(err)
		}
		if same := first.Equal(key(rest, second)); same != gateway {
			t.Errorf("gateway %t: of one that comes later the same key is %t", gateway, same)
		}
	}
}

// An hour is an hour, though somebody sets the clock on the wall; and tunnels
// that were made together part.
func TestPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		f := fleet{"prem-1": {online: true}, "nva-1": {online: true}}
		var skew atomic.Int64
		r := New(Config{Store: m, Sessions: f, Log: slog.New(slog.DiscardHandler), Now: func() time.Time { return time.Now().Add(time.Duration(skew.Load())) }})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- r.Run(ctx) }()
		// A key made and first seen now, before the clock is set.
		time.Sleep(2 * time.Second)
		synctest.Wait()
		first := m.now().PresharedKeys[tunnelID]
		if len(first.Keys) != 1 || len(m.now().PresharedKeys) != 2 {
			t.Fatalf("keys after two seconds: %v", m.now().PresharedKeys)
		}
		for _, s := range []time.Duration{100 * time.Hour, -100 * time.Hour} {
			skew.Store(int64(s))
			time.Sleep(20 * time.Minute)
			synctest.Wait()
			if got := m.now().PresharedKeys[tunnelID]; got.Phase != model.PresharedSteady || got.Generations()[0] != first.Generations()[0] {
				t.Fatalf("with the clock set by %s a key of under 45 minutes went on to %s", s, got.Phase)
			}
		}
		time.Sleep(20 * time.Minute)
		synctest.Wait()
		if got := m.now().PresharedKeys[tunnelID]; got.Phase != model.PresharedPrepare {
			t.Errorf("after an hour it is at %s", got.Phase)
		}
		report := r.Report(m.now())[tunnelID]
		if report.Age < time.Hour || report.Age > time.Hour+time.Minute || report.Waits == "" || report.Nodes != [2]string{"prem-1", "nva-1"} ||
			len(report.Held[0])+len(report.Held[1]) != 0 {
			t.Errorf("report %+v", report)
		}
		f["nva-1"].take(m.now())
		f["nva-1"].act()
		f["nva-1"].report()
		if held, want := r.Report(m.now())[tunnelID].Held, m.now().PresharedKeys[tunnelID].Generations(); len(held[0]) != 0 || !slices.Equal(held[1], want) {
			t.Errorf("held %v, want %v at nva-1 alone", held, want)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	early, late := time.Hour, time.Duration(0)
	for i := range 200 {
		l := lifetime(fmt.Sprintf("tunnel-%d", i), 7, time.Hour)
		early, late = min(early, l), max(late, l)
	}
	if early < 45*time.Minute || late > time.Hour || late-early < 10*time.Minute {
		t.Errorf("200 tunnels rotate between %s and %s", early, late)
	}
}
