package pki

import (
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/circuitseal/circuitseal/controller/model"
	"github.com/circuitseal/circuitseal/proto/desired"
)

// ErrIdentity says that the certificates that a peer showed name nobody here.
var ErrIdentity = errors.New("certificate is not accepted")

// Kind is a kind of identity.
type Kind uint8

// The kinds. The zero value is nobody.
const (
	KindAdmin Kind = iota + 1
	KindNode
)

// String is the word that logs use.
func (k Kind) String() string {
	switch k {
	case KindAdmin:
		return "admin"
	case KindNode:
		return "node"
	}
	return "nobody"
}

// Identity is who a peer is. The zero value is nobody.
type Identity struct {
	Kind Kind
	Name string
	// Serial of the certificate, in hexadecimal.
	Serial string
	// SPKI is the SHA-256 of its key (SubjectPublicKeyInfo, DER).
	SPKI [32]byte
}

// String is kind/name.
func (i Identity) String() string { return i.Kind.String() + "/" + i.Name }

// maxChain bounds the work that a peer's certificates cause.
const maxChain = 4

// Identify tells who showed these certificates (leaf first), as of now. It
// holds for the peer of a TLS connection, which has proven that it has the
// leaf's key. The leaf must come from this authority, be for TLS clients, and
// have one URI and no other name. Errors wrap ErrIdentity.
func (a *Authority) Identify(certs []*x509.Certificate, now time.Time) (Identity, error) {
	return a.identify(certs, now, false)
}

// RenewalGrace is how long after its end a certificate still serves to renew it.
const RenewalGrace = 90 * day

// IdentifyForRenewal is Identify, except that the leaf may have ended, at most
// RenewalGrace before now, or not have begun, as one that was issued while the
// clock was ahead. What it tells is good for a renewal and nothing else.
func (a *Authority) IdentifyForRenewal(certs []*x509.Certificate, now time.Time) (Identity, error) {
	return a.identify(certs, now, true)
}

func (a *Authority) identify(certs []*x509.Certificate, now time.Time, renewal bool) (Identity, error) {
	if len(certs) == 0 {
		return Identity{}, fmt.Errorf("%w: none was shown", ErrIdentity)
	}
	if len(certs) > maxChain {
		return Identity{}, fmt.Errorf("%w: %d were shown, want at most %d", ErrIdentity, len(certs), maxChain)
	}
	leaf, at := certs[0], now
	if late := now.Sub(leaf.NotAfter); renewal && late > 0 && late <= RenewalGrace {
		// As it was at its end, by the intermediate that it came with.
		at = leaf.NotAfter
	}
	if renewal && now.Before(leaf.NotBefore) && !now.Before(a.root.NotBefore) {
		at = leaf.NotBefore
	}
	roots, intermediates := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(a.root)
	intermediates.AddCert(a.issuing.cert)
	for _, c := range certs[1:] {
		intermediates.AddCert(c)
	}
	_, err := leaf.Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: intermediates, CurrentTime: at,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	if errors.As(err, new(x509.UnknownAuthorityError)) {
		return Identity{}, fmt.Errorf("%w: this identity belongs to another controller, or the controller has a new certificate authority", ErrIdentity)
	}
	if invalid := (x509.CertificateInvalidError{}); errors.As(err, &invalid) && invalid.Reason == x509.Expired {
		return Identity{}, fmt.Errorf("%w: %s", ErrIdentity, untimely(invalid.Cert, leaf, now))
	}
	if err != nil {
		return Identity{}, fmt.Errorf("%w: %w", ErrIdentity, err)
	}
	// Verify takes a certificate without any usage for one of all usages.
	if leaf.IsCA || !slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageClientAuth) {
		return Identity{}, fmt.Errorf("%w: it is not for TLS clients", ErrIdentity)
	}
	if len(leaf.URIs) != 1 || len(leaf.DNSNames)+len(leaf.IPAddresses)+len(leaf.EmailAddresses) != 0 {
		return Identity{}, fmt.Errorf("%w: want exactly one URI and no other name", ErrIdentity)
	}
	uri := leaf.URIs[0].String()
	id := Identity{Serial: serial(leaf), SPKI: sha256.Sum256(leaf.RawSubjectPublicKeyInfo)}
	var ok bool
	if id.Name, ok = strings.CutPrefix(uri, adminURI); ok {
		id.Kind = KindAdmin
	} else if id.Name, ok = strings.CutPrefix(uri, desired.NodeURI); ok {
		id.Kind = KindNode
	}
	if problem, _ := model.ValidName(id.Name); !ok || problem != "" {
		return Identity{}, fmt.Errorf("%w: its URI %q names nobody", ErrIdentity, model.Shorten(uri))
	}
	return id, nil
}

// untimely says why a certificate is not good at this time. The clock is named,
// because it is as likely to be wrong as the certificate is to be old.
func untimely(c, leaf *x509.Certificate, now time.Time) string {
	what := "it"
	if c != nil && !c.Equal(leaf) {
		what = "the certificate that issued it"
	}
	if c == nil {
		c = leaf
	}
	clock := "the controller's clock says " + now.UTC().Format(time.RFC3339)
	switch late := now.Sub(c.NotAfter); {
	case now.Before(c.NotBefore):
		return fmt.Sprintf("%s begins at %s only and %s: set the clock that is wrong", what, c.NotBefore.UTC().Format(time.RFC3339), clock)
	case late <= RenewalGrace:
		return fmt.Sprintf("%s ended at %s and %s: it can be renewed still, which agents do by themselves", what, c.NotAfter.UTC().Format(time.RFC3339), clock)
	}
	return fmt.Sprintf("%s ended at %s and %s, so that it cannot be renewed any more: set the clock if that is wrong, else enrol the node again with a new token",
		what, c.NotAfter.UTC().Format(time.RFC3339), clock)
}
