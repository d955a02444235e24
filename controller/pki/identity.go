package pki

import (
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
	if len(certs) == 0 {
		return Identity{}, fmt.Errorf("%w: none was shown", ErrIdentity)
	}
	if len(certs) > maxChain {
		return Identity{}, fmt.Errorf("%w: %d were shown, want at most %d", ErrIdentity, len(certs), maxChain)
	}
	leaf := certs[0]
	roots, intermediates := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(a.root)
	intermediates.AddCert(a.issuing.cert)
	for _, c := range certs[1:] {
		intermediates.AddCert(c)
	}
	_, err := leaf.Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: intermediates, CurrentTime: now,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	if errors.As(err, new(x509.UnknownAuthorityError)) {
		return Identity{}, fmt.Errorf("%w: this identity belongs to another controller, or the controller has a new certificate authority", ErrIdentity)
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
	id := Identity{Serial: serial(leaf)}
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
