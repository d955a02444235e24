package handover

import (
	"context"
	"errors"
	"iter"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/circuitseal/circuitseal/controller/model"
	"github.com/circuitseal/circuitseal/controller/store"
	"github.com/circuitseal/circuitseal/proto/desired"
)

const group = "contoso/hq-weu"

var (
	connectionKey = model.Key{Kind: model.KindConnection, Customer: "contoso", Name: "hq-weu"}
	policyKey     = model.Key{Kind: model.KindEncryptionPolicy, Customer: "contoso", Name: "p"}
)

// world is two nodes, a store of one revision at a time, fenced like the real one, and
// controllers that may die.
type world struct {
	now  *model.Snapshot
	news chan struct{}
	// dies makes the next write one of which the controller does not hear.
	dies  *bool
	nodes map[string]*host
}

// host is a node: it takes states in order and has the protocols that they name.
type host struct {
	online    bool
	position  desired.Position
	protocols map[desired.Protocol]bool
	retiring  desired.Protocol
	reported  *desired.Status
}

var errDied = errors.New("the controller died")

func newWorld(settled, want model.Protocol) *world {
	a := netip.MustParseAddr
	docs := map[model.Key]model.Document{}
	put := func(k model.Key, spec model.Spec) { docs[k] = model.Document{Key: k, Spec: spec, Revision: 5} }
	put(model.Key{Kind: model.KindCircuit, Customer: "contoso", Name: "er"}, &model.CircuitSpec{})
	put(policyKey, &model.EncryptionPolicySpec{Protocol: want})
	put(model.Key{Kind: model.KindEndpoint, Customer: "contoso", Name: "hq"}, &model.EndpointSpec{Node: "prem-1", Underlay: []model.UnderlaySpec{
		{Address: a("172.16.0.1"), Circuit: "er", Link: model.Primary}, {Address: a("172.16.0.5"), Circuit: "er", Link: model.Secondary},
	}})
	put(model.Key{Kind: model.KindEndpoint, Customer: "contoso", Name: "weu"}, &model.EndpointSpec{Node: "nva-1", Underlay: []model.UnderlaySpec{{Address: a("10.2.0.4")}}})
	put(connectionKey, &model.ConnectionSpec{Endpoints: []string{"hq", "weu"}, Circuits: []string{"er"}, EncryptionPolicy: "p"})
	return &world{
		news:  make(chan struct{}, 1),
		now:   &model.Snapshot{Epoch: 1, Revision: 5, Documents: docs, Settled: map[string]model.Settled{group: {Policy: model.EncryptionPolicySpec{Protocol: settled}, Revision: 5}}},
		nodes: map[string]*host{"prem-1": {online: true}, "nva-1": {online: true}},
	}
}

func (w *world) Watch(ctx context.Context) iter.Seq2[*model.Snapshot, error] {
	return func(yield func(*model.Snapshot, error) bool) {
		for yield(w.now, nil) {
			select {
			case <-w.news:
			case <-ctx.Done():
				return
			}
		}
	}
}

func (w *world) PutSettled(_ context.Context, all map[string]model.Settled, seen []model.Document) error {
	if w.dies != nil && !*w.dies {
		w.dies = nil
		return errDied
	}
	next := *w.now
	next.Revision++
	next.Settled = maps.Clone(w.now.Settled)
	for id, was := range all {
		if w.now.Settled[id].Revision != was.Revision {
			return store.ErrConflict
		}
		was.Revision = next.Revision
		next.Settled[id] = was
	}
	for _, d := range seen {
		if w.now.Documents[d.Key].Revision != d.Revision {
			return store.ErrConflict
		}
	}
	w.now = &next
	select {
	case w.news <- struct{}{}:
	default:
	}
	if w.dies != nil {
		w.dies = nil
		return errDied
	}
	return nil
}

// change is an operator's: the policy gets another protocol.
func (w *world) change(to model.Protocol) {
	next := *w.now
	next.Revision++
	next.Documents = maps.Clone(w.now.Documents)
	next.Documents[policyKey] = model.Document{Key: policyKey, Spec: &model.EncryptionPolicySpec{Protocol: to}, Revision: next.Revision}
	next.Settled = model.Settle(w.now.Documents, next.Documents, w.now.Settled)
	for id, was := range next.Settled {
		if was.Policy != w.now.Settled[id].Policy {
			was.Revision = next.Revision
			next.Settled[id] = was
		}
	}
	w.now = &next
}

func (w *world) Report(name string) (bool, desired.Position, *desired.Status) {
	h := w.nodes[name]
	return h.online, desired.Position{}, h.reported
}

var words = map[model.Protocol]desired.Protocol{model.ProtocolWireGuard: desired.ProtocolWireGuard, model.ProtocolIPsec: desired.ProtocolIPsec}

func (w *world) take(name string) {
	h := w.nodes[name]
	want, retiring, _ := w.now.Protocols(connectionKey)
	h.position = desired.Position{Epoch: w.now.Epoch, Revision: w.now.Revision}
	h.protocols, h.retiring = map[desired.Protocol]bool{words[want.Protocol]: true}, 0
	if retiring != nil {
		h.retiring = words[retiring.Protocol]
		h.protocols[h.retiring] = true
	}
}

// report says that tunnels are up by what both nodes have, over links that are not
// down.
func (w *world) report(name string, down ...string) {
	h := w.nodes[name]
	far := w.nodes["nva-1"]
	if name == "nva-1" {
		far = w.nodes["prem-1"]
	}
	s := &desired.Status{Acknowledged: h.position}
	for p := range h.protocols {
		for _, link := range []string{"primary", "secondary"} {
			t := desired.TunnelStatus{ID: group + "/er/" + link, Phase: desired.PhaseDown, Backend: p.String() + "-kernel", Retiring: p == h.retiring}
			if far.protocols[p] && !slices.Contains(down, link) {
				t.Phase = desired.PhaseUp
			}
			s.Tunnels = append(s.Tunnels, t)
		}
	}
	h.reported = s
}

// However states, reports, changes of mind, deaths of controllers (two of them at
// once) and absences fall together: there is always a protocol that both nodes have;
// and once all is well the change is over.
func TestThereIsAlwaysAProtocolThatBothHave(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		protocols := []model.Protocol{model.ProtocolWireGuard, model.ProtocolIPsec}
		w := newWorld(model.ProtocolWireGuard, model.ProtocolWireGuard)
		w.take("prem-1")
		w.take("nva-1")
		controller := func() *Mover { return New(w, w, slog.New(slog.DiscardHandler)) }
		controllers := []*Mover{controller(), controller()}
		seen := []*model.Snapshot{w.now, w.now}
		step := func(i int) {
			if err := controllers[i].pass(context.Background(), seen[i]); err != nil && !errors.Is(err, store.ErrConflict) && !errors.Is(err, errDied) {
				t.Fatal(err)
			}
			if rapid.Bool().Draw(t, "dies") {
				controllers[i] = controller()
			}
		}
		names := []string{"nva-1", "prem-1"}
		for range rapid.IntRange(1, 60).Draw(t, "events") {
			name := rapid.SampledFrom(names).Draw(t, "node")
			h := w.nodes[name]
			i := rapid.IntRange(0, 1).Draw(t, "controller")
			switch rapid.IntRange(0, 9).Draw(t, "event") {
			case 0, 1:
				if h.online {
					w.take(name)
				}
			case 2, 3:
				if h.online {
					w.report(name)
				}
			case 4, 5:
				seen[i] = w.now
				step(i)
			case 6:
				step(i)
			case 7:
				w.change(rapid.SampledFrom(protocols).Draw(t, "protocol"))
			case 8:
				h.online = !h.online
			case 9:
				written := rapid.Bool().Draw(t, "written")
				w.dies = &written
			}
			common := 0
			for p := range w.nodes["prem-1"].protocols {
				if w.nodes["nva-1"].protocols[p] {
					common++
				}
			}
			if common == 0 {
				t.Fatalf("prem-1 has %v, nva-1 has %v", w.nodes["prem-1"].protocols, w.nodes["nva-1"].protocols)
			}
		}
		w.dies = nil
		for range 4 {
			for _, name := range names {
				w.nodes[name].online = true
				w.take(name)
			}
			for _, name := range names {
				w.report(name)
			}
			seen[0] = w.now
			step(0)
		}
		if _, retiring, _ := w.now.Protocols(connectionKey); retiring != nil {
			t.Fatalf("with all well it still changes from %s: %v", retiring.Protocol, controllers[0].Waiting(w.now))
		}
	})
}

func TestWaits(t *testing.T) {
	for _, tt := range []struct {
		name string
		make func(w *world)
		want string
	}{
		{"nobody has said anything", func(*world) {}, "waits for node prem-1 to hold state 1.5"},
		{"one is away", func(w *world) { w.nodes["prem-1"].online = false }, "waits for node prem-1, which is not connected"},
		{"one end only", func(w *world) {
			w.take("prem-1")
			w.report("prem-1")
		}, "waits for node nva-1 to hold state 1.5"},
		{"both, by the old one", func(w *world) {
			for name := range w.nodes {
				w.take(name)
				delete(w.nodes[name].protocols, desired.ProtocolIPsec)
			}
			w.report("prem-1")
			w.report("nva-1")
		}, "waits for tunnel contoso/hq-weu/er/primary to be up by ipsec at node prem-1"},
		{"both, by both", func(w *world) { all(w) }, ""},
		{"a link is down", func(w *world) { all(w, "secondary") }, ""},
		{"both links are down", func(w *world) { all(w, "primary", "secondary") }, "waits for a tunnel to be up by ipsec"},
		{"one link comes up by the old one only", func(w *world) {
			all(w)
			for _, h := range w.nodes {
				for i, x := range h.reported.Tunnels {
					if x.ID == group+"/er/secondary" && !x.Retiring {
						h.reported.Tunnels[i].Phase = desired.PhaseDown
					}
				}
			}
		}, "waits for tunnel contoso/hq-weu/er/secondary to be up by ipsec at node nva-1"},
		{"another protocol says that it is the new one", func(w *world) {
			all(w)
			for i := range w.nodes["prem-1"].reported.Tunnels {
				w.nodes["prem-1"].reported.Tunnels[i].Backend = "wireguard-kernel"
			}
		}, "waits for tunnel contoso/hq-weu/er/primary to be up by ipsec at node prem-1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(model.ProtocolWireGuard, model.ProtocolIPsec)
			tt.make(w)
			got := New(w, w, slog.New(slog.DiscardHandler)).Waiting(w.now)[group]
			// Which of two ends is told first is of no matter.
			if got != tt.want && got != flip(tt.want) {
				t.Errorf("%q, want %q", got, tt.want)
			}
		})
	}
	w := newWorld(model.ProtocolIPsec, model.ProtocolIPsec)
	if got := New(w, w, nil).Waiting(w.now); len(got) != 0 {
		t.Errorf("nothing changes, and yet %v", got)
	}
}

func all(w *world, down ...string) {
	for name := range w.nodes {
		w.take(name)
	}
	for name := range w.nodes {
		w.report(name, down...)
	}
}

// flip names the other node.
func flip(s string) string {
	if strings.Contains(s, "prem-1") {
		return strings.Replace(s, "prem-1", "nva-1", 1)
	}
	return strings.Replace(s, "nva-1", "prem-1", 1)
}

func TestRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(model.ProtocolWireGuard, model.ProtocolIPsec)
		all(w)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- New(w, w, slog.New(slog.DiscardHandler)).Run(ctx) }()
		time.Sleep(3 * time.Second)
		synctest.Wait()
		if got := w.now.Settled[group].Policy.Protocol; got != model.ProtocolIPsec {
			t.Errorf("settled is %s", got)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
