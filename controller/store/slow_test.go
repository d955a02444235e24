package store

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/circuitseal/circuitseal/controller/model"
)

// stalled is an engine that is out of time: with err nothing is read; with lost
// transactions take effect, and nobody learns that they did.
type stalled struct {
	clientv3.KV
	err, lost atomic.Pointer[error]
	refused   chan struct{}
}

func stall(s *Store) *stalled {
	k := &stalled{KV: s.client.KV, refused: make(chan struct{})}
	s.client.KV = k
	return k
}

func (s *stalled) Get(ctx context.Context, key string, opts ...clientv3.OpOption) (*clientv3.GetResponse, error) {
	if err := s.err.Load(); err != nil {
		select {
		case s.refused <- struct{}{}:
		default:
		}
		return nil, *err
	}
	return s.KV.Get(ctx, key, opts...)
}

func (s *stalled) Txn(ctx context.Context) clientv3.Txn { return &stalledTxn{s.KV.Txn(ctx), s} }

type stalledTxn struct {
	clientv3.Txn
	stalled *stalled
}

func (t *stalledTxn) If(c ...clientv3.Cmp) clientv3.Txn  { t.Txn = t.Txn.If(c...); return t }
func (t *stalledTxn) Then(o ...clientv3.Op) clientv3.Txn { t.Txn = t.Txn.Then(o...); return t }
func (t *stalledTxn) Else(o ...clientv3.Op) clientv3.Txn { t.Txn = t.Txn.Else(o...); return t }

func (t *stalledTxn) Commit() (*clientv3.TxnResponse, error) {
	r, err := t.Txn.Commit()
	if e := t.stalled.lost.Load(); e != nil {
		return nil, *e
	}
	return r, err
}

// A disk that is slow for a while is no end: watchers wait, and then get what
// they have missed.
func TestWatchOutlivesAStall(t *testing.T) {
	s := start(t, dataDir(t))
	log := &syncBuffer{}
	s.log = slog.New(slog.NewTextHandler(log, nil))
	disk := stall(s)
	seen, free := make(chan *model.Snapshot), make(chan struct{})
	go func() {
		defer close(seen)
		for m, err := range s.Watch(t.Context()) {
			if err != nil {
				t.Errorf("Watch ended with %v", err)
				return
			}
			seen <- m
			<-free
		}
	}()
	<-seen
	want := write(t, s, Change{Put: []model.Document{node("prem-1")}})
	timeout := rpctypes.ErrTimeout
	disk.err.Store(&timeout)
	free <- struct{}{}
	for range 2 {
		select {
		case <-disk.refused:
		case m := <-seen:
			t.Fatalf("a store that does not answer gave %v", m)
		}
	}
	disk.err.Store(nil)
	if m := <-seen; m == nil || m.Revision != want {
		t.Errorf("after the stall came %v, want revision %d", m, want)
	}
	if n := strings.Count(log.String(), "level=WARN"); n != 1 {
		t.Errorf("a stall was told %d times, want once:\n%s", n, log)
	}
	close(free)
}

// What cannot be read will not mend itself: a state that is compiled without it
// would take tunnels down.
func TestWatchEndsAtWhatCannotBeRead(t *testing.T) {
	s := start(t, dataDir(t))
	key, err := documentKey(node("prem-1").Key)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.txn(t.Context(), nil, []clientv3.Op{clientv3.OpPut(key, "{"), clientv3.OpPut(changedKey, "")}, nil); err != nil {
		t.Fatal(err)
	}
	for m, err := range s.Watch(t.Context()) {
		if err == nil || !strings.Contains(err.Error(), "Node/prem-1") {
			t.Errorf("Watch: %v, %v; want an error that names the document", m, err)
		}
	}
}

// A write whose answer did not come may have been written, and repeating it is
// safe.
func TestWriteOfUnknownOutcome(t *testing.T) {
	for _, cause := range []error{
		rpctypes.ErrTimeout, rpctypes.ErrTimeoutDueToLeaderFail, rpctypes.ErrNoLeader, rpctypes.ErrTooManyRequests,
	} {
		t.Run(cause.Error(), func(t *testing.T) {
			s := start(t, dataDir(t))
			disk := stall(s)
			base := snapshot(t, s).Revision
			c := Change{Put: []model.Document{node("prem-1")}}
			disk.lost.Store(&cause)
			if _, err := s.Write(t.Context(), base, c); !errors.Is(err, ErrSlow) {
				t.Errorf("Write: %v, want ErrSlow", err)
			}
			disk.lost.Store(nil)
			now := snapshot(t, s).Revision
			if again, err := s.Write(t.Context(), now, c); err != nil || again != now || now == base {
				t.Errorf("the same again at revision %d, after %d: revision %d, %v", now, base, again, err)
			}
			disk.err.Store(&cause)
			if _, err := s.Snapshot(t.Context()); !errors.Is(err, ErrSlow) {
				t.Errorf("Snapshot: %v, want ErrSlow", err)
			}
			disk.err.Store(nil)
		})
	}
}
