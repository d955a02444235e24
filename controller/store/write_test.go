package store

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/circuitseal/circuitseal/controller/document"
	"github.com/circuitseal/circuitseal/controller/model"
	"github.com/circuitseal/circuitseal/proto/desired"
)

func TestWriteFences(t *testing.T) {
	s := start(t, dataDir(t))
	first := write(t, s, Change{Put: []model.Document{site("hq", "10.1.0.0/16"), site("lab", "10.3.0.0/16"), node("prem-1")}, Numbers: numbers()})
	base := snapshot(t, s)
	hq, lab := site("hq", "10.1.0.0/16").Key, site("lab", "10.3.0.0/16").Key

	if _, err := s.Write(t.Context(), first-1, Change{Numbers: numbers()}); !errors.Is(err, ErrConflict) {
		t.Errorf("older base: %v, want ErrConflict", err)
	}
	if _, err := s.Write(t.Context(), first+1, Change{Numbers: numbers()}); !errors.Is(err, ErrConflict) {
		t.Errorf("base of the future: %v, want ErrConflict", err)
	}

	// What nodes bring is no conflict.
	if err := s.PutKeys(t.Context(), "prem-1", map[string]desired.PublicKey{tunnelA: {1}}); err != nil {
		t.Fatal(err)
	}
	if snapshot(t, s).Revision == base.Revision {
		t.Error("a new key made no new snapshot")
	}
	second, err := s.Write(t.Context(), base.Revision, Change{Delete: []model.Key{hq}, Numbers: numbers()})
	if err != nil {
		t.Fatalf("Write after a key was reported: %v", err)
	}

	// A deletion since the base is a conflict, whatever the change is about.
	for name, c := range map[string]Change{
		"the same":    {Put: []model.Document{site("hq", "10.9.0.0/16")}, Numbers: numbers()},
		"another":     {Put: []model.Document{site("lab", "10.9.0.0/16")}, Numbers: numbers()},
		"numbers":     {Numbers: model.Numbers{}},
		"delete":      {Delete: []model.Key{lab}, Numbers: numbers()},
		"new":         {Put: []model.Document{site("new", "10.9.0.0/16")}, Numbers: numbers()},
		"none at all": {Numbers: numbers()},
	} {
		if _, err := s.Write(t.Context(), base.Revision, c); !errors.Is(err, ErrConflict) {
			t.Errorf("%s: %v, want ErrConflict", name, err)
		}
	}
	after := snapshot(t, s)
	if after.Revision != second {
		t.Errorf("refused writes made revision %d, want %d", after.Revision, second)
	}
	if _, ok := after.Documents[hq]; ok {
		t.Error("a deleted document came back")
	}
}

func TestWriteRaces(t *testing.T) {
	s := start(t, dataDir(t))
	const writers, rounds = 8, 20
	var wrote, conflicts atomic.Int64
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for range rounds {
				m, err := s.Snapshot(t.Context())
				if err != nil {
					t.Error(err)
					return
				}
				// A counter: a lost update would show in its sum.
				n := maps.Clone(m.Numbers.Tenants)
				n["contoso"]++
				_, err = s.Write(t.Context(), m.Revision, Change{Numbers: model.Numbers{Tenants: n}})
				switch {
				case errors.Is(err, ErrConflict):
					conflicts.Add(1)
				case err != nil:
					t.Errorf("writer %d: %v", w, err)
				default:
					wrote.Add(1)
				}
			}
		})
	}
	wg.Wait()
	if got := int64(snapshot(t, s).Numbers.Tenants["contoso"]); got != wrote.Load() || got == 0 {
		t.Errorf("%d writes succeeded, the counter is %d (%d conflicts)", wrote.Load(), got, conflicts.Load())
	}
}

func TestWriteRefuses(t *testing.T) {
	s := start(t, dataDir(t))
	good := site("hq", "10.1.0.0/16")
	named := func(kind model.Kind, customer, name string) Change {
		spec := model.NewSpec(kind)
		if spec == nil {
			spec = &model.SiteSpec{}
		}
		return Change{Put: []model.Document{{Key: model.Key{Kind: kind, Customer: customer, Name: name}, Spec: spec}}}
	}
	tests := []struct {
		name   string
		change Change
		want   string
	}{
		{"dot dot", named(model.KindSite, "contoso", "../epoch"), "want 1 names"},
		{"customer with slash", named(model.KindSite, "a/b", "hq"), "want 1 names"},
		{"NUL", named(model.KindSite, "contoso", "a\x00b"), "invisible"},
		{"right-to-left mark", named(model.KindSite, "contoso", "a\u200fb"), "invisible"},
		{"64 KiB", named(model.KindSite, "contoso", strings.Repeat("a", 64<<10)), "65536 bytes long"},
		{"empty", named(model.KindSite, "contoso", ""), "is empty"},
		{"customer missing", named(model.KindSite, "", "hq"), "is empty"},
		{"provider as customer", named(model.KindSite, "-", "hq"), "starts with"},
		{"node with customer", named(model.KindNode, "contoso", "prem-1"), "has no customer"},
		{"unknown kind", named("../Site", "contoso", "hq"), "does not exist"},
		{"spec of another kind", Change{Put: []model.Document{{Key: good.Key, Spec: &model.NodeSpec{}}}}, `of kind "Node"`},
		{"no spec", Change{Put: []model.Document{{Key: good.Key}}}, `of kind ""`},
		{"twice", Change{Put: []model.Document{good, good}}, "twice"},
		{"put and deleted", Change{Put: []model.Document{good}, Delete: []model.Key{good.Key}}, "both put and deleted"},
		{"delete outside", Change{Delete: []model.Key{{Kind: model.KindSite, Customer: "contoso", Name: "a/../../epoch"}}}, "want 1 names"},
		{"number of a short name", Change{Numbers: model.Numbers{Tunnels: map[string]uint16{"contoso/hq": 1}}}, "want 4 names"},
		{"number 0", Change{Numbers: model.Numbers{Tenants: map[string]uint32{"contoso": 0}}}, "number 0"},
	}
	before := snapshot(t, s)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := s.Write(t.Context(), before.Revision, tt.change)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("Write: %v, want %q", err, tt.want)
			}
			if len(err.Error()) > 400 {
				t.Errorf("error of %d bytes", len(err.Error()))
			}
		})
	}
	if snapshot(t, s) != before {
		t.Error("a refused change left something behind")
	}
}

func TestWriteTooLarge(t *testing.T) {
	s := start(t, dataDir(t))
	customer := func(name string, size int) model.Document {
		return model.Document{
			Key:  model.Key{Kind: model.KindCustomer, Name: name},
			Spec: &model.CustomerSpec{DisplayName: strings.Repeat("x", size), Model: model.ConnectTo},
		}
	}
	var many []model.Document
	for i := range maxRequestBytes/(LongSpec-1024) + 1 {
		many = append(many, customer(fmt.Sprintf("c%d", i), LongSpec-1024))
	}
	for name, put := range map[string][]model.Document{
		"one":  {customer("contoso", maxChunked)},
		"many": many,
	} {
		if _, err := s.Write(t.Context(), snapshot(t, s).Revision, Change{Put: put}); !errors.Is(err, ErrTooLarge) {
			t.Errorf("%s: %v, want ErrTooLarge", name, err)
		}
	}
}

func TestKeysFollowTunnelsAndNodes(t *testing.T) {
	s := start(t, dataDir(t))
	put := func(node string, keys map[string]desired.PublicKey) error { return s.PutKeys(t.Context(), node, keys) }
	write(t, s, Change{Numbers: numbers()})
	if err := put("prem-1", map[string]desired.PublicKey{tunnelA: {1}}); !errors.Is(err, ErrUnknownNode) {
		t.Errorf("a key of an unknown node: %v, want ErrUnknownNode", err)
	}
	for _, bad := range []string{"", "..", "contoso/hq-weu/er-ams", tunnelA + "/prem-1", "contoso/../er-ams/primary"} {
		if err := put("prem-1", map[string]desired.PublicKey{bad: {1}}); err == nil {
			t.Errorf("a key of tunnel %q was taken", bad)
		}
	}
	if err := put("prem-1/contoso", nil); err == nil {
		t.Error("a node's name with a slash was taken")
	}
	write(t, s, Change{Put: []model.Document{node("prem-1"), node("prem-10")}})
	all := map[string]desired.PublicKey{tunnelA: {1}, tunnelB: {2}, "contoso/old/er-ams/primary": {3}}
	for _, n := range []string{"prem-1", "prem-10"} {
		if err := put(n, all); err != nil {
			t.Fatal(err)
		}
	}
	end := func(n, tunnel string) model.TunnelEnd { return model.TunnelEnd{Node: n, Tunnel: tunnel} }
	check := func(what string, want map[model.TunnelEnd]desired.PublicKey) {
		t.Helper()
		if d := cmp.Diff(want, snapshot(t, s).Keys); d != "" {
			t.Errorf("keys %s (-want +got):\n%s", what, d)
		}
	}
	want := map[model.TunnelEnd]desired.PublicKey{
		end("prem-1", tunnelA): {1}, end("prem-1", tunnelB): {2}, end("prem-10", tunnelA): {1}, end("prem-10", tunnelB): {2},
	}
	check("reported", want)

	before := snapshot(t, s)
	if err := put("prem-1", all); err != nil {
		t.Fatal(err)
	}
	if err := put("prem-1", nil); err != nil {
		t.Fatal(err)
	}
	if snapshot(t, s) != before {
		t.Error("reporting what is known made a new snapshot")
	}
	if err := put("prem-1", map[string]desired.PublicKey{tunnelB: {4}}); err != nil {
		t.Fatal(err)
	}
	want[end("prem-1", tunnelB)] = desired.PublicKey{4}
	check("changed", want)

	n := numbers()
	delete(n.Tunnels, tunnelB)
	write(t, s, Change{Numbers: n})
	delete(want, end("prem-1", tunnelB))
	delete(want, end("prem-10", tunnelB))
	check("after a tunnel went", want)

	write(t, s, Change{Delete: []model.Key{node("prem-1").Key}})
	delete(want, end("prem-1", tunnelA))
	check("after a node went", want)
}

// A node that is no longer an end of a tunnel leaves no key behind: should the
// endpoint come back, it would be taken for the node's. A tunnel by IPsec has none
// that nodes report.
func TestKeysFollowEndpoints(t *testing.T) {
	t.Run("wireguard", func(t *testing.T) { testKeysFollowEndpoints(t, true) })
	t.Run("ipsec", func(t *testing.T) { testKeysFollowEndpoints(t, false) })
}

func testKeysFollowEndpoints(t *testing.T, reported bool) {
	s := shipped(t)
	for _, n := range []string{"prem-1", "nva-1"} {
		if !reported {
			break
		}
		if err := s.PutKeys(t.Context(), n, map[string]desired.PublicKey{tunnelA: {1}, tunnelB: {2}}); err != nil {
			t.Fatal(err)
		}
	}
	preshared(t, s, map[string]model.PresharedKeys{tunnelA: steady(generation(1, 1)), tunnelB: steady(generation(1, 2))})
	moved := model.Document{Key: model.Key{Kind: model.KindEndpoint, Customer: "contoso", Name: "vnet-weu"}}
	old, ok := model.Lookup[*model.EndpointSpec](snapshot(t, s).Documents, moved.Key)
	if !ok {
		t.Fatal("the samples have no endpoint vnet-weu")
	}
	spec := *old
	spec.Node, moved.Spec = "nva-2", &spec
	write(t, s, Change{Put: []model.Document{node("nva-2"), moved}})
	want := map[model.TunnelEnd]desired.PublicKey{{Node: "prem-1", Tunnel: tunnelA}: {1}, {Node: "prem-1", Tunnel: tunnelB}: {2}}
	if d := cmp.Diff(want, snapshot(t, s).Keys); d != "" && reported {
		t.Errorf("keys after an endpoint has moved (-want +got):\n%s", d)
	}
	if got := snapshot(t, s).PresharedKeys; len(got) != 0 {
		t.Errorf("the node that was left knows pre-shared keys that are still in use: %v", got)
	}
}

// shipped is a store with the documents that are shipped.
func shipped(t *testing.T) *Store {
	t.Helper()
	s := start(t, dataDir(t))
	paths, err := filepath.Glob("../../deploy/samples/*.yaml")
	if err != nil || len(paths) == 0 {
		t.Fatalf("the samples: %v, %v", paths, err)
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
	write(t, s, Change{Put: docs, Numbers: numbers()})
	return s
}

// Who has a revoked node's disk knows the secrets of its tunnels: they are not used
// again, and those of others stay.
func TestSecretsOfARevokedNodeGo(t *testing.T) {
	s := shipped(t)
	const other = "contoso/other/er-ams/primary"
	n := numbers()
	n.Tunnels[other] = 9
	write(t, s, Change{Numbers: n})
	preshared(t, s, map[string]model.PresharedKeys{tunnelA: steady(generation(1, 1)), tunnelB: steady(generation(1, 2)), other: steady(generation(1, 3))})
	if err := enrolled(t, s, "token001", 1); err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.Revoke(t.Context(), "prem-1", model.Revocation{Reason: "stolen"}); err != nil {
		t.Fatal(err)
	}
	left := snapshot(t, s).PresharedKeys
	if _, ok := left[other]; !ok || len(left) != 1 {
		t.Errorf("left are %v, want those of %s", left, other)
	}
}

func TestWatch(t *testing.T) {
	s := start(t, dataDir(t))
	ctx, cancel := context.WithCancel(t.Context())
	got := make(chan *model.Snapshot)
	busy := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for m, err := range s.Watch(ctx) {
			if err != nil {
				t.Errorf("Watch: %v", err)
				return
			}
			got <- m
			<-busy
		}
	})
	next := func() *model.Snapshot { m := <-got; return m }
	start := next()

	// While the consumer is busy: many changes, a delete, and a compaction that
	// takes away every revision up to it.
	write(t, s, Change{Put: []model.Document{site("hq", "10.1.0.0/16"), node("prem-1")}})
	for range 5 {
		write(t, s, Change{Put: []model.Document{site("lab", "10.2.0.0/16")}})
		write(t, s, Change{Delete: []model.Key{site("lab", "0.0.0.0/0").Key}})
	}
	newest := write(t, s, Change{Delete: []model.Key{site("hq", "0.0.0.0/0").Key}})
	if _, err := s.client.Compact(t.Context(), int64(newest)); err != nil {
		t.Fatal(err)
	}
	busy <- struct{}{}
	m := next()
	if m.Revision != newest || m.Revision <= start.Revision {
		t.Errorf("after being busy: revision %d, want the newest, %d", m.Revision, newest)
	}
	if _, ok := m.Documents[site("hq", "0.0.0.0/0").Key]; ok || len(m.Documents) != 1 {
		t.Errorf("missed a delete: %v", m.Documents)
	}

	// Tokens move the engine's revision without a new snapshot; compacted
	// beyond the last snapshot, the watcher neither spins nor ends.
	if err := s.PutToken(t.Context(), Token{ID: "0123456789abcdef", Node: "prem-1"}); err != nil {
		t.Fatal(err)
	}
	r, err := s.client.Get(t.Context(), epochKey)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.client.Compact(t.Context(), r.Header.Revision); err != nil {
		t.Fatal(err)
	}
	busy <- struct{}{}
	last := write(t, s, Change{Put: []model.Document{site("hq", "10.1.0.0/16")}})
	if m := next(); m.Revision != last {
		t.Errorf("after a compaction: revision %d, want %d", m.Revision, last)
	}
	cancel()
	close(busy)
	wg.Wait()
}

// Watchers learn that the store was closed however the engine tells them: by a
// cancelled watch, a closed one or its own end, whichever comes first.
func TestWatchEndsWithTheStore(t *testing.T) {
	s := start(t, dataDir(t))
	const watchers = 32
	var watching, ended sync.WaitGroup
	watching.Add(watchers)
	errs := make([]error, watchers)
	for i := range watchers {
		ended.Go(func() {
			for _, err := range s.Watch(t.Context()) {
				if err == nil {
					watching.Done()
				}
				errs[i] = err
			}
		})
	}
	watching.Wait()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	ended.Wait()
	for i, err := range errs {
		if !errors.Is(err, ErrClosed) {
			t.Errorf("watcher %d of a closed store: %v, want ErrClosed", i, err)
		}
	}
}
