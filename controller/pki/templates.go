package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"net/url"
	"time"

	"github.com/circuitseal/circuitseal/proto/desired"
)

const (
	day          = 24 * time.Hour
	year         = 365 * day
	rootLife     = 20 * year
	signerLife   = 5 * year
	adminLife    = year
	serverLife   = 90 * day
	nodeLife     = 7 * day
	backdate     = 5 * time.Minute
	organisation = "circuitseal"
	adminName    = "default"
	// adminURI begins the URI of administrators; those of nodes and of the state
	// signer are in desired, because agents know them, too.
	adminURI = "spiffe://circuitseal/admin/"
)

// documentSigning is id-kp-documentSigning (RFC 9336, section 3.1). A
// certificate without any extended key usage would pass for TLS in both roles,
// so the state signer's has this one.
var documentSigning = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 3, 36}

type templateFunc func(now time.Time) *x509.Certificate

// template is what all certificates have. They begin a little in the past,
// because clocks differ.
func template(name string, now time.Time, life time.Duration) *x509.Certificate {
	return &x509.Certificate{
		Subject:               pkix.Name{Organization: []string{organisation}, CommonName: name},
		NotBefore:             now.Add(-backdate).UTC().Truncate(time.Second),
		NotAfter:              now.Add(life).UTC().Truncate(time.Second),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		BasicConstraintsValid: true,
	}
}

func rootTemplate(now time.Time) *x509.Certificate {
	t := template("circuitseal root", now, rootLife)
	t.IsCA, t.MaxPathLen = true, 1
	t.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	return t
}

func issuingTemplate(now time.Time) *x509.Certificate {
	t := template("circuitseal issuing", now, signerLife)
	t.IsCA, t.MaxPathLen, t.MaxPathLenZero = true, 0, true
	t.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	return t
}

func stateTemplate(now time.Time) *x509.Certificate {
	t := template("circuitseal state signing", now, signerLife)
	t.UnknownExtKeyUsage = []asn1.ObjectIdentifier{documentSigning}
	t.URIs = []*url.URL{identityURI(desired.StateSigner)}
	return t
}

// clientTemplate is for administrators and nodes: the URI is their identity.
func clientTemplate(name, uri string, now time.Time, life time.Duration) *x509.Certificate {
	t := template(name, now, life)
	t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	t.URIs = []*url.URL{identityURI(uri)}
	return t
}

// identityURI parses a URI whose names were checked.
func identityURI(uri string) *url.URL {
	u, err := url.Parse(uri)
	if err != nil {
		panic("identity: " + err.Error())
	}
	return u
}

// create signs a certificate that ends no later than its issuer. Its serial
// number is random (RFC 5280, section 4.1.2.2: at most 20 octets).
func create(t, issuer *x509.Certificate, key *ecdsa.PublicKey, signer crypto.Signer) (*x509.Certificate, error) {
	if t.NotAfter.After(issuer.NotAfter) {
		t.NotAfter = issuer.NotAfter
	}
	der, err := x509.CreateCertificate(rand.Reader, t, issuer, key, signer)
	if err != nil {
		return nil, fmt.Errorf("create certificate: %w", err)
	}
	return x509.ParseCertificate(der)
}
