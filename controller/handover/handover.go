// Package handover lets a connection change from one tunnel protocol to the other
// without a gap: while a policy wants another protocol than the one that is known to
// work, tunnels have both, and the old one carries packets while the new does not.
// When both nodes say that the new one works, the new one is what is known to work,
// and the old one goes.
//
// It knows what nodes report and what the store keeps; it refuses to know how states
// are made of that. Every decision is made from both alone: a controller may die at
// any moment, or several may be at it at once, since every write is fenced by the
// revisions that it was decided on.
package handover

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"

	"github.com/circuitseal/circuitseal/controller/follow"
	"github.com/circuitseal/circuitseal/controller/model"
	"github.com/circuitseal/circuitseal/proto/desired"
)

// Store is what a Mover needs of the store; store.Store has it.
type Store interface {
	follow.Store
	PutSettled(ctx context.Context, settled map[string]model.Settled, seen []model.Document) error
}

// Sessions say what nodes report; session.Hub has it.
type Sessions interface {
	Report(node string) (connected bool, wanted desired.Position, last *desired.Status)
}

// Mover completes changes of protocols.
type Mover struct {
	store    Store
	sessions Sessions
	log      *slog.Logger
}

// New makes a Mover; Run starts it.
func New(store Store, sessions Sessions, log *slog.Logger) *Mover {
	return &Mover{store: store, sessions: sessions, log: log}
}

// Run completes changes until ctx is done, which is no error, or until the store
// cannot be read any more.
func (m *Mover) Run(ctx context.Context) error {
	if err := follow.Run(ctx, m.store, m.log, "changes of tunnel protocols", m.pass); err != nil {
		return fmt.Errorf("hand connections over: %w", err)
	}
	return nil
}

// pass completes every change that can be, each by itself: what is decided of one
// depends on no other's documents.
func (m *Mover) pass(ctx context.Context, s *model.Snapshot) error {
	waiting := m.waiting(s)
	for _, k := range slices.SortedFunc(maps.Keys(waiting), func(a, b model.Key) int { return strings.Compare(a.String(), b.String()) }) {
		if waiting[k] != "" {
			continue
		}
		want, retiring, _ := s.Protocols(k)
		id := model.GroupID(k.Customer, k.Name)
		settled := model.Settled{Policy: *want, Revision: s.Settled[id].Revision}
		spec, _ := model.Lookup[*model.ConnectionSpec](s.Documents, k)
		policy := model.Key{Kind: model.KindEncryptionPolicy, Customer: k.Customer, Name: spec.EncryptionPolicy}
		seen := []model.Document{{Key: k, Revision: s.Documents[k].Revision}, {Key: policy, Revision: s.Documents[policy].Revision}}
		if err := m.store.PutSettled(ctx, map[string]model.Settled{id: settled}, seen); err != nil {
			return fmt.Errorf("settle %s: %w", k, err)
		}
		m.log.Info("a connection has changed its protocol", "connection", id, "from", retiring.Protocol, "to", want.Protocol)
		// What was written makes another snapshot.
		return nil
	}
	return nil
}

// Waiting says what each connection that changes its protocol still waits for, by
// GroupID; "" for nothing.
func (m *Mover) Waiting(s *model.Snapshot) map[string]string {
	all := map[string]string{}
	for k, waits := range m.waiting(s) {
		all[model.GroupID(k.Customer, k.Name)] = waits
	}
	return all
}

func (m *Mover) waiting(s *model.Snapshot) map[model.Key]string {
	all := map[model.Key]string{}
	for id := range s.Settled {
		customer, name, _ := strings.Cut(id, "/")
		k := model.Key{Kind: model.KindConnection, Customer: customer, Name: name}
		want, retiring, ok := s.Protocols(k)
		if !ok || retiring == nil {
			continue
		}
		tunnels, _ := model.Tunnels(s.Documents, k)
		all[k] = waits(s, want, tunnels, m.end)
	}
	return all
}

// end is what a node says of its end of a tunnel.
type end struct {
	connected    bool
	acknowledged desired.Position
	// fresh and old are the entries of the protocol that comes and of the one that
	// goes.
	fresh, old desired.TunnelStatus
}

func (m *Mover) end(node, tunnel string) end {
	connected, _, last := m.sessions.Report(node)
	e := end{connected: connected}
	if last == nil {
		return e
	}
	e.acknowledged = last.Acknowledged
	for _, t := range last.Tunnels {
		switch {
		case t.ID != tunnel:
		case t.Retiring:
			e.old = t
		default:
			e.fresh = t
		}
	}
	return e
}

// waits says what the change of a connection's protocol waits for, "" for nothing. No
// tunnel that works by the old protocol is given up before it works by the new one; one
// that works by neither, as when its link is down, holds nothing up while another
// works.
func waits(s *model.Snapshot, want *model.EncryptionPolicySpec, tunnels []model.Tunnel, of func(node, tunnel string) end) string {
	after := desired.Position{Epoch: s.Epoch, Revision: changedAt(s, tunnels)}
	working := 0
	for _, t := range tunnels {
		works, worked := true, true
		missing := ""
		for _, x := range t.Ends {
			if x.External() {
				continue
			}
			e := of(x.Node, t.ID)
			switch {
			case !e.connected:
				return fmt.Sprintf("waits for node %s, which is not connected", x.Node)
			case e.acknowledged.Epoch != s.Epoch || e.acknowledged.Compare(after) < 0:
				return fmt.Sprintf("waits for node %s to hold state %s", x.Node, after)
			}
			if e.fresh.Phase != desired.PhaseUp || !strings.HasPrefix(e.fresh.Backend, string(want.Protocol)+"-") {
				works = false
				missing = fmt.Sprintf("waits for tunnel %s to be up by %s at node %s", t.ID, want.Protocol, x.Node)
			}
			worked = worked && e.old.Phase == desired.PhaseUp
		}
		if works {
			working++
		} else if worked {
			return missing
		}
	}
	if working == 0 {
		return "waits for a tunnel to be up by " + string(want.Protocol)
	}
	return ""
}

// changedAt is the revision of the connection or of its policy, whichever is newer: what a
// node said before it knew of that is about something else.
func changedAt(s *model.Snapshot, tunnels []model.Tunnel) uint64 {
	revision := uint64(0)
	for _, t := range tunnels[:min(1, len(tunnels))] {
		customer, rest, _ := strings.Cut(t.ID, "/")
		name, _, _ := strings.Cut(rest, "/")
		k := model.Key{Kind: model.KindConnection, Customer: customer, Name: name}
		revision = s.Documents[k].Revision
		if spec, ok := model.Lookup[*model.ConnectionSpec](s.Documents, k); ok {
			policy := model.Key{Kind: model.KindEncryptionPolicy, Customer: customer, Name: spec.EncryptionPolicy}
			revision = max(revision, s.Documents[policy].Revision)
		}
	}
	return revision
}
