package guard

import "fmt"

// Direction is seen from the node.
type Direction uint8

// The directions; the numbers are those of the eBPF programs.
const (
	// Out is from the node to the circuit.
	Out = Direction(programDirectionDIRECTION_OUT)
	// In is from the circuit to the node.
	In = Direction(programDirectionDIRECTION_IN)
)

// String is the word that counters carry.
func (d Direction) String() string {
	switch d {
	case Out:
		return "out"
	case In:
		return "in"
	}
	return fmt.Sprintf("direction %d", uint8(d))
}

// Reason is why a frame passes a circuit interface or not. The numbers are
// those of the eBPF programs, generated from bpf/layout.h.
type Reason uint8

// The reasons. The first two pass; every other one drops.
const (
	// ReasonFlow: an outer packet of a configured tunnel.
	ReasonFlow = Reason(programReasonREASON_FLOW)
	// ReasonNeighbor: ARP or ND between this node and the link's neighbour.
	ReasonNeighbor = Reason(programReasonREASON_NEIGHBOR)
	// ReasonShort: too short for anything that passes.
	ReasonShort = Reason(programReasonREASON_SHORT)
	// ReasonVLAN: VLAN tags of no link here, or of another kind than 0x8100.
	ReasonVLAN = Reason(programReasonREASON_VLAN)
	// ReasonEtherType: neither IPv4, IPv6 nor ARP.
	ReasonEtherType = Reason(programReasonREASON_ETHERTYPE)
	// ReasonNDFormat: ICMPv6 that is neither a solicitation nor an advertisement of
	// a neighbour, or one with content of its own.
	ReasonNDFormat = Reason(programReasonREASON_ND_FORMAT)
	// ReasonIPHeader: of another version, or with IPv4 options.
	ReasonIPHeader = Reason(programReasonREASON_IP_HEADER)
	// ReasonFragment: an IP fragment, or the reserved bit set.
	ReasonFragment = Reason(programReasonREASON_FRAGMENT)
	// ReasonProtocol: neither UDP nor ESP, or behind an IPv6 extension header.
	ReasonProtocol = Reason(programReasonREASON_PROTOCOL)
	// ReasonLength: lengths disagree, or something follows the packet.
	ReasonLength = Reason(programReasonREASON_LENGTH)
	// ReasonNoFlow: UDP or ESP of no configured tunnel.
	ReasonNoFlow = Reason(programReasonREASON_NO_FLOW)
	// ReasonMark: a tunnel's addresses and ports, but no encryptor made it.
	ReasonMark = Reason(programReasonREASON_MARK)
	// ReasonARPFormat: neither request nor reply for IPv4 over Ethernet.
	ReasonARPFormat = Reason(programReasonREASON_ARP_FORMAT)
	// ReasonARPHardware: hardware addresses that do not belong there.
	ReasonARPHardware = Reason(programReasonREASON_ARP_HARDWARE)
	// ReasonNoNeighbor: ARP or ND for or from another than the neighbour.
	ReasonNoNeighbor = Reason(programReasonREASON_NO_NEIGHBOR)
	// ReasonUntagged: no VLAN tag where only tagged links are.
	ReasonUntagged = Reason(programReasonREASON_UNTAGGED)
	// ReasonPriorityTag: a VLAN tag that names no VLAN: 0 or 4095.
	ReasonPriorityTag = Reason(programReasonREASON_PRIORITY_TAG)
	// ReasonTags: more than two VLAN tags.
	ReasonTags = Reason(programReasonREASON_TAGS)
	// ReasonSPI: ESP with an SPI that no tunnel can have.
	ReasonSPI = Reason(programReasonREASON_SPI)
)

// reasons is how many there are.
const reasons = int(ReasonSPI) + 1

// Pass reports whether frames judged so pass.
func (r Reason) Pass() bool { return r == ReasonFlow || r == ReasonNeighbor }

// String is the word that counters carry.
func (r Reason) String() string {
	switch r {
	case ReasonFlow:
		return "flow"
	case ReasonNeighbor:
		return "neighbor"
	case ReasonShort:
		return "short"
	case ReasonVLAN:
		return "vlan"
	case ReasonEtherType:
		return "ethertype"
	case ReasonNDFormat:
		return "nd_format"
	case ReasonIPHeader:
		return "ip_header"
	case ReasonFragment:
		return "fragment"
	case ReasonProtocol:
		return "protocol"
	case ReasonLength:
		return "length"
	case ReasonNoFlow:
		return "no_flow"
	case ReasonMark:
		return "mark"
	case ReasonARPFormat:
		return "arp_format"
	case ReasonARPHardware:
		return "arp_hardware"
	case ReasonNoNeighbor:
		return "no_neighbor"
	case ReasonUntagged:
		return "untagged"
	case ReasonPriorityTag:
		return "priority_tag"
	case ReasonTags:
		return "tags"
	case ReasonSPI:
		return "spi"
	}
	return fmt.Sprintf("reason %d", uint8(r))
}
