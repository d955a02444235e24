package pki

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/circuitseal/circuitseal/proto/desired"
)

func TestIdentify(t *testing.T) {
	dir := t.TempDir()
	a := open(t, dir, &clock{})
	other := open(t, t.TempDir(), &clock{})
	now := time.Now()
	key, err := newKey()
	if err != nil {
		t.Fatal(err)
	}
	leaf := func(by *Authority, change func(*x509.Certificate)) []*x509.Certificate {
		c := clientTemplate("x", desired.NodeURI+"prem-1", now, nodeLife)
		if change != nil {
			change(c)
		}
		cert, err := by.issue(c, key.publicKey())
		if err != nil {
			t.Fatal(err)
		}
		return []*x509.Certificate{cert, by.issuing.cert}
	}
	server := func() []*x509.Certificate {
		if _, err := a.ServerTLS(nil); err != nil {
			t.Fatal(err)
		}
		c, err := a.dir.certificate(serverCertFile)
		if err != nil {
			t.Fatal(err)
		}
		return []*x509.Certificate{c}
	}
	named := func(path string) func(*x509.Certificate) {
		return func(c *x509.Certificate) { c.URIs = uri(t, path) }
	}
	good := leaf(a, nil)
	tests := []struct {
		name  string
		certs []*x509.Certificate
		now   time.Time
		want  string // empty: refused
	}{
		{"node", good, now, "node/prem-1"},
		{"leaf only", good[:1], now, "node/prem-1"},
		{"admin", adminCerts(t, dir), now, "admin/default"},
		{"none", nil, now, ""},
		{"too many", append(good, good[0], good[0], good[0]), now, ""},
		{"expired", good, now.Add(nodeLife + time.Second), ""},
		{"not yet", good, now.Add(-time.Hour), ""},
		{"other authority", leaf(other, nil), now, ""},
		{"other authority's leaf, our issuer", []*x509.Certificate{leaf(other, nil)[0], a.issuing.cert}, now, ""},
		{"server", server(), now, ""},
		{"state signer", []*x509.Certificate{a.state.cert}, now, ""},
		{"issuing", []*x509.Certificate{a.issuing.cert}, now, ""},
		{"root", []*x509.Certificate{a.root}, now, ""},
		{"no usage", leaf(a, func(c *x509.Certificate) { c.ExtKeyUsage = nil }), now, ""},
		{"no URI", leaf(a, func(c *x509.Certificate) { c.URIs = nil }), now, ""},
		{"two URIs", leaf(a, func(c *x509.Certificate) { c.URIs = append(c.URIs, uri(t, "spiffe://circuitseal/admin/default")...) }), now, ""},
		{"DNS name", leaf(a, func(c *x509.Certificate) { c.DNSNames = []string{"localhost"} }), now, ""},
		{"other domain", leaf(a, named("spiffe://elsewhere/node/prem-1")), now, ""},
		{"other scheme", leaf(a, named("https://circuitseal/node/prem-1")), now, ""},
		{"other kind", leaf(a, named("spiffe://circuitseal/state-signer")), now, ""},
		{"no name", leaf(a, named("spiffe://circuitseal/node/")), now, ""},
		{"path", leaf(a, named("spiffe://circuitseal/node/prem-1/x")), now, ""},
		{"escaped", leaf(a, named("spiffe://circuitseal/node/..%2fadmin")), now, ""},
		{"query", leaf(a, named("spiffe://circuitseal/node/prem-1?x")), now, ""},
		{"user", leaf(a, named("spiffe://x@circuitseal/node/prem-1")), now, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			id, err := a.Identify(tt.certs, tt.now)
			if tt.want == "" {
				if !errors.Is(err, ErrIdentity) || id != (Identity{}) {
					t.Errorf("Identify: %v, %v; want ErrIdentity", id, err)
				}
				return
			}
			if err != nil || id.String() != tt.want {
				t.Errorf("Identify: %v, %v; want %s", id, err, tt.want)
			}
		})
	}
}

func adminCerts(t *testing.T, dir string) []*x509.Certificate {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, "admin/identity.pem"))
	if err != nil {
		t.Fatal(err)
	}
	var certs []*x509.Certificate
	for block, rest := pem.Decode(b); block != nil; block, rest = pem.Decode(rest) {
		if block.Type == "CERTIFICATE" {
			c, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				t.Fatal(err)
			}
			certs = append(certs, c)
		}
	}
	return certs
}

func TestAdminIdentityIsRenewed(t *testing.T) {
	dir := t.TempDir()
	var c clock
	open(t, dir, &c)
	file := filepath.Join(dir, "admin/identity.pem")
	first, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tls.X509KeyPair(first, first); err != nil {
		t.Errorf("identity.pem: %v", err)
	}
	c.forward(adminLife * 3 / 4)
	a := open(t, dir, &c)
	second, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if string(first) == string(second) {
		t.Error("an identity near its end was kept")
	}
	if id, err := a.Identify(adminCerts(t, dir), c.now()); err != nil || id.Kind != KindAdmin {
		t.Errorf("Identify: %v, %v", id, err)
	}
}
