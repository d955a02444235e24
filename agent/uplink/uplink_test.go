package uplink

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"go.uber.org/goleak"

	"github.com/circuitseal/circuitseal/agent/identity"
	v1 "github.com/circuitseal/circuitseal/proto/circuitseal/v1"
	"github.com/circuitseal/circuitseal/proto/circuitseal/v1/circuitsealv1connect"
	"github.com/circuitseal/circuitseal/proto/desired"
)

type signer struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func issue(t *testing.T, parent *signer, public any, change func(*x509.Certificate)) *signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "test"},
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
	}
	change(c)
	if parent == nil {
		parent = &signer{c, key}
	}
	if public == nil {
		public = &key.PublicKey
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent.cert, public, parent.key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &signer{cert, key}
}

func authority(c *x509.Certificate) {
	c.IsCA, c.BasicConstraintsValid, c.KeyUsage = true, true, x509.KeyUsageCertSign
	c.NotBefore = time.Now().Add(-365 * 24 * time.Hour)
}

// controller answers as the real one does on the wire: it is what the uplink is
// tried against, not a controller.
type controller struct {
	circuitsealv1connect.UnimplementedAgentServiceHandler
	t        *testing.T
	root     *signer
	url      *url.URL
	close    func()
	mu       sync.Mutex
	tokens   []string
	statuses chan *v1.NodeStatus
	states   chan *v1.Envelope
	// life changes what certificates say of their time.
	life func(*x509.Certificate)
	// asked are the certificates that renewals came with.
	asked []*x509.Certificate
	// session, when set, serves sessions.
	session func(context.Context, *x509.Certificate, *connect.BidiStream[v1.SessionRequest, v1.SessionResponse]) error
}

type peerKey struct{}

// peer is the certificate that a call came with.
func peer(ctx context.Context) *x509.Certificate {
	c, _ := ctx.Value(peerKey{}).(*x509.Certificate)
	return c
}

func serve(t *testing.T, curves ...tls.CurveID) *controller {
	t.Helper()
	c := &controller{t: t, statuses: make(chan *v1.NodeStatus, 100), states: make(chan *v1.Envelope, 1)}
	c.root = issue(t, nil, nil, authority)
	leaf := issue(t, c.root, nil, func(c *x509.Certificate) {
		c.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1)}
		c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	})
	mux := http.NewServeMux()
	mux.Handle(circuitsealv1connect.NewAgentServiceHandler(c))
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if len(r.TLS.PeerCertificates) > 0 {
			r = r.WithContext(context.WithValue(r.Context(), peerKey{}, r.TLS.PeerCertificates[0]))
		}
		mux.ServeHTTP(w, r)
	}))
	s.EnableHTTP2 = true
	s.Config.ErrorLog = nil
	s.TLS = &tls.Config{
		CurvePreferences: curves, ClientAuth: tls.RequestClientCert, MinVersion: tls.VersionTLS13,
		Certificates: []tls.Certificate{{Certificate: [][]byte{leaf.cert.Raw, c.root.cert.Raw}, PrivateKey: leaf.key}},
	}
	s.StartTLS()
	c.close = func() { s.CloseClientConnections(); s.Close() }
	t.Cleanup(c.close)
	u, err := url.Parse(s.URL)
	if err != nil {
		t.Fatal(err)
	}
	c.url = u
	return c
}

func (c *controller) Enrol(_ context.Context, r *connect.Request[v1.EnrolRequest]) (*connect.Response[v1.EnrolResponse], error) {
	c.mu.Lock()
	c.tokens = append(c.tokens, r.Msg.GetToken())
	c.mu.Unlock()
	if r.Msg.GetToken() != "good" {
		return nil, connect.NewError(connect.CodePermissionDenied, errors.New("the token has expired"))
	}
	csr, err := x509.ParseCertificateRequest(r.Msg.GetCertificateRequest())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&v1.EnrolResponse{Node: "prem-1", Certificates: [][]byte{c.leaf(csr.PublicKey)}, Root: c.root.cert.Raw}), nil
}

func (c *controller) leaf(public any) []byte {
	c.mu.Lock()
	life := c.life
	c.mu.Unlock()
	return issue(c.t, c.root, public, func(x *x509.Certificate) {
		x.URIs = []*url.URL{{Scheme: "spiffe", Host: "circuitseal", Path: "/node/prem-1"}}
		x.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
		if life != nil {
			life(x)
		}
	}).cert.Raw
}

func (c *controller) Renew(ctx context.Context, r *connect.Request[v1.RenewRequest]) (*connect.Response[v1.RenewResponse], error) {
	csr, err := x509.ParseCertificateRequest(r.Msg.GetCertificateRequest())
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	c.asked = append(c.asked, peer(ctx))
	c.mu.Unlock()
	return connect.NewResponse(&v1.RenewResponse{Certificates: [][]byte{c.leaf(csr.PublicKey)}}), nil
}

func (c *controller) Session(ctx context.Context, s *connect.BidiStream[v1.SessionRequest, v1.SessionResponse]) error {
	if c.session != nil {
		return c.session(ctx, peer(ctx), s)
	}
	ctx, cancel := context.WithCancel(ctx)
	var sending sync.WaitGroup
	// Nothing of the stream is used after the handler returns.
	defer sending.Wait()
	defer cancel()
	sending.Go(func() {
		for {
			select {
			case e := <-c.states:
				if s.Send(&v1.SessionResponse{State: e}) != nil {
					return
				}
			case <-ctx.Done():
				return
			}
		}
	})
	for {
		m, err := s.Receive()
		if err != nil {
			return err
		}
		select {
		case c.statuses <- m.GetStatus():
		default:
		}
	}
}

func (c *controller) pin() [32]byte { return sha256.Sum256(c.root.cert.Raw) }

func enrol(t *testing.T, c *controller, dir string) *identity.Identity {
	t.Helper()
	id, err := Enrol(t.Context(), dir, c.url, c.pin(), "good", "")
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func TestEnrol(t *testing.T) {
	c := serve(t)
	dir := t.TempDir()
	id := enrol(t, c, dir)
	loaded, err := identity.Load(dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	if id.Node != "prem-1" || loaded.Node != "prem-1" || loaded.Controller.String() != c.url.String() {
		t.Errorf("enrolled as %q, loaded %q at %s", id.Node, loaded.Node, loaded.Controller)
	}
	// Again, as after a lost answer: the same key.
	first, err := id.Leaf()
	if err != nil {
		t.Fatal(err)
	}
	second, err := enrol(t, c, dir).Leaf()
	if err != nil {
		t.Fatal(err)
	}
	if !first.PublicKey.(*ecdsa.PublicKey).Equal(second.PublicKey) {
		t.Error("a repeated enrolment made another key")
	}
}

func TestEnrolRefusals(t *testing.T) {
	c := serve(t)
	wrong := c.pin()
	wrong[0] ^= 1
	dir := t.TempDir()
	if _, err := Enrol(t.Context(), dir, c.url, wrong, "good", ""); err == nil || !strings.Contains(err.Error(), "root is not the pinned one") {
		t.Errorf("wrong pin: %v", err)
	}
	if len(c.tokens) != 0 {
		t.Errorf("the token went to a controller with another root")
	}
	if _, err := Enrol(t.Context(), dir, c.url, c.pin(), "old", ""); err == nil || err.Error() != "enrol at "+c.url.String()+": the token has expired" {
		t.Errorf("expired token: %v", err)
	}
	if _, err := identity.Load(dir, nil); !errors.Is(err, identity.ErrNotEnrolled) {
		t.Errorf("after refusals: %v", err)
	}
	classic := serve(t, tls.X25519)
	if _, err := Enrol(t.Context(), dir, classic.url, classic.pin(), "good", ""); err == nil || !strings.Contains(err.Error(), "handshake failure") {
		t.Errorf("a server without X25519MLKEM768: %v", err)
	}
}

// What keeps an enrolment from its controller is told in a sentence.
func TestEnrolSaysWhatToDo(t *testing.T) {
	listen := func() net.Listener {
		t.Helper()
		l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = l.Close() })
		return l
	}
	free, silent, plain := listen(), listen(), listen()
	if err := free.Close(); err != nil {
		t.Fatal(err)
	}
	go func() {
		if c, err := plain.Accept(); err == nil {
			_, _ = c.Write([]byte("HTTP/1.1 400 Bad Request\r\n\r\n"))
			_ = c.Close()
		}
	}()
	c := serve(t)
	named := *c.url
	named.Host = "localhost:" + named.Port()
	tests := []struct {
		name, host, says string
		patience         time.Duration
	}{
		{"refused", free.Addr().String(), "nothing listens at https://" + free.Addr().String(), time.Minute},
		{"silent", silent.Addr().String(), "did not answer in time", 100 * time.Millisecond},
		{"no TLS", plain.Addr().String(), "does not speak TLS", time.Minute},
		// No name that could be asked for, so nobody is asked.
		{"unknown host", "a..b:8443", `the name "a..b" cannot be resolved`, time.Minute},
		{"another name", named.Host, "start it with --name localhost", time.Minute},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), tt.patience)
			defer cancel()
			_, err := Enrol(ctx, t.TempDir(), &url.URL{Scheme: "https", Host: tt.host}, c.pin(), "good", "")
			if err == nil || !strings.Contains(err.Error(), tt.says) || strings.Contains(err.Error(), "Post ") {
				t.Errorf("got %v, want %q", err, tt.says)
			}
		})
	}
}

type node struct {
	mu       sync.Mutex
	accepted []*v1.Envelope
	version  string
	contacts int
}

func (n *node) Contacted() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.contacts++
}

func (n *node) Accept(e *v1.Envelope) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.accepted = append(n.accepted, e)
	n.version = "accepted"
	return nil
}

func (n *node) Status(context.Context) desired.Status {
	n.mu.Lock()
	defer n.mu.Unlock()
	return desired.Status{Version: n.version}
}

func TestSession(t *testing.T) {
	c := serve(t)
	id := enrol(t, c, t.TempDir())
	n := &node{version: "first"}
	u := New(Config{Identity: id, Load: func() (*identity.Identity, error) { return id, nil }, Node: n, Log: slog.New(slog.DiscardHandler)})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- u.Run(ctx) }()

	next := func() *v1.NodeStatus {
		t.Helper()
		select {
		case s := <-c.statuses:
			return s
		case <-time.After(time.Minute):
			t.Fatal("no status comes")
			return nil
		}
	}
	if s := next(); s.GetVersion() != "first" {
		t.Errorf("session opened with %v", s)
	}
	contacts := func() int {
		n.mu.Lock()
		defer n.mu.Unlock()
		return n.contacts
	}
	// A connection is no answer.
	if contacts() != 0 {
		t.Error("the controller was heard of before it said anything")
	}
	c.states <- &v1.Envelope{Signed: []byte("x")}
	// On a busy machine one more may have been on its way.
	s := next()
	for s.GetVersion() == "first" {
		s = next()
	}
	if s.GetVersion() != "accepted" {
		t.Errorf("after a state: %v", s)
	}
	if contacts() == 0 {
		t.Error("the controller was not heard of though it sent a state")
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("Run: %v", err)
	}
	c.close()
	goleak.VerifyNone(t)
}

func TestParseController(t *testing.T) {
	for _, bad := range []string{"", "http://x:1", "https://", "x:8443", "https://u:p@x", "https://x/path", "https://x?q", "://", "https://:8443", "https://x#f", "https://x#", "https://x?"} {
		if u, err := ParseController(bad); err == nil {
			t.Errorf("%q was taken as %v", bad, u)
		}
	}
	if u, err := ParseController("https://c.example:8443/"); err != nil || u.String() != "https://c.example:8443" {
		t.Errorf("%v, %v", u, err)
	}
}
