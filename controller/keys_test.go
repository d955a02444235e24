package controller_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	v1 "github.com/circuitseal/circuitseal/proto/circuitseal/v1"
	"github.com/circuitseal/circuitseal/proto/sealed"
)

// Every key and secret is listed, with its age, and none with its value.
func TestListKeys(t *testing.T) {
	t.Parallel()
	r := start(t, t.TempDir()+"/data")
	o := r.operator()
	o.apply(t, samples(t)...)
	r.enrol("nva-1")
	keys := o.awaitSecrets(t, 2)
	secrets, err := sealed.Load(secretKey(t, r.dir), r.dir)
	if err != nil {
		t.Fatal(err)
	}
	count := map[v1.KeyKind]int{}
	for i, k := range keys {
		count[k.GetKind()]++
		if i > 0 && k.GetKind() < keys[i-1].GetKind() {
			t.Errorf("%v stands after %v", k, keys[i-1])
		}
		if age := k.GetAge().AsDuration(); k.GetAge() == nil || age < 0 || age > time.Hour {
			t.Errorf("%v has age %s", k, age)
		}
		switch k.GetKind() {
		case v1.KeyKind_KEY_KIND_PRESHARED:
			if due := time.Until(k.GetDue().AsTime()); due < 0 || due > time.Hour || !slices.Equal(k.GetPlaces(), []string{"controller"}) || !strings.HasPrefix(k.GetName(), "contoso/") {
				t.Errorf("%v is due in %s; no node has said that it holds it", k, due)
			}
		case v1.KeyKind_KEY_KIND_SECRET:
			if k.GetId() != secrets.First().ID().String() {
				t.Errorf("secret key %s, want %s", k.GetId(), secrets.First().ID())
			}
		case v1.KeyKind_KEY_KIND_NODE_SESSION:
			if k.GetName() != "nva-1" || k.GetDue() == nil {
				t.Errorf("%v", k)
			}
		default:
		}
	}
	for kind, want := range map[v1.KeyKind]int{
		v1.KeyKind_KEY_KIND_ROOT: 1, v1.KeyKind_KEY_KIND_INTERMEDIATE: 1, v1.KeyKind_KEY_KIND_STATE_SIGNING: 1, v1.KeyKind_KEY_KIND_SERVER: 1,
		v1.KeyKind_KEY_KIND_NODE_SESSION: 1, v1.KeyKind_KEY_KIND_PRESHARED: 2, v1.KeyKind_KEY_KIND_SECRET: 1,
	} {
		if count[kind] != want {
			t.Errorf("%d of %s, want %d", count[kind], kind, want)
		}
	}
	for customer, want := range map[string]int{"contoso": 2, "fabrikam": 0} {
		a, err := o.keys.ListKeys(t.Context(), connect.NewRequest(&v1.ListKeysRequest{Customer: customer}))
		if err != nil || len(a.Msg.GetKeys()) != want {
			t.Errorf("of %s: %v, %v, want %d", customer, a, err, want)
		}
	}
}
