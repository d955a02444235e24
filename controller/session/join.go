package session

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"connectrpc.com/connect"

	"github.com/circuitseal/circuitseal/controller/model"
	"github.com/circuitseal/circuitseal/proto/desired"
)

const (
	// probeTimeout is how long a session has to show that it is alive when
	// another one wants its place. An answer needs no work at the node.
	probeTimeout = 3 * time.Second
	nonceSize    = 16
	// alarmEvery bounds how often the same alarm is logged: who is refused
	// tries again.
	alarmEvery = time.Minute
)

// Presence is where a node was last seen.
type Presence struct {
	Connected bool
	// Address of the present session or of the last one; "" for none since the
	// controller started.
	Address string
	// Seen is when it last said something, by the controller's clock.
	Seen time.Time
	// Duplicate is set once two hosts have used the node's identity at once.
	Duplicate *Duplicate
}

// Duplicate is two hosts with one identity, as last seen.
type Duplicate struct {
	// Holder has the session, Refused wanted it: addresses.
	Holder, Refused string
	Last            time.Time
	// logged is when the log was last told.
	logged time.Time
}

// Presence is where a node was last seen; the zero value for an unknown one.
func (h *Hub) Presence(name string) Presence {
	h.mu.Lock()
	defer h.mu.Unlock()
	n := h.nodes[name]
	if n == nil {
		return Presence{}
	}
	p := n.presence
	p.Connected = n.session != nil
	if p.Duplicate != nil {
		d := *p.Duplicate
		p.Duplicate = &d
	}
	return p
}

// probe is a question to the session that a candidate wants to replace.
type probe struct {
	candidate *session
	// same is closed when the candidate itself knows the answer, elsewhere when
	// another stream does.
	same, elsewhere chan struct{}
	told            bool
}

// answered takes the answer to a probe, wherever it comes.
func (h *Hub) answered(name string, s *session, nonce []byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	n := h.nodes[name]
	if n == nil {
		return
	}
	p := n.probes[string(nonce)]
	if p == nil || p.told {
		return
	}
	p.told = true
	if p.candidate == s {
		close(p.same)
		return
	}
	close(p.elsewhere)
}

// join makes a session the node's. One that is there already is asked whether it
// is alive: it is replaced when it is not, or when the candidate can say what was
// asked, which only the very process that holds both can; else it stays, and
// the candidate is refused. So nobody who has stolen a key takes a session from
// its owner, and a dead one keeps nobody out. It returns the keys that the node
// has reported meanwhile.
func (h *Hub) join(ctx context.Context, peer Peer, s *session) (map[string]desired.PublicKey, error) {
	select {
	case <-h.compiled:
	case <-s.ended:
		return nil, s.cause
	case <-h.stopped:
		return nil, errStopping
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	// Asked of the store and not of the last compilation: a node connects right
	// after it has enrolled.
	now, err := h.store.Snapshot(ctx)
	if err != nil {
		if ctx.Err() == nil {
			h.log.Error("the enrolment of a node could not be read", "node", peer.Node, "error", err)
		}
		return nil, connect.NewError(connect.CodeUnavailable, errors.New("the controller could not read its store; its log says why"))
	}
	if err := Judge(now, peer.Node, peer.Key); err != nil {
		return nil, err
	}
	if !h.knows(peer.Node) {
		// It was applied just now and is not compiled yet.
		if err := h.Reached(ctx, now.Revision); err != nil {
			return nil, connect.NewError(connect.CodeUnavailable, err)
		}
	}
	s.since = now.Revision
	var dead *session
	for {
		old, keys, err := h.install(peer, s, dead)
		if err != nil || old == nil {
			return keys, err
		}
		if err := h.ask(ctx, peer, s, old); err != nil {
			return nil, err
		}
		dead = old
	}
}

func (h *Hub) knows(node string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.nodes[node] != nil
}

// install makes a session the node's if nothing is in its place but dead; else
// it returns what is.
func (h *Hub) install(peer Peer, s, dead *session) (*session, map[string]desired.PublicKey, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	// What was compiled since then found no session to end.
	if h.snapshot.Revision > s.since {
		if err := Judge(h.snapshot, peer.Node, peer.Key); err != nil {
			return nil, nil, err
		}
	}
	n := h.nodes[peer.Node]
	if n == nil {
		return nil, nil, connect.NewError(connect.CodeUnavailable, errors.New("the node's state is not compiled yet; try again"))
	}
	if n.session != nil && n.session != dead {
		return n.session, nil, nil
	}
	if n.session != nil {
		n.session.end(errReplaced)
	}
	n.session = s
	n.presence.Address = peer.Address
	return nil, h.adopt(peer.Node, n, s.pending), nil
}

// ask returns nil when the candidate may replace the old session.
func (h *Hub) ask(ctx context.Context, peer Peer, s, old *session) error {
	nonce := make([]byte, nonceSize)
	// It never fails: see crypto/rand.Read.
	_, _ = rand.Read(nonce)
	p := &probe{candidate: s, same: make(chan struct{}), elsewhere: make(chan struct{})}
	h.mu.Lock()
	n := h.nodes[peer.Node]
	if n == nil || n.session != old {
		h.mu.Unlock()
		return nil
	}
	if n.probes == nil {
		n.probes = map[string]*probe{}
	}
	n.probes[string(nonce)] = p
	h.mu.Unlock()
	defer func() {
		h.mu.Lock()
		delete(n.probes, string(nonce))
		h.mu.Unlock()
	}()
	select {
	case old.questions <- nonce:
	default:
		// It has not taken earlier ones, which is no sign of life.
	}
	timer := time.NewTimer(probeTimeout)
	defer timer.Stop()
	select {
	case <-p.same:
		h.log.Debug("a node moves to another session", "node", peer.Node, "address", peer.Address)
		return nil
	case <-p.elsewhere:
		return h.duplicate(ctx, peer, old)
	case <-timer.C:
		h.log.Warn("a new session takes the place of one that does not answer", "node", peer.Node, "address", peer.Address, "before", old.address)
		return nil
	case <-old.ended:
		return nil
	case <-s.ended:
		return s.cause
	case <-h.stopped:
		return errStopping
	case <-ctx.Done():
		return connect.NewError(connect.CodeCanceled, ctx.Err())
	}
}

// duplicate raises the alarm, and revokes the identity where the node's document
// asks for that. The refusal does not say who the other is: it may go to a thief.
func (h *Hub) duplicate(ctx context.Context, peer Peer, old *session) error {
	now := time.Now()
	h.mu.Lock()
	n := h.nodes[peer.Node]
	quarantine := false
	if n != nil {
		d := Duplicate{Holder: old.address, Refused: peer.Address, Last: now}
		if before := n.presence.Duplicate; before != nil {
			d.logged = before.logged
		}
		if now.Sub(d.logged) >= alarmEvery {
			d.logged = now
			h.log.Error("ALARM: two hosts use the identity of a node; the one that came first keeps its session",
				"node", peer.Node, "holder", d.Holder, "refused", d.Refused)
		}
		n.presence.Duplicate = &d
		spec, ok := model.Lookup[*model.NodeSpec](h.snapshot.Documents, model.Key{Kind: model.KindNode, Name: peer.Node})
		quarantine = ok && spec.OnDuplicateIdentity == model.DuplicateQuarantine
	}
	h.mu.Unlock()
	refusal := connect.NewError(connect.CodeAlreadyExists, fmt.Errorf(
		"another host uses the identity of node %q at this moment and was there first: if this host is the node, have it revoked with `sealctl node revoke %s` and enrol this host anew", peer.Node, peer.Node))
	if !quarantine {
		return refusal
	}
	_, r, err := h.store.Revoke(ctx, peer.Node, model.Revocation{
		Time: now.UTC().Truncate(time.Second), By: "controller",
		// Both hosts may be told, so neither learns where the other is.
		Reason: "two hosts used its identity at once; the controller's log says from where",
	})
	if err != nil {
		h.log.Error("a node with two hosts could not be quarantined", "node", peer.Node, "error", err)
		return refusal
	}
	h.log.Error("ALARM: a node is quarantined: its identity is revoked", "node", peer.Node, "holder", old.address, "refused", peer.Address)
	return errRevoked(r)
}
