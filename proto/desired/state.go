// Package desired holds what one node should have and what it reports back:
// plain values with validation, comparison and conversion to and from the
// wire. It is all that the agent and the controller share. It knows
// proto/circuitseal/v1 and nothing of stores, kernels or policy.
package desired

import (
	"fmt"
	"net/netip"
	"time"
)

// Position orders states: by epoch, then by revision. The zero value is older
// than every state.
type Position struct {
	Epoch    uint64 `json:"epoch"`
	Revision uint64 `json:"revision"`
}

// Compare is -1, 0 or 1 as p is older than, equal to or newer than q.
func (p Position) Compare(q Position) int {
	switch {
	case p.Epoch < q.Epoch, p.Epoch == q.Epoch && p.Revision < q.Revision:
		return -1
	case p == q:
		return 0
	}
	return 1
}

// String is "epoch.revision".
func (p Position) String() string { return fmt.Sprintf("%d.%d", p.Epoch, p.Revision) }

// Header says for whom and when a state was made.
type Header struct {
	Node     string
	Position Position
	Issued   time.Time
}

// Role is what a host interface is for.
type Role uint8

// The roles. The zero value is invalid.
const (
	RoleCircuit Role = iota + 1
	RoleLAN
	RoleManagement
)

// String is the word that documents use.
func (r Role) String() string {
	switch r {
	case RoleCircuit:
		return "circuit"
	case RoleLAN:
		return "lan"
	case RoleManagement:
		return "mgmt"
	}
	return fmt.Sprintf("role %d", uint8(r))
}

// State is what one node should have. Slices are sorted by their first field
// and have no duplicates.
type State struct {
	Interfaces []Interface
	Links      []Link
	Sections   []Section
	// Identities are what this node proves to be in IKE.
	Identities []Identity
	// Authorities are the certificates, DER, under which the controller issues
	// others: the intermediate and the root.
	Authorities [][]byte
	// CharonSocket is the VICI socket of a charon that runs on the host already, in
	// the circuit namespace; empty for one of the agent's own.
	CharonSocket string
}

// Interface is one of the host's own interfaces.
type Interface struct {
	Name string
	Role Role
	// Addresses are set on circuit interfaces only: moving one to the circuit
	// namespace loses what the host had configured. One that carries tagged links
	// has none: they are the links'.
	Addresses []netip.Prefix
	// Customer owns a LAN interface; empty otherwise.
	Customer string
}

// Link is one link of a circuit as this node reaches it.
type Link struct {
	// ID is customer/circuit/primary or customer/circuit/secondary.
	ID string
	// Number is unique in a controller and never 0: the low half of the mark.
	Number uint16
	// Interface names a circuit interface of the same state.
	Interface string
	// NextHop is the neighbour on Interface that leads to the far end:
	// Microsoft's edge on premises, the subnet's router in Azure.
	NextHop netip.Addr
	// VLAN is the link's tag on Interface, 1 to 4094; 0 for an untagged link,
	// which has the interface for itself.
	VLAN uint16
	// OuterVLAN is the tag in front of VLAN (QinQ), 0 for none. Both tags have
	// ethertype 0x8100. The tag that comes first on the wire belongs to one link
	// of an interface.
	OuterVLAN uint16
	// Addresses are those of a tagged link; an untagged one has its interface's.
	Addresses []netip.Prefix
}

// Tagged reports whether the link's frames carry VLAN tags.
func (l Link) Tagged() bool { return l.VLAN != 0 }

// FirstTag is the tag that comes first on the wire, 0 for an untagged link.
func (l Link) FirstTag() uint16 {
	if l.OuterVLAN != 0 {
		return l.OuterVLAN
	}
	return l.VLAN
}

// Section is one customer's part of a node.
type Section struct {
	Customer string
	// Tenant is the customer's number in kernel tables, never 0.
	Tenant uint32
	Locals []LocalPrefix
	Groups []Group
}

// LocalPrefix is a protected prefix of the node's site and the LAN interface
// behind which it lies.
type LocalPrefix struct {
	Prefix    netip.Prefix
	Interface string
}

// Group is the tunnels that carry one connection at this node: the unit of
// load sharing and failover.
type Group struct {
	// ID is customer/connection.
	ID string
	// Number is unique in a controller and never 0.
	Number uint32
	// Remotes are the far site's protected prefixes.
	Remotes []netip.Prefix
	Tunnels []Tunnel
	// MaxOffline is how long the group carries packets without word from the
	// controller, 0 for ever; OfflineAction is what happens then, and is set when
	// MaxOffline is.
	MaxOffline    time.Duration
	OfflineAction OfflineAction
	// IPsec is set when tunnels have IPsec.
	IPsec *IPsecPolicy
	// Retiring is the protocol of two that carries packets only while nothing else
	// does, because it is on its way out; 0 when tunnels have one.
	Retiring Protocol
}

// OfflineAction is what becomes of a group whose node has not heard of its
// controller for too long. The zero value is for groups without a limit.
type OfflineAction uint8

// The actions.
const (
	// OfflineContinue goes on, and reports a problem.
	OfflineContinue OfflineAction = iota + 1
	// OfflineClose closes the group's tunnels until the controller is heard of.
	OfflineClose
)

// String is the word that documents use.
func (a OfflineAction) String() string {
	switch a {
	case OfflineContinue:
		return "continue"
	case OfflineClose:
		return "close"
	}
	return fmt.Sprintf("offline action %d", uint8(a))
}

// Tunnel is a pair of underlay addresses pinned to a link.
type Tunnel struct {
	// ID is customer/connection/circuit/link.
	ID string
	// Number is unique in a controller and never 0.
	Number uint16
	// Link is the ID of a link of the same state.
	Link string
	// Local and Remote are underlay addresses with UDP ports.
	Local, Remote netip.AddrPort
	// LocalProbe and RemoteProbe are derived from Number; see ProbeAddresses.
	LocalProbe, RemoteProbe netip.Addr
	// MTU is the largest inner packet in bytes.
	MTU uint16
	// WireGuard is set when that is the tunnel's protocol, IPsec when that is. Both
	// are while one takes over from the other; Group.Retiring says which goes.
	WireGuard *WireGuard
	IPsec     *IPsec
}

// WireGuard is what a WireGuard tunnel needs beside its addresses.
type WireGuard struct {
	// PeerKey is zero until the peer has reported it; the tunnel is pending
	// until then.
	PeerKey PublicKey
	// PresharedKeys are one or two once PeerKey is set: the one to use, and what
	// to fall back to when handshakes fail.
	PresharedKeys []PresharedKey
}

// Pending reports whether the tunnel has no peer's key yet.
func (w WireGuard) Pending() bool { return w.PeerKey.IsZero() }

// Pending reports whether a tunnel without IPsec still waits for its peer's key.
// What one with IPsec waits for is Group.IPsecWaits.
func (t Tunnel) Pending() bool {
	return t.IPsec == nil && (t.WireGuard == nil || t.WireGuard.Pending())
}

// ProbePrefix holds every probe address; no site may use it.
// A unique local prefix (RFC 4193, section 3.1) with a global ID drawn once.
var ProbePrefix = netip.MustParsePrefix("fdc5:5ea1:7d10::/48")

// ProbeAddresses are the two in-tunnel probe addresses of a tunnel number:
// the first for the end whose endpoint has the smaller name.
func ProbeAddresses(number uint16) (first, second netip.Addr) {
	a := ProbePrefix.Addr().As16()
	a[12], a[13] = byte(number>>8), byte(number)
	a[15] = 1
	first = netip.AddrFrom16(a)
	a[15] = 2
	return first, netip.AddrFrom16(a)
}
