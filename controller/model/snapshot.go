package model

import (
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
	// Enrolments say which nodes hold a certificate.
	Enrolments map[string]Enrolment
}

// TunnelEnd is one node's end of a tunnel.
type TunnelEnd struct {
	// Tunnel is customer/connection/circuit/link.
	Tunnel string
	Node   string
}

// Enrolment is a node's identity.
type Enrolment struct {
	// Serial of the newest certificate, in hexadecimal.
	Serial  string    `json:"serial"`
	Expires time.Time `json:"expires"`
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
}
