// Package session keeps agents up to date: it compiles of every snapshot of the
// model what has changed, once for all nodes, hands each connected node the newest state that is
// its own, signed, and takes its status back. It knows the agents' stream and
// what a node's state names. It refuses to know who a peer is (its caller has
// authenticated the node), what operators may do, and where keys are kept.
package session

import (
	"bytes"
	"context"
	"fmt"
	"iter"
	"log/slog"
	"sync"
	"time"

	"github.com/circuitseal/circuitseal/controller/compile"
	"github.com/circuitseal/circuitseal/controller/model"
	v1 "github.com/circuitseal/circuitseal/proto/circuitseal/v1"
	"github.com/circuitseal/circuitseal/proto/desired"
)

// Store is what the hub needs of the store.
type Store interface {
	// Snapshot is the whole model as it is now.
	Snapshot(ctx context.Context) (*model.Snapshot, error)
	// Watch yields the present snapshot and then every newer one, coalesced.
	Watch(ctx context.Context) iter.Seq2[*model.Snapshot, error]
	// PutKeys keeps public keys that a node has reported for its own tunnels.
	PutKeys(ctx context.Context, node string, keys map[string]desired.PublicKey) error
	// Revoke revokes a node's identity.
	Revoke(ctx context.Context, node string, r model.Revocation) (model.Fingerprint, model.Revocation, error)
}

// Signer seals states. It may be called by many streams at once.
type Signer interface {
	SignState(h desired.Header, state []byte) (*v1.Envelope, error)
}

// Hub has the newest state of every node and the sessions of those that are
// connected. Its methods may be called at once.
type Hub struct {
	store  Store
	signer Signer
	log    *slog.Logger

	// compiled is closed once the first snapshot was compiled.
	compiled chan struct{}
	// stopped is closed when Run returns: every session ends then.
	stopped chan struct{}

	mu       sync.Mutex
	snapshot *model.Snapshot
	// advanced is closed, and made anew, when snapshot is replaced.
	advanced chan struct{}
	nodes    map[string]*node
	work     Work

	// result is the last compilation. Only update uses it.
	result *compile.Result
}

// Work counts what following the store has cost since the start.
type Work struct {
	// Snapshots were compiled, for which Nodes were compiled again and States
	// of these came out different. A change costs the nodes that it can touch.
	Snapshots, Nodes, States uint64
}

// node is a Node document, whether it is connected or not.
type node struct {
	newest *state
	// session is nil while the node is not connected.
	session *session
	// status is the last one received; nil when there was none.
	status *desired.Status
	// presence is of its last session.
	presence Presence
	// probes are the questions under way whether the session is alive, by nonce.
	probes map[string]*probe
}

// state is what one node should have, shared by all who send it.
type state struct {
	position desired.Position
	bytes    []byte
	// tunnels are the tunnels that the state names: the only ones for which the
	// node may report a key.
	tunnels map[string]bool

	once     sync.Once
	envelope *v1.Envelope
	err      error
}

// New makes a hub; Run starts it.
func New(store Store, signer Signer, log *slog.Logger) *Hub {
	return &Hub{
		store: store, signer: signer, log: log,
		compiled: make(chan struct{}), stopped: make(chan struct{}),
		advanced: make(chan struct{}), nodes: map[string]*node{},
	}
}

// Run follows the store until ctx is done, which is no error, or until the
// store cannot be read any more. All sessions end when it returns. It is called
// once.
func (h *Hub) Run(ctx context.Context) error {
	defer close(h.stopped)
	first := true
	for s, err := range h.store.Watch(ctx) {
		if err != nil {
			return fmt.Errorf("follow the store: %w", err)
		}
		if err := h.update(s); err != nil {
			return err
		}
		if first {
			first = false
			close(h.compiled)
		}
	}
	return nil
}

// update compiles what a snapshot has changed and wakes the sessions whose state
// is another one. It is never called twice at once.
func (h *Hub) update(s *model.Snapshot) error {
	began := time.Now()
	result := compile.Next(h.result, s)
	encoded := make(map[string][]byte, len(result.Compiled))
	for _, name := range result.Compiled {
		want, ok := result.States[name]
		if !ok {
			continue
		}
		b, err := want.Marshal()
		if err != nil {
			return fmt.Errorf("compile state of node %s: %w", name, err)
		}
		encoded[name] = b
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	changed := 0
	for name, b := range encoded {
		n := h.nodes[name]
		if n == nil {
			n = &node{}
			h.nodes[name] = n
		}
		if n.newest != nil && bytes.Equal(n.newest.bytes, b) {
			continue
		}
		// The store's revision never falls and rises with every start of the
		// controller, so this position is newer than every one that the node
		// was ever given.
		n.newest = &state{
			position: desired.Position{Epoch: s.Epoch, Revision: s.Revision},
			bytes:    b, tunnels: tunnelsOf(result.States[name]),
		}
		changed++
		if n.session != nil {
			n.session.wake()
		}
	}
	for name, n := range h.nodes {
		_, known := result.States[name]
		// A session that began after this snapshot knows better.
		if n.session != nil && (!known || s.Revision >= n.session.since) {
			if err := Judge(s, name, n.session.key); err != nil {
				n.session.end(err)
			}
		}
		if !known {
			delete(h.nodes, name)
		}
	}
	h.snapshot, h.result = s, result
	close(h.advanced)
	h.advanced = make(chan struct{})
	h.work.Snapshots++
	h.work.Nodes += uint64(len(encoded))
	h.work.States += uint64(changed)
	h.log.Debug("compiled states", "revision", s.Revision, "nodes", len(result.States), "compiled", len(encoded), "changed", changed, "took", time.Since(began))
	return nil
}

// Work is what following the store has cost since the start.
func (h *Hub) Work() Work {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.work
}

func tunnelsOf(s desired.State) map[string]bool {
	ids := map[string]bool{}
	for _, section := range s.Sections {
		for _, g := range section.Groups {
			for _, t := range g.Tunnels {
				ids[t.ID] = true
			}
		}
	}
	return ids
}

// seal signs the state, once: a state that nobody asks for costs no signature.
func (h *Hub) seal(name string, s *state) (*v1.Envelope, error) {
	s.once.Do(func() {
		s.envelope, s.err = h.signer.SignState(desired.Header{Node: name, Position: s.position, Issued: time.Now()}, s.bytes)
	})
	return s.envelope, s.err
}

// Report is what the hub knows of a node: whether it has a session, the
// position of its newest state, zero when none was compiled yet, and the last
// status that it sent to this process, nil when there was none. The status is
// shared and must not be changed.
func (h *Hub) Report(name string) (connected bool, wanted desired.Position, last *desired.Status) {
	h.mu.Lock()
	defer h.mu.Unlock()
	n := h.nodes[name]
	if n == nil {
		return false, desired.Position{}, nil
	}
	return n.session != nil, n.newest.position, n.status
}
