package controller_test

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	v1 "github.com/circuitseal/circuitseal/proto/circuitseal/v1"
	"github.com/circuitseal/circuitseal/proto/desired"
)

// agent is one node's session, as an agent would hold it.
type agent struct {
	t      *testing.T
	node   string
	stream *connect.BidiStreamForClient[v1.SessionRequest, v1.SessionResponse]
	cancel context.CancelFunc
	states chan received
	// ended has the error with which the stream ended.
	ended chan error
	// probes are what the controller has asked; who is alive answers.
	probes  chan []byte
	alive   atomic.Bool
	sending sync.Mutex
}

type received struct {
	header desired.Header
	state  desired.State
}

func (r *running) session(t *testing.T, node string, cert *tls.Certificate) *agent {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	a := &agent{t: t, node: node, states: make(chan received, 64), ended: make(chan error, 1), probes: make(chan []byte, 64)}
	a.stream = r.agents(cert).Session(ctx)
	a.cancel = func() {
		cancel()
		// The context alone does not end a stream whose request is open.
		_ = a.stream.CloseRequest()
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			m, err := a.stream.Receive()
			if err != nil {
				a.ended <- err
				return
			}
			if p := m.GetProbe(); p != nil {
				a.probes <- p
				if a.alive.Load() {
					a.send(&v1.SessionRequest{ProbeAnswer: p})
				}
			}
			if m.GetState() == nil {
				continue
			}
			h, s, err := desired.OpenEnvelope(m.GetState(), r.root, node)
			if err != nil {
				t.Errorf("the state of %s: %v", node, err)
				continue
			}
			a.states <- received{h, s}
		}
	}()
	t.Cleanup(func() {
		a.cancel()
		<-done
		_ = a.stream.CloseResponse()
	})
	return a
}

func (a *agent) report(status *v1.NodeStatus) {
	a.t.Helper()
	status.Time = timestamppb.Now()
	a.send(&v1.SessionRequest{Status: status})
}

func (a *agent) send(m *v1.SessionRequest) {
	a.t.Helper()
	a.sending.Lock()
	defer a.sending.Unlock()
	if err := a.stream.Send(m); err != nil && !errors.Is(err, io.EOF) {
		a.t.Errorf("send as %s: %v", a.node, err)
	}
}

// next is the next state that arrives.
func (a *agent) next() received {
	a.t.Helper()
	select {
	case s := <-a.states:
		return s
	case err := <-a.ended:
		a.ended <- err
		a.t.Fatalf("the session of %s ended: %v", a.node, err)
	case <-time.After(patience):
		a.t.Fatalf("no state for %s", a.node)
	}
	return received{}
}

// end is how the session ended.
func (a *agent) end() error {
	a.t.Helper()
	select {
	case err := <-a.ended:
		a.ended <- err
		return err
	case <-time.After(patience):
		a.t.Fatalf("the session of %s does not end", a.node)
	}
	return nil
}

func (s received) tunnel(t *testing.T, id string) desired.Tunnel {
	t.Helper()
	for _, section := range s.state.Sections {
		for _, g := range section.Groups {
			for _, tunnel := range g.Tunnels {
				if tunnel.ID == id {
					return tunnel
				}
			}
		}
	}
	t.Fatalf("state %s has no tunnel %s", s.header.Position, id)
	return desired.Tunnel{}
}

const (
	primary   = "contoso/hq-weu/er-ams/primary"
	secondary = "contoso/hq-weu/er-ams/secondary"
)

func key(b byte) []byte { return slices.Repeat([]byte{b}, 32) }

func tunnelUp(id string, public []byte) *v1.TunnelStatus {
	return &v1.TunnelStatus{Id: id, Phase: v1.TunnelPhase_TUNNEL_PHASE_UP, Backend: "wireguard-userspace", PublicKey: public}
}

func (o operator) getStatus(t *testing.T) *v1.GetStatusResponse {
	t.Helper()
	a, err := o.status.GetStatus(t.Context(), connect.NewRequest(&v1.GetStatusRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	return a.Msg
}

func said(s *v1.GetStatusResponse, sentence string) bool {
	return slices.ContainsFunc(s.GetConnections()[0].GetProblems(), func(p string) bool { return strings.Contains(p, sentence) })
}

func TestSessionEndToEnd(t *testing.T) {
	t.Parallel()
	r := start(t, t.TempDir()+"/data")
	o := r.operator()
	o.apply(t, samples(t)...)
	if s := o.getStatus(t); !said(s, "node nva-1 is not enrolled") || !said(s, "tunnel "+primary+" is pending: node nva-1 has not reported its key") {
		t.Errorf("before enrolment: %v", s.GetConnections())
	}
	nva, prem := r.session(t, "nva-1", r.enrol("nva-1")), r.session(t, "prem-1", r.enrol("prem-1"))
	if s := o.getStatus(t); !said(s, "node nva-1 is not connected") {
		t.Errorf("before the sessions: %v", s.GetConnections())
	}
	nva.report(&v1.NodeStatus{Version: "test"})
	prem.report(&v1.NodeStatus{Version: "test"})
	first, peers := nva.next(), prem.next()
	if !first.tunnel(t, primary).Pending() || !peers.tunnel(t, primary).Pending() {
		t.Error("a tunnel has a key that nobody reported")
	}

	// A key goes to the peer, and only where the state names the tunnel.
	nva.report(&v1.NodeStatus{Tunnels: []*v1.TunnelStatus{
		{Id: primary, Phase: v1.TunnelPhase_TUNNEL_PHASE_PENDING, PublicKey: key(1)},
		{Id: "fabrikam/other/er-x/primary", Phase: v1.TunnelPhase_TUNNEL_PHASE_PENDING, PublicKey: key(9)},
	}})
	got := prem.next()
	if k := got.tunnel(t, primary).WireGuard.PeerKey; k != (desired.PublicKey)(key(1)) {
		t.Errorf("the peer's state has the key %s", k)
	}
	if got.header.Position.Compare(peers.header.Position) <= 0 {
		t.Errorf("position %s follows %s", got.header.Position, peers.header.Position)
	}
	if !got.tunnel(t, secondary).Pending() {
		t.Error("the other tunnel has a key, too")
	}

	// Both ends up is up; one end is not.
	nva.report(&v1.NodeStatus{Tunnels: []*v1.TunnelStatus{tunnelUp(primary, key(1)), tunnelUp(secondary, key(2))}})
	prem.next()
	prem.report(&v1.NodeStatus{Tunnels: []*v1.TunnelStatus{
		tunnelUp(primary, key(3)),
		{Id: secondary, Phase: v1.TunnelPhase_TUNNEL_PHASE_DOWN, PublicKey: key(4), Problem: "no handshake"},
	}})
	newest := nva.next()
	eventually(t, "one tunnel is up", func() bool {
		c := o.getStatus(t).GetConnections()[0]
		return c.GetTunnelsUp() == 1 && c.GetTunnelsTotal() == 2
	})
	if s := o.getStatus(t); !said(s, "tunnel "+secondary+" is down at node prem-1: no handshake") {
		t.Errorf("a tunnel that is down: %v", s.GetConnections())
	}

	// A refusal is seen by the operator.
	nva.report(&v1.NodeStatus{Rejection: &v1.Rejection{Position: newest.header.Position.ToWire(), Reason: "no such interface"}})
	eventually(t, "the refusal is in the status", func() bool {
		s := o.getStatus(t)
		i := slices.IndexFunc(s.GetNodes(), func(n *v1.NodeReport) bool { return n.GetNode() == "nva-1" })
		return s.GetNodes()[i].GetStatus().GetRejection().GetReason() == "no such interface" && said(s, "node nva-1 has refused state")
	})

	// A change reaches those whom it concerns, a node that goes is told.
	nva.cancel()
	eventually(t, "the node is not connected", func() bool { return said(o.getStatus(t), "node nva-1 is not connected; it last reported") })
}

func TestSessionReplacement(t *testing.T) {
	t.Parallel()
	r := start(t, t.TempDir()+"/data")
	o := r.operator()
	o.apply(t, samples(t)...)
	cert := r.enrol("nva-1")
	first := r.session(t, "nva-1", cert)
	first.report(&v1.NodeStatus{})
	first.next()
	second := r.session(t, "nva-1", cert)
	second.report(&v1.NodeStatus{})
	second.next()
	if err := first.end(); connect.CodeOf(err) != connect.CodeAborted || !strings.Contains(err.Error(), "newer session") {
		t.Errorf("the first session ended with %v", err)
	}
	// The end of the first does not disconnect the second.
	if s := o.getStatus(t); !s.GetNodes()[0].GetConnected() {
		t.Error("the node is not connected")
	}
	// A new enrolment ends what the old certificate opened, and keeps it out.
	fresh := r.enrol("nva-1")
	if err := second.end(); connect.CodeOf(err) != connect.CodeUnauthenticated {
		t.Errorf("the old certificate's session ended with %v", err)
	}
	old := r.session(t, "nva-1", cert)
	old.report(&v1.NodeStatus{})
	if err := old.end(); connect.CodeOf(err) != connect.CodeUnauthenticated || !strings.Contains(err.Error(), "does not have the present key") {
		t.Errorf("the old certificate: %v", err)
	}
	third := r.session(t, "nva-1", fresh)
	third.report(&v1.NodeStatus{})
	third.next()
}

func TestSessionRefusesMalformedStatus(t *testing.T) {
	t.Parallel()
	r := start(t, t.TempDir()+"/data")
	r.operator().apply(t, samples(t)...)
	cert := r.enrol("nva-1")
	tests := []struct {
		name   string
		status *v1.NodeStatus
		code   connect.Code
		says   string
	}{
		{"short key", &v1.NodeStatus{Tunnels: []*v1.TunnelStatus{{Id: primary, Phase: 1, PublicKey: []byte{1}}}}, connect.CodeInvalidArgument, "tunnels[0].public_key"},
		{"more than a message may have", &v1.NodeStatus{Problems: slices.Repeat([]string{strings.Repeat("x", 1000)}, 1200)}, connect.CodeResourceExhausted, ""},
		{"too many", &v1.NodeStatus{Problems: make([]string, 5000)}, connect.CodeInvalidArgument, "problems"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			a := r.session(t, "nva-1", cert)
			a.report(tt.status)
			if err := a.end(); connect.CodeOf(err) != tt.code || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("got %v, want %s that says %q", err, tt.code, tt.says)
			}
		})
	}
}

// Positions only rise, over restarts of the controller too, and every node gets
// its state again when it returns.
func TestPositionsRiseOverRestarts(t *testing.T) {
	t.Parallel()
	dir := t.TempDir() + "/data"
	r := start(t, dir)
	r.operator().apply(t, samples(t)...)
	cert := r.enrol("nva-1")
	a := r.session(t, "nva-1", cert)
	a.report(&v1.NodeStatus{})
	before := a.next()
	began := time.Now()
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took > 30*time.Second {
		t.Errorf("stopping took %s", took)
	}
	if err := a.end(); connect.CodeOf(err) != connect.CodeUnavailable {
		t.Errorf("the session ended with %v", err)
	}
	again := start(t, dir)
	if !again.root.Equal(r.root) {
		t.Fatal("the root is another one")
	}
	b := again.session(t, "nva-1", cert)
	b.report(&v1.NodeStatus{Acknowledged: before.header.Position.ToWire()})
	after := b.next()
	if after.header.Position.Compare(before.header.Position) <= 0 {
		t.Errorf("after a restart the position is %s, before %s", after.header.Position, before.header.Position)
	}
	if !after.state.Equal(before.state) {
		t.Error("the state changed by itself")
	}
}

// A change that does not concern a node is not sent to it.
func TestOnlyChangesAreSent(t *testing.T) {
	t.Parallel()
	r := start(t, t.TempDir()+"/data")
	o := r.operator()
	o.apply(t, samples(t)...)
	a := r.session(t, "nva-1", r.enrol("nva-1"))
	a.report(&v1.NodeStatus{})
	first := a.next()
	o.apply(t, &v1.Source{Name: "x", Text: "apiVersion: circuitseal.io/v1\nkind: Customer\nmetadata: {name: fabrikam}\nspec: {model: connect-to}\n"})
	text := strings.Replace(samples(t)[1].GetText(), "protocol: wireguard", "protocol: wireguard\n  pathMTU: 1380", 1)
	changed := o.apply(t, &v1.Source{Name: "y", Text: text})
	next := a.next()
	if next.header.Position.Revision != changed.GetRevision() {
		t.Errorf("after %s came %s, want revision %d", first.header.Position, next.header.Position, changed.GetRevision())
	}
	if next.tunnel(t, primary).MTU >= first.tunnel(t, primary).MTU {
		t.Error("the new state is the old one")
	}
}

// A peer that is gone without a word is found by pings. The way to it is cut in
// the middle, so that no kernel says that it is gone.
func TestDeadPeerIsFound(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for pings to stay unanswered")
	}
	t.Parallel()
	r := start(t, t.TempDir()+"/data")
	o := r.operator()
	o.apply(t, samples(t)...)
	cert := r.enrol("nva-1")
	way := newWay(t, strings.TrimPrefix(r.url, "https://"))
	direct := r.url
	r.url = "https://" + way.address()
	a := r.session(t, "nva-1", cert)
	r.url = direct
	a.report(&v1.NodeStatus{})
	a.next()
	way.cut.Store(true)
	eventually(t, "a dead peer is found", func() bool { return !o.getStatus(t).GetNodes()[0].GetConnected() })
}

// way carries bytes between a client and a server until it is cut.
type way struct {
	net.Listener
	cut atomic.Bool
}

func newWay(t *testing.T, to string) *way {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &way{Listener: l}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			near, err := l.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial("tcp", to)
			if err != nil {
				_ = near.Close()
				return
			}
			defer func() { _ = near.Close(); _ = far.Close() }()
			wg.Go(func() { w.carry(far, near) })
			wg.Go(func() { w.carry(near, far) })
		}
	})
	t.Cleanup(func() { _ = l.Close(); wg.Wait() })
	return w
}

func (w *way) address() string { return w.Addr().String() }

// carry swallows what comes once the way is cut.
func (w *way) carry(to, from net.Conn) {
	b := make([]byte, 32<<10)
	for {
		n, err := from.Read(b)
		if err != nil {
			if !w.cut.Load() {
				_ = to.Close()
			}
			return
		}
		if w.cut.Load() {
			continue
		}
		if _, err := to.Write(b[:n]); err != nil {
			return
		}
	}
}
