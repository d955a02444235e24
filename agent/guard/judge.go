package guard

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"slices"

	"github.com/circuitseal/circuitseal/agent/plan"
)

// Frame is what the guard sees of a frame on a circuit interface.
type Frame struct {
	Direction Direction
	// Interface is the name of the circuit interface.
	Interface string
	// Mark is the packet's mark; it counts going out only.
	Mark uint32
	// Tag is the VLAN tag that was taken off, or is to be put on by the interface:
	// its ethertype in the upper half, in the lower its priority and VLAN; 0 when
	// there is none. Further tags are in Data.
	Tag uint32
	// Data begins with the Ethernet header and is the whole frame; a
	// super-packet (UDP_SEGMENT, GRO) is one frame here.
	Data []byte
}

const (
	etherHeader = 14
	ipHeader    = 20
	udpHeader   = 8
	arpPacket   = 28
	// minFrame is the shortest frame on a wire, without its checksum (IEEE
	// 802.3, 4.2.3.3).
	minFrame = 60

	etherTypeIPv4 = 0x0800
	etherTypeARP  = 0x0806
	etherTypeVLAN = 0x8100
	etherTypeIPv6 = 0x86dd
	etherTypeQinQ = 0x88a8
	protocolUDP   = 17
	protocolESP   = 50
	// minESP is what ESP has at least, see MIN_ESP in bpf/guard.c.
	minESP        = 32
	minSPI        = 256
	dontFragment  = 0x4000
	arpRequest    = 1
	arpReply      = 2
	maxFlows      = 16384
	maxNeighbors  = 16384
	maxInterfaces = 2047
	maxStacks     = 4096
	maxTags       = 2
	tagLength     = 4
	vlanID        = 0xfff
)

var (
	broadcast = bytes.Repeat([]byte{0xff}, 6)
	zeroMAC   = make([]byte, 6)
)

// Judge tells whether a frame may pass under g, and why. It is what the eBPF
// programs and the nftables rules mean, and it touches nothing. What Sync
// would refuse in g counts as not there.
func Judge(g plan.Guard, f Frame) (pass bool, why Reason) {
	p, _ := compile(g)
	why = p.judge(f)
	return why.Pass(), why
}

func (p policy) judge(f Frame) Reason {
	stack, why := f.takeTags()
	if why != ReasonFlow {
		return why
	}
	switch known := p.stacks[stackKey{f.Interface, stack}]; {
	case stack != 0 && !known:
		return ReasonVLAN
	case stack == 0 && known:
		return ReasonUntagged
	case len(f.Data) < etherHeader+arpPacket:
		return ReasonShort
	}
	switch binary.BigEndian.Uint16(f.Data[12:]) {
	case etherTypeIPv4:
		return p.judgeIPv4(f, stack)
	case etherTypeARP:
		return p.judgeARP(f, stack)
	case etherTypeIPv6:
		return p.judgeIPv6(f, stack)
	}
	return ReasonEtherType
}

// takeTags takes the tags off the frame. ReasonFlow, of which this is not the
// last word, says that they are in order.
func (f *Frame) takeTags() (tags, Reason) {
	var stack tags
	count := 0
	take := func(tag uint32) Reason {
		tci := uint16(tag)
		vlan := tci & vlanID
		switch {
		case count == maxTags:
			return ReasonTags
		case tag>>16 != etherTypeVLAN:
			return ReasonVLAN
		case vlan == 0 || vlan == vlanID:
			return ReasonPriorityTag
		case f.Direction == Out && tci != vlan:
			return ReasonVLAN
		}
		stack = stack.push(vlan)
		count++
		return ReasonFlow
	}
	if f.Tag != 0 {
		if why := take(f.Tag); why != ReasonFlow {
			return 0, why
		}
	}
	for {
		if len(f.Data) < etherHeader+2 {
			return 0, ReasonShort
		}
		tag := binary.BigEndian.Uint32(f.Data[12:])
		if t := tag >> 16; t != etherTypeVLAN && t != etherTypeQinQ {
			return stack, ReasonFlow
		}
		if why := take(tag); why != ReasonFlow {
			return 0, why
		}
		f.Data = slices.Concat(f.Data[:12], f.Data[12+tagLength:])
	}
}

func (p policy) judgeIPv4(f Frame, stack tags) Reason {
	ip := f.Data[etherHeader:]
	if ip[0] != 0x45 {
		return ReasonIPHeader
	}
	if binary.BigEndian.Uint16(ip[6:])&^dontFragment != 0 {
		return ReasonFragment
	}
	protocol, total := ip[9], int(binary.BigEndian.Uint16(ip[2:]))
	if protocol != protocolUDP && protocol != protocolESP {
		return ReasonProtocol
	}
	if total < ipHeader || !f.lengthFits(total) {
		return ReasonLength
	}
	source, destination := netip.AddrFrom4([4]byte(ip[12:])), netip.AddrFrom4([4]byte(ip[16:]))
	return p.judgeTransport(f, stack, protocol, source, destination, ip[ipHeader:], total-ipHeader)
}

// judgeTransport judges what a tunnel's packet has behind the IP header, which by
// that has this length.
func (p policy) judgeTransport(f Frame, stack tags, protocol uint8, source, destination netip.Addr, b []byte, length int) Reason {
	var from, to uint16
	switch {
	case protocol == protocolUDP:
		if length < udpHeader || int(binary.BigEndian.Uint16(b[4:])) != length {
			return ReasonLength
		}
		from, to = binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:])
	case length < minESP:
		return ReasonLength
	case binary.BigEndian.Uint32(b) < minSPI:
		return ReasonSPI
	}
	key := flowKey{f.Interface, stack, protocol, netip.AddrPortFrom(source, from), netip.AddrPortFrom(destination, to)}
	if f.Direction == In {
		key.local, key.remote = key.remote, key.local
	}
	marks, ok := p.flows[key]
	switch {
	case !ok:
		return ReasonNoFlow
	case f.Direction == Out && marks[0] != f.Mark && marks[1] != f.Mark:
		return ReasonMark
	}
	return ReasonFlow
}

func (p policy) judgeARP(f Frame, stack tags) Reason {
	to, from, arp := f.Data[:6], f.Data[6:12], f.Data[etherHeader:]
	operation := binary.BigEndian.Uint16(arp[6:])
	if !bytes.Equal(arp[:6], []byte{0, 1, 8, 0, 6, 4}) || operation != arpRequest && operation != arpReply {
		return ReasonARPFormat
	}
	if !f.lengthFits(arpPacket) {
		return ReasonLength
	}
	if to[0]&1 != 0 && !bytes.Equal(to, broadcast) {
		return ReasonARPHardware
	}
	senderMAC, targetMAC := arp[8:14], arp[18:24]
	if f.Direction == Out && (!bytes.Equal(senderMAC, from) ||
		operation == arpRequest && !bytes.Equal(targetMAC, zeroMAC) ||
		operation == arpReply && !bytes.Equal(targetMAC, to)) {
		return ReasonARPHardware
	}
	sender, target := netip.AddrFrom4([4]byte(arp[14:])), netip.AddrFrom4([4]byte(arp[24:]))
	key := neighborKey{f.Interface, stack, sender, target}
	if f.Direction == In {
		key = neighborKey{f.Interface, stack, target, sender}
	}
	if !p.neighbors[key] || f.Direction == Out && key.announces() {
		return ReasonNoNeighbor
	}
	return ReasonNeighbor
}

// lengthFits reports whether the frame carries nothing behind its packet but
// the padding of a short frame, which is there only when it comes in.
func (f Frame) lengthFits(packet int) bool {
	want := etherHeader + packet
	return len(f.Data) == want || f.Direction == In && len(f.Data) > want && len(f.Data) <= minFrame
}
