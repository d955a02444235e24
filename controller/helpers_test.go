package controller_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/circuitseal/circuitseal/controller"
	v1 "github.com/circuitseal/circuitseal/proto/circuitseal/v1"
	"github.com/circuitseal/circuitseal/proto/circuitseal/v1/circuitsealv1connect"
	"github.com/circuitseal/circuitseal/proto/sealed"
)

// patience is how long tests wait for what comes at once on an idle machine.
// Waiting is not asserting: a disk may stall for many seconds.
const patience = 60 * time.Second

// running is a controller in this process, with its own data directory.
type running struct {
	t    testing.TB
	dir  string
	url  string
	root *x509.Certificate
	log  *safeBuffer
	// now is the clock of its clients; nil for the real one.
	now func() time.Time
	// stop stops it and says what Run returned.
	stop func() error
}

type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *safeBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *safeBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func start(t testing.TB, dir string) *running {
	t.Helper()
	return startWith(t, controller.Config{DataDir: dir})
}

// secretKey is the file with a data directory's secret key, made when it is not
// there.
func secretKey(t testing.TB, dir string) string {
	t.Helper()
	path := filepath.Clean(dir) + "-key/key"
	if err := sealed.Generate(path, time.Now()); err != nil && !errors.Is(err, fs.ErrExist) {
		t.Fatal(err)
	}
	return path
}

// startWith fills in what a configuration leaves open.
func startWith(t testing.TB, c controller.Config) *running {
	t.Helper()
	dir := c.DataDir
	if c.SecretKeyFile == "" {
		c.SecretKeyFile = secretKey(t, dir)
	}
	r := &running{t: t, dir: dir, log: &safeBuffer{}}
	ready := make(chan string, 1)
	done := make(chan error, 1)
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		c.Listen = "127.0.0.1:0"
		c.Log = slog.New(slog.NewTextHandler(r.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
		c.Ready = func(a net.Addr, _ string) { ready <- a.String() }
		done <- controller.Run(ctx, c)
	}()
	r.stop = sync.OnceValue(func() error { cancel(); return <-done })
	t.Cleanup(func() {
		if err := r.stop(); err != nil {
			t.Errorf("the controller stopped with %v", err)
		}
		if t.Failed() {
			t.Logf("its log:\n%s", r.log)
		}
	})
	select {
	case address := <-ready:
		r.url = "https://" + address
	case err := <-done:
		done <- err
		t.Fatalf("the controller did not start: %v", err)
	case <-time.After(patience):
		t.Fatal("the controller does not start")
	}
	block, _ := pem.Decode(r.read("admin/root.pem"))
	var err error
	if r.root, err = x509.ParseCertificate(block.Bytes); err != nil {
		t.Fatal(err)
	}
	return r
}

func (r *running) read(name string) []byte {
	r.t.Helper()
	b, err := os.ReadFile(filepath.Join(r.dir, name))
	if err != nil {
		r.t.Fatal(err)
	}
	return b
}

func (r *running) admin() *tls.Certificate {
	r.t.Helper()
	b := r.read("admin/identity.pem")
	pair, err := tls.X509KeyPair(b, b)
	if err != nil {
		r.t.Fatal(err)
	}
	return &pair
}

// client is a client with a certificate, or none, over HTTP/2.
func (r *running) client(cert *tls.Certificate, curves ...tls.CurveID) *http.Client {
	pool := x509.NewCertPool()
	pool.AddCert(r.root)
	transport := &http.Transport{
		ForceAttemptHTTP2: true,
		TLSClientConfig:   &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: pool, CurvePreferences: curves, Time: r.now},
	}
	if cert != nil {
		// Shown whatever issuers the server asks for: a foreign one, too.
		transport.TLSClientConfig.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil }
	}
	r.t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: patience}
}

type operator struct {
	policy circuitsealv1connect.PolicyServiceClient
	nodes  circuitsealv1connect.NodeServiceClient
	status circuitsealv1connect.StatusServiceClient
	keys   circuitsealv1connect.KeyServiceClient
}

func (r *running) operator() operator {
	c := r.client(r.admin())
	return operator{
		circuitsealv1connect.NewPolicyServiceClient(c, r.url),
		circuitsealv1connect.NewNodeServiceClient(c, r.url),
		circuitsealv1connect.NewStatusServiceClient(c, r.url),
		circuitsealv1connect.NewKeyServiceClient(c, r.url),
	}
}

// awaitSecrets waits until so many tunnels have a pre-shared key, and returns
// what the controller lists then.
func (o operator) awaitSecrets(t testing.TB, n int) []*v1.KeyReport {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		a, err := o.keys.ListKeys(t.Context(), connect.NewRequest(&v1.ListKeysRequest{}))
		if err != nil {
			t.Fatal(err)
		}
		have := 0
		for _, k := range a.Msg.GetKeys() {
			if k.GetKind() == v1.KeyKind_KEY_KIND_PRESHARED {
				have++
			}
		}
		if have == n {
			return a.Msg.GetKeys()
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d pre-shared keys are there, want %d", have, n)
		}
	}
}

func (r *running) agents(cert *tls.Certificate) circuitsealv1connect.AgentServiceClient {
	c := r.client(cert, tls.X25519MLKEM768)
	c.Timeout = 0
	return circuitsealv1connect.NewAgentServiceClient(c, r.url, connect.WithGRPC())
}

// samples are the policy that the project ships.
func samples(t testing.TB) []*v1.Source {
	t.Helper()
	paths, err := filepath.Glob("../deploy/samples/*.yaml")
	if err != nil || len(paths) < 2 {
		t.Fatalf("the samples: %v, %v", paths, err)
	}
	var sources []*v1.Source
	for _, p := range paths {
		b, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		sources = append(sources, &v1.Source{Name: filepath.Base(p), Text: string(b)})
	}
	return sources
}

func (o operator) apply(t testing.TB, sources ...*v1.Source) *v1.ApplyResponse {
	t.Helper()
	a, err := o.policy.Apply(t.Context(), connect.NewRequest(&v1.ApplyRequest{Sources: sources}))
	if err != nil {
		t.Fatalf("apply: %v", err)
	}
	return a.Msg
}

func (o operator) token(t testing.TB, node string) string {
	t.Helper()
	a, err := o.nodes.CreateToken(t.Context(), connect.NewRequest(&v1.CreateTokenRequest{Node: node}))
	if err != nil {
		t.Fatalf("create token: %v", err)
	}
	return a.Msg.GetToken()
}

func newKey(t testing.TB) (*ecdsa.PrivateKey, []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	request, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		t.Fatal(err)
	}
	return key, request
}

// enrol makes a node's certificate by a new token.
func (r *running) enrol(node string) *tls.Certificate {
	r.t.Helper()
	token := r.operator().token(r.t, node)
	key, request := newKey(r.t)
	a, err := r.agents(nil).Enrol(r.t.Context(), connect.NewRequest(&v1.EnrolRequest{Token: token, CertificateRequest: request, Node: node}))
	if err != nil {
		r.t.Fatalf("enrol: %v", err)
	}
	if a.Msg.GetNode() != node || !bytes.Equal(a.Msg.GetRoot(), r.root.Raw) {
		r.t.Fatalf("enrolled as %q", a.Msg.GetNode())
	}
	if strings.Contains(r.log.String(), token) {
		r.t.Error("the token is in the log")
	}
	return &tls.Certificate{Certificate: a.Msg.GetCertificates(), PrivateKey: key}
}

// eventually waits for a condition.
func eventually(t testing.TB, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if f() {
			return
		}
	}
	t.Fatalf("in vain: %s", what)
}
