package certify

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/circuitseal/circuitseal/controller/follow"
	"github.com/circuitseal/circuitseal/controller/model"
	"github.com/circuitseal/circuitseal/controller/pki"
	"github.com/circuitseal/circuitseal/proto/desired"
)

// Store is what a Certifier needs of the store; store.Store has it.
type Store interface {
	follow.Store
	PutIdentities(ctx context.Context, identities map[string]model.IdentityCertificates) error
}

// Sessions say what nodes report; session.Hub has it.
type Sessions interface {
	Report(node string) (connected bool, wanted desired.Position, last *desired.Status)
}

// Issuer makes certificates; pki.Authority has it.
type Issuer interface {
	IssueIdentity(name string, spki []byte) (pki.Issued, error)
}

// Config is what a Certifier needs.
type Config struct {
	Store    Store
	Sessions Sessions
	Issuer   Issuer
	Log      *slog.Logger
	// Now is the clock on the wall, by which certificates end.
	Now func() time.Time
}

// Certifier looks after the certificates of all endpoints. Its methods may be called
// at once.
type Certifier struct {
	config Config

	mu sync.Mutex
	// needed are the identities of the snapshot from which they were derived, and
	// their peers.
	from   *model.Snapshot
	needed map[string]owner
	// refused are keys over which nobody would issue a certificate, while their nodes go
	// on reporting them: told once.
	refused map[model.Fingerprint]bool
}

// owner is the node of an endpoint and those that its certificates are shown to.
type owner struct {
	node  string
	peers []string
}

// New makes a Certifier; Run starts it.
func New(c Config) *Certifier { return &Certifier{config: c, refused: map[model.Fingerprint]bool{}} }

// Run certifies until ctx is done, which is no error, or until the store cannot be
// read any more.
func (c *Certifier) Run(ctx context.Context) error {
	if err := follow.Run(ctx, c.config.Store, c.config.Log, "certificates of endpoints", c.pass); err != nil {
		return fmt.Errorf("certify endpoints: %w", err)
	}
	return nil
}

// pass makes every move that can be made on a snapshot, in one transaction. One
// certificate that cannot be made is in nobody else's way.
func (c *Certifier) pass(ctx context.Context, s *model.Snapshot) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.derive(s)
	seen := c.reports()
	write := map[string]model.IdentityCertificates{}
	moves := map[string]Move{}
	var errs []error
	for name, o := range c.needed {
		have := s.Identities[name]
		now, ok := c.now(s, name, o, seen)
		if !ok {
			continue
		}
		move, generation, _ := Next(have, now)
		switch move {
		case Stay:
			continue
		case Issue:
			made, err := c.issue(name, generation, seen.of(o.node))
			if errors.Is(err, pki.ErrRequest) {
				c.refused[now.Owner.Keys[generation]] = true
			}
			if err != nil {
				errs = append(errs, err)
				continue
			}
			write[name] = Issued(have, made)
		default:
			write[name] = Apply(have, move, now, s.Revision)
		}
		moves[name] = move
	}
	c.forget(seen)
	if err := c.config.Store.PutIdentities(ctx, write); err != nil {
		return errors.Join(append(errs, err)...)
	}
	for _, name := range slices.Sorted(maps.Keys(moves)) {
		c.tell(name, moves[name], write[name])
	}
	return errors.Join(errs...)
}

// forget drops refused keys that no node reports any more for an identity that it needs.
func (c *Certifier) forget(seen *reports) {
	if len(c.refused) == 0 {
		return
	}
	held := map[model.Fingerprint]bool{}
	for name, o := range c.needed {
		for k, spki := range seen.of(o.node).spki {
			if k.name == name {
				held[model.FingerprintOf(sha256.Sum256(spki))] = true
			}
		}
	}
	maps.DeleteFunc(c.refused, func(f model.Fingerprint, _ bool) bool { return !held[f] })
}

// tell is the trace of who got which certificate.
func (c *Certifier) tell(name string, move Move, now model.IdentityCertificates) {
	log := c.config.Log.With("identity", name, "node", now.Node, "move", move.String())
	for _, g := range now.Certificates {
		log = log.With("generation", g.Generation)
		if g.Serial != "" {
			log = log.With("serial", g.Serial, "key", string(g.Key), "expires", g.Expires)
		}
	}
	log.Info("certificate of an endpoint")
}

func (c *Certifier) issue(name string, generation uint64, of report) (model.IdentityGeneration, error) {
	spki := of.spki[key{name, generation}]
	_, fingerprint, err := pki.IdentityKey(spki)
	if err != nil {
		return model.IdentityGeneration{}, fmt.Errorf("certify %s: %w", name, err)
	}
	issued, err := c.config.Issuer.IssueIdentity(name, spki)
	if err != nil {
		return model.IdentityGeneration{}, err
	}
	return model.IdentityGeneration{
		Generation: generation, Certificate: issued.Chain[0], Key: fingerprint,
		Serial: issued.Serial, Issued: issued.Issued, Expires: issued.Expires,
	}, nil
}

// now is what a decision is made of; false where the node can have no certificate.
func (c *Certifier) now(s *model.Snapshot, name string, o owner, seen *reports) (Now, bool) {
	enrolled, ok := s.Enrolments[o.node]
	if _, revoked := s.Revoked(o.node); !ok || revoked {
		return Now{}, false
	}
	n := Now{Epoch: s.Epoch, Time: c.config.Now(), Enrolment: enrolled.Key, Owner: seen.node(o.node, name)}
	for _, p := range o.peers {
		n.Peers = append(n.Peers, seen.node(p, ""))
	}
	return n, true
}

// derive finds the identities that a snapshot needs, once: of the endpoints on our
// nodes whose connections have IPsec with certificates, and of no others, so that a
// node gets no name but those of its own endpoints.
func (c *Certifier) derive(s *model.Snapshot) {
	if c.from == s {
		return
	}
	c.from, c.needed = s, map[string]owner{}
	for k := range s.Documents {
		if k.Kind != model.KindConnection || !byCertificate(s, k) {
			continue
		}
		tunnels, _ := model.Tunnels(s.Documents, k)
		if len(tunnels) == 0 {
			continue
		}
		for i, e := range tunnels[0].Ends {
			if e.External() {
				continue
			}
			name := model.IdentityName(k.Customer, e.Endpoint)
			o := c.needed[name]
			o.node = e.Node
			if far := tunnels[0].Ends[1-i]; !far.External() && !slices.Contains(o.peers, far.Node) {
				if _, revoked := s.Revoked(far.Node); !revoked {
					o.peers = append(o.peers, far.Node)
				}
			}
			c.needed[name] = o
		}
	}
}

// byCertificate reports whether a connection's ends prove themselves by certificates.
func byCertificate(s *model.Snapshot, k model.Key) bool {
	want, retiring, ok := s.Protocols(k)
	if !ok || want.Protocol != model.ProtocolIPsec && (retiring == nil || retiring.Protocol != model.ProtocolIPsec) {
		return false
	}
	spec, ok := model.Lookup[*model.ConnectionSpec](s.Documents, k)
	if !ok {
		return false
	}
	for _, name := range spec.Endpoints {
		e, ok := model.Lookup[*model.EndpointSpec](s.Documents, model.Key{Kind: model.KindEndpoint, Customer: k.Customer, Name: name})
		if ok && e.External != nil && e.External.Authentication == model.AuthPSK {
			return false
		}
	}
	return true
}

// Report is what can be said of an endpoint's certificates.
type Report struct {
	Node string
	// Waits says what they wait for, empty when that is nothing.
	Waits string
}

// Report says how far the certificates that a snapshot needs are, by identity.
func (c *Certifier) Report(s *model.Snapshot) map[string]Report {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.derive(s)
	seen := c.reports()
	all := make(map[string]Report, len(c.needed))
	for name, o := range c.needed {
		r := Report{Node: o.node, Waits: fmt.Sprintf("waits for node %s to be enrolled", o.node)}
		if now, ok := c.now(s, name, o, seen); ok {
			_, _, r.Waits = Next(s.Identities[name], now)
		}
		all[name] = r
	}
	return all
}

// reports reads each node's once.
type reports struct {
	sessions Sessions
	nodes    map[string]report
	refused  map[model.Fingerprint]bool
}

func (c *Certifier) reports() *reports {
	return &reports{sessions: c.config.Sessions, nodes: map[string]report{}, refused: c.refused}
}

type report struct {
	connected    bool
	acknowledged desired.Position
	spki         map[key][]byte
}

type key struct {
	name       string
	generation uint64
}

func (r *reports) of(node string) report {
	n, ok := r.nodes[node]
	if ok {
		return n
	}
	var last *desired.Status
	n.connected, _, last = r.sessions.Report(node)
	if last != nil {
		n.acknowledged = last.Acknowledged
		n.spki = make(map[key][]byte, len(last.IdentityKeys))
		for _, k := range last.IdentityKeys {
			n.spki[key{k.Name, k.Generation}] = k.PublicKey
		}
	}
	r.nodes[node] = n
	return n
}

// node is what a node says, with its keys for an identity. Keys that nobody could
// certify count as none.
func (r *reports) node(name, identity string) Node {
	n := r.of(name)
	out := Node{Name: name, Connected: n.connected, Acknowledged: n.acknowledged, Keys: map[uint64]model.Fingerprint{}}
	for k, spki := range n.spki {
		if k.name != identity || identity == "" {
			continue
		}
		if f := model.FingerprintOf(sha256.Sum256(spki)); !r.refused[f] {
			out.Keys[k.generation] = f
		}
	}
	return out
}
