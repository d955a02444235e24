// Package api answers the operators' and the agents' calls: it authenticates
// the caller, judges whether the call is the caller's to make, bounds what is
// read, and converts between the wire and the model. It decides neither what
// makes documents valid (controller/model) nor what nodes get (controller/compile)
// and keeps nothing itself.
package api

import (
	"context"
	"crypto/x509"
	"iter"
	"log/slog"
	"net/http"
	"net/netip"
	"time"

	"connectrpc.com/connect"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/circuitseal/circuitseal/controller/model"
	"github.com/circuitseal/circuitseal/controller/pki"
	"github.com/circuitseal/circuitseal/controller/session"
	"github.com/circuitseal/circuitseal/controller/store"
	"github.com/circuitseal/circuitseal/proto/chunk"
	"github.com/circuitseal/circuitseal/proto/circuitseal/v1/circuitsealv1connect"
	"github.com/circuitseal/circuitseal/proto/desired"
	"github.com/circuitseal/circuitseal/proto/sealed"
)

// Store is what the API needs of the store; store.Store has it.
type Store interface {
	Snapshot(ctx context.Context) (*model.Snapshot, error)
	DocumentsAt(ctx context.Context, revision uint64) (map[model.Key]model.Document, error)
	Chunk(ctx context.Context, k model.Key, revision uint64, sum chunk.Sum) ([]byte, error)
	Watch(ctx context.Context) iter.Seq2[*model.Snapshot, error]
	Write(ctx context.Context, base uint64, c store.Change) (revision uint64, err error)
	PutPreshared(ctx context.Context, keys map[string]model.PresharedKeys) error
	PutToken(ctx context.Context, t store.Token) error
	Redeem(ctx context.Context, q store.Redemption, issue func(node string) (store.Issued, error)) (node string, _ store.Issued, err error)
	Renew(ctx context.Context, node string, spki [32]byte, now time.Time, issue func() (store.Issued, error)) (store.Issued, error)
	Revoke(ctx context.Context, node string, r model.Revocation) (model.Fingerprint, model.Revocation, error)
}

// Authority knows identities; pki.Authority has it.
type Authority interface {
	Identify(chain []*x509.Certificate, now time.Time) (pki.Identity, error)
	IdentifyForRenewal(chain []*x509.Certificate, now time.Time) (pki.Identity, error)
	IssueNode(r *pki.Request, node string) (pki.Issued, error)
	Root() []byte
	RootPin() string
}

// Sessions are the agents' streams; session.Hub has them.
type Sessions interface {
	Serve(ctx context.Context, peer session.Peer, stream session.Stream) error
	Report(node string) (connected bool, wanted desired.Position, last *desired.Status)
	Reached(ctx context.Context, revision uint64) error
	Presence(node string) session.Presence
}

// Config is what the API is made of.
type Config struct {
	Store     Store
	Authority Authority
	Sessions  Sessions
	Inventory Inventory
	Rotation  Rotation
	// Certificates says how far the certificates of endpoints are.
	Certificates Certificates
	// Handover says what changes of protocols wait for.
	Handover Handover
	// Advertised is the address by which agents reach the controller, or "".
	Advertised string
	// Secrets are the keys with which the store's secrets are sealed.
	Secrets *sealed.Ring
	Log     *slog.Logger
	// Stopping is done when calls that last are to end.
	Stopping context.Context
	// Now is the clock.
	Now func() time.Time
	// Metrics takes what is counted here, once; nil is nobody.
	Metrics prometheus.Registerer
}

// New makes the handler of all services. It wants TLS with the peer's
// certificate requested and not verified: whether one is needed depends on the
// procedure, and a refusal should say what is wrong.
func New(c Config) http.Handler {
	calls := newCallMetrics(c.Metrics)
	statuses := &status{store: c.Store, sessions: c.Sessions, handover: c.Handover, now: c.Now}
	if c.Metrics != nil {
		c.Metrics.MustRegister(statusMetrics{statuses})
	}
	perProcedure := connect.WithConditionalHandlerOptions(func(s connect.Spec) []connect.HandlerOption {
		return []connect.HandlerOption{
			connect.WithReadMaxBytes(rules[s.Procedure].most),
			// No compression: a bomb of it costs time even where its size is
			// bounded, and nothing here is large.
			connect.WithCompression("gzip", nil, nil),
			codecs(),
			connect.WithInterceptors(calls),
		}
	})
	told := &bucket{now: c.Now, burst: refusalBurst, every: refusalEvery}

	texts := newUploads(c.Now)
	handlers := map[string]http.Handler{}
	mount := func(path string, h http.Handler) { handlers[path] = h }
	mount(circuitsealv1connect.NewAgentServiceHandler(&agents{
		store: c.Store, authority: c.Authority, sessions: c.Sessions, log: c.Log, now: c.Now,
		failures: newFailures(c.Now), told: told,
	}, perProcedure))
	mount(circuitsealv1connect.NewPolicyServiceHandler(newPolicy(c.Stopping, c.Store, c.Sessions, texts, c.Log), perProcedure))
	mount(circuitsealv1connect.NewPlanServiceHandler(&plans{store: c.Store, sessions: c.Sessions, uploads: texts, log: c.Log}, perProcedure))
	mount(circuitsealv1connect.NewNodeServiceHandler(&nodes{store: c.Store, authority: c.Authority, sessions: c.Sessions, advertised: c.Advertised, log: c.Log, now: c.Now}, perProcedure))
	mount(circuitsealv1connect.NewStatusServiceHandler(statuses, perProcedure))
	mount(circuitsealv1connect.NewKeyServiceHandler(&keys{
		store: c.Store, inventory: c.Inventory, rotation: c.Rotation, certs: c.Certificates, secrets: c.Secrets, log: c.Log, now: c.Now,
	}, perProcedure))
	mount(circuitsealv1connect.NewProfileServiceHandler(&profiles{c.Store}, perProcedure))
	mount(circuitsealv1connect.NewGatewayServiceHandler(&gateways{store: c.Store, log: c.Log, now: c.Now}, perProcedure))
	return &gate{
		authority: c.Authority, now: c.Now, log: c.Log, handlers: handlers,
		errors:    connect.NewErrorWriter(connect.WithCompression("gzip", nil, nil)),
		strangers: make(chan struct{}, maxStrangers), told: told, sessions: map[string]map[netip.Prefix]int{}, refused: calls.refused,
	}
}
