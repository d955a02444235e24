package certify

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/circuitseal/circuitseal/controller/model"
	"github.com/circuitseal/circuitseal/controller/pki"
	"github.com/circuitseal/circuitseal/controller/store"
	"github.com/circuitseal/circuitseal/proto/desired"
)

const year = 365 * 24 * time.Hour

func TestNext(t *testing.T) {
	began := time.Unix(1_800_000_000, 0)
	issued := func(n uint64) model.IdentityGeneration {
		return model.IdentityGeneration{Generation: n, Certificate: []byte{byte(n)}, Key: model.Fingerprint(fmt.Sprint("key ", n)), Issued: began, Expires: began.Add(year)}
	}
	record := func(phase model.IdentityPhase, all ...model.IdentityGeneration) model.IdentityCertificates {
		return model.IdentityCertificates{Phase: phase, Node: "n", Enrolment: "e", Certificates: all, Revision: 7}
	}
	node := func(name string, revision uint64, generations ...uint64) Node {
		n := Node{Name: name, Connected: true, Acknowledged: desired.Position{Epoch: 1, Revision: revision}, Keys: map[uint64]model.Fingerprint{}}
		for _, g := range generations {
			n.Keys[g] = model.Fingerprint(fmt.Sprint("key ", g))
		}
		return n
	}
	away := func(n Node) Node { n.Connected = false; return n }
	lost := node("n", 7)
	lost.Keys[1] = "another key"
	const late = year * 3 / 4
	for _, tt := range []struct {
		name  string
		have  model.IdentityCertificates
		owner Node
		peers []Node
		after time.Duration
		want  Move
		waits string
	}{
		{"nothing", model.IdentityCertificates{}, node("n", 7), nil, 0, Begin, ""},
		{"of another node", record(model.IdentitySteady, issued(1)), node("m", 7, 1), nil, 0, Begin, ""},
		{"no key yet", record(model.IdentitySteady, model.IdentityGeneration{Generation: 1}), node("n", 7), nil, 0, Stay, "waits for node n to make a key"},
		{"a key", record(model.IdentitySteady, model.IdentityGeneration{Generation: 1}), node("n", 7, 1), nil, 0, Issue, ""},
		{"young", record(model.IdentitySteady, issued(1)), node("n", 7, 1), nil, year / 2, Stay, ""},
		{"a node that is away", record(model.IdentitySteady, issued(1)), Node{Name: "n"}, nil, time.Hour, Stay, ""},
		{"old", record(model.IdentitySteady, issued(1)), node("n", 7, 1), nil, late, Prepare, ""},
		{"another key", record(model.IdentitySteady, issued(1)), lost, nil, time.Hour, Begin, ""},
		{"another key at once", record(model.IdentitySteady, issued(1)), lost, nil, time.Second, Stay, ""},
		{"no next key", record(model.IdentityPrepare, issued(1), model.IdentityGeneration{Generation: 2}), node("n", 7, 1), nil, late, Stay, "waits for node n to make the next key"},
		{"the next key", record(model.IdentityPrepare, issued(1), model.IdentityGeneration{Generation: 2}), node("n", 7, 1, 2), nil, late, Issue, ""},
		{"all hold it", record(model.IdentityPrepare, issued(1), issued(2)), node("n", 7, 1, 2), []Node{node("p", 7), node("q", 9)}, late, Activate, ""},
		{"the owner does not", record(model.IdentityPrepare, issued(1), issued(2)), node("n", 6, 1, 2), []Node{node("p", 7)}, late, Stay, "waits for node n to hold state 1.7"},
		{"a peer does not", record(model.IdentityPrepare, issued(1), issued(2)), node("n", 7, 1, 2), []Node{node("p", 7), node("q", 6)}, late, Stay, "waits for node q to hold state 1.7"},
		{"a peer is away", record(model.IdentityPrepare, issued(1), issued(2)), node("n", 7, 1, 2), []Node{away(node("p", 6))}, late, Stay, "waits for node p, which is not connected"},
		{"a peer that has it is away", record(model.IdentityPrepare, issued(1), issued(2)), node("n", 7, 1, 2), []Node{away(node("p", 7))}, late, Activate, ""},
		{"a peer is away and the end is near", record(model.IdentityPrepare, issued(1), issued(2)), node("n", 7, 1, 2), []Node{away(node("p", 6))}, year - 24*time.Hour, Activate, ""},
		{"the new one is shown", record(model.IdentityActivate, issued(2), issued(1)), node("n", 7, 1, 2), []Node{node("p", 7)}, late, Retire, ""},
		{"a peer was not told", record(model.IdentityActivate, issued(2), issued(1)), node("n", 7, 1, 2), []Node{node("p", 6)}, late, Stay, "waits for node p to hold state 1.7"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			move, _, waits := Next(tt.have, Now{Epoch: 1, Time: began.Add(tt.after), Enrolment: "e", Owner: tt.owner, Peers: tt.peers})
			if move != tt.want || waits != tt.waits {
				t.Errorf("%s %q, want %s %q", move, waits, tt.want, tt.waits)
			}
		})
	}
	if move, _, _ := Next(record(model.IdentitySteady, issued(1)), Now{Epoch: 1, Time: began, Enrolment: "anew", Owner: node("n", 7, 1)}); move != Begin {
		t.Errorf("of a node that was enrolled anew: %s", move)
	}
	if move, _, _ := Next(record(model.IdentityPrepare, issued(1), issued(2)), Now{Epoch: 2, Time: began.Add(late), Enrolment: "e", Owner: node("n", 7, 1, 2)}); move != Stay {
		t.Errorf("acknowledged before a restore: %s", move)
	}
}

// world is two nodes with an endpoint each, a store, and a controller that may die.
type world struct {
	// mu guards what the Certifier and the test have in common, while both run.
	mu   sync.Mutex
	now  *model.Snapshot
	news chan struct{}
	// dies makes the next write one of which the controller does not hear.
	dies  *bool
	nodes map[string]*host
}

// host is a node as far as certificates see it: it takes states in order, makes the
// keys that a state names, and shows the first certificate that it has the key of.
type host struct {
	online   bool
	position desired.Position
	// own and pins are what the state at position says of its own endpoint and of the
	// far one's.
	own      []desired.IdentityCertificate
	pins     [][]byte
	keys     map[uint64][]byte
	reported *desired.Status
}

var errDied = errors.New("the controller died")

const (
	hq  = "hq.contoso.circuitseal.internal"
	weu = "weu.contoso.circuitseal.internal"
)

func newWorld() *world {
	docs := map[model.Key]model.Document{}
	put := func(kind model.Kind, name string, spec model.Spec) {
		k := model.Key{Kind: kind, Customer: "contoso", Name: name}
		if !kind.HasCustomer() {
			k.Customer = ""
		}
		docs[k] = model.Document{Key: k, Spec: spec}
	}
	underlay := func(first, second string) []model.UnderlaySpec {
		return []model.UnderlaySpec{
			{Address: address(first), Circuit: "er", Link: model.Primary}, {Address: address(second), Circuit: "er", Link: model.Secondary},
		}
	}
	put(model.KindCircuit, "er", &model.CircuitSpec{Peering: model.PeeringPrivate})
	put(model.KindEncryptionPolicy, "p", &model.EncryptionPolicySpec{Protocol: model.ProtocolIPsec})
	put(model.KindEndpoint, "hq", &model.EndpointSpec{Site: "hq", Node: "prem-1", Underlay: underlay("172.16.0.1", "172.16.0.5")})
	put(model.KindEndpoint, "weu", &model.EndpointSpec{Site: "weu", Node: "nva-1", Underlay: []model.UnderlaySpec{{Address: address("10.2.0.4")}}})
	put(model.KindConnection, "hq-weu", &model.ConnectionSpec{Endpoints: []string{"hq", "weu"}, Circuits: []string{"er"}, EncryptionPolicy: "p"})
	return &world{
		news: make(chan struct{}, 1),
		now: &model.Snapshot{Epoch: 1, Revision: 10, Documents: docs, Identities: map[string]model.IdentityCertificates{},
			Enrolments: map[string]model.Enrolment{"prem-1": {Key: "a"}, "nva-1": {Key: "b"}}},
		nodes: map[string]*host{"prem-1": {online: true, keys: map[uint64][]byte{}}, "nva-1": {online: true, keys: map[uint64][]byte{}}},
	}
}

func (w *world) Watch(ctx context.Context) iter.Seq2[*model.Snapshot, error] {
	return func(yield func(*model.Snapshot, error) bool) {
		now := func() *model.Snapshot {
			w.mu.Lock()
			defer w.mu.Unlock()
			return w.now
		}
		for yield(now(), nil) {
			select {
			case <-w.news:
			case <-ctx.Done():
				return
			}
		}
	}
}

func (w *world) PutIdentities(_ context.Context, all map[string]model.IdentityCertificates) error {
	if len(all) == 0 {
		return nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.dies != nil && !*w.dies {
		w.dies = nil
		return errDied
	}
	next := *w.now
	next.Revision++
	next.Identities = maps.Clone(w.now.Identities)
	for name, c := range all {
		if !c.Valid() {
			return fmt.Errorf("%s: %d certificates in phase %s", name, len(c.Certificates), c.Phase)
		}
		if w.now.Identities[name].Revision != c.Revision {
			return store.ErrConflict
		}
		c.Revision = next.Revision
		next.Identities[name] = c
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

func (w *world) Report(name string) (bool, desired.Position, *desired.Status) {
	w.mu.Lock()
	defer w.mu.Unlock()
	h := w.nodes[name]
	return h.online, desired.Position{}, h.reported
}

// ends are who is what, and who its peer is.
var ends = map[string]struct{ own, far string }{"prem-1": {hq, weu}, "nva-1": {weu, hq}}

func (w *world) take(name string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	h := w.nodes[name]
	h.position = desired.Position{Epoch: w.now.Epoch, Revision: w.now.Revision}
	h.own, h.pins = nil, nil
	if c, ok := w.now.Identity(ends[name].own); ok && c.Node == name {
		for _, g := range c.Certificates {
			h.own = append(h.own, desired.IdentityCertificate{Generation: g.Generation, Certificate: g.Certificate})
		}
	}
	if c, ok := w.now.Identity(ends[name].far); ok {
		h.pins = c.Pins()
	}
}

func (w *world) report(name string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	h := w.nodes[name]
	for _, c := range h.own {
		if h.keys[c.Generation] == nil {
			h.keys[c.Generation] = newKey()
		}
	}
	s := &desired.Status{Acknowledged: h.position}
	for _, c := range h.own {
		s.IdentityKeys = append(s.IdentityKeys, desired.IdentityKey{Name: ends[name].own, Generation: c.Generation, PublicKey: h.keys[c.Generation]})
	}
	h.reported = s
}

// shows is the certificate that a node uses, nil for none.
func (h *host) shows() []byte {
	for _, c := range h.own {
		if len(c.Certificate) > 0 && strings.HasPrefix(string(c.Certificate), string(fingerprint(h.keys[c.Generation]))) {
			return c.Certificate
		}
	}
	return nil
}

// newKey is a key that nobody used before.
func newKey() []byte {
	key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		panic(err)
	}
	der, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		panic(err)
	}

	return der
}

func fingerprint(spki []byte) model.Fingerprint { return model.FingerprintOf(sha256.Sum256(spki)) }

// issuer makes certificates of text.
type issuer struct{ now func() time.Time }

func (i issuer) IssueIdentity(name string, spki []byte) (pki.Issued, error) {
	if _, _, err := pki.IdentityKey(spki); err != nil {
		return pki.Issued{}, err
	}
	now := i.now()
	text := fmt.Sprint(string(fingerprint(spki)), name, now.UnixNano())
	return pki.Issued{Chain: [][]byte{[]byte(text), nil}, Serial: "s", Issued: now, Expires: now.Add(year)}, nil
}

// However states, reports, lost keys, deaths of controllers (two of them at once)
// and absences fall together, over years: what one end shows, the other takes, unless
// it was away when everybody else could wait no longer, or a key was lost; and once
// all is well everybody has a certificate that is good.
func TestWhatOneShowsTheOtherTakes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld()
		wall := time.Unix(1_800_000_000, 0)
		now := func() time.Time { return wall }
		controller := func() *Certifier {
			return New(Config{Store: w, Sessions: w, Issuer: issuer{now}, Log: slog.New(slog.DiscardHandler), Now: now})
		}
		controllers := []*Certifier{controller(), controller()}
		seen := []*model.Snapshot{w.now, w.now}
		step := func(i int) {
			if err := controllers[i].pass(context.Background(), seen[i]); err != nil && !errors.Is(err, store.ErrConflict) && !errors.Is(err, errDied) {
				t.Fatal(err)
			}
			if rapid.Bool().Draw(t, "dies") {
				controllers[i] = controller()
			}
		}
		excused := false
		names := []string{"nva-1", "prem-1"}
		settle := func() {
			for range 30 {
				for _, name := range names {
					w.nodes[name].online = true
					w.take(name)
					w.report(name)
				}
				seen[0] = w.now
				step(0)
			}
		}
		if rapid.Bool().Draw(t, "a renewal is due") {
			settle()
			wall = wall.Add(year * 3 / 4)
		}
		for range rapid.IntRange(1, 80).Draw(t, "events") {
			name := rapid.SampledFrom(names).Draw(t, "node")
			h := w.nodes[name]
			i := rapid.IntRange(0, 1).Draw(t, "controller")
			switch rapid.IntRange(0, 11).Draw(t, "event") {
			case 0, 1:
				if h.online {
					w.take(name)
				}
			case 2, 3:
				if h.online {
					w.report(name)
				}
			case 4, 5, 10, 11:
				seen[i] = w.now
				step(i)
			case 6:
				step(i)
			case 7:
				wall = wall.Add(rapid.SampledFrom([]time.Duration{time.Minute, year / 5, year / 2}).Draw(t, "time"))
			case 8:
				h.online = !h.online
			case 9:
				died := rapid.Bool().Draw(t, "written")
				w.dies = &died
			}
			for _, c := range w.now.Identities {
				near := slices.ContainsFunc(c.Certificates, func(g model.IdentityGeneration) bool {
					return len(g.Certificate) > 0 && g.Expires.Sub(wall) < soon
				})
				excused = excused || near && (!w.nodes["prem-1"].online || !w.nodes["nva-1"].online)
			}
			for _, pair := range [][2]string{{"prem-1", "nva-1"}, {"nva-1", "prem-1"}} {
				shown, peer := w.nodes[pair[0]].shows(), w.nodes[pair[1]]
				has := slices.ContainsFunc(peer.pins, func(p []byte) bool { return string(p) == string(shown) })
				if shown != nil && len(peer.pins) > 0 && !has && !excused {
					t.Fatalf("%s shows %s, and %s takes %q", pair[0], shown, pair[1], peer.pins)
				}
			}
		}
		if rapid.Bool().Draw(t, "keys are lost") {
			w.nodes["prem-1"].keys = map[uint64][]byte{}
			wall = wall.Add(2 * time.Minute)
		}
		w.dies = nil
		settle()
		for _, name := range names {
			c := w.now.Identities[ends[name].own]
			shown := w.nodes[name].shows()
			if c.Phase != model.IdentitySteady || shown == nil || string(shown) != string(c.Certificates[0].Certificate) || !wall.Before(c.Certificates[0].Expires) {
				t.Fatalf("with all well %s is at %s %+v and shows %s", name, c.Phase, c.Certificates, shown)
			}
		}
	})
}

// Nobody gets a name that is not its endpoint's, nor without being enrolled.
func TestWhoGetsWhat(t *testing.T) {
	w := newWorld()
	c := New(Config{Store: w, Sessions: w, Issuer: issuer{time.Now}, Log: slog.New(slog.DiscardHandler), Now: time.Now})
	settle := func() {
		t.Helper()
		for range 10 {
			for name := range w.nodes {
				w.take(name)
				w.report(name)
			}
			// A node that asks for more than it has.
			w.nodes["nva-1"].reported.IdentityKeys = append(w.nodes["nva-1"].reported.IdentityKeys,
				desired.IdentityKey{Name: hq, Generation: 11, PublicKey: newKey()},
				desired.IdentityKey{Name: "other.fabrikam.circuitseal.internal", Generation: 1, PublicKey: newKey()})
			if err := c.pass(t.Context(), w.now); err != nil {
				t.Fatal(err)
			}
		}
	}
	settle()
	if got := slices.Sorted(maps.Keys(w.now.Identities)); !slices.Equal(got, []string{hq, weu}) {
		t.Errorf("identities of %v", got)
	}
	mine := w.now.Identities[hq].Certificates[0]
	if mine.Key != fingerprint(w.nodes["prem-1"].keys[mine.Generation]) {
		t.Error("the certificate of hq is over a key of another node")
	}
	// Enrolled anew, a node starts anew, and nobody takes what there was.
	before := w.now.Identities[weu]
	next := *w.now
	next.Enrolments = maps.Clone(w.now.Enrolments)
	next.Enrolments["nva-1"] = model.Enrolment{Key: "c"}
	w.now = &next
	if w.take("prem-1"); len(w.nodes["prem-1"].pins) != 0 {
		t.Error("the certificates of an identity of before are taken still")
	}
	settle()
	if after := w.now.Identities[weu]; after.Certificates[0].Generation <= before.Certificates[0].Generation {
		t.Errorf("enrolled anew, the generation is %d, before %d", after.Certificates[0].Generation, before.Certificates[0].Generation)
	}
	// Revoked, it gets nothing any more.
	next = *w.now
	next.Revocations = map[model.Fingerprint]model.Revocation{"c": {Node: "nva-1"}}
	w.now = &next
	if w.take("prem-1"); len(w.nodes["prem-1"].pins) != 0 {
		t.Error("the certificates of a revoked node are taken still")
	}
	if r := c.Report(w.now)[weu]; !strings.Contains(r.Waits, "nva-1") {
		t.Errorf("the report is %+v", r)
	}
	// A key that nobody would certify is refused, once.
	w = newWorld()
	c = New(Config{Store: w, Sessions: w, Issuer: issuer{time.Now}, Log: slog.New(slog.DiscardHandler), Now: time.Now})
	_ = c.pass(t.Context(), w.now)
	w.take("prem-1")
	w.nodes["prem-1"].keys[w.nodes["prem-1"].own[0].Generation] = []byte("no key")
	w.report("prem-1")
	if err := c.pass(t.Context(), w.now); !errors.Is(err, pki.ErrRequest) {
		t.Errorf("got %v, want ErrRequest", err)
	}
	if err := c.pass(t.Context(), w.now); err != nil {
		t.Errorf("told again: %v", err)
	}
	// What it no longer reports is not remembered, however often it comes with another.
	for i := range 20 {
		w.nodes["prem-1"].keys[w.nodes["prem-1"].own[0].Generation] = fmt.Appendf(nil, "no key %d", i)
		w.report("prem-1")
		if err := c.pass(t.Context(), w.now); !errors.Is(err, pki.ErrRequest) {
			t.Errorf("key %d: got %v, want ErrRequest", i, err)
		}
		if len(c.refused) != 1 {
			t.Fatalf("after %d keys, %d are remembered, want 1", i+2, len(c.refused))
		}
	}
}

func TestRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		c := New(Config{Store: w, Sessions: w, Issuer: issuer{time.Now}, Log: slog.New(slog.DiscardHandler), Now: time.Now})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- c.Run(ctx) }()
		for range 8 {
			time.Sleep(2 * time.Second)
			synctest.Wait()
			for name := range w.nodes {
				w.take(name)
				w.report(name)
			}
		}
		for name, h := range w.nodes {
			if h.shows() == nil {
				t.Errorf("%s has no certificate", name)
			}
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func address(s string) netip.Addr { return netip.MustParseAddr(s) }
