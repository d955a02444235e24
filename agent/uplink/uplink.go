// Package uplink is a node's connection to its controller: it enrols, dials,
// authenticates both ends, receives states and sends status. It knows the wire
// and TLS; it knows neither kernels nor what a state means.
package uplink

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"

	"github.com/circuitseal/circuitseal/agent/identity"
	v1 "github.com/circuitseal/circuitseal/proto/circuitseal/v1"
	"github.com/circuitseal/circuitseal/proto/circuitseal/v1/circuitsealv1connect"
	"github.com/circuitseal/circuitseal/proto/desired"
)

const (
	dialTimeout  = 10 * time.Second
	enrolTimeout = 30 * time.Second
	// pingAfter and pingTimeout find a dead controller or path (RFC 9113, section 6.7).
	pingAfter   = 5 * time.Second
	pingTimeout = 5 * time.Second

	// warnBefore is how long before its end a certificate is a problem.
	warnBefore = 48 * time.Hour

	// statusEvery is how often status goes out when nothing happens.
	statusEvery = 5 * time.Second
	// statusPause bounds how often it goes out when much happens.
	statusPause = 50 * time.Millisecond
)

// client dials with X25519MLKEM768 and nothing else: what a session carries
// then stands against a later quantum attacker.
func client(config *tls.Config) *http.Client {
	config.MinVersion = tls.VersionTLS13
	config.CurvePreferences = []tls.CurveID{tls.X25519MLKEM768}
	protocols := &http.Protocols{}
	protocols.SetHTTP2(true)
	return &http.Client{Transport: &http.Transport{
		DialContext:         (&net.Dialer{Timeout: dialTimeout}).DialContext,
		TLSClientConfig:     config,
		TLSHandshakeTimeout: dialTimeout,
		Protocols:           protocols,
		HTTP2:               &http.HTTP2Config{SendPingTimeout: pingAfter, PingTimeout: pingTimeout},
	}}
}

// ParseController reads a controller's address: https, a host, no path.
func ParseController(s string) (*url.URL, error) {
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "https" || u.Hostname() == "" || u.User != nil || (u.Path != "" && u.Path != "/") || strings.ContainsAny(s, "?#") {
		return nil, fmt.Errorf("controller %.200q: want an address such as https://controller.example:8443", s)
	}
	u.Path = ""
	return u, nil
}

// Enrol exchanges a token for a certificate and stores the identity in dir.
// pin is the SHA-256 of the controller's root: whoever answers with another
// root learns nothing, for the token goes out only after the check. node, when
// set, is the name that the token must be for. Repeating a call whose answer
// was lost is safe: the key in dir is used again.
func Enrol(ctx context.Context, dir string, controller *url.URL, pin [sha256.Size]byte, token, node string) (*identity.Identity, error) {
	ctx, cancel := context.WithTimeout(ctx, enrolTimeout)
	defer cancel()
	key, err := identity.NewKey(dir)
	if err != nil {
		return nil, err
	}
	request, err := key.Request()
	if err != nil {
		return nil, err
	}
	c := client(&tls.Config{
		// The chain is verified in VerifyConnection, from the pinned root.
		InsecureSkipVerify: true, //nolint:gosec // replaced by verifyPinned
		VerifyConnection:   func(s tls.ConnectionState) error { return verifyPinned(s.PeerCertificates, controller.Hostname(), pin) },
	})
	defer c.CloseIdleConnections()
	answer, err := circuitsealv1connect.NewAgentServiceClient(c, controller.String(), connect.WithReadMaxBytes(256<<10)).
		Enrol(ctx, connect.NewRequest(&v1.EnrolRequest{Token: token, CertificateRequest: request, Node: node}))
	if err != nil {
		return nil, fmt.Errorf("enrol at %s: %w", controller, explain(controller, err))
	}
	root := answer.Msg.GetRoot()
	if sum := sha256.Sum256(root); subtle.ConstantTimeCompare(sum[:], pin[:]) != 1 {
		return nil, fmt.Errorf("enrol at %s: the answer names another root than the pinned one", controller)
	}
	return identity.Store(dir, controller, root, answer.Msg.GetCertificates())
}

// verifyPinned wants the pinned root among the certificates that the server
// sent, and a server's certificate for the dialled name that leads to it.
func verifyPinned(chain []*x509.Certificate, host string, pin [sha256.Size]byte) error {
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	found := false
	for _, c := range chain[1:] {
		if sum := sha256.Sum256(c.Raw); subtle.ConstantTimeCompare(sum[:], pin[:]) == 1 {
			roots.AddCert(c)
			found = true
			continue
		}
		between.AddCert(c)
	}
	if !found {
		return fmt.Errorf("the controller's root is not the pinned one (sha256:%x); compare --root-pin with what `sealctl token create` prints, and if it is the same, do not enrol here: somebody answers in the controller's place", pin)
	}
	_, err := chain[0].Verify(x509.VerifyOptions{
		DNSName: host, Roots: roots, Intermediates: between,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	})
	return err
}

// plain takes connect's wrapping off, so that users read the sentence.
func plain(err error) error {
	if c := new(connect.Error); errors.As(err, &c) {
		return errors.New(c.Message())
	}
	return err
}

// Node is what an uplink asks and tells.
type Node interface {
	// Accept takes a received state; its refusal is in the next Status. An
	// error asks for the state to come again: the session ends and is renewed.
	Accept(*v1.Envelope) error
	// Status is the node's status now. It may take a moment and must not block
	// on the network.
	Status(context.Context) desired.Status
	// Contacted says that the authenticated controller is there: with the first
	// message of a session, and every few seconds while it lasts. A session that
	// nobody answers ends within pingAfter and pingTimeout.
	Contacted()
}

// Uplink keeps one session with the controller.
type Uplink struct {
	load    func() (*identity.Identity, error)
	node    Node
	log     *slog.Logger
	changed chan struct{}

	mu       sync.Mutex
	identity *identity.Identity
	lost     error
}

// New makes an uplink for an identity; Run starts it. load is called before
// each session, so that a node that was enrolled anew needs no restart.
func New(id *identity.Identity, load func() (*identity.Identity, error), node Node, log *slog.Logger) *Uplink {
	return &Uplink{identity: id, load: load, node: node, log: log, changed: make(chan struct{}, 1)}
}

// Problems are sentences about the session and the certificate.
func (u *Uplink) Problems(now time.Time) []string {
	u.mu.Lock()
	defer u.mu.Unlock()
	var out []string
	if u.lost != nil {
		out = append(out, fmt.Sprintf("no session with controller %s: %v", u.identity.Controller.Host, u.lost))
	}
	if leaf, err := u.identity.Leaf(); err == nil && now.After(leaf.NotAfter.Add(-warnBefore)) {
		out = append(out, fmt.Sprintf("the certificate of node %s ends at %s; enrol again with a new token and --force", u.identity.Node, leaf.NotAfter.Format(time.RFC3339)))
	}
	return out
}

// setLost keeps why there is no session; nil when there is one.
func (u *Uplink) setLost(err error) {
	u.mu.Lock()
	u.lost = err
	u.mu.Unlock()
}

// Changed asks for status to be sent soon. It never blocks.
func (u *Uplink) Changed() {
	select {
	case u.changed <- struct{}{}:
	default:
	}
}

// Run holds a session until ctx ends, redialling with jittered, growing pauses.
// It returns ctx's error and no other: a controller that is away is no reason
// to stop.
func (u *Uplink) Run(ctx context.Context) error {
	roots := x509.NewCertPool()
	roots.AddCert(u.identity.Root)
	c := client(&tls.Config{
		RootCAs: roots,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			u.mu.Lock()
			cert := u.identity.Certificate()
			u.mu.Unlock()
			return &cert, nil
		},
	})
	defer c.CloseIdleConnections()
	service := circuitsealv1connect.NewAgentServiceClient(c, u.identity.Controller.String(),
		connect.WithGRPC(), connect.WithReadMaxBytes(desired.MaxEnvelope))

	var b backoff
	for ctx.Err() == nil {
		began := time.Now()
		u.renew()
		err := u.session(ctx, service)
		if ctx.Err() != nil {
			break
		}
		u.setLost(plain(err))
		pause := b.next(time.Since(began), rand.N[time.Duration])
		u.log.Warn("no session with the controller; running on", "controller", u.identity.Controller.Host, "retry_in", pause.Round(time.Millisecond), "error", plain(err))
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
		// A connection that half works is not kept for the next try.
		c.CloseIdleConnections()
	}
	return ctx.Err()
}

// renew takes a new certificate of the same node by the same root. Anything
// else asks for a restart: states were accepted under the old root.
func (u *Uplink) renew() {
	id, err := u.load()
	switch {
	case err != nil:
		u.log.Warn("identity cannot be read again; going on with the one at hand", "error", err)
	case id.Node != u.identity.Node || !id.Root.Equal(u.identity.Root) || id.Controller.String() != u.identity.Controller.String():
		u.log.Error("this host was enrolled as another node or elsewhere; restart the agent", "node", id.Node, "controller", id.Controller.Host)
	default:
		u.mu.Lock()
		u.identity = id
		u.mu.Unlock()
	}
}

func (u *Uplink) session(ctx context.Context, service circuitsealv1connect.AgentServiceClient) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream := service.Session(ctx)
	defer func() { _ = stream.CloseResponse() }()

	failed := make(chan error, 2)
	done := make(chan struct{}, 2)
	var answered atomic.Bool
	go func() {
		defer func() { done <- struct{}{} }()
		failed <- u.send(ctx, stream, &answered)
	}()
	go func() {
		defer func() { done <- struct{}{} }()
		failed <- u.receive(stream, &answered)
	}()
	err := <-failed
	cancel()
	<-done
	<-done
	return err
}

type stream = connect.BidiStreamForClient[v1.SessionRequest, v1.SessionResponse]

// send reports at once, when something changed, and every now and then.
func (u *Uplink) send(ctx context.Context, s *stream, answered *atomic.Bool) error {
	// net/http notices that ctx ended only once the request's body has.
	defer func() { _ = s.CloseRequest() }()
	tick := time.NewTicker(statusEvery)
	defer tick.Stop()
	for {
		if err := s.Send(&v1.SessionRequest{Status: u.node.Status(ctx).ToWire()}); err != nil {
			// The cause is in what the server said; receive reports it.
			<-ctx.Done()
			return err
		}
		if answered.Load() {
			u.node.Contacted()
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(statusPause):
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		case <-u.changed:
		}
	}
}

func (u *Uplink) receive(s *stream, answered *atomic.Bool) error {
	for {
		m, err := s.Receive()
		if err != nil {
			return err
		}
		if !answered.Swap(true) {
			u.setLost(nil)
			u.node.Contacted()
			u.log.Info("connected to the controller", "controller", u.identity.Controller.Host)
		}
		if m.GetState() != nil {
			if err := u.node.Accept(m.GetState()); err != nil {
				return err
			}
			u.Changed()
		}
	}
}
