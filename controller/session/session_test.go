package session

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect"

	"github.com/circuitseal/circuitseal/controller/compile"
	"github.com/circuitseal/circuitseal/controller/document"
	"github.com/circuitseal/circuitseal/controller/model"
	v1 "github.com/circuitseal/circuitseal/proto/circuitseal/v1"
	"github.com/circuitseal/circuitseal/proto/desired"
)

// memory is a store whose snapshots a test makes.
type memory struct {
	now   atomic.Pointer[model.Snapshot]
	watch chan *model.Snapshot
	keys  chan map[string]desired.PublicKey
	// revoked are the revocations that the hub asked for.
	revoked chan model.Revocation
}

func (m *memory) Snapshot(context.Context) (*model.Snapshot, error) { return m.now.Load(), nil }

func (m *memory) Watch(ctx context.Context) iter.Seq2[*model.Snapshot, error] {
	return func(yield func(*model.Snapshot, error) bool) {
		for {
			select {
			case <-ctx.Done():
				return
			case s := <-m.watch:
				if s == nil {
					yield(nil, errors.New("the disk is gone"))
					return
				}
				if !yield(s, nil) {
					return
				}
			}
		}
	}
}

func (m *memory) PutKeys(_ context.Context, _ string, keys map[string]desired.PublicKey) error {
	m.keys <- keys
	return nil
}

func (m *memory) Revoke(_ context.Context, node string, r model.Revocation) (model.Fingerprint, model.Revocation, error) {
	r.Node = node
	m.revoked <- r
	return m.now.Load().Enrolments[node].Key, r, nil
}

func (m *memory) set(s *model.Snapshot) {
	m.now.Store(s)
	m.watch <- s
}

// plain seals without a signature and counts.
type plain struct{ signed atomic.Int32 }

func (p *plain) SignState(h desired.Header, state []byte) (*v1.Envelope, error) {
	p.signed.Add(1)
	return &v1.Envelope{Signed: fmt.Appendf(nil, "%s %s %d", h.Node, h.Position, len(state))}, nil
}

// pipe is a stream between a test and the hub.
type pipe struct {
	in   chan *v1.SessionRequest
	out  chan *v1.SessionResponse
	over chan struct{}
	// deadlines are for Send.
	deadlines chan time.Time
}

func newPipe() *pipe {
	return &pipe{
		in: make(chan *v1.SessionRequest), out: make(chan *v1.SessionResponse), over: make(chan struct{}),
		deadlines: make(chan time.Time, 64),
	}
}

func (p *pipe) Receive() (*v1.SessionRequest, error) {
	select {
	case m, ok := <-p.in:
		if !ok {
			return nil, io.EOF
		}
		return m, nil
	case <-p.over:
		return nil, os.ErrDeadlineExceeded
	}
}

// Send waits for a reader until the last deadline that was set, also meanwhile.
func (p *pipe) Send(m *v1.SessionResponse) error {
	var late <-chan time.Time
	for {
		select {
		case p.out <- m:
			return nil
		case d := <-p.deadlines:
			late = nil
			if !d.IsZero() {
				late = time.After(time.Until(d))
			}
		case <-late:
			return os.ErrDeadlineExceeded
		}
	}
}

func (p *pipe) SetReadDeadline(time.Time) error {
	select {
	case <-p.over:
	default:
		close(p.over)
	}
	return nil
}

func (p *pipe) SetWriteDeadline(t time.Time) error { p.deadlines <- t; return nil }

// samples are the shipped policy at a revision, with nva-1 enrolled.
func samples(t *testing.T, revision uint64, mtu string) *model.Snapshot {
	t.Helper()
	paths, err := filepath.Glob("../../deploy/samples/*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var sources []document.Source
	for _, p := range paths {
		b, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		text := strings.Replace(string(b), "protocol: wireguard", "protocol: wireguard\n  pathMTU: "+mtu, 1)
		sources = append(sources, document.Source{Name: p, Text: text})
	}
	docs, _, problems := document.Decode(sources)
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	s := &model.Snapshot{
		Epoch: 1, Revision: revision, Documents: map[model.Key]model.Document{},
		Enrolments: map[string]model.Enrolment{"nva-1": {Key: "a"}},
	}
	for _, d := range docs {
		s.Documents[d.Key] = d
	}
	if s.Numbers, err = compile.Number(s.Documents, model.Numbers{}); err != nil {
		t.Fatal(err)
	}
	return s
}

type hubTest struct {
	store  *memory
	signer *plain
	hub    *Hub
	stop   context.CancelFunc
	ran    chan error
}

func run(t *testing.T) *hubTest {
	t.Helper()
	h := &hubTest{
		store: &memory{watch: make(chan *model.Snapshot), keys: make(chan map[string]desired.PublicKey, 8), revoked: make(chan model.Revocation, 8)}, signer: &plain{},
		ran: make(chan error, 1),
	}
	h.hub = New(h.store, h.signer, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(t.Context())
	h.stop = cancel
	go func() { h.ran <- h.hub.Run(ctx) }()
	return h
}

// serve opens a session of nva-1.
func (h *hubTest) serve(t *testing.T, key model.Fingerprint) (*pipe, chan error) {
	t.Helper()
	p, done := newPipe(), make(chan error, 1)
	go func() {
		done <- h.hub.Serve(t.Context(), Peer{Node: "nva-1", Key: key, Address: "192.0.2.1", Deadlines: p}, p)
	}()
	return p, done
}

func hello() *v1.SessionRequest { return &v1.SessionRequest{Status: &v1.NodeStatus{}} }

func TestNewestOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := run(t)
		h.store.set(samples(t, 1, "1400"))
		p, done := h.serve(t, "a")
		p.in <- hello()
		synctest.Wait()
		// Nobody reads while these come.
		h.store.set(samples(t, 2, "1380"))
		h.store.set(samples(t, 3, "1360"))
		h.store.set(samples(t, 4, "1360"))
		synctest.Wait()
		if got := string((<-p.out).GetState().GetSigned()); !strings.HasPrefix(got, "nva-1 1.1 ") {
			t.Errorf("first came %q", got)
		}
		// Revision 2 is skipped, and 4 changed nothing.
		if got := string((<-p.out).GetState().GetSigned()); !strings.HasPrefix(got, "nva-1 1.3 ") {
			t.Errorf("then came %q", got)
		}
		if n := h.signer.signed.Load(); n != 2 {
			t.Errorf("%d states were signed, want 2: what nobody gets needs no signature", n)
		}
		close(p.in)
		if err := <-done; err != nil {
			t.Errorf("a session that the node closed ended with %v", err)
		}
		if connected, wanted, status := h.hub.Report("nva-1"); connected || wanted != (desired.Position{Epoch: 1, Revision: 3}) || status == nil {
			t.Errorf("after the session: %v, %v, %v", connected, wanted, status)
		}
		h.stop()
		if err := <-h.ran; err != nil {
			t.Error(err)
		}
	})
}

func TestSessionsEnd(t *testing.T) {
	tests := []struct {
		name string
		key  model.Fingerprint
		do   func(t *testing.T, h *hubTest, p *pipe)
		want connect.Code
	}{
		{"nothing is said", "a", func(*testing.T, *hubTest, *pipe) {}, connect.CodeDeadlineExceeded},
		{"an empty message", "a", func(_ *testing.T, _ *hubTest, p *pipe) { p.in <- &v1.SessionRequest{} }, connect.CodeInvalidArgument},
		{"another certificate", "b", func(_ *testing.T, _ *hubTest, p *pipe) { p.in <- hello() }, connect.CodeUnauthenticated},
		{"the node is deleted", "a", func(t *testing.T, h *hubTest, p *pipe) {
			p.in <- hello()
			<-p.out
			s := samples(t, 2, "1400")
			delete(s.Documents, model.Key{Kind: model.KindNode, Name: "nva-1"})
			h.store.set(s)
		}, connect.CodeNotFound},
		{"the node is enrolled anew", "a", func(t *testing.T, h *hubTest, p *pipe) {
			p.in <- hello()
			<-p.out
			s := samples(t, 2, "1400")
			s.Enrolments["nva-1"] = model.Enrolment{Key: "b"}
			h.store.set(s)
		}, connect.CodeUnauthenticated},
		{"the controller stops", "a", func(_ *testing.T, h *hubTest, p *pipe) {
			p.in <- hello()
			<-p.out
			h.stop()
		}, connect.CodeUnavailable},
		{"the store fails", "a", func(_ *testing.T, h *hubTest, p *pipe) {
			p.in <- hello()
			<-p.out
			h.store.watch <- nil
		}, connect.CodeUnavailable},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := run(t)
				h.store.set(samples(t, 1, "1400"))
				p, done := h.serve(t, tt.key)
				tt.do(t, h, p)
				if err := <-done; connect.CodeOf(err) != tt.want {
					t.Errorf("the session ended with %v, want %s", err, tt.want)
				}
				if connected, _, _ := h.hub.Report("nva-1"); connected {
					t.Error("the node is connected still")
				}
				h.stop()
				if err := <-h.ran; (err != nil) != (tt.name == "the store fails") {
					t.Errorf("Run: %v", err)
				}
			})
		})
	}
}

// A session does not outlive the certificate that opened it.
func TestSessionEndsWithItsCertificate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := run(t)
		h.store.set(samples(t, 1, "1400"))
		p, done := newPipe(), make(chan error, 1)
		expires := time.Now().Add(7 * 24 * time.Hour)
		go func() {
			done <- h.hub.Serve(t.Context(), Peer{Node: "nva-1", Key: "a", Expires: expires, Deadlines: p}, p)
		}()
		p.in <- hello()
		<-p.out
		if err := <-done; connect.CodeOf(err) != connect.CodeUnauthenticated || !strings.Contains(err.Error(), "has ended") {
			t.Errorf("the session ended with %v", err)
		}
		if now := time.Now(); !now.Equal(expires) {
			t.Errorf("it ended at %s, want %s", now, expires)
		}
		h.stop()
		if err := <-h.ran; err != nil {
			t.Error(err)
		}
	})
}

// A certificate that was issued after the newest compilation is good.
func TestFreshEnrolmentIsNotEndedByAnOlderSnapshot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := run(t)
		h.store.set(samples(t, 1, "1400"))
		old, fresh := samples(t, 2, "1380"), samples(t, 3, "1380")
		fresh.Enrolments["nva-1"] = model.Enrolment{Key: "b"}
		h.store.now.Store(fresh)
		p, done := h.serve(t, "b")
		p.in <- hello()
		<-p.out
		h.store.watch <- old
		<-p.out
		h.store.set(fresh)
		synctest.Wait()
		if connected, _, _ := h.hub.Report("nva-1"); !connected {
			t.Error("the session was ended")
		}
		h.stop()
		if err := <-done; connect.CodeOf(err) != connect.CodeUnavailable {
			t.Error(err)
		}
		if err := <-h.ran; err != nil {
			t.Error(err)
		}
	})
}

func TestKeysOfOwnTunnelsOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := run(t)
		s := samples(t, 1, "1400")
		known := desired.PublicKey{7}
		s.Keys = map[model.TunnelEnd]desired.PublicKey{{Tunnel: "contoso/hq-weu/er-ams/secondary", Node: "nva-1"}: known}
		h.store.set(s)
		p, done := h.serve(t, "a")
		fresh := desired.PublicKey{8}
		p.in <- &v1.SessionRequest{Status: &v1.NodeStatus{Tunnels: []*v1.TunnelStatus{
			{Id: "contoso/hq-weu/er-ams/primary", Phase: 1, PublicKey: fresh[:]},
			{Id: "contoso/hq-weu/er-ams/secondary", Phase: 1, PublicKey: known[:]},
			{Id: "fabrikam/x/y/primary", Phase: 1, PublicKey: fresh[:]},
			{Id: "contoso/other/er-ams/primary", Phase: 1},
		}}}
		got := <-h.store.keys
		if len(got) != 1 || got["contoso/hq-weu/er-ams/primary"] != fresh {
			t.Errorf("kept %v, want the one new key of an own tunnel", got)
		}
		h.stop()
		<-p.out
		if err := errors.Join(<-done, <-h.ran); connect.CodeOf(err) != connect.CodeUnavailable {
			t.Error(err)
		}
	})
}

// What a snapshot has not changed is neither compiled nor encoded again.
func TestWorkFollowsChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := run(t)
		first := samples(t, 1, "1400")
		nodes := uint64(0)
		for k := range first.Documents {
			if k.Kind == model.KindNode {
				nodes++
			}
		}
		enrolled := *first
		enrolled.Revision = 2
		enrolled.Enrolments = map[string]model.Enrolment{"nva-1": {Serial: "b"}}
		added := *first
		added.Revision = 3
		added.Documents = maps.Clone(first.Documents)
		key := model.Key{Kind: model.KindNode, Name: "spare"}
		added.Documents[key] = model.Document{Key: key, Spec: &model.NodeSpec{
			Owner: model.OwnerProvider, Interfaces: []model.InterfaceSpec{{Name: "mgmt0", Role: model.RoleManagement}},
		}}
		for _, tt := range []struct {
			next *model.Snapshot
			want Work
		}{
			{first, Work{Snapshots: 1, Nodes: nodes, States: nodes}},
			{&enrolled, Work{Snapshots: 2, Nodes: nodes, States: nodes}},
			{&added, Work{Snapshots: 3, Nodes: nodes + 1, States: nodes + 1}},
			{samples(t, 4, "1400"), Work{Snapshots: 4, Nodes: nodes + 1, States: nodes + 1}},
			{samples(t, 5, "1360"), Work{Snapshots: 5, Nodes: 2*nodes + 1, States: 2*nodes + 1}},
		} {
			h.store.set(tt.next)
			synctest.Wait()
			if got := h.hub.Work(); got != tt.want {
				t.Errorf("at revision %d: %+v, want %+v", tt.next.Revision, got, tt.want)
			}
		}
		h.stop()
		if err := <-h.ran; err != nil {
			t.Error(err)
		}
	})
}
