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
	// sendTimeout is how long a peer may leave a state unread.
	sendTimeout = 30 * time.Second
)

// Stream is one node's end of a session: connect's bidirectional stream.
type Stream interface {
	Receive() (*v1.SessionRequest, error)
	Send(*v1.SessionResponse) error
}

// Peer is an authenticated node.
type Peer struct {
	Node string
	// Serial of its certificate, as in model.Enrolment.
	Serial string
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
	serial string
	// since is the revision at which the certificate was found to be good.
	since uint64
	news  chan struct{}
	ended chan struct{}
	once  sync.Once
	cause error
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

func errUnknownNode(name string) error {
	return connect.NewError(connect.CodeNotFound, fmt.Errorf("there is no node %q at this controller (any more): apply its Node document and enrol it again", name))
}

func errOldCertificate(name string) error {
	return connect.NewError(connect.CodeUnauthenticated, fmt.Errorf("this is not the current certificate of node %q: the node was enrolled anew or removed; enrol this host again if it is to be the node", name))
}

func errExpired(name string) error {
	return connect.NewError(connect.CodeUnauthenticated, fmt.Errorf("the certificate of node %q with which this session was opened has ended: enrol the node again", name))
}

var (
	// errOver is never seen: who ended the session gave the cause before.
	errOver     = connect.NewError(connect.CodeCanceled, errors.New("the session is over"))
	errStopping = connect.NewError(connect.CodeUnavailable, errors.New("the controller is stopping"))
	errReplaced = connect.NewError(connect.CodeAborted, errors.New("a newer session of this node has taken this one's place; if that happens again and again, two hosts have the same identity"))
)

// Serve runs a node's session until the peer or the controller ends it. The
// error is connect's, or nil when the peer closed the stream in order. Nothing
// of the stream is used after it returns.
func (h *Hub) Serve(ctx context.Context, peer Peer, stream Stream) error {
	s := &session{serial: peer.Serial, news: make(chan struct{}, 1), ended: make(chan struct{})}
	log := h.log.With("node", peer.Node, "address", peer.Address)
	ctx, cancel := context.WithCancel(ctx)
	opened, received := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(received)
		s.end(h.receive(ctx, peer, s, stream, opened))
	}()
	defer func() {
		// What the receiver blocks in is ended by the context (the store) or
		// by the deadline (the peer).
		cancel()
		_ = peer.Deadlines.SetReadDeadline(time.Unix(1, 0))
		<-received
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
	log.Info("session opened")
	began := time.Now()
	s.end(h.send(ctx, peer, s, stream))
	err := answer(ctx, s.cause)
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
			if err := peer.Deadlines.SetWriteDeadline(time.Now().Add(sendTimeout)); err != nil {
				return connect.NewError(connect.CodeInternal, fmt.Errorf("bound the sending of state %s: %w", newest.position, err))
			}
			if err := stream.Send(&v1.SessionResponse{State: envelope}); err != nil {
				return err
			}
			if err := peer.Deadlines.SetWriteDeadline(time.Time{}); err != nil {
				return connect.NewError(connect.CodeInternal, fmt.Errorf("lift the bound on sending: %w", err))
			}
			sent = newest
			h.log.Debug("state sent", "node", peer.Node, "position", newest.position, "bytes", len(newest.bytes))
		}
		select {
		case <-s.news:
		case <-s.ended:
			return s.cause
		case <-h.stopped:
			return errStopping
		case <-ctx.Done():
			return connect.NewError(connect.CodeCanceled, ctx.Err())
		}
	}
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

// receive takes statuses until the stream ends. It closes opened after the
// first, with which the session becomes the node's.
func (h *Hub) receive(ctx context.Context, peer Peer, s *session, stream Stream, opened chan<- struct{}) error {
	for first := true; ; first = false {
		m, err := stream.Receive()
		if err != nil {
			return err
		}
		if m.GetStatus() == nil {
			return connect.NewError(connect.CodeInvalidArgument, errors.New("status: is missing; every message carries the whole status"))
		}
		status, err := desired.StatusFromWire(m.GetStatus())
		if err != nil {
			return connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("status: %w", err))
		}
		if first {
			if err := h.join(ctx, peer, s); err != nil {
				return err
			}
			close(opened)
		}
		keys, err := h.take(peer.Node, s, &status)
		if err != nil {
			return err
		}
		if len(keys) == 0 {
			continue
		}
		if err := h.store.PutKeys(ctx, peer.Node, keys); err != nil {
			if ctx.Err() == nil {
				h.log.Error("reported keys were not kept", "node", peer.Node, "error", err)
			}
			return connect.NewError(connect.CodeUnavailable, errors.New("the controller could not keep the reported keys; its log says why"))
		}
		h.log.Info("keys reported", "node", peer.Node, "tunnels", len(keys))
	}
}

// join makes a session the node's, in place of an older one.
func (h *Hub) join(ctx context.Context, peer Peer, s *session) error {
	select {
	case <-h.compiled:
	case <-h.stopped:
		return errStopping
	case <-ctx.Done():
		return ctx.Err()
	}
	// Asked of the store and not of the last compilation: a node connects right
	// after it has enrolled.
	now, err := h.store.Snapshot(ctx)
	if err != nil {
		if ctx.Err() == nil {
			h.log.Error("the enrolment of a node could not be read", "node", peer.Node, "error", err)
		}
		return connect.NewError(connect.CodeUnavailable, errors.New("the controller could not read its store; its log says why"))
	}
	if _, ok := now.Documents[model.Key{Kind: model.KindNode, Name: peer.Node}]; !ok {
		return errUnknownNode(peer.Node)
	}
	if now.Enrolments[peer.Node].Serial != peer.Serial {
		return errOldCertificate(peer.Node)
	}
	s.since = now.Revision
	h.mu.Lock()
	defer h.mu.Unlock()
	// An enrolment that was compiled since then found no session to end.
	if h.snapshot.Revision > now.Revision && h.snapshot.Enrolments[peer.Node].Serial != peer.Serial {
		return errOldCertificate(peer.Node)
	}
	n := h.nodes[peer.Node]
	if n == nil {
		// Its document is newer than the last compilation, or went just now.
		return connect.NewError(connect.CodeUnavailable, errors.New("the node's state is not compiled yet; try again"))
	}
	if n.session != nil {
		h.log.Warn("a newer session takes the place of one that is still open", "node", peer.Node, "address", peer.Address)
		n.session.end(errReplaced)
	}
	n.session = s
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

// take keeps a status and returns the keys in it that are news.
func (h *Hub) take(name string, s *session, status *desired.Status) (map[string]desired.PublicKey, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	n := h.nodes[name]
	if n == nil || n.session != s {
		return nil, errOver
	}
	if r := status.Rejection; r != nil && (n.status == nil || n.status.Rejection == nil || *n.status.Rejection != *r) {
		h.log.Warn("node refused a state", "node", name, "position", r.Position, "reason", r.Reason)
	}
	n.status = status
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
	return news, nil
}
