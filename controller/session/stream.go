package session

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"connectrpc.com/connect"

	"github.com/circuitseal/circuitseal/controller/model"
	v1 "github.com/circuitseal/circuitseal/proto/circuitseal/v1"
	"github.com/circuitseal/circuitseal/proto/desired"
)

const (
	// openTimeout is how long a peer may take for its first message.
	openTimeout = 10 * time.Second
	// sendTimeout is how long a peer may leave a state unread, and cutTimeout how
	// long it may do so once its session has ended.
	sendTimeout = 30 * time.Second
	cutTimeout  = 2 * time.Second
)

// Stream is one node's end of a session: connect's bidirectional stream.
type Stream interface {
	Receive() (*v1.SessionRequest, error)
	Send(*v1.SessionResponse) error
}

// Peer is an authenticated node.
type Peer struct {
	Node string
	// Key is the one in its certificate, as in model.Enrolment.
	Key model.Fingerprint
	// Expires is when the certificate ends, and the session with it.
	Expires time.Time
	// Address is for logs.
	Address string
	// Deadlines bound the stream's calls.
	Deadlines Deadlines
}

// Deadlines let the hub end a call on the stream: those of an
// http.ResponseController. A zero time is none.
type Deadlines interface {
	SetReadDeadline(time.Time) error
	SetWriteDeadline(time.Time) error
}

// session is one open stream.
type session struct {
	key     model.Fingerprint
	address string
	// since is the revision at which the key was found to be good.
	since uint64
	news  chan struct{}
	// questions are nonces to be sent as probes.
	questions chan []byte
	ended     chan struct{}
	once      sync.Once
	cause     error

	// writing guards cut, and the deadline for writing with it: once cut is set
	// nobody sets a later one.
	writing sync.Mutex
	cut     bool

	// pending is the last status from before the session was the node's;
	// guarded by Hub.mu.
	pending *desired.Status
}

func (s *session) wake() {
	select {
	case s.news <- struct{}{}:
	default:
	}
}

// end ends the session with a cause, unless it has ended. It does not block.
func (s *session) end(cause error) {
	s.once.Do(func() {
		s.cause = cause
		close(s.ended)
	})
}

// Judge says whether a key is a node's at this snapshot; the error is connect's
// and tells the node what to do.
func Judge(s *model.Snapshot, node string, key model.Fingerprint) error {
	if r, ok := s.Revocations[key]; ok {
		return errRevoked(r)
	}
	if _, ok := s.Documents[model.Key{Kind: model.KindNode, Name: node}]; !ok {
		return connect.NewError(connect.CodeNotFound, fmt.Errorf("there is no node %q at this controller (any more): apply its Node document and enrol it again", node))
	}
	if key == "" || s.Enrolments[node].Key != key {
		return connect.NewError(connect.CodeUnauthenticated, fmt.Errorf("this host does not have the present key of node %q: the node was enrolled anew elsewhere, or the controller was restored from a backup; enrol this host again if it is to be the node", node))
	}
	return nil
}

func errRevoked(r model.Revocation) error {
	what, then := "was revoked", "its circuits stay closed; enrol this host with a new token and --force if it is to be the node again, after `circuitseal-agent remove --purge` if others may have its keys"
	if r.Decommissioned {
		what, then = "was decommissioned", "its circuits stay closed until `circuitseal-agent remove` takes the agent off this host"
	}
	return connect.NewError(connect.CodePermissionDenied, fmt.Errorf("node %q %s at %s: %s; %s", r.Node, what, r.Time.UTC().Format(time.RFC3339), r.Reason, then))
}

func errExpired(name string) error {
	return connect.NewError(connect.CodeUnauthenticated, fmt.Errorf("the certificate of node %q with which this session was opened has ended: renew it, which agents do by themselves", name))
}

var (
	// errOver is never seen: who ended the session gave the cause before.
	errOver     = connect.NewError(connect.CodeCanceled, errors.New("the session is over"))
	errStopping = connect.NewError(connect.CodeUnavailable, errors.New("the controller is stopping"))
	errReplaced = connect.NewError(connect.CodeAborted, errors.New("a newer session of this node has taken this one's place"))
)

// Serve runs a node's session until the peer or the controller ends it. The
// error is connect's, or nil when the peer closed the stream in order. Nothing
// of the stream is used after it returns.
func (h *Hub) Serve(ctx context.Context, peer Peer, stream Stream) error {
	s := &session{
		key: peer.Key, address: peer.Address,
		news: make(chan struct{}, 1), questions: make(chan []byte, 4), ended: make(chan struct{}),
	}
	log := h.log.With("node", peer.Node, "address", peer.Address)
	ctx, cancel := context.WithCancel(ctx)
	opened, received := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(received)
		s.end(h.receive(ctx, peer, s, stream, opened))
	}()
	cutter := make(chan struct{})
	go func() {
		defer close(cutter)
		select {
		case <-s.ended:
			s.cutOff(peer)
		case <-ctx.Done():
		}
	}()
	defer func() {
		// What the receiver blocks in is ended by the context (the store) or
		// by the deadline (the peer).
		cancel()
		_ = peer.Deadlines.SetReadDeadline(time.Unix(1, 0))
		<-received
		<-cutter
		h.leave(peer.Node, s)
	}()

	timer := time.NewTimer(openTimeout)
	defer timer.Stop()
	select {
	case <-opened:
	case <-s.ended:
		return answer(ctx, s.cause)
	case <-h.stopped:
		return errStopping
	case <-ctx.Done():
		return connect.NewError(connect.CodeCanceled, ctx.Err())
	case <-timer.C:
		return connect.NewError(connect.CodeDeadlineExceeded, fmt.Errorf("no status came within %s", openTimeout))
	}
	if !peer.Expires.IsZero() {
		defer time.AfterFunc(time.Until(peer.Expires), func() { s.end(errExpired(peer.Node)) }).Stop()
	}
	keys, err := h.join(ctx, peer, s)
	if err != nil {
		s.end(err)
		return answer(ctx, s.cause)
	}
	log.Info("session opened")
	began := time.Now()
	if err := h.keep(ctx, peer, keys); err != nil {
		s.end(err)
	}
	s.end(h.send(ctx, peer, s, stream))
	err = answer(ctx, s.cause)
	log.Info("session closed", "after", time.Since(began).Round(time.Millisecond), "cause", reason(err))
	return err
}

// answer is what the peer is told when the session ends for a cause.
func answer(ctx context.Context, cause error) error {
	switch {
	case errors.Is(cause, io.EOF):
		return nil
	case ctx.Err() != nil && connect.CodeOf(cause) == connect.CodeUnknown:
		return connect.NewError(connect.CodeCanceled, ctx.Err())
	}
	return cause
}

func reason(err error) string {
	if c := new(connect.Error); errors.As(err, &c) {
		return c.Message()
	}
	if err != nil {
		return err.Error()
	}
	return "the node closed it"
}

// send pushes the newest state, and only that, until something ends the session.
func (h *Hub) send(ctx context.Context, peer Peer, s *session, stream Stream) error {
	var sent *state
	for {
		if newest := h.newest(peer.Node, s); newest != nil && newest != sent {
			envelope, err := h.seal(peer.Node, newest)
			if err != nil {
				h.log.Error("a state could not be signed", "node", peer.Node, "position", newest.position, "error", err)
				return connect.NewError(connect.CodeInternal, errors.New("the controller could not sign the state; its log says why"))
			}
			if err := s.write(peer, stream, &v1.SessionResponse{State: envelope}); err != nil {
				return err
			}
			sent = newest
			h.log.Debug("state sent", "node", peer.Node, "position", newest.position, "bytes", len(newest.bytes))
		}
		select {
		case <-s.news:
		case nonce := <-s.questions:
			if err := s.write(peer, stream, &v1.SessionResponse{Probe: nonce}); err != nil {
				return err
			}
		case <-s.ended:
			return s.cause
		case <-h.stopped:
			return errStopping
		case <-ctx.Done():
			return connect.NewError(connect.CodeCanceled, ctx.Err())
		}
	}
}

// write sends a message, and not for long: less so once the session has ended.
func (s *session) write(peer Peer, stream Stream, m *v1.SessionResponse) error {
	bound := func(t time.Time) error {
		s.writing.Lock()
		defer s.writing.Unlock()
		if s.cut {
			return s.cause
		}
		if err := peer.Deadlines.SetWriteDeadline(t); err != nil {
			return connect.NewError(connect.CodeInternal, fmt.Errorf("bound the sending of a message: %w", err))
		}
		return nil
	}
	if err := bound(time.Now().Add(sendTimeout)); err != nil {
		return err
	}
	if err := stream.Send(m); err != nil {
		return err
	}
	return bound(time.Time{})
}

// cutOff keeps a peer that does not read from staying after its session's end.
func (s *session) cutOff(peer Peer) {
	s.writing.Lock()
	defer s.writing.Unlock()
	s.cut = true
	_ = peer.Deadlines.SetWriteDeadline(time.Now().Add(cutTimeout))
}

// newest is the state to send; nil when the session is not the node's any more.
func (h *Hub) newest(name string, s *session) *state {
	h.mu.Lock()
	defer h.mu.Unlock()
	if n := h.nodes[name]; n != nil && n.session == s {
		return n.newest
	}
	return nil
}

// receive takes statuses and answers to probes until the stream ends. It closes
// opened after the first status.
func (h *Hub) receive(ctx context.Context, peer Peer, s *session, stream Stream, opened chan<- struct{}) error {
	for first := true; ; {
		m, err := stream.Receive()
		if err != nil {
			return err
		}
		if m.GetStatus() == nil && (first || len(m.GetProbeAnswer()) == 0) {
			return connect.NewError(connect.CodeInvalidArgument, errors.New("status: is missing; every message carries the whole status, or, after the first, an answer to a probe"))
		}
		if a := m.GetProbeAnswer(); len(a) > 0 {
			h.answered(peer.Node, s, a)
		}
		if m.GetStatus() == nil {
			continue
		}
		status, err := desired.StatusFromWire(m.GetStatus())
		if err != nil {
			return connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("status: %w", err))
		}
		keys, err := h.take(peer.Node, s, &status)
		if err != nil {
			return err
		}
		if err := h.keep(ctx, peer, keys); err != nil {
			return err
		}
		if first {
			first = false
			close(opened)
		}
	}
}

// keep stores keys that a node has reported.
func (h *Hub) keep(ctx context.Context, peer Peer, keys map[string]desired.PublicKey) error {
	if len(keys) == 0 {
		return nil
	}
	if err := h.store.PutKeys(ctx, peer.Node, keys); err != nil {
		if ctx.Err() == nil {
			h.log.Error("reported keys were not kept", "node", peer.Node, "error", err)
		}
		return connect.NewError(connect.CodeUnavailable, errors.New("the controller could not keep the reported keys; its log says why"))
	}
	h.log.Info("keys reported", "node", peer.Node, "tunnels", len(keys))
	return nil
}

// leave ends a node's being connected, unless a newer session has taken over.
func (h *Hub) leave(name string, s *session) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if n := h.nodes[name]; n != nil && n.session == s {
		n.session = nil
	}
}

// take keeps a status and returns the keys in it that are news. One that comes
// before the session is the node's is kept for then.
func (h *Hub) take(name string, s *session, status *desired.Status) (map[string]desired.PublicKey, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	select {
	case <-s.ended:
		return nil, errOver
	default:
	}
	n := h.nodes[name]
	if n == nil || n.session != s {
		s.pending = status
		return nil, nil
	}
	return h.adopt(name, n, status), nil
}

// adopt is called with mu held.
func (h *Hub) adopt(name string, n *node, status *desired.Status) map[string]desired.PublicKey {
	if r := status.Rejection; r != nil && (n.status == nil || n.status.Rejection == nil || *n.status.Rejection != *r) {
		h.log.Warn("node refused a state", "node", name, "position", r.Position, "reason", r.Reason)
	}
	n.status = status
	n.presence.Seen = time.Now()
	var news map[string]desired.PublicKey
	for _, t := range status.Tunnels {
		if t.PublicKey.IsZero() || h.snapshot.Keys[model.TunnelEnd{Tunnel: t.ID, Node: name}] == t.PublicKey {
			continue
		}
		// A node speaks for its own tunnels only. It may lag behind its state,
		// so a tunnel that is not there any more is no offence.
		if !n.newest.tunnels[t.ID] {
			h.log.Debug("key for a tunnel that the node's state does not name", "node", name, "tunnel", t.ID)
			continue
		}
		if news == nil {
			news = map[string]desired.PublicKey{}
		}
		news[t.ID] = t.PublicKey
	}
	return news
}
