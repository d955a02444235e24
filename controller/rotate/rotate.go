package rotate

import (
	"context"
	"fmt"
	"hash/fnv"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/circuitseal/circuitseal/controller/follow"
	"github.com/circuitseal/circuitseal/controller/model"
	"github.com/circuitseal/circuitseal/proto/desired"
)

// Store is what a Rotator needs of the store; store.Store has it.
type Store interface {
	follow.Store
	PutPreshared(ctx context.Context, keys map[string]model.PresharedKeys) error
}

// Sessions say what nodes report; session.Hub has it.
type Sessions interface {
	Report(node string) (connected bool, wanted desired.Position, last *desired.Status)
}

// Config is what a Rotator needs.
type Config struct {
	Store    Store
	Sessions Sessions
	Log      *slog.Logger
	// Now is the clock on the wall.
	Now func() time.Time
}

// Rotator rotates the keys of all tunnels. Its methods may be called at once.
type Rotator struct {
	config Config

	mu   sync.Mutex
	ages map[string]age
	// ends are the nodes of every tunnel of the snapshot from which they were
	// derived.
	from *model.Snapshot
	ends map[string]tunnel
}

// age is how old a key in use was when this process first saw it, and since
// when it sees it. The clock on the wall is read once: who sets it changes
// nothing but the first figure, and that within bounds.
type age struct {
	generation uint64
	then       time.Duration
	seen       time.Time
}

// tunnel is what of the documents matters to a tunnel's rotation.
type tunnel struct {
	// nodes are those at both ends, "" for a gateway without our agent.
	nodes [2]string
	rotation
}

// New makes a Rotator; Run starts it.
func New(c Config) *Rotator { return &Rotator{config: c, ages: map[string]age{}} }

// Run rotates until ctx is done, which is no error, or until the store cannot be
// read any more.
func (r *Rotator) Run(ctx context.Context) error {
	if err := follow.Run(ctx, r.config.Store, r.config.Log, "pre-shared keys", r.pass); err != nil {
		return fmt.Errorf("rotate pre-shared keys: %w", err)
	}
	return nil
}

// pass makes every move that can be made on a snapshot, in one transaction.
func (r *Rotator) pass(ctx context.Context, s *model.Snapshot) error {
	r.mu.Lock()
	moves, err := r.decide(s)
	r.mu.Unlock()
	if err != nil || len(moves) == 0 {
		return err
	}
	write := make(map[string]model.PresharedKeys, len(moves))
	for id, m := range moves {
		write[id] = m.keys
	}
	if err := r.config.Store.PutPreshared(ctx, write); err != nil {
		return err
	}
	for _, id := range slices.Sorted(maps.Keys(moves)) {
		r.config.Log.Info("pre-shared key", "tunnel", id, "move", moves[id].move.String(), "generations", moves[id].keys.Generations())
	}
	return nil
}

type decision struct {
	move Move
	keys model.PresharedKeys
}

// decide is called with mu held.
func (r *Rotator) decide(s *model.Snapshot) (map[string]decision, error) {
	r.derive(s)
	seen := reports{sessions: r.config.Sessions, nodes: map[string]node{}}
	moves := map[string]decision{}
	gateways := r.gateways(s)
	for id, t := range r.ends {
		keys := s.PresharedKeys[id]
		move, _ := r.next(id, t, keys, s.Epoch, seen)
		if move == Stay {
			continue
		}
		fresh, held := gateways[t.gateway]
		if move == Prepare || move == Create && !held {
			var err error
			if fresh, err = desired.NewSecret(); err != nil {
				return nil, err
			}
		}
		if t.gateway != "" && move == Create {
			gateways[t.gateway] = fresh
		}
		moves[id] = decision{move, Apply(keys, move, fresh, s.Revision, r.config.Now())}
	}
	return moves, nil
}

// gateways are the newest keys of the gateways that have any. mu is held.
func (r *Rotator) gateways(s *model.Snapshot) map[string]desired.Secret {
	newest, keys := map[string]uint64{}, map[string]desired.Secret{}
	for id, t := range r.ends {
		if t.gateway == "" {
			continue
		}
		for _, k := range s.PresharedKeys[id].Keys {
			if k.Generation >= newest[t.gateway] {
				newest[t.gateway], keys[t.gateway] = k.Generation, k.Key
			}
		}
	}
	return keys
}

func (r *Rotator) next(id string, t tunnel, keys model.PresharedKeys, epoch uint64, seen reports) (Move, string) {
	due := false
	if keys.Phase == model.PresharedSteady && len(keys.Keys) == 1 {
		due = !t.asked && !t.held && r.age(id, keys.Keys[0], t.interval) >= lifetime(id, keys.Keys[0].Generation, t.interval)
		if !due {
			return Stay, ""
		}
	}
	return Next(keys, [2]End{seen.end(t.nodes[0], id), seen.end(t.nodes[1], id)}, epoch, due)
}

// age of a key by this process's own clock since it was first seen, never
// negative. What it was before is by the clock on the wall, at most most.
func (r *Rotator) age(id string, key model.PresharedGeneration, most time.Duration) time.Duration {
	a, ok := r.ages[id]
	if !ok || a.generation != key.Generation {
		a = age{generation: key.Generation, then: min(max(0, r.config.Now().Sub(key.Made)), most), seen: time.Now()}
		r.ages[id] = a
	}
	return a.then + time.Since(a.seen)
}

// lifetime is after how long a generation is replaced: up to a quarter earlier
// than the interval, so that tunnels that were made together part.
func lifetime(id string, generation uint64, interval time.Duration) time.Duration {
	h := fnv.New32a()
	_, _ = fmt.Fprintf(h, "%s %d", id, generation)
	return interval - time.Duration(h.Sum32()%1024)*interval/4/1024
}

// derive finds the tunnels of a snapshot, once.
func (r *Rotator) derive(s *model.Snapshot) {
	if r.from == s {
		return
	}
	r.from, r.ends = s, map[string]tunnel{}
	for k, d := range s.Documents {
		if _, ok := d.Spec.(*model.ConnectionSpec); !ok {
			continue
		}
		tunnels, _ := model.Tunnels(s.Documents, k)
		how, ok := rotates(s, k, tunnels)
		if !ok {
			continue
		}
		for _, t := range tunnels {
			if s.Numbers.Tunnels[t.ID] != 0 {
				r.ends[t.ID] = tunnel{nodes: [2]string{t.Ends[0].Node, t.Ends[1].Node}, rotation: how}
			}
		}
	}
	maps.DeleteFunc(r.ages, func(id string, _ age) bool { return s.PresharedKeys[id].Keys == nil })
}

// Report is what can be said of a tunnel's rotation.
type Report struct {
	Nodes [2]string
	// Held are the generations that each node has said last to hold.
	Held [2][]uint64
	// Age is of the key in use, Due is in how long it is replaced, at the
	// latest; not positive when that is over.
	// Asked tells that it is replaced only when somebody asks for it, whatever Due
	// says.
	Age, Due time.Duration
	Asked    bool
	// Waits says what a rotation waits for, empty when it waits for nothing.
	Waits string
}

// Report says how far the rotation of each tunnel of a snapshot is, by ID.
func (r *Rotator) Report(s *model.Snapshot) map[string]Report {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.derive(s)
	seen := reports{sessions: r.config.Sessions, nodes: map[string]node{}}
	all := make(map[string]Report, len(r.ends))
	for id, t := range r.ends {
		keys := s.PresharedKeys[id]
		report := Report{Nodes: t.nodes, Asked: t.asked}
		for i, n := range t.nodes {
			report.Held[i] = seen.end(n, id).Held
		}
		if len(keys.Keys) > 0 {
			report.Age = r.age(id, keys.Keys[0], t.interval)
			report.Due = t.interval - report.Age
		}
		_, report.Waits = r.next(id, t, keys, s.Epoch, seen)
		all[id] = report
	}
	return all
}

// reports reads each node's once.
type reports struct {
	sessions Sessions
	nodes    map[string]node
}

type node struct {
	connected    bool
	acknowledged desired.Position
	tunnels      map[string]desired.TunnelStatus
}

func (r reports) end(name, tunnel string) End {
	if name == "" {
		return End{Gateway: true}
	}
	n, ok := r.nodes[name]
	if !ok {
		var last *desired.Status
		n.connected, _, last = r.sessions.Report(name)
		if last != nil {
			n.acknowledged = last.Acknowledged
			n.tunnels = make(map[string]desired.TunnelStatus, len(last.Tunnels))
			for _, t := range last.Tunnels {
				if !t.Retiring {
					n.tunnels[t.ID] = t
				}
			}
		}
		r.nodes[name] = n
	}
	t := n.tunnels[tunnel]
	return End{Node: name, Connected: n.connected, Acknowledged: n.acknowledged, Held: t.PresharedKeyGenerations, Used: t.PresharedKeyUsed}
}
