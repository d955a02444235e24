package main

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
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/circuitseal/circuitseal/controller"
	v1 "github.com/circuitseal/circuitseal/proto/circuitseal/v1"
	"github.com/circuitseal/circuitseal/proto/circuitseal/v1/circuitsealv1connect"
	"github.com/circuitseal/circuitseal/proto/desired"
	"github.com/circuitseal/circuitseal/proto/sealed"
)

// patience is how long tests wait for what comes at once on an idle machine.
const patience = 60 * time.Second

const samples = "../../../deploy/samples"

// start runs a real controller and points sealctl's environment at it, and at
// nothing of the user who runs the test.
func start(t *testing.T) (dir string) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "data")
	t.Setenv("SEALCTL_SERVER", "https://"+serve(t, dir))
	t.Setenv("SEALCTL_IDENTITY", dir+"/admin/identity.pem")
	t.Setenv("SEALCTL_ROOT", dir+"/admin/root.pem")
	noConfiguration(t)
	return dir
}

// noConfiguration hides the user's own contexts.
func noConfiguration(t *testing.T) {
	t.Helper()
	for _, name := range []string{"SEALCTL_KEY", "SEALCTL_ROOT_PIN", "CIRCUITSEAL_CONTEXT", "CIRCUITSEAL_CONTEXTS"} {
		t.Setenv(name, "")
	}
	t.Setenv("XDG_CONFIG_HOME", filepath.Join(t.TempDir(), "config"))
}

// secretKey is the file with the secret key of a controller's data directory.
func secretKey(t *testing.T, dir string) string {
	t.Helper()
	path := dir + "-key"
	if err := sealed.Generate(path, time.Now()); err != nil && !errors.Is(err, fs.ErrExist) {
		t.Error(err)
	}
	return path
}

// serve runs a controller until the test ends; address is where.
func serve(t *testing.T, dir string, with ...func(*controller.Config)) (address string) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ready, done := make(chan string, 1), make(chan error, 1)
	config := controller.Config{
		DataDir: dir, SecretKeyFile: secretKey(t, dir), Listen: "127.0.0.1:0", Log: slog.New(slog.DiscardHandler),
		Ready: func(a net.Addr, _ string) { ready <- a.String() },
	}
	for _, change := range with {
		change(&config)
	}
	go func() { done <- controller.Run(ctx, config) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	select {
	case address = <-ready:
	case err := <-done:
		done <- err
		t.Fatal(err)
	}
	return address
}

// start2 makes another controller's data directory.
func start2(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "data")
	ctx, cancel := context.WithCancel(t.Context())
	err := controller.Run(ctx, controller.Config{
		DataDir: dir, SecretKeyFile: secretKey(t, dir), Listen: "127.0.0.1:0", Log: slog.New(slog.DiscardHandler), Ready: func(net.Addr, string) { cancel() },
	})
	cancel()
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// sealctl runs a command.
func sealctl(t *testing.T, stdin string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, e bytes.Buffer
	code = run(t.Context(), args, strings.NewReader(stdin), &out, &e)
	return code, out.String(), e.String()
}

// must runs a command that succeeds; the result is its stdout.
func must(t *testing.T, stdin string, args ...string) string {
	t.Helper()
	code, stdout, stderr := sealctl(t, stdin, args...)
	if code != exitOK {
		t.Fatalf("sealctl %s: exit code %d: %s", strings.Join(args, " "), code, stderr)
	}
	return stdout
}

// node is a session of an enrolled node that says what a test wants.
type node struct {
	t      *testing.T
	stream *connect.BidiStreamForClient[v1.SessionRequest, v1.SessionResponse]
	states chan *v1.Position
	mu     sync.Mutex
	last   *v1.NodeStatus
	// leave ends the session.
	leave func()
}

// enrol enrols a node with a token that sealctl makes, and opens its session.
// Its document is applied already.
func enrol(t *testing.T, dir, name string) *node {
	t.Helper()
	token := strings.TrimSpace(must(t, "", "token", "create", name))
	secret, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	request, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, secret)
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(dir + "/admin/root.pem")
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(b)
	root, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(root)
	client := func(pair *tls.Certificate) circuitsealv1connect.AgentServiceClient {
		config := &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: roots, CurvePreferences: []tls.CurveID{tls.X25519MLKEM768}}
		if pair != nil {
			config.Certificates = []tls.Certificate{*pair}
		}
		transport := &http.Transport{ForceAttemptHTTP2: true, TLSClientConfig: config}
		t.Cleanup(transport.CloseIdleConnections)
		return circuitsealv1connect.NewAgentServiceClient(&http.Client{Transport: transport}, os.Getenv("SEALCTL_SERVER"), connect.WithGRPC())
	}
	a, err := client(nil).Enrol(t.Context(), connect.NewRequest(&v1.EnrolRequest{Token: token, CertificateRequest: request, Node: name}))
	if err != nil {
		t.Fatal(err)
	}
	pair := &tls.Certificate{Certificate: a.Msg.GetCertificates(), PrivateKey: secret}
	ctx, cancel := context.WithCancel(t.Context())
	n := &node{t: t, stream: client(pair).Session(ctx), states: make(chan *v1.Position, 64), last: &v1.NodeStatus{}}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			m, err := n.stream.Receive()
			if err != nil {
				return
			}
			h, _, err := desired.OpenEnvelope(m.GetState(), root, name)
			if err != nil {
				t.Errorf("the state of %s: %v", name, err)
				continue
			}
			n.states <- h.Position.ToWire()
		}
	}()
	n.leave = sync.OnceFunc(func() {
		cancel()
		// The context alone does not end a stream whose request is open.
		_ = n.stream.CloseRequest()
		<-done
		_ = n.stream.CloseResponse()
	})
	t.Cleanup(n.leave)
	n.report(func(*v1.NodeStatus) {})
	return n
}

// report changes what the node says, and says it.
func (n *node) report(change func(*v1.NodeStatus)) {
	n.t.Helper()
	n.mu.Lock()
	defer n.mu.Unlock()
	change(n.last)
	n.last.Time = timestamppb.Now()
	if err := n.stream.Send(&v1.SessionRequest{Status: proto.CloneOf(n.last)}); err != nil {
		n.t.Errorf("report: %v", err)
	}
}

// next is the position of the next state that arrives.
func (n *node) next() *v1.Position {
	n.t.Helper()
	select {
	case p := <-n.states:
		return p
	case <-time.After(patience):
		n.t.Fatal("no state came")
	}
	return nil
}

// apply says that the next state is applied.
func (n *node) apply() {
	n.t.Helper()
	p := n.next()
	n.report(func(s *v1.NodeStatus) { s.Acknowledged, s.Applied = p, p })
}

// eventually waits until a command's stdout says something.
func eventually(t *testing.T, says string, args ...string) string {
	t.Helper()
	var stdout string
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if _, stdout, _ = sealctl(t, "", args...); strings.Contains(stdout, says) {
			return stdout
		}
	}
	t.Fatalf("sealctl %s does not say %q but\n%s", strings.Join(args, " "), says, stdout)
	return ""
}
