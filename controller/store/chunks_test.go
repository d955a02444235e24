package store

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/circuitseal/circuitseal/controller/model"
	"github.com/circuitseal/circuitseal/proto/chunk"
)

// ruleSet is a document of about 100 bytes a rule.
func ruleSet(rules int) model.Document {
	s := &model.SecurityRuleSetSpec{Direction: model.Inbound}
	for i := range rules {
		a := netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
		s.Rules = append(s.Rules, model.SecurityRule{
			Name: fmt.Sprintf("r%d", i), Priority: i + 1, Protocol: model.RuleTCP, Action: model.ActionDrop,
			SourceAddressPrefixes: []netip.Prefix{netip.PrefixFrom(a, 32)},
		})
	}
	return model.Document{Key: model.Key{Kind: model.KindSecurityRuleSet, Customer: "contoso", Name: "rules"}, Spec: s}
}

// chunks are the names of those that are stored.
func chunks(t *testing.T, s *Store) map[string]bool {
	t.Helper()
	r, err := s.get(t.Context(), chunksRoot, clientv3.WithPrefix())
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]bool{}
	for _, kv := range r.Kvs {
		all[strings.TrimPrefix(string(kv.Key), chunksRoot)] = true
		if len(kv.Value) > chunk.Max {
			t.Errorf("a chunk of %d bytes", len(kv.Value))
		}
	}
	return all
}

var comparePrefixes = cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })

func TestLongSpecs(t *testing.T) {
	dir := dataDir(t)
	s := start(t, dir)
	d := ruleSet(30_000)
	write(t, s, Change{Put: []model.Document{d, site("hq", "10.1.0.0/16")}})
	before := chunks(t, s)
	if len(before) < 5 {
		t.Fatalf("a long spec has %d chunks", len(before))
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = start(t, dir)
	if diff := cmp.Diff(d.Spec, snapshot(t, s).Documents[d.Key].Spec, comparePrefixes); diff != "" {
		t.Fatalf("after a restart (-want +got):\n%s", diff)
	}

	// Nothing new is nothing new.
	revision := snapshot(t, s).Revision
	if got := write(t, s, Change{Put: []model.Document{ruleSet(30_000)}}); got != revision {
		t.Errorf("the same set again made revision %d of %d", got, revision)
	}
	// A changed rule changes the chunks around it.
	changed := ruleSet(30_000)
	changed.Spec.(*model.SecurityRuleSetSpec).Rules[15_000].Action = model.ActionReject
	write(t, s, Change{Put: []model.Document{changed}})
	fresh := 0
	after := chunks(t, s)
	for sum := range after {
		if !before[sum] {
			fresh++
		}
	}
	if fresh == 0 || fresh > 2 {
		t.Errorf("a rule that changed made %d new chunks of %d, want 1 or 2", fresh, len(after))
	}
	if len(after) > len(before)+2 {
		t.Errorf("%d chunks, before the change %d: old ones are still there", len(after), len(before))
	}
	if diff := cmp.Diff(changed.Spec, snapshot(t, s).Documents[d.Key].Spec, comparePrefixes); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}

	// What was there before can still be asked for.
	old, err := s.DocumentsAt(t.Context(), revision)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(d.Spec, old[d.Key].Spec, comparePrefixes); diff != "" {
		t.Errorf("at revision %d (-want +got):\n%s", revision, diff)
	}
	for _, never := range []uint64{0, snapshot(t, s).Revision + 1} {
		if _, err := s.DocumentsAt(t.Context(), never); !errors.Is(err, ErrCompacted) {
			t.Errorf("revision %d: %v, want ErrCompacted", never, err)
		}
	}
	write(t, s, Change{Delete: []model.Key{d.Key}})
	if left := chunks(t, s); len(left) > 0 {
		t.Errorf("%d chunks of a deleted document are left", len(left))
	}
	if _, err := s.client.Compact(t.Context(), int64(snapshot(t, s).Revision)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.DocumentsAt(t.Context(), revision-1); !errors.Is(err, ErrCompacted) {
		t.Errorf("a compacted revision: %v, want ErrCompacted", err)
	}
}

// What a write left behind that died goes at the next start; what one under way
// has written stays.
func TestChunksInFlight(t *testing.T) {
	dir := dataDir(t)
	s := start(t, dir)
	orphan := []piece{{chunk.Of([]byte("x")), []byte("x")}}
	done, err := s.putChunks(t.Context(), orphan)
	if err != nil {
		t.Fatal(err)
	}
	write(t, s, Change{Put: []model.Document{ruleSet(5_000)}})
	if !chunks(t, s)[orphan[0].sum.String()] {
		t.Error("a chunk of a write under way was collected")
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	done()
	s = start(t, dir)
	if have := chunks(t, s); have[orphan[0].sum.String()] || len(have) == 0 {
		t.Errorf("after a restart: %v, want those of the document only", have)
	}
	if got := len(snapshot(t, s).Documents); got != 1 {
		t.Errorf("%d documents", got)
	}
}

// thief takes a chunk away just before the first transaction that needs one, as
// another controller that collects could.
type thief struct {
	clientv3.KV
	steal func()
}

type thiefTxn struct {
	clientv3.Txn
	t *thief
	n int
}

func (t *thief) Txn(ctx context.Context) clientv3.Txn { return &thiefTxn{Txn: t.KV.Txn(ctx), t: t} }

func (x *thiefTxn) If(c ...clientv3.Cmp) clientv3.Txn  { x.n = len(c); x.Txn = x.Txn.If(c...); return x }
func (x *thiefTxn) Then(o ...clientv3.Op) clientv3.Txn { x.Txn = x.Txn.Then(o...); return x }
func (x *thiefTxn) Else(o ...clientv3.Op) clientv3.Txn { x.Txn = x.Txn.Else(o...); return x }

func (x *thiefTxn) Commit() (*clientv3.TxnResponse, error) {
	if x.n > 1 {
		x.t.steal()
	}
	return x.Txn.Commit()
}

func TestRootNeverLacksAChunk(t *testing.T) {
	s := start(t, dataDir(t))
	base := snapshot(t, s).Revision
	kv := s.client.KV
	stolen := 0
	s.client.KV = &thief{kv, sync.OnceFunc(func() {
		r, err := kv.Delete(t.Context(), chunksRoot, clientv3.WithPrefix())
		if err != nil {
			t.Error(err)
			return
		}
		stolen = int(r.Deleted)
	})}
	d := ruleSet(10_000)
	if _, err := s.Write(t.Context(), base, Change{Put: []model.Document{d}}); err != nil {
		t.Fatal(err)
	}
	s.client.KV = kv
	if stolen == 0 {
		t.Fatal("nothing was stolen")
	}
	if diff := cmp.Diff(d.Spec, snapshot(t, s).Documents[d.Key].Spec, comparePrefixes); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// A chunk that holds something else, or is gone, is found: nothing is compiled
// from half a rule set.
func TestDamagedChunks(t *testing.T) {
	for name, damage := range map[string]func(key string) clientv3.Op{
		"other bytes": func(key string) clientv3.Op { return clientv3.OpPut(key, "[]") },
		"gone":        func(key string) clientv3.Op { return clientv3.OpDelete(key) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := dataDir(t)
			s := start(t, dir)
			write(t, s, Change{Put: []model.Document{ruleSet(5_000)}})
			for sum := range chunks(t, s) {
				if _, err := s.txn(t.Context(), nil, []clientv3.Op{damage(chunksRoot + sum)}, nil); err != nil {
					t.Fatal(err)
				}
				break
			}
			// The snapshot at hand was made before.
			s.last = nil
			if _, err := s.Snapshot(t.Context()); !errors.As(err, &unreadable{}) || !strings.Contains(err.Error(), "SecurityRuleSet/contoso/rules") {
				t.Errorf("Snapshot: %v, want an error that names the document", err)
			}
		})
	}
}

func FuzzParseRoot(f *testing.F) {
	spec := []byte(strings.Repeat("0123456789", LongSpec/10+1))
	f.Add([]byte(rootOf(spec, pieces(spec))))
	f.Add([]byte(rootPrefix))
	f.Add([]byte(`{"direction":"inbound"}`))
	f.Fuzz(func(t *testing.T, value []byte) {
		size, sums, long, err := parseRoot(value)
		if long != strings.HasPrefix(string(value), rootPrefix) {
			t.Errorf("long = %v", long)
		}
		if long && err == nil && (size <= 0 || size > maxChunked || len(sums) == 0) {
			t.Errorf("%d bytes in %d chunks", size, len(sums))
		}
	})
}
