// Package plan turns a node's desired state and facts about its host into what
// each driver has to bring about. It is pure: it reads nothing from the host
// and knows neither netlink nor eBPF, so that a plan can be printed, compared
// and tested without privilege.
package plan

import (
	"net/netip"

	"github.com/circuitseal/circuitseal/proto/desired"
)

// Plan is everything that one instance should have on its host. It is whole:
// what is of this instance and not in the plan has to go.
type Plan struct {
	Interfaces []Interface
	Tables     []Table
	Tunnels    []Tunnel
	IPsec      IPsec
	Pending    []Pending
	Guard      Guard
	Classifier Classifier
}

// Interface is a circuit interface, which lives in the circuit namespace: one of
// the host's own, or a VLAN device on one, which the agent makes.
type Interface struct {
	Name      string
	Addresses []netip.Prefix
	// Parent is the interface below a VLAN device, which stands before it in the
	// plan; empty for one of the host's own.
	Parent string
	// VLAN is the tag that Parent has for a VLAN device, of ethertype 0x8100.
	VLAN uint16
}

// Table is the routing table of a link, in the circuit namespace: packets that
// carry Mark are looked up there and nowhere else; it ends in unreachable.
type Table struct {
	Number uint32
	Mark   uint32
	Routes []Route
	// Control are the pairs of addresses whose control packets go this way, too:
	// those of charon, whose sockets carry instance.ControlMark whatever the link.
	Control []Pair
}

// Pair is a source and a destination.
type Pair struct{ Local, Remote netip.Addr }

// Route leads to one peer's underlay address.
type Route struct {
	Destination netip.Prefix
	NextHop     netip.Addr
	Interface   string
	Source      netip.Addr
}

// Tunnel is a tunnel by WireGuard that has all it needs.
type Tunnel struct {
	ID string
	// Retiring tells that IPsec takes over from it.
	Retiring bool
	Device   string
	Mark     uint32
	MTU      int
	// Local and Peer are the outer addresses and UDP ports.
	Local, Peer netip.AddrPort
	PeerKey     desired.PublicKey
	// PresharedKeys are the one to use and, while it is replaced, what to fall
	// back to.
	PresharedKeys []desired.PresharedKey
	// AllowedIPs are the far prefixes and the peer's probe address.
	AllowedIPs              []netip.Prefix
	LocalProbe, RemoteProbe netip.Addr
}

// Pending is a tunnel that cannot be made yet.
type Pending struct {
	ID       string
	Protocol desired.Protocol
	Retiring bool
	// Reason is a sentence.
	Reason string
}

// Guard is what may pass the circuit interfaces; everything else is dropped.
type Guard struct {
	Interfaces []string
	// VLANs say which of Interfaces are VLAN devices. What a flow or a neighbour
	// is on the uppermost device, it is behind a tag on the ones below.
	VLANs     []VLAN
	Flows     []Flow
	Neighbors []Neighbor
}

// VLAN is a VLAN device of the guard's interfaces.
type VLAN struct {
	Interface, Parent string
	ID                uint16
}

// Flow is the outer packets of one tunnel, in both directions: out, the mark
// and the tuple; in, the tuple.
type Flow struct {
	// Tunnel and Device say whose packets these are.
	Tunnel, Device string
	Interface      string
	Mark           uint32
	// Control tells that packets with instance.ControlMark are the tunnel's, too:
	// IKE beside ESP on one UDP port.
	Control bool
	// Protocol is an IP protocol number: 17, or 50 for ESP, whose ports are 0.
	Protocol      uint8
	Local, Remote netip.AddrPort
}

// Neighbor is the one host that a circuit interface may resolve and answer by
// ARP or ND.
type Neighbor struct {
	Interface     string
	Local, Remote netip.Addr
}

// Classifier is what the main namespace does with inner packets.
type Classifier struct {
	LANs    []LAN
	Locals  []Local
	Remotes []Remote
	Groups  []Group
}

// LAN is an interface whose packets belong to one tenant.
type LAN struct {
	Interface string
	Tenant    uint32
	// MTU is the least of the tenant's tunnels, 0 while it has none: what is
	// told to who sends more.
	MTU int
}

// Local is a protected prefix of this site: the only sources that a LAN may
// use, and the only destinations that a tunnel may reach.
type Local struct {
	Tenant    uint32
	Prefix    netip.Prefix
	Interface string
}

// Remote is a far prefix: the only destinations that LANs reach, and the only
// sources that may come out of the group's tunnels.
type Remote struct {
	Tenant uint32
	Prefix netip.Prefix
	Group  uint32
}

// Group shares its flows over its members.
type Group struct {
	ID     string
	Number uint32
	Tenant uint32
	// Members are in the order of their numbers; at most MaxMembers.
	Members []Member
}

// MaxMembers is how many tunnels a group can have: one bit each in a word of
// the classifier's group table.
const MaxMembers = 32

// Member is a tunnel of a group.
type Member struct {
	Tunnel string
	// Number weighs the member in rendezvous hashing; it survives restarts.
	Number uint16
	// Retiring members carry packets only while no other one is alive.
	Retiring bool
	// External members answer no probe: who keeps the tunnel says whether it is
	// alive.
	External                bool
	Device                  string
	MTU                     int
	LocalProbe, RemoteProbe netip.Addr
}

// Key names the member among all that probes watch: a tunnel that changes its
// protocol has two.
func (m Member) Key() string {
	if m.Number&ipsecMember != 0 {
		return IPsecKey(m.Tunnel)
	}
	return m.Tunnel
}

// IPsecKey is the key of a tunnel's member by IPsec.
func IPsecKey(tunnel string) string { return tunnel + "/ipsec" }
