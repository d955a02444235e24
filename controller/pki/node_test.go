package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"net"
	"net/url"
	"strings"
	"testing"
	"time"
)

// requestDER makes a request with a fresh P-384 key, or the given one.
func requestDER(t testing.TB, csr *x509.CertificateRequest, key crypto.Signer) []byte {
	t.Helper()
	if csr == nil {
		csr = &x509.CertificateRequest{}
	}
	if key == nil {
		k, err := newKey()
		if err != nil {
			t.Fatal(err)
		}
		key = k
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, csr, key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func request(t testing.TB, csr *x509.CertificateRequest) *Request {
	t.Helper()
	r, err := ParseRequest(requestDER(t, csr, nil))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func chain(t testing.TB, i Issued) []*x509.Certificate {
	t.Helper()
	var certs []*x509.Certificate
	for _, der := range i.Chain {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		certs = append(certs, c)
	}
	return certs
}

func uri(t testing.TB, s string) []*url.URL {
	t.Helper()
	u, err := url.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return []*url.URL{u}
}

func extension(t *testing.T, oid asn1.ObjectIdentifier, value any) x509.CertificateRequest {
	t.Helper()
	der, ok := value.([]byte)
	if !ok {
		var err error
		if der, err = asn1.Marshal(value); err != nil {
			t.Fatal(err)
		}
	}
	return x509.CertificateRequest{ExtraExtensions: []pkix.Extension{{Id: oid, Value: der}}}
}

func TestIssueNode(t *testing.T) {
	a := open(t, t.TempDir(), &clock{})
	key, err := newKey()
	if err != nil {
		t.Fatal(err)
	}
	r, err := ParseRequest(requestDER(t, &x509.CertificateRequest{
		Subject: pkix.Name{CommonName: "prem-1"}, URIs: uri(t, "spiffe://circuitseal/node/prem-1"), DNSNames: []string{"prem-1"},
	}, key))
	if err != nil {
		t.Fatal(err)
	}
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	if r.SPKI != sha256.Sum256(spki) {
		t.Error("SPKI is not the key's hash")
	}
	i, err := a.IssueNode(r, "prem-1")
	if err != nil {
		t.Fatal(err)
	}
	certs := chain(t, i)
	if len(certs) != 2 || !certs[1].Equal(a.issuing.cert) {
		t.Fatalf("chain of %d", len(certs))
	}
	leaf := certs[0]
	if !key.fits(leaf) {
		t.Error("the certificate is for another key")
	}
	if d := time.Until(leaf.NotAfter); d > nodeLife || d < nodeLife-time.Minute || !leaf.NotAfter.Equal(i.Expires) {
		t.Errorf("ends in %v (%v)", d, i.Expires)
	}
	if d := time.Since(leaf.NotBefore); d < backdate || d > backdate+time.Minute {
		t.Errorf("began %v ago", d)
	}
	if len(leaf.ExtKeyUsage) != 1 || leaf.ExtKeyUsage[0] != x509.ExtKeyUsageClientAuth || leaf.IsCA ||
		leaf.KeyUsage != x509.KeyUsageDigitalSignature || len(leaf.DNSNames) != 0 {
		t.Errorf("usages %v %v, CA %v, names %v", leaf.KeyUsage, leaf.ExtKeyUsage, leaf.IsCA, leaf.DNSNames)
	}
	id, err := a.Identify(certs, time.Now())
	if want := (Identity{Kind: KindNode, Name: "prem-1", Serial: i.Serial, SPKI: r.SPKI}); err != nil || id != want {
		t.Errorf("Identify: %v, %v; want %v", id, err, want)
	}
	for _, bad := range []string{"", "../admin/default", "Prem-1", "a\x00", strings.Repeat("a", 64<<10)} {
		if _, err := a.IssueNode(request(t, nil), bad); err == nil || len(err.Error()) > 400 {
			t.Errorf("node name %.20q: %v", bad, err)
		}
	}
}

func TestIssueNodeRefuses(t *testing.T) {
	a := open(t, t.TempDir(), &clock{})
	type basic struct {
		CA bool `asn1:"optional"`
	}
	general := func(tag int) []asn1.RawValue {
		return []asn1.RawValue{{Class: asn1.ClassContextSpecific, Tag: tag, Bytes: []byte{0x2a, 3}}}
	}
	tests := []struct {
		name string
		csr  x509.CertificateRequest
		want string // empty: issued
	}{
		{"nothing", x509.CertificateRequest{}, ""},
		{"its name", x509.CertificateRequest{Subject: pkix.Name{CommonName: "prem-1"}}, ""},
		{"CA:FALSE", extension(t, oidBasicConstraints, basic{}), ""},
		{"server usage is ignored", extension(t, asn1.ObjectIdentifier{2, 5, 29, 37}, []asn1.ObjectIdentifier{{1, 3, 6, 1, 5, 5, 7, 3, 1}}), ""},
		{"unknown extension is ignored", extension(t, asn1.ObjectIdentifier{1, 2, 3}, 7), ""},
		{"another name", x509.CertificateRequest{Subject: pkix.Name{CommonName: "nva-1"}}, "subject"},
		{"organisation", x509.CertificateRequest{Subject: pkix.Name{CommonName: "prem-1", Organization: []string{"x"}}}, "subject"},
		{"another DNS name", x509.CertificateRequest{DNSNames: []string{"prem-1", "nva-1"}}, "the name"},
		{"wildcard", x509.CertificateRequest{DNSNames: []string{"*"}}, "the name"},
		{"wildcard subject", x509.CertificateRequest{Subject: pkix.Name{CommonName: "*.prem-1"}}, "subject"},
		{"another URI", x509.CertificateRequest{URIs: uri(t, "spiffe://circuitseal/node/nva-1")}, "the URI"},
		{"admin URI", x509.CertificateRequest{URIs: uri(t, "spiffe://circuitseal/admin/default")}, "the URI"},
		{"state signer", x509.CertificateRequest{URIs: uri(t, "spiffe://circuitseal/state-signer")}, "the URI"},
		{"address", x509.CertificateRequest{IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}, "mail or IP"},
		{"mail", x509.CertificateRequest{EmailAddresses: []string{"a@example.com"}}, "mail or IP"},
		{"other name", extension(t, oidSubjectAltName, general(0)), "kind 0"},
		{"registered id", extension(t, oidSubjectAltName, general(8)), "kind 8"},
		{"CA:TRUE", extension(t, oidBasicConstraints, basic{true}), "CA:TRUE"},
		{"malformed constraints", extension(t, oidBasicConstraints, []byte{0x30, 9}), "malformed"},
		{"signs certificates", extension(t, oidKeyUsage, asn1.BitString{Bytes: []byte{0x04}, BitLength: 6}), "sign certificates"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := a.IssueNode(request(t, &tt.csr), "prem-1")
			if tt.want == "" {
				if err != nil {
					t.Errorf("IssueNode: %v", err)
				}
				return
			}
			if !errors.Is(err, ErrRequest) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("IssueNode: %v, want ErrRequest with %q", err, tt.want)
			}
		})
	}
}

func TestParseRequestRefuses(t *testing.T) {
	p256, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	good := requestDER(t, nil, nil)
	forged := append([]byte(nil), good...)
	forged[len(forged)-1] ^= 1
	for name, der := range map[string][]byte{
		"empty":       nil,
		"trailing":    append(append([]byte(nil), good...), 0),
		"too large":   make([]byte, maxRequest+1),
		"P-256":       requestDER(t, nil, p256),
		"Ed25519":     requestDER(t, nil, ed),
		"forged":      forged,
		"certificate": open(t, t.TempDir(), &clock{}).Root(),
	} {
		if _, err := ParseRequest(der); !errors.Is(err, ErrRequest) {
			t.Errorf("%s: %v, want ErrRequest", name, err)
		}
	}
}

func FuzzParseRequest(f *testing.F) {
	a := open(f, f.TempDir(), &clock{})
	f.Add(requestDER(f, nil, nil))
	f.Add(requestDER(f, &x509.CertificateRequest{
		Subject: pkix.Name{CommonName: "prem-1"}, DNSNames: []string{"*"}, URIs: uri(f, "spiffe://circuitseal/node/prem-1"),
		ExtraExtensions: []pkix.Extension{{Id: oidBasicConstraints, Value: []byte{0x30, 3, 1, 1, 0xff}}},
	}, nil))
	f.Fuzz(func(t *testing.T, der []byte) {
		// The checks behind the signature see mutated bytes too.
		if csr, err := x509.ParseCertificateRequest(der); err == nil {
			_ = (&Request{csr: csr}).check("prem-1")
		}
		r, err := ParseRequest(der)
		if err != nil {
			if !errors.Is(err, ErrRequest) {
				t.Errorf("an error of another kind: %v", err)
			}
			return
		}
		i, err := a.IssueNode(r, "prem-1")
		if err != nil {
			return
		}
		id, err := a.Identify(chain(t, i), time.Now())
		if err != nil || id.Kind != KindNode || id.Name != "prem-1" {
			t.Errorf("issued for %v, %v", id, err)
		}
	})
}
