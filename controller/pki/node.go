package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"time"

	"github.com/circuitseal/circuitseal/controller/model"
	"github.com/circuitseal/circuitseal/proto/desired"
)

// ErrRequest says that a certificate request is malformed or asks for what it
// may not have. The text after it says what.
var ErrRequest = errors.New("certificate request refused")

// maxRequest is the largest request in bytes that is parsed; one with a P-384
// key and a name takes about 400.
const maxRequest = 8 << 10

// Request is a certificate request whose form and signature were checked.
type Request struct {
	csr *x509.CertificateRequest
	key *ecdsa.PublicKey
	// SPKI is the SHA-256 of the key (SubjectPublicKeyInfo, DER).
	SPKI [32]byte
}

// Issued is a new certificate.
type Issued struct {
	// Chain is the certificate and the intermediate, in DER.
	Chain [][]byte
	// Serial is in hexadecimal.
	Serial string
	// Issued is when it was made; it begins a little earlier.
	Issued, Expires time.Time
}

// ParseRequest reads a PKCS #10 request (RFC 2986, DER). Its key has to be
// P-384 and to have signed it. Errors wrap ErrRequest.
func ParseRequest(der []byte) (*Request, error) {
	if len(der) > maxRequest {
		return nil, fmt.Errorf("%w: it has %d bytes, at most %d are read", ErrRequest, len(der), maxRequest)
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRequest, err)
	}
	key, ok := csr.PublicKey.(*ecdsa.PublicKey)
	if !ok || key.Curve != elliptic.P384() {
		return nil, fmt.Errorf("%w: its key is of type %s; want ECDSA on P-384", ErrRequest, csr.PublicKeyAlgorithm)
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRequest, err)
	}
	return &Request{csr: csr, key: key, SPKI: sha256.Sum256(csr.RawSubjectPublicKeyInfo)}, nil
}

// IssueNode issues a node's session certificate: 7 days, for TLS clients, with
// the node's URI. Only the key is taken from the request, yet one that asks for
// another name or for more is an attack or a mistake and is refused
// (ErrRequest). That the node may have it is for the caller to know.
func (a *Authority) IssueNode(r *Request, node string) (Issued, error) {
	if problem, _ := model.ValidName(node); problem != "" {
		return Issued{}, fmt.Errorf("issue certificate: node name %q %s", model.Shorten(node), problem)
	}
	if err := r.check(node); err != nil {
		return Issued{}, fmt.Errorf("issue certificate of node %s: %w: %w", node, ErrRequest, err)
	}
	now := a.now()
	cert, err := a.issue(clientTemplate(node, desired.NodeURI+node, now, nodeLife), r.key)
	if err != nil {
		return Issued{}, fmt.Errorf("issue certificate of node %s: %w", node, err)
	}
	return Issued{
		Chain:   [][]byte{cert.Raw, a.issuing.cert.Raw},
		Serial:  serial(cert),
		Issued:  now.UTC().Truncate(time.Second),
		Expires: cert.NotAfter,
	}, nil
}

func serial(c *x509.Certificate) string { return c.SerialNumber.Text(16) }

// The extensions that a request can ask for harm with (RFC 5280, section 4.2.1).
var (
	oidCommonName       = asn1.ObjectIdentifier{2, 5, 4, 3}
	oidKeyUsage         = asn1.ObjectIdentifier{2, 5, 29, 15}
	oidSubjectAltName   = asn1.ObjectIdentifier{2, 5, 29, 17}
	oidBasicConstraints = asn1.ObjectIdentifier{2, 5, 29, 19}
)

// check refuses a request that asks for more than to be the node.
func (r *Request) check(node string) error {
	for _, n := range r.csr.Subject.Names {
		if value, ok := n.Value.(string); !ok || !n.Type.Equal(oidCommonName) || value != node {
			return fmt.Errorf("its subject has %q; want nothing, or CN=%s", model.Shorten(fmt.Sprintf("%v=%v", n.Type, n.Value)), node)
		}
	}
	for _, n := range r.csr.DNSNames {
		if n != node {
			return fmt.Errorf("it asks for the name %q", model.Shorten(n))
		}
	}
	want := desired.NodeURI + node
	for _, u := range r.csr.URIs {
		if u.String() != want {
			return fmt.Errorf("it asks for the URI %q; want none, or %q", model.Shorten(u.String()), want)
		}
	}
	if len(r.csr.EmailAddresses) > 0 || len(r.csr.IPAddresses) > 0 {
		return errors.New("it asks for a mail or IP address")
	}
	for _, e := range r.csr.Extensions {
		var err error
		switch {
		case e.Id.Equal(oidSubjectAltName):
			err = checkAltNames(e.Value)
		case e.Id.Equal(oidBasicConstraints):
			err = checkBasicConstraints(e.Value)
		case e.Id.Equal(oidKeyUsage):
			err = checkKeyUsage(e.Value)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// checkAltNames refuses the kinds of names that crypto/x509 skips.
func checkAltNames(der []byte) error {
	var names []asn1.RawValue
	if rest, err := asn1.Unmarshal(der, &names); err != nil || len(rest) != 0 {
		return errors.New("its subject alternative names are malformed")
	}
	for _, n := range names {
		// GeneralName: 1 mail, 2 DNS, 6 URI, 7 IP (RFC 5280, section 4.2.1.6).
		if n.Class != asn1.ClassContextSpecific || (n.Tag != 1 && n.Tag != 2 && n.Tag != 6 && n.Tag != 7) {
			return fmt.Errorf("it asks for a name of kind %d", n.Tag)
		}
	}
	return nil
}

func checkBasicConstraints(der []byte) error {
	var c struct {
		IsCA       bool `asn1:"optional"`
		MaxPathLen int  `asn1:"optional,default:-1"`
	}
	if rest, err := asn1.Unmarshal(der, &c); err != nil || len(rest) != 0 {
		return errors.New("its basic constraints are malformed")
	}
	if c.IsCA {
		return errors.New("it asks to be an authority (CA:TRUE)")
	}
	return nil
}

func checkKeyUsage(der []byte) error {
	var bits asn1.BitString
	if rest, err := asn1.Unmarshal(der, &bits); err != nil || len(rest) != 0 {
		return errors.New("its key usage is malformed")
	}
	// keyCertSign and cRLSign (RFC 5280, section 4.2.1.3).
	if bits.At(5) != 0 || bits.At(6) != 0 {
		return errors.New("it asks to sign certificates")
	}
	return nil
}
