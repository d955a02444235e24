package uplink

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net/http"
	"sync"
	"time"

	"connectrpc.com/connect"

	"github.com/circuitseal/circuitseal/agent/identity"
	v1 "github.com/circuitseal/circuitseal/proto/circuitseal/v1"
	"github.com/circuitseal/circuitseal/proto/circuitseal/v1/circuitsealv1connect"
	"github.com/circuitseal/circuitseal/proto/desired"
)

// maxProbe is the longest probe in bytes that is answered.
const maxProbe = 64

// dial makes a client of the controller that shows an identity. Nothing is
// connected yet; the caller closes its connections.
func (u *Uplink) dial(id *identity.Identity) (*http.Client, circuitsealv1connect.AgentServiceClient) {
	roots := x509.NewCertPool()
	roots.AddCert(id.Root)
	cert := id.Certificate()
	c := client(&tls.Config{
		RootCAs: roots,
		Time:    u.now,
		// Whatever the server asks for: an expired one, too, renews.
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &cert, nil },
	})
	return c, circuitsealv1connect.NewAgentServiceClient(c, id.Controller.String(),
		connect.WithGRPC(), connect.WithReadMaxBytes(desired.MaxEnvelope))
}

type stream = connect.BidiStreamForClient[v1.SessionRequest, v1.SessionResponse]

// link is one session over a connection of its own.
type link struct {
	cancel context.CancelFunc
	// up is closed with the controller's first message, done when the link has
	// ended; err says why then.
	up, done chan struct{}
	err      error

	mu        sync.Mutex
	successor *link

	// sending is held while a message goes out.
	sending sync.Mutex
	stream  *stream
	// opened is set once the first status is out.
	opened bool
}

// open starts a session with the present identity. It ends with ctx, when the
// other side ends it, or by close, which has to be called.
func (u *Uplink) open(ctx context.Context) *link {
	id := u.present()
	c, service := u.dial(id)
	ctx, cancel := context.WithCancel(ctx)
	l := &link{cancel: cancel, up: make(chan struct{}), done: make(chan struct{})}
	l.stream = service.Session(ctx)
	go func() {
		defer close(l.done)
		defer c.CloseIdleConnections()
		l.err = u.run(ctx, l)
	}()
	return l
}

// close ends the link and waits for it.
func (l *link) close() {
	l.cancel()
	<-l.done
}

// movesTo says which link is to take the place of this one.
func (l *link) movesTo(next *link) {
	l.mu.Lock()
	l.successor = next
	l.mu.Unlock()
}

func (u *Uplink) run(ctx context.Context, l *link) error {
	defer func() { _ = l.stream.CloseResponse() }()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	failed := make(chan error, 2)
	var wg sync.WaitGroup
	wg.Go(func() { failed <- u.send(ctx, l) })
	wg.Go(func() { failed <- u.receive(l) })
	err := <-failed
	l.cancel()
	cancel()
	wg.Wait()
	return err
}

// send reports at once, when something changed, and every now and then.
func (u *Uplink) send(ctx context.Context, l *link) error {
	// net/http notices that ctx ended only once the request's body has.
	defer func() { _ = l.stream.CloseRequest() }()
	tick := time.NewTicker(statusEvery)
	defer tick.Stop()
	for {
		if err := l.report(u.config.Node.Status(ctx)); err != nil {
			// The cause is in what the server said; receive reports it.
			<-ctx.Done()
			return err
		}
		select {
		case <-l.up:
			u.config.Node.Contacted()
		default:
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
			continue
		case <-u.changed:
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(statusPause):
		}
		select {
		case <-u.changed:
		default:
		}
	}
}

func (l *link) report(s desired.Status) error {
	m := &v1.SessionRequest{Status: s.ToWire()}
	l.sending.Lock()
	defer l.sending.Unlock()
	err := l.stream.Send(m)
	l.opened = l.opened || err == nil
	return err
}

func (u *Uplink) receive(l *link) error {
	connected := false
	for {
		m, err := l.stream.Receive()
		if err != nil {
			return err
		}
		if p := m.GetProbe(); len(p) > 0 && len(p) <= maxProbe {
			l.answer(p)
		}
		if !connected {
			connected = true
			close(l.up)
			u.setLost(nil)
			u.config.Node.Contacted()
			signal(u.reached)
			u.log.Info("connected to the controller", "controller", u.config.Identity.Controller.Host)
		}
		if m.GetState() != nil {
			if err := u.config.Node.Accept(m.GetState()); err != nil {
				return err
			}
			u.Changed()
		}
	}
}

// answer answers a probe, which the controller sends when another session wants
// this one's place: on the successor, which is thereby known to be this very
// process, or here, which says that nobody may have it. It does not wait for a
// status: being slow must not look like being dead.
func (l *link) answer(nonce []byte) {
	l.mu.Lock()
	next := l.successor
	l.mu.Unlock()
	if next == nil || !next.say(nonce) {
		l.say(nonce)
	}
}

func (l *link) say(nonce []byte) bool {
	l.sending.Lock()
	defer l.sending.Unlock()
	return l.opened && l.stream.Send(&v1.SessionRequest{ProbeAnswer: nonce}) == nil
}
