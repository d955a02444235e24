package model

import (
	"encoding/hex"
	"time"

	"github.com/circuitseal/circuitseal/proto/desired"
)

// Snapshot is everything that the controller knows at one revision. Readers
// share it: nobody changes one after it was made.
type Snapshot struct {
	// Epoch and Revision order the states compiled from this snapshot.
	Epoch, Revision uint64
	Documents       map[Key]Document
	// Numbers are kept from one compilation to the next.
	Numbers Numbers
	// Keys are the public keys that nodes have reported for their tunnels.
	Keys map[TunnelEnd]desired.PublicKey
	// PresharedKeys are the secrets that both ends of a tunnel have, by its ID.
	PresharedKeys map[string]PresharedKeys
	// Identities are the certificates of endpoints in IKE, by IdentityName.
	Identities map[string]IdentityCertificates
	// Authorities are the certificates, DER, under which the controller issues: the
	// intermediate and the root.
	Authorities [][]byte
	// Settled has the policy that each connection is known to work by, by GroupID.
	Settled map[string]Settled
	// Enrolments say which nodes hold a certificate.
	Enrolments map[string]Enrolment
	// Revocations are the keys that are never accepted again, with or without
	// a node of their name.
	Revocations map[Fingerprint]Revocation
}

// Revoked is how the present identity of a node was revoked, if it was. A node
// that was enrolled anew since then is not revoked. What nodes get depends on it.
func (s *Snapshot) Revoked(node string) (Revocation, bool) {
	e, ok := s.Enrolments[node]
	if !ok {
		return Revocation{}, false
	}
	r, ok := s.Revocations[e.Key]
	return r, ok
}

// TunnelEnd is one node's end of a tunnel.
type TunnelEnd struct {
	// Tunnel is customer/connection/circuit/link.
	Tunnel string
	Node   string
}

// Fingerprint names a public key: "sha256:" and the SHA-256 of its
// SubjectPublicKeyInfo in hexadecimal. "" is no key.
type Fingerprint string

// FingerprintOf is the name of the key with this SHA-256.
func FingerprintOf(sum [32]byte) Fingerprint {
	return Fingerprint("sha256:" + hex.EncodeToString(sum[:]))
}

// Enrolment is a node's identity. The key is what counts: all certificates over
// it are as good as each other while they last, so that none is in the way of
// its successor.
type Enrolment struct {
	Key Fingerprint `json:"key"`
	// Serial of the newest certificate, in hexadecimal: for people.
	Serial  string    `json:"serial"`
	Issued  time.Time `json:"issued"`
	Expires time.Time `json:"expires"`
}

// Revocation says when, by whom and why a key was revoked.
type Revocation struct {
	// Node is whose key it was.
	Node string    `json:"node"`
	Time time.Time `json:"time"`
	// Reason is what somebody gave, or a sentence of the controller's.
	Reason string `json:"reason"`
	// By is a caller's name such as admin/default, or "controller".
	By string `json:"by"`
	// Decommissioned is set when the node's document went with the key.
	Decommissioned bool `json:"decommissioned,omitempty"`
}

// Numbers are the small integers that stand for names in kernels: stable while
// the name lives, unique in their class, never 0.
type Numbers struct {
	// Tenants by customer name.
	Tenants map[string]uint32 `json:"tenants,omitempty"`
	// Links by customer/circuit/link.
	Links map[string]uint16 `json:"links,omitempty"`
	// Groups by customer/connection.
	Groups map[string]uint32 `json:"groups,omitempty"`
	// Tunnels by customer/connection/circuit/link.
	Tunnels map[string]uint16 `json:"tunnels,omitempty"`
}

// Problem is one thing wrong with a document. Source and Line are 0 until the
// text that it came from is known.
type Problem struct {
	Source string
	Line   int
	// Document is Key.String of the document, as far as it could be read.
	Document string
	// Field is a path such as spec.underlay[1].address.
	Field string
	// Value is what stands there, shortened to 64 characters, control
	// characters escaped.
	Value string
	// Message says what is wrong and why; Hint what would be right.
	Message, Hint string
	// LeftOut is how many more problems there are that are not told, of which this
	// is the last one that is.
	LeftOut int
}
