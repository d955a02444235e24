package desired

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha512"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	v1 "github.com/circuitseal/circuitseal/proto/circuitseal/v1"
)

// Why an envelope is refused. Errors wrap exactly one of these, so that a
// caller can tell an attack from a format of the future.
var (
	ErrSignature = errors.New("state is not signed by the state-signing key")
	ErrOtherNode = errors.New("state is for another node")
	ErrFormat    = errors.New("state cannot be read")
)

// StateSigner is the URI SAN of the only certificates that may sign states.
// No TLS certificate carries it, and a state-signing certificate has no
// extended key usage for TLS.
const StateSigner = "spiffe://circuitseal/state-signer"

// NodeURI begins the URI SAN of every node's session certificate; the node's
// name follows.
const NodeURI = "spiffe://circuitseal/node/"

const (
	stateType = "circuitseal.v1.State"
	// signatureContext keeps a signature from meaning anything elsewhere.
	signatureContext = "circuitseal state v1\x00"
	// MaxEnvelope is the largest envelope in bytes that is read at all.
	MaxEnvelope = 4 << 20
	// maxSignatures leaves room for co-signatures and for rotation.
	maxSignatures = 4
)

func digest(signed []byte) []byte {
	h := sha512.New384()
	h.Write([]byte(signatureContext))
	h.Write(signed)
	return h.Sum(nil)
}

// Marshal is the state's exact bytes: equal states give equal bytes.
func (s State) Marshal() ([]byte, error) {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(s.ToWire())
	if err != nil {
		return nil, fmt.Errorf("marshal state: %w", err)
	}
	return b, nil
}

// Seal signs the bytes of a state with an ECDSA key; certificate is the key's,
// in DER, issued by the root that agents pin.
func Seal(h Header, state []byte, signer crypto.Signer, certificate []byte) (*v1.Envelope, error) {
	signed, err := proto.Marshal(&v1.SignedState{
		Type: stateType, Node: h.Node,
		Epoch: h.Position.Epoch, Revision: h.Position.Revision,
		Issued: timestamppb.New(h.Issued), State: state,
	})
	if err != nil {
		return nil, fmt.Errorf("marshal state of node %s: %w", h.Node, err)
	}
	sig, err := signer.Sign(rand.Reader, digest(signed), crypto.SHA384)
	if err != nil {
		return nil, fmt.Errorf("sign state of node %s: %w", h.Node, err)
	}
	return &v1.Envelope{
		Signed:     signed,
		Signatures: []*v1.Signature{{Certificate: certificate, Signature: sig}},
	}, nil
}

// OpenEnvelope verifies an envelope against the pinned root, then reads it.
// The header is returned with every error after the signature held, so that a
// refusal can name the position; it is zero before. Whether the state is newer
// than the last one is the caller's to judge.
//
// The signer's certificate has to be valid at the time of issue, not now: a
// node runs its last good state for weeks without a controller, and its clock
// may be wrong after a power cut.
func OpenEnvelope(e *v1.Envelope, root *x509.Certificate, node string) (Header, State, error) {
	var (
		h Header
		s State
	)
	if len(e.GetSignatures()) == 0 || len(e.GetSignatures()) > maxSignatures {
		return h, s, fmt.Errorf("%w: %d signatures, want 1 to %d", ErrSignature, len(e.GetSignatures()), maxSignatures)
	}
	var signed v1.SignedState
	unreadable := proto.Unmarshal(e.GetSigned(), &signed)
	var errs []error
	for _, sig := range e.GetSignatures() {
		if err := verify(e.GetSigned(), sig, root, signed.GetIssued().AsTime()); err != nil {
			errs = append(errs, err)
			continue
		}
		errs = nil
		break
	}
	if errs != nil {
		return h, s, fmt.Errorf("%w: %w", ErrSignature, errors.Join(errs...))
	}
	if unreadable != nil {
		return h, s, fmt.Errorf("%w: %w", ErrFormat, unreadable)
	}
	h = Header{
		Node:     signed.GetNode(),
		Position: Position{Epoch: signed.GetEpoch(), Revision: signed.GetRevision()},
		Issued:   signed.GetIssued().AsTime(),
	}
	if signed.GetType() != stateType {
		return h, s, fmt.Errorf("%w: its type is %.64q, this agent reads %q; upgrade the agent", ErrFormat, signed.GetType(), stateType)
	}
	if h.Node != node {
		return h, s, fmt.Errorf("%w: it names %.64q, this is %q", ErrOtherNode, h.Node, node)
	}
	if !signed.GetIssued().IsValid() {
		return h, s, fmt.Errorf("%w: time of issue is out of range", ErrFormat)
	}
	var wire v1.State
	if err := proto.Unmarshal(signed.GetState(), &wire); err != nil {
		return h, s, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	s, err := StateFromWire(&wire)
	if err != nil {
		return h, State{}, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	if err := s.Validate(); err != nil {
		return h, State{}, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	return h, s, nil
}

func verify(signed []byte, sig *v1.Signature, root *x509.Certificate, issued time.Time) error {
	cert, err := x509.ParseCertificate(sig.GetCertificate())
	if err != nil {
		return fmt.Errorf("parse signer's certificate: %w", err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(root)
	// Every usage is accepted here and the signer is told by its URI below: a
	// TLS certificate never carries that URI.
	_, err = cert.Verify(x509.VerifyOptions{
		Roots: roots, CurrentTime: issued, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	if err != nil {
		return fmt.Errorf("verify signer's certificate: %w", err)
	}
	if !isStateSigner(cert.URIs) || cert.IsCA || cert.KeyUsage&x509.KeyUsageDigitalSignature == 0 {
		return errors.New("signer's certificate is not one for states")
	}
	key, ok := cert.PublicKey.(*ecdsa.PublicKey)
	if !ok {
		return fmt.Errorf("signer's key is a %T, want ECDSA", cert.PublicKey)
	}
	if !ecdsa.VerifyASN1(key, digest(signed), sig.GetSignature()) {
		return errors.New("signature does not fit the bytes")
	}
	return nil
}

func isStateSigner(uris []*url.URL) bool { return len(uris) == 1 && uris[0].String() == StateSigner }
