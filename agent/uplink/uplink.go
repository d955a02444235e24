// Package uplink is a node's connection to its controller: it enrols, dials,
// authenticates both ends, receives states and sends status. It knows the wire
// and TLS; it knows neither kernels nor what a state means.
package uplink

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"sync"
	"time"

	"connectrpc.com/connect"

	"github.com/circuitseal/circuitseal/agent/identity"
	v1 "github.com/circuitseal/circuitseal/proto/circuitseal/v1"
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
	// statusPause is how long after a change it goes out, and bounds how often: the
	// change itself must not wait for a look at hundreds of tunnels.
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

// Config is what an uplink is made of.
type Config struct {
	Identity *identity.Identity
	// Load reads the identity again. It is called before each session, so that a
	// node that was enrolled anew needs no restart.
	Load func() (*identity.Identity, error)
	// Renew keeps new certificates over the key of an identity.
	Renew func(id *identity.Identity, certificates [][]byte) (*identity.Identity, error)
	Node  Node
	Log   *slog.Logger
	// Now is the clock; time.Now when nil.
	Now func() time.Time
}

// Uplink keeps one session with the controller, and the certificate for it.
type Uplink struct {
	config  Config
	log     *slog.Logger
	now     func() time.Time
	changed chan struct{}
	// renewed asks for a session with the new certificate, reached tells that
	// the controller can be reached.
	renewed, reached chan struct{}

	mu       sync.Mutex
	identity *identity.Identity
	lost     error
	// unrenewed is why the last renewal failed; nil when it did not.
	unrenewed error
}

// New makes an uplink; Run starts it.
func New(c Config) *Uplink {
	u := &Uplink{
		config: c, log: c.Log, now: c.Now, identity: c.Identity,
		changed: make(chan struct{}, 1), renewed: make(chan struct{}, 1), reached: make(chan struct{}, 1),
	}
	if u.now == nil {
		u.now = time.Now
	}
	return u
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
		verb, cause := "ends", "the controller was not asked yet"
		if now.After(leaf.NotAfter) {
			verb = "ended"
		}
		if u.unrenewed != nil {
			cause = u.unrenewed.Error()
		}
		out = append(out, fmt.Sprintf("the certificate of node %s %s at %s and is not renewed: %s", u.identity.Node, verb, leaf.NotAfter.UTC().Format(time.RFC3339), cause))
	}
	return out
}

func (u *Uplink) present() *identity.Identity {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.identity
}

// setLost keeps why there is no session; nil when there is one.
func (u *Uplink) setLost(err error) {
	u.mu.Lock()
	u.lost = err
	u.mu.Unlock()
}

// Changed asks for status to be sent soon. It never blocks.
func (u *Uplink) Changed() { signal(u.changed) }

func signal(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Run holds a session until ctx ends, redialling with jittered, growing pauses,
// and renews the certificate for it. It returns ctx's error and no other: a
// controller that is away is no reason to stop.
func (u *Uplink) Run(ctx context.Context) error {
	renewing := make(chan struct{})
	go func() {
		defer close(renewing)
		u.renewals(ctx)
	}()
	defer func() { <-renewing }()

	var b backoff
	for ctx.Err() == nil {
		began := time.Now()
		u.reload()
		err := u.hold(ctx, u.open(ctx))
		if ctx.Err() != nil {
			break
		}
		err = u.explain(err)
		u.setLost(err)
		pause := b.next(time.Since(began), rand.N[time.Duration])
		u.log.Warn("no session with the controller; running on", "controller", u.config.Identity.Controller.Host, "retry_in", pause.Round(time.Millisecond), "error", err)
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		case <-u.renewed:
		}
	}
	return ctx.Err()
}

// hold waits for the end of a session and says why. When the certificate is
// renewed it opens another one first, and leaves the old one when that is up.
func (u *Uplink) hold(ctx context.Context, l *link) error {
	defer func() { l.close() }()
	var again <-chan time.Time
	for {
		select {
		case <-l.done:
			return l.err
		case <-u.renewed:
		case <-again:
		}
		again = nil
		next := u.open(ctx)
		l.movesTo(next)
		select {
		case <-next.up:
			l.close()
			l = next
			u.log.Info("session goes on with the new certificate")
		case <-l.done:
			// The controller has ended it for the new one, or for all.
			l = next
		case <-next.done:
			l.movesTo(nil)
			u.log.Warn("no session with the new certificate yet; going on with the one that is open", "error", u.explain(next.err))
			again = time.After(renewCheck)
		}
	}
}

// reload takes a new certificate of the same node by the same root. Anything
// else asks for a restart: states were accepted under the old root.
func (u *Uplink) reload() {
	id, err := u.config.Load()
	mine := u.config.Identity
	switch {
	case err != nil:
		u.log.Warn("identity cannot be read again; going on with the one at hand", "error", err)
	case id.Node != mine.Node || !id.Root.Equal(mine.Root) || id.Controller.String() != mine.Controller.String():
		u.log.Error("this host was enrolled as another node or elsewhere; restart the agent", "node", id.Node, "controller", id.Controller.Host)
	default:
		u.mu.Lock()
		u.identity = id
		u.mu.Unlock()
	}
}
