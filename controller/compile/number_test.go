package compile_test

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/circuitseal/circuitseal/controller/compile"
	"github.com/circuitseal/circuitseal/controller/model"
)

func TestNumber(t *testing.T) {
	docs := map[model.Key]model.Document{}
	put := func(kind model.Kind, customer, name string, spec model.Spec) {
		docs[model.Key{Kind: kind, Customer: customer, Name: name}] = model.Document{Spec: spec}
	}
	put(model.KindCustomer, "", "b", &model.CustomerSpec{})
	put(model.KindCustomer, "", "a", &model.CustomerSpec{})
	put(model.KindCircuit, "a", "er", &model.CircuitSpec{})
	put(model.KindConnection, "a", "k", &model.ConnectionSpec{Circuits: []string{"er", "er"}})
	put(model.KindSite, "a", "s", &model.SiteSpec{})
	old := model.Numbers{
		Tenants: map[string]uint32{"b": 1, "gone": 2},
		Links:   map[string]uint16{"a/er/primary": 7, "a/er/secondary": 7},
		Tunnels: map[string]uint16{"a/k/er/secondary": math.MaxUint16, "a/k/er/primary": 0},
	}
	got, err := compile.Number(docs, old)
	if err != nil {
		t.Fatal(err)
	}
	want := model.Numbers{
		Tenants: map[string]uint32{"a": 2, "b": 1},
		// A number that stands twice, is 0 or too large is not kept.
		Links:   map[string]uint16{"a/er/primary": 7, "a/er/secondary": 1},
		Groups:  map[string]uint32{"a/k": 1},
		Tunnels: map[string]uint16{"a/k/er/primary": 1, "a/k/er/secondary": 2},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("numbers (-want +got):\n%s", diff)
	}
}

// A tunnel's port is 51819 and its number, so there are 13716 numbers.
func TestNumberTooManyTunnels(t *testing.T) {
	docs := map[model.Key]model.Document{}
	connect := func(n int) {
		circuits := make([]string, n)
		for i := range circuits {
			circuits[i] = fmt.Sprintf("er-%d", i)
		}
		key := model.Key{Kind: model.KindConnection, Customer: "a", Name: "k"}
		docs[key] = model.Document{Key: key, Spec: &model.ConnectionSpec{Circuits: circuits}}
	}
	connect((65535 - 51819) / 2)
	n, err := compile.Number(docs, model.Numbers{})
	if err != nil {
		t.Fatal(err)
	}
	if got := slices.Max(slices.Collect(maps.Values(n.Tunnels))); int(got)+51819 != 65535 {
		t.Errorf("the largest number is %d", got)
	}
	connect((65535-51819)/2 + 1)
	if _, err := compile.Number(docs, n); err == nil || !strings.Contains(err.Error(), "number 13718 tunnels") {
		t.Errorf("error = %v, want one that names the tunnels", err)
	}
}

// However documents come and go, a name keeps its number while it lives, no two
// share one, and numbers stay as small as they can.
func TestNumberIsStable(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var numbers model.Numbers
		living := map[string]bool{}
		for range rapid.IntRange(1, 20).Draw(t, "steps") {
			for range rapid.IntRange(1, 5).Draw(t, "changes") {
				name := fmt.Sprintf("c%d", rapid.IntRange(0, 9).Draw(t, "customer"))
				living[name] = !living[name]
			}
			docs := map[model.Key]model.Document{}
			for name, alive := range living {
				if alive {
					docs[model.Key{Kind: model.KindCustomer, Name: name}] = model.Document{}
					docs[model.Key{Kind: model.KindCircuit, Customer: name, Name: "er"}] = model.Document{}
					docs[model.Key{Kind: model.KindConnection, Customer: name, Name: "k"}] = model.Document{Spec: &model.ConnectionSpec{Circuits: []string{"er"}}}
				}
			}
			next, err := compile.Number(docs, numbers)
			if err != nil {
				t.Fatal(err)
			}
			stable(t, numbers.Tenants, next.Tenants, len(docs)/3)
			stable(t, numbers.Groups, next.Groups, len(docs)/3)
			stable(t, numbers.Links, next.Links, 2*len(docs)/3)
			stable(t, numbers.Tunnels, next.Tunnels, 2*len(docs)/3)
			again, err := compile.Number(docs, next)
			if diff := cmp.Diff(next, again); err != nil || diff != "" {
				t.Fatalf("numbered again: %v\n%s", err, diff)
			}
			numbers = next
		}
	})
}

func stable[N uint16 | uint32](t *rapid.T, old, next map[string]N, want int) {
	if len(next) != want {
		t.Fatalf("%d numbers for %d names", len(next), want)
	}
	seen := map[N]string{}
	for name, n := range next {
		if other, twice := seen[n]; twice || n == 0 {
			t.Fatalf("%s has number %d, as has %q", name, n, other)
		}
		seen[n] = name
		before, lived := old[name]
		if lived && before != n {
			t.Fatalf("%s had number %d and has %d", name, before, n)
		}
		if !lived && int(n) > len(next) {
			t.Fatalf("%s has number %d although a smaller one was free", name, n)
		}
	}
}
