package pki

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

func serve(t *testing.T, a *Authority, names ...string) (*tls.Config, *x509.Certificate) {
	t.Helper()
	c, err := a.ServerTLS(names)
	if err != nil {
		t.Fatalf("ServerTLS: %v", err)
	}
	return c, served(t, c)
}

func served(t *testing.T, c *tls.Config) *x509.Certificate {
	t.Helper()
	cert, err := c.GetCertificate(nil)
	if err != nil {
		t.Fatal(err)
	}
	return cert.Leaf
}

func TestServerCertificate(t *testing.T) {
	dir := t.TempDir()
	var c clock
	a := open(t, dir, &c)
	_, first := serve(t, a)
	for _, n := range []string{"localhost", "127.0.0.1", "::1"} {
		if err := first.VerifyHostname(n); err != nil {
			t.Error(err)
		}
	}
	if _, again := serve(t, open(t, dir, &c)); !again.Equal(first) {
		t.Error("a restart made another certificate")
	}
	_, renamed := serve(t, a, "Controller.example.com", "192.0.2.7", "2001:db8::7", "192.0.2.7")
	if renamed.Equal(first) {
		t.Error("other names, the same certificate")
	}
	if !slices.Equal(renamed.DNSNames, []string{"controller.example.com"}) || len(renamed.IPAddresses) != 2 {
		t.Errorf("names %v %v", renamed.DNSNames, renamed.IPAddresses)
	}
	// Another order is no change.
	running, same := serve(t, open(t, dir, &c), "2001:db8::7", "192.0.2.7", "controller.example.com")
	if !same.Equal(renamed) {
		t.Error("the same names in another order made another certificate")
	}
	// Renewed while it serves, once, whoever asks.
	c.forward(serverLife / 2)
	if got := served(t, running); !got.Equal(same) {
		t.Error("renewed at half its life")
	}
	c.forward(serverLife / 4)
	var wg sync.WaitGroup
	got := make([]*x509.Certificate, 8)
	for i := range got {
		wg.Go(func() { got[i] = served(t, running) })
	}
	wg.Wait()
	for _, g := range got {
		if g.Equal(same) || !g.Equal(got[0]) {
			t.Fatal("not renewed, or more than once")
		}
	}
	// A disk that takes no writes does not stop the server.
	c.forward(serverLife * 3 / 4)
	if err := os.Rename(filepath.Join(dir, "pki"), filepath.Join(dir, "gone")); err != nil {
		t.Fatal(err)
	}
	if g := served(t, running); !g.Equal(got[0]) {
		t.Error("served a certificate that is not on disk")
	}
	// Nor does its end: clients judge that, whose clocks may be the right ones.
	c.forward(serverLife)
	if g := served(t, running); !g.Equal(got[0]) {
		t.Error("served a certificate that is not on disk")
	}
}

func TestServerCertificateCutShort(t *testing.T) {
	dir := t.TempDir()
	var c clock
	a := open(t, dir, &c)
	_, first := serve(t, a)
	// Died between key and certificate.
	key, err := newKey()
	if err != nil {
		t.Fatal(err)
	}
	if err := a.dir.writeKey(serverKeyFile, key); err != nil {
		t.Fatal(err)
	}
	if _, next := serve(t, open(t, dir, &c)); next.Equal(first) {
		t.Error("kept a certificate whose key is another")
	}
	if err := os.Chmod(a.dir.path(serverKeyFile), 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := open(t, dir, &c).ServerTLS(nil); err == nil || !strings.Contains(err.Error(), "server.key has mode 0640") {
		t.Errorf("ServerTLS: %v", err)
	}
}

// A certificate is cheap: a damaged one is replaced.
func TestServerCertificateDamaged(t *testing.T) {
	dir := t.TempDir()
	var c clock
	a := open(t, dir, &c)
	_, first := serve(t, a)
	if err := os.WriteFile(a.dir.path(serverCertFile), []byte("moon"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, next := serve(t, open(t, dir, &c))
	if next.Equal(first) {
		t.Error("a damaged certificate was served")
	}
	if _, again := serve(t, open(t, dir, &c)); !again.Equal(next) {
		t.Error("the new one was not kept")
	}
}

// A renewal that fails is not tried again by every peer that connects.
func TestFailedRenewalsArePaced(t *testing.T) {
	dir := t.TempDir()
	var c clock
	var log bytes.Buffer
	a := open(t, dir, &c)
	a.log = slog.New(slog.NewTextHandler(&log, nil))
	running, first := serve(t, a)
	if err := os.Rename(filepath.Join(dir, "pki"), filepath.Join(dir, "gone")); err != nil {
		t.Fatal(err)
	}
	c.forward(serverLife * 3 / 4)
	handshakes := func(want int) {
		t.Helper()
		for range 5 {
			if got := served(t, running); !got.Equal(first) {
				t.Error("another certificate was served")
			}
		}
		if n := strings.Count(log.String(), "was not renewed"); n != want {
			t.Errorf("%d renewals have failed, want %d", n, want)
		}
	}
	handshakes(1)
	c.forward(renewPause / 2)
	handshakes(1)
	c.forward(renewPause)
	handshakes(2)
	// It is over, and the disk is left alone as well.
	c.forward(serverLife)
	handshakes(3)
	if err := os.Rename(filepath.Join(dir, "gone"), filepath.Join(dir, "pki")); err != nil {
		t.Fatal(err)
	}
	handshakes(3)
	c.forward(renewPause)
	if got := served(t, running); got.Equal(first) {
		t.Error("not renewed")
	}
}

func TestServerNamesAreChecked(t *testing.T) {
	a := open(t, t.TempDir(), &clock{})
	for _, n := range []string{"", "*", "*.example.com", "a b", "a..b", "-a", "a-", "a/b", "fe80::1%eth0", strings.Repeat("a", 64<<10)} {
		if _, err := a.ServerTLS([]string{"localhost", n}); err == nil || len(err.Error()) > 400 {
			t.Errorf("name %.20q: %v", n, err)
		}
	}
}

func TestHandshake(t *testing.T) {
	dir := t.TempDir()
	a := open(t, dir, &clock{})
	config, _ := serve(t, a)
	identity, err := tls.LoadX509KeyPair(filepath.Join(dir, "admin/identity.pem"), filepath.Join(dir, "admin/identity.pem"))
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(a.root)
	node, err := a.IssueNode(request(t, nil), "prem-1")
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name   string
		client *tls.Config
		want   string
		fails  bool
	}{
		{"administrator", &tls.Config{Certificates: []tls.Certificate{identity}}, "admin/default", false},
		{"nobody", &tls.Config{}, "", false},
		{"only the agents' curve", &tls.Config{Certificates: []tls.Certificate{identity}, CurvePreferences: []tls.CurveID{tls.X25519MLKEM768}}, "admin/default", false},
		{"TLS 1.2", &tls.Config{MaxVersion: tls.VersionTLS12}, "", true},
		// A node's certificate with another key: the proof fails.
		{"stolen certificate", &tls.Config{Certificates: []tls.Certificate{{Certificate: node.Chain, PrivateKey: identity.PrivateKey}}}, "", true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.client.RootCAs, tt.client.ServerName = roots, "localhost"
			near, far := connect(t)
			client, server := tls.Client(near, tt.client), tls.Server(far, config)
			defer func() { _ = near.Close(); _ = far.Close() }()
			var wg sync.WaitGroup
			var clientErr error
			wg.Go(func() {
				if clientErr = client.HandshakeContext(t.Context()); clientErr != nil {
					_ = near.Close()
				}
			})
			serverErr := server.HandshakeContext(t.Context())
			if serverErr != nil {
				_ = far.Close()
			}
			wg.Wait()
			if tt.fails {
				if serverErr == nil {
					t.Error("the server took it")
				}
				return
			}
			if clientErr != nil || serverErr != nil {
				t.Fatalf("client: %v; server: %v", clientErr, serverErr)
			}
			id, err := a.Identify(server.ConnectionState().PeerCertificates, a.now())
			if (err == nil) != (tt.want != "") || err == nil && id.String() != tt.want {
				t.Errorf("Identify: %v, %v; want %q", id, err, tt.want)
			}
			shown := client.ConnectionState().PeerCertificates
			sum := sha256.Sum256(shown[len(shown)-1].Raw)
			if pin := "sha256:" + hex.EncodeToString(sum[:]); len(shown) != 3 || pin != a.RootPin() {
				t.Errorf("%d certificates, the last with pin %s, want %s", len(shown), pin, a.RootPin())
			}
		})
	}
}

// connect makes a TCP connection on loopback: unlike net.Pipe, it takes an
// alert that nobody reads.
func connect(t *testing.T) (near, far net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	if near, err = net.Dial("tcp", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if far, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	return near, far
}
