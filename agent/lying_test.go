package agent

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha512"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/circuitseal/circuitseal/agent/identity"
	"github.com/circuitseal/circuitseal/agent/instance"
	"github.com/circuitseal/circuitseal/agent/netns/netnstest"
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
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageDigitalSignature,
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
}

func named(uri string) func(*x509.Certificate) {
	return func(c *x509.Certificate) {
		u, err := url.Parse(uri)
		if err != nil {
			panic(err)
		}
		c.URIs = []*url.URL{u}
	}
}

// liar is a controller that has the root's word for being one and sends what it
// is told to.
type liar struct {
	circuitsealv1connect.UnimplementedAgentServiceHandler
	states   chan *v1.Envelope
	statuses chan desired.Status

	// root has issued leaf, the controller's own, and by, which signs states.
	root, by, leaf *signer
	instance       instance.Instance
	// url is where it serves.
	url string
	// config is of an agent that is enrolled as prem-1.
	config Config
}

// newLiar serves, and removes the agent after the test.
func newLiar(t *testing.T) *liar {
	t.Helper()
	netnstest.RequireRoot(t)
	root := issue(t, nil, nil, authority)
	leaf := issue(t, root, nil, func(c *x509.Certificate) {
		c.IPAddresses, c.ExtKeyUsage = []net.IP{net.IPv4(127, 0, 0, 1)}, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	})
	i, err := instance.Parse("l" + strconv.FormatUint(uint64(os.Getpid())%1679616, 36) + strconv.FormatUint(liars.Add(1), 36))
	if err != nil {
		t.Fatal(err)
	}
	l := &liar{
		states: make(chan *v1.Envelope), statuses: make(chan desired.Status),
		root: root, by: issue(t, root, nil, named(desired.StateSigner)), leaf: leaf, instance: i,
		config: Config{Instance: i, Version: "test", Log: slog.New(slog.DiscardHandler)},
	}
	mux := http.NewServeMux()
	mux.Handle(circuitsealv1connect.NewAgentServiceHandler(l))
	server := httptest.NewUnstartedServer(mux)
	server.EnableHTTP2 = true
	server.TLS = &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{{Certificate: [][]byte{leaf.cert.Raw}, PrivateKey: leaf.key}}}
	server.StartTLS()
	t.Cleanup(func() { server.CloseClientConnections(); server.Close() })
	t.Cleanup(func() {
		if err := Remove(context.Background(), l.config, true); err != nil {
			t.Error(err)
		}
	})
	l.url = server.URL
	l.enrol(t, IdentityDir(i))
	return l
}

var liars atomic.Uint64

// until sends a state, if there is one, until a status says what f looks for. What
// was sent may have met a session that was about to end.
func (l *liar) until(t *testing.T, e *v1.Envelope, what string, f func(desired.Status) bool) {
	t.Helper()
	var last desired.Status
	states := l.states
	if e == nil {
		states = nil
	}
	for deadline := time.After(time.Minute); ; {
		select {
		case states <- e:
			// Not again before there is a word of it.
			states = nil
		case last = <-l.statuses:
			if f(last) {
				return
			}
			if e != nil {
				states = l.states
			}
		case <-deadline:
			t.Fatalf("%s: no status says so; the last: %+v", what, last)
		}
	}
}

// seal signs a state.
func (l *liar) seal(t *testing.T, h desired.Header, s desired.State, by *signer) *v1.Envelope {
	t.Helper()
	raw, err := s.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	e, err := desired.Seal(h, raw, by.key, by.cert.Raw)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func (l *liar) Session(ctx context.Context, s *connect.BidiStream[v1.SessionRequest, v1.SessionResponse]) error {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	defer func() {
		cancel()
		<-done
	}()
	go func() {
		defer close(done)
		for {
			select {
			case e := <-l.states:
				if s.Send(&v1.SessionResponse{State: e}) != nil {
					return
				}
			case <-ctx.Done():
				return
			}
		}
	}()
	for {
		m, err := s.Receive()
		if err != nil {
			return err
		}
		status, err := desired.StatusFromWire(m.GetStatus())
		if err != nil {
			return err
		}
		select {
		case l.statuses <- status:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// A real agent keeps its last good state, and says why, whatever a controller
// sends: badly signed, for another node, older, of a future format, cut or too
// large. So it does after a restart.
func TestLyingController(t *testing.T) {
	l := newLiar(t)
	by, leaf, i, config := l.by, l.leaf, l.instance, l.config
	stranger := issue(t, issue(t, nil, nil, authority), nil, named(desired.StateSigner))

	at := func(revision uint64) desired.Header {
		return desired.Header{Node: "prem-1", Position: desired.Position{Epoch: 3, Revision: revision}, Issued: time.Now()}
	}
	sealed := func(h desired.Header, name string, by *signer) *v1.Envelope {
		return l.seal(t, h, desired.State{Interfaces: []desired.Interface{{Name: name, Role: desired.RoleCircuit}}}, by)
	}
	good := sealed(at(5), "none0", by)
	changed := func(f func(*v1.Envelope)) *v1.Envelope {
		e := proto.CloneOf(sealed(at(9), "none0", by))
		f(e)
		return e
	}
	type lie struct {
		name     string
		envelope *v1.Envelope
		says     string
	}
	older := at(9)
	older.Position.Epoch = 2
	other := at(9)
	other.Node = "nva-1"
	lies := []lie{
		{"a bit flipped", changed(func(e *v1.Envelope) { e.Signed[len(e.GetSigned())/2] ^= 1 }), "not signed by the state-signing key"},
		{"another root's signer", sealed(at(9), "none0", stranger), "not signed by the state-signing key"},
		{"signed by the controller's own certificate", sealed(at(9), "none0", leaf), "not signed by the state-signing key"},
		{"unsigned", changed(func(e *v1.Envelope) { e.Signatures = nil }), "not signed by the state-signing key"},
		{"empty", &v1.Envelope{}, "not signed by the state-signing key"},
		{"another node's", sealed(other, "none0", by), "state is for another node"},
		{"an older revision", sealed(at(4), "none0", by), "older than one already run"},
		{"an older epoch", sealed(older, "none0", by), "older than one already run"},
		{"another at the same position", sealed(at(5), "none1", by), "differs from one already run at the same position"},
		{"a future format", signed(t, by, &v1.SignedState{Type: "circuitseal.v9.State", Node: "prem-1", Epoch: 3, Revision: 9, Issued: timestamppb.Now()}), "upgrade the agent"},
		{"a protocol of the future", signed(t, by, &v1.SignedState{Type: "circuitseal.v1.State", Node: "prem-1", Epoch: 3, Revision: 9, Issued: timestamppb.Now(), State: []byte{0x0a, 0xff}}), "state cannot be read"},
	}
	for n := 0; n < len(good.GetSigned()); n += 7 {
		lies = append(lies, lie{fmt.Sprintf("cut at byte %d", n), changed(func(e *v1.Envelope) { e.Signed = e.GetSigned()[:n] }), "not signed by the state-signing key"})
	}

	holds := func(revision uint64) func(desired.Status) bool {
		return func(s desired.Status) bool {
			return s.Acknowledged == desired.Position{Epoch: 3, Revision: revision} && s.Rejection == nil
		}
	}
	file := func() []byte {
		raw, err := os.ReadFile(filepath.Join(i.StateDir(), "last-good-state"))
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}

	stop := start(t, config)
	l.until(t, good, "the first state is taken", holds(5))
	kept := file()
	for _, lie := range lies {
		l.until(t, lie.envelope, lie.name+" is refused", func(s desired.Status) bool {
			return s.Rejection != nil && strings.Contains(s.Rejection.Reason, lie.says) && s.Acknowledged.Revision == 5
		})
		if !bytes.Equal(file(), kept) {
			t.Fatalf("%s: another state is kept", lie.name)
		}
		// What is refused stands until the controller comes to its senses.
		l.until(t, good, "the held state again", holds(5))
	}
	// What is too large is not even read: the session ends with a reason.
	large := changed(func(e *v1.Envelope) { e.Signed = make([]byte, desired.MaxEnvelope+1) })
	l.until(t, large, "too large", func(s desired.Status) bool {
		return s.Acknowledged.Revision == 5 && strings.Contains(strings.Join(s.Problems, "\n"), "no session with controller")
	})
	stop()

	stop = start(t, config)
	l.until(t, sealed(at(4), "none0", by), "an older state after a restart", func(s desired.Status) bool {
		return s.Rejection != nil && s.Acknowledged.Revision == 5
	})
	l.until(t, sealed(at(6), "none0", by), "a newer state", holds(6))
	stop()
}

// start runs an agent until stop.
func start(t *testing.T, c Config) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- Run(ctx, c) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(stop)
	return stop
}

// enrol makes an identity in dir.
func (l *liar) enrol(t *testing.T, dir string) {
	t.Helper()
	key, err := identity.NewKey(dir)
	if err != nil {
		t.Fatal(err)
	}
	request, err := key.Request()
	if err != nil {
		t.Fatal(err)
	}
	csr, err := x509.ParseCertificateRequest(request)
	if err != nil {
		t.Fatal(err)
	}
	cert := issue(t, l.root, csr.PublicKey, named(desired.NodeURI+"prem-1"))
	at, err := url.Parse(l.url)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := identity.Store(dir, at, l.root.cert.Raw, [][]byte{cert.cert.Raw}); err != nil {
		t.Fatal(err)
	}
}

// signed signs what Seal would not make.
func signed(t *testing.T, by *signer, s *v1.SignedState) *v1.Envelope {
	t.Helper()
	raw, err := proto.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	h := sha512.New384()
	h.Write([]byte("circuitseal state v1\x00"))
	h.Write(raw)
	sig, err := by.key.Sign(rand.Reader, h.Sum(nil), crypto.SHA384)
	if err != nil {
		t.Fatal(err)
	}
	return &v1.Envelope{Signed: raw, Signatures: []*v1.Signature{{Certificate: by.cert.Raw, Signature: sig}}}
}
