package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"
)

func spki(t *testing.T, key any) []byte {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func TestIssueIdentity(t *testing.T) {
	const name = "hq.contoso.circuitseal.internal"
	a := open(t, t.TempDir(), &clock{})
	key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	issued, err := a.IssueIdentity(name, spki(t, &key.PublicKey))
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(issued.Chain[0])
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(cert.DNSNames, []string{name}) || len(cert.URIs)+len(cert.IPAddresses)+len(cert.EmailAddresses) != 0 || cert.IsCA || cert.Subject.CommonName != name {
		t.Errorf("the certificate is of %v %v", cert.DNSNames, cert.Subject)
	}
	if !key.PublicKey.Equal(cert.PublicKey) || issued.Serial != serial(cert) {
		t.Error("it is over another key, or has another serial")
	}
	if life := cert.NotAfter.Sub(issued.Issued); life != EndpointLife {
		t.Errorf("it lives %s", life)
	}
	long := strings.Repeat("e", 50) + ".contoso.circuitseal.internal"
	other, err := a.IssueIdentity(long, spki(t, &key.PublicKey))
	if err != nil {
		t.Fatal(err)
	}
	if c, err := x509.ParseCertificate(other.Chain[0]); err != nil || !slices.Equal(c.DNSNames, []string{long}) || c.Subject.CommonName != "" {
		t.Errorf("the certificate of a long name is of %v %v, %v", c.DNSNames, c.Subject, err)
	}
	// IKE's usages only: it opens no TLS session, as a client or as a server.
	if len(cert.ExtKeyUsage) != 0 || len(cert.UnknownExtKeyUsage) != 2 || !cert.UnknownExtKeyUsage[0].Equal(ipsecIKE) {
		t.Errorf("usages are %v and %v", cert.ExtKeyUsage, cert.UnknownExtKeyUsage)
	}
	if id, err := a.Identify([]*x509.Certificate{cert}, time.Now()); err == nil {
		t.Errorf("by TLS it is %s", id)
	}
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	for i, pool := range []*x509.CertPool{between, roots} {
		c, err := x509.ParseCertificate(a.Authorities()[i])
		if err != nil {
			t.Fatal(err)
		}
		pool.AddCert(c)
	}
	for usage, want := range map[x509.ExtKeyUsage]bool{x509.ExtKeyUsageAny: true, x509.ExtKeyUsageServerAuth: false, x509.ExtKeyUsageClientAuth: false} {
		_, err := cert.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{usage}})
		if (err == nil) != want {
			t.Errorf("usage %v: %v", usage, err)
		}
	}
	p256, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	big, err := rsa.GenerateKey(rand.Reader, 3072)
	if err != nil {
		t.Fatal(err)
	}
	for what, der := range map[string][]byte{
		"P-256": spki(t, &p256.PublicKey), "RSA": spki(t, &big.PublicKey), "nothing": nil, "noise": {1, 2, 3}, "long": make([]byte, 4096),
	} {
		if _, err := a.IssueIdentity(name, der); !errors.Is(err, ErrRequest) {
			t.Errorf("%s: %v, want ErrRequest", what, err)
		}
	}
	for _, other := range []string{"", "controller.example", "a.b.c.circuitseal.internal", "*.contoso.circuitseal.internal.evil"} {
		if _, err := a.IssueIdentity(other, spki(t, &key.PublicKey)); err == nil {
			t.Errorf("a certificate of %q was issued", other)
		}
	}
}

func FuzzIdentityKey(f *testing.F) {
	key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(der)
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, der []byte) {
		key, fingerprint, err := IdentityKey(der)
		if err == nil && (key.Curve != elliptic.P384() || fingerprint == "") {
			t.Errorf("%x is a key on %s", der, key.Curve.Params().Name)
		}
		if err != nil && !errors.Is(err, ErrRequest) {
			t.Errorf("%v is no ErrRequest", err)
		}
	})
}
