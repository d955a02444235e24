package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"fmt"
	"time"

	"github.com/circuitseal/circuitseal/controller/model"
)

// EndpointLife is how long an endpoint's certificate for IKE is good.
const EndpointLife = year

// What a certificate for IKE is for: id-kp-ipsecIKE, the only usage that IKE wants
// (RFC 4945, section 5.1.3.12), and the older one that implementations know. It is
// for neither end of TLS.
var (
	ipsecIKE        = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 3, 17}
	ikeIntermediate = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 8, 2, 2}
)

// endpointTemplate has the name as its only one, also as the subject's common name where
// that may be as long: Azure VPN Gateways know who it is by that.
func endpointTemplate(name string, now time.Time) *x509.Certificate {
	common := name
	if len(common) > model.MaxCommonName {
		common = ""
	}
	t := template(common, now, EndpointLife)
	t.UnknownExtKeyUsage = []asn1.ObjectIdentifier{ipsecIKE, ikeIntermediate}
	t.DNSNames = []string{name}
	return t
}

// maxKey is the longest SubjectPublicKeyInfo that is parsed; P-384 has 120 bytes.
const maxKey = 1024

// IdentityKey reads a public key that a node has reported for an identity: ECDSA on
// P-384, and nothing else. Errors wrap ErrRequest.
func IdentityKey(spki []byte) (*ecdsa.PublicKey, model.Fingerprint, error) {
	if len(spki) > maxKey {
		return nil, "", fmt.Errorf("%w: its key has %d bytes, at most %d are read", ErrRequest, len(spki), maxKey)
	}
	parsed, err := x509.ParsePKIXPublicKey(spki)
	if err != nil {
		return nil, "", fmt.Errorf("%w: %w", ErrRequest, err)
	}
	key, ok := parsed.(*ecdsa.PublicKey)
	if !ok || key.Curve != elliptic.P384() {
		return nil, "", fmt.Errorf("%w: its key is of type %T; want ECDSA on P-384", ErrRequest, parsed)
	}
	return key, model.FingerprintOf(sha256.Sum256(spki)), nil
}

// IssueIdentity issues the certificate of an endpoint for IKE over a key that its
// node has reported: one year, with the identity's DNS name and no other. That the
// node may have it is for the caller to know.
func (a *Authority) IssueIdentity(name string, spki []byte) (Issued, error) {
	if _, ok := model.EndpointOfIdentity(name); !ok {
		return Issued{}, fmt.Errorf("issue certificate: identity %q is no endpoint's", model.Shorten(name))
	}
	key, _, err := IdentityKey(spki)
	if err != nil {
		return Issued{}, fmt.Errorf("issue certificate of %s: %w", name, err)
	}
	now := a.now()
	cert, err := a.issue(endpointTemplate(name, now), key)
	if err != nil {
		return Issued{}, fmt.Errorf("issue certificate of %s: %w", name, err)
	}
	return Issued{
		Chain:  [][]byte{cert.Raw, a.issuing.cert.Raw},
		Serial: serial(cert),
		Issued: now.UTC().Truncate(time.Second), Expires: cert.NotAfter,
	}, nil
}

// Authorities are the certificates, DER, under which it issues: the intermediate and
// the root.
func (a *Authority) Authorities() [][]byte { return [][]byte{a.issuing.cert.Raw, a.root.Raw} }
