package guard

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"github.com/circuitseal/circuitseal/agent/instance"
	"github.com/circuitseal/circuitseal/agent/plan"
)

var (
	localAddr6, peerAddr6 = netip.MustParseAddr("fd00:9::1"), netip.MustParseAddr("fd00:9::2")
	otherAddr6            = netip.MustParseAddr("fd00:9::3")
	allNodes              = netip.IPv6LinkLocalAllNodes()
)

// addIPv6 gives an interface of a plan IPv6 as well.
func addIPv6(g plan.Guard, name string, mark uint32, local, remote netip.Addr) plan.Guard {
	g.Flows = append(g.Flows, plan.Flow{Interface: name, Mark: mark, Protocol: protocolUDP,
		Local: netip.AddrPortFrom(local, tunnelLocal.Port()), Remote: netip.AddrPortFrom(remote, tunnelRemote.Port())})
	g.Flows = append(g.Flows, ipsecFlows(name, mark, local, remote)...)
	g.Neighbors = append(g.Neighbors, plan.Neighbor{Interface: name, Local: local, Remote: remote})
	return g
}

func ipv6(protocol, hopLimit byte, from, to netip.Addr, payload []byte) []byte {
	b := binary.BigEndian.AppendUint16([]byte{0x60, 0, 0, 0}, uint16(len(payload)))
	return slices.Concat(b, []byte{protocol, hopLimit}, from.AsSlice(), to.AsSlice(), payload)
}

// udp6 has a checksum, without which IPv6 takes no datagram (RFC 8200, section 8.1).
func udp6(from, to netip.AddrPort, payload []byte) []byte {
	b := binary.BigEndian.AppendUint16(nil, from.Port())
	b = binary.BigEndian.AppendUint16(b, to.Port())
	b = binary.BigEndian.AppendUint16(b, uint16(udpHeader+len(payload)))
	return ipv6(protocolUDP, 64, from.Addr(), to.Addr(), summed(protocolUDP, from.Addr(), to.Addr(), append(append(b, 0, 0), payload...), 6))
}

// ndPacket is a message about a target; option is a kind and a hardware address,
// or nothing.
func ndPacket(kind, flags, hopLimit byte, from, to, target netip.Addr, option byte, mac []byte) []byte {
	b := slices.Concat([]byte{kind, 0, 0, 0, flags, 0, 0, 0}, target.AsSlice())
	if option != 0 {
		b = append(append(b, option, 1), mac...)
	}
	return ipv6(protocolICMPv6, hopLimit, from, to, summed(protocolICMPv6, from, to, b, 2))
}

// summed sets the checksum (RFC 8200, section 8.1).
func summed(protocol byte, from, to netip.Addr, b []byte, at int) []byte {
	var sum uint32
	for _, part := range [][]byte{from.AsSlice(), to.AsSlice(), {0, protocol}, binary.BigEndian.AppendUint32(nil, uint32(len(b))), b} {
		for i, v := range part {
			sum += uint32(v) << (8 * (1 - i&1))
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(b[at:], ^uint16(sum))
	return b
}

// multicastMAC follows RFC 2464, section 7.
func multicastMAC(a netip.Addr) []byte {
	b := a.As16()
	return append([]byte{0x33, 0x33}, b[12:]...)
}

// ipv6Cases are frames on the interface of ipsecPlan.
func ipv6Cases() []frameCase {
	payload := make([]byte, 100)
	at := func(a netip.Addr, port uint16) netip.AddrPort { return netip.AddrPortFrom(a, port) }
	there := func(packet []byte) []byte { return ethernet(remoteMAC, localMAC, etherTypeIPv6, packet) }
	back := func(packet []byte) []byte { return ethernet(localMAC, remoteMAC, etherTypeIPv6, packet) }
	local, remote := at(localAddr6, tunnelLocal.Port()), at(peerAddr6, tunnelRemote.Port())
	out, in := there(udp6(local, remote, payload)), back(udp6(remote, local, payload))
	esp6 := there(ipv6(protocolESP, 64, localAddr6, peerAddr6, esp(0xc0000001, 100)))
	behind := func(next, protocol byte, header []byte, body []byte) []byte {
		return there(ipv6(next, 64, localAddr6, peerAddr6, slices.Concat([]byte{protocol}, header, body)))
	}
	options := []byte{0, 1, 4, 0, 0, 0, 0}
	datagram := out[etherHeader+ipv6Header:]

	snm := solicitedNode(peerAddr6)
	ask := ethernet(multicastMAC(snm), localMAC, etherTypeIPv6, ndPacket(ndSolicitation, 0, 255, localAddr6, snm, peerAddr6, 1, localMAC))
	answer := there(ndPacket(ndAdvertisement, 0x60, 255, localAddr6, peerAddr6, localAddr6, 2, localMAC))
	own := solicitedNode(localAddr6)
	asked := ethernet(multicastMAC(own), remoteMAC, etherTypeIPv6, ndPacket(ndSolicitation, 0, 255, peerAddr6, own, localAddr6, 1, remoteMAC))
	answered := back(ndPacket(ndAdvertisement, 0xe0, 255, peerAddr6, localAddr6, peerAddr6, 2, remoteMAC))
	announced := ethernet(multicastMAC(allNodes), remoteMAC, etherTypeIPv6, ndPacket(ndAdvertisement, 0xa0, 255, peerAddr6, allNodes, peerAddr6, 2, remoteMAC))
	unspecified := netip.IPv6Unspecified()
	ownLocal, router := ownLinkLocal(localMAC), netip.MustParseAddr("fe80::1")
	icmp := func(kind, hopLimit byte, n int) []byte {
		return there(ipv6(protocolICMPv6, hopLimit, localAddr6, peerAddr6, append([]byte{kind}, make([]byte, n-1)...)))
	}
	return []frameCase{
		{"IPv6", Out, mark, 0, out, ReasonFlow},
		{"IPv6 in", In, 0, 0, in, ReasonFlow},
		{"IPv6 without the mark", Out, 0, 0, out, ReasonMark},
		{"IPv6 with another link's mark", Out, mark + 1, 0, out, ReasonMark},
		{"IPv6 in, going out", Out, mark, 0, in, ReasonNoFlow},
		{"IPv6 to another port", Out, mark, 0, edit(out, func(b []byte) { b[57]++ }), ReasonNoFlow},
		{"IPv6 to another", Out, mark, 0, there(udp6(local, at(otherAddr6, remote.Port()), payload)), ReasonNoFlow},
		{"IPv6 from another", In, 0, 0, back(udp6(at(otherAddr6, remote.Port()), local, payload)), ReasonNoFlow},
		{"IPv6 to a mapped address", Out, mark, 0, there(udp6(at(netip.AddrFrom16(localAddr.As16()), local.Port()), at(netip.AddrFrom16(peerAddr.As16()), remote.Port()), payload)), ReasonNoFlow},
		{"ND about mapped addresses", Out, 0, 0, there(ndPacket(ndSolicitation, 0, 255, netip.AddrFrom16(localAddr.As16()), netip.AddrFrom16(peerAddr.As16()), netip.AddrFrom16(peerAddr.As16()), 1, localMAC)), ReasonNoNeighbor},
		{"IPv6 of version 4", Out, mark, 0, edit(out, func(b []byte) { b[14] = 0x45 }), ReasonIPHeader},
		{"IPv6 length short of the frame's", Out, mark, 0, edit(out, func(b []byte) { b[19]-- }), ReasonLength},
		{"IPv6 length beyond the frame", In, 0, 0, edit(in, func(b []byte) { b[19]++ }), ReasonLength},
		{"UDP length short of IPv6's", Out, mark, 0, edit(out, func(b []byte) { b[59]-- }), ReasonLength},
		{"IPv6 with a byte behind it", In, 0, 0, append(append([]byte{}, in...), 0), ReasonLength},
		{"IPv6 without UDP", In, 0, 0, back(ipv6(protocolUDP, 64, peerAddr6, localAddr6, nil)), ReasonShort},
		{"IPv6, short", In, 0, 0, in[:53], ReasonShort},
		{"IPv6 fragment", Out, mark, 0, behind(44, protocolUDP, []byte{0, 0, 1, 0, 0, 0, 9}, datagram), ReasonFragment},
		{"IPv6 atomic fragment", Out, mark, 0, behind(44, protocolUDP, []byte{0, 0, 0, 0, 0, 0, 9}, datagram), ReasonFragment},
		{"IPv6 hop-by-hop options", Out, mark, 0, behind(0, protocolUDP, options, datagram), ReasonProtocol},
		{"IPv6 destination options", Out, mark, 0, behind(60, protocolUDP, options, datagram), ReasonProtocol},
		{"IPv6 routing header", Out, mark, 0, behind(43, protocolUDP, []byte{0, 0, 0, 0, 0, 0, 0}, datagram), ReasonProtocol},
		{"IPv6 AH", Out, mark, 0, there(ipv6(51, 64, localAddr6, peerAddr6, payload)), ReasonProtocol},
		{"IPv6 TCP", Out, mark, 0, there(ipv6(6, 64, localAddr6, peerAddr6, payload)), ReasonProtocol},
		{"IPv4 in IPv6", Out, mark, 0, there(ipv6(4, 64, localAddr6, peerAddr6, payload)), ReasonProtocol},
		{"IPv6 ESP", Out, mark, 0, esp6, ReasonFlow},
		{"IPv6 ESP without the mark", Out, 0, 0, esp6, ReasonMark},
		{"IPv6 ESP with the mark of control packets", Out, instance.ControlMark, 0, esp6, ReasonMark},
		{"IPv6 ESP too short", Out, mark, 0, there(ipv6(protocolESP, 64, localAddr6, peerAddr6, esp(0xc0000001, 16))), ReasonLength},
		{"IPv6 ESP with a reserved SPI", Out, mark, 0, there(ipv6(protocolESP, 64, localAddr6, peerAddr6, esp(1, 100))), ReasonSPI},
		{"IPv6 ESP behind options", Out, mark, 0, behind(60, protocolESP, options, esp(0xc0000001, 100)), ReasonProtocol},
		{"IPv6 IKE", Out, instance.ControlMark, 0, there(udp6(at(localAddr6, 500), at(peerAddr6, 500), payload)), ReasonFlow},
		{"IPv6 IKE with the link's mark", Out, mark, 0, there(udp6(at(localAddr6, 500), at(peerAddr6, 500), payload)), ReasonMark},

		{"ND asks", Out, 0, 0, ask, ReasonNeighbor},
		{"ND asks the neighbour itself", Out, 0, 0, there(ndPacket(ndSolicitation, 0, 255, localAddr6, peerAddr6, peerAddr6, 1, localMAC)), ReasonNeighbor},
		{"ND asks without an option", Out, 0, 0, there(ndPacket(ndSolicitation, 0, 255, localAddr6, peerAddr6, peerAddr6, 0, nil)), ReasonNeighbor},
		{"ND answers", Out, 0, 0, answer, ReasonNeighbor},
		{"ND is asked", In, 0, 0, asked, ReasonNeighbor},
		{"ND is asked for another's hardware address", In, 0, 0, edit(asked, func(b []byte) { b[85]++ }), ReasonNeighbor},
		{"ND asks from its link-local address", Out, 0, 0, there(ndPacket(ndSolicitation, 0, 255, ownLocal, peerAddr6, peerAddr6, 1, localMAC)), ReasonNeighbor},
		{"ND asks all from its link-local address", Out, 0, 0, ethernet(multicastMAC(snm), localMAC, etherTypeIPv6, ndPacket(ndSolicitation, 0, 255, ownLocal, snm, peerAddr6, 1, localMAC)), ReasonNeighbor},
		{"ND asks from a link-local address that is not its own", Out, 0, 0, there(ndPacket(ndSolicitation, 0, 255, router, peerAddr6, peerAddr6, 1, localMAC)), ReasonNoNeighbor},
		{"ND asks for a link-local address", Out, 0, 0, there(ndPacket(ndSolicitation, 0, 255, localAddr6, router, router, 1, localMAC)), ReasonNoNeighbor},
		{"ND answers a link-local address", Out, 0, 0, there(ndPacket(ndAdvertisement, 0x60, 255, localAddr6, router, localAddr6, 2, localMAC)), ReasonNeighbor},
		{"ND answers beyond the link-local prefix", Out, 0, 0, there(ndPacket(ndAdvertisement, 0x60, 255, localAddr6, netip.MustParseAddr("fe80:1::2"), localAddr6, 2, localMAC)), ReasonNoNeighbor},
		{"ND answers for its link-local address", Out, 0, 0, there(ndPacket(ndAdvertisement, 0x60, 255, ownLocal, peerAddr6, ownLocal, 2, localMAC)), ReasonNeighbor},
		{"ND is asked by a link-local address", In, 0, 0, back(ndPacket(ndSolicitation, 0, 255, router, localAddr6, localAddr6, 1, remoteMAC)), ReasonNeighbor},
		{"ND is asked for another by a link-local address", In, 0, 0, back(ndPacket(ndSolicitation, 0, 255, router, otherAddr6, otherAddr6, 1, remoteMAC)), ReasonNoNeighbor},
		{"ND is asked for a link-local address", In, 0, 0, back(ndPacket(ndSolicitation, 0, 255, router, ownLocal, ownLocal, 1, remoteMAC)), ReasonNeighbor},
		{"ND is asked by nobody", In, 0, 0, ethernet(multicastMAC(own), remoteMAC, etherTypeIPv6, ndPacket(ndSolicitation, 0, 255, unspecified, own, localAddr6, 0, nil)), ReasonNoNeighbor},
		{"ND answers nobody", Out, 0, 0, there(ndPacket(ndAdvertisement, 0x60, 255, localAddr6, unspecified, localAddr6, 2, localMAC)), ReasonNoNeighbor},
		{"ND is asked for another link-local address", In, 0, 0, back(ndPacket(ndSolicitation, 0, 255, router, netip.MustParseAddr("fe80::2"), netip.MustParseAddr("fe80::2"), 1, remoteMAC)), ReasonNoNeighbor},
		{"ND is asked for its link-local address by all", In, 0, 0, ethernet(multicastMAC(solicitedNode(ownLocal)), remoteMAC, etherTypeIPv6, ndPacket(ndSolicitation, 0, 255, router, solicitedNode(ownLocal), ownLocal, 1, remoteMAC)), ReasonNoNeighbor},
		{"ND asks for the neighbour's link-local address", Out, 0, 0, there(ndPacket(ndSolicitation, 0, 255, ownLocal, ownLinkLocal(remoteMAC), ownLinkLocal(remoteMAC), 1, localMAC)), ReasonNeighbor},
		{"ND answers for its link-local address at another", Out, 0, 0, there(ndPacket(ndAdvertisement, 0x60, 255, ownLocal, router, ownLocal, 2, localMAC)), ReasonNeighbor},
		{"ND answers for another link-local address", Out, 0, 0, there(ndPacket(ndAdvertisement, 0x60, 255, router, peerAddr6, router, 2, localMAC)), ReasonNoNeighbor},
		{"ND: the neighbour's link-local address answers", In, 0, 0, back(ndPacket(ndAdvertisement, 0xe0, 255, ownLinkLocal(remoteMAC), ownLocal, ownLinkLocal(remoteMAC), 2, remoteMAC)), ReasonNeighbor},
		{"ND: the neighbour's link-local address is announced", In, 0, 0, ethernet(multicastMAC(allNodes), remoteMAC, etherTypeIPv6, ndPacket(ndAdvertisement, 0xa0, 255, ownLinkLocal(remoteMAC), allNodes, ownLinkLocal(remoteMAC), 2, remoteMAC)), ReasonNoNeighbor},
		{"ND is answered at its link-local address", In, 0, 0, back(ndPacket(ndAdvertisement, 0x60, 255, peerAddr6, ownLocal, peerAddr6, 2, remoteMAC)), ReasonNeighbor},
		{"ND is answered at another link-local address", In, 0, 0, back(ndPacket(ndAdvertisement, 0x60, 255, peerAddr6, router, peerAddr6, 2, remoteMAC)), ReasonNoNeighbor},
		{"ND is answered by a link-local address", In, 0, 0, back(ndPacket(ndAdvertisement, 0x60, 255, router, localAddr6, router, 2, remoteMAC)), ReasonNoNeighbor},
		{"ND is answered", In, 0, 0, answered, ReasonNeighbor},
		{"ND: the neighbour announces itself", In, 0, 0, announced, ReasonNeighbor},
		{"ND: the neighbour announces itself to this node", In, 0, 0, back(ndPacket(ndAdvertisement, 0x20, 255, peerAddr6, localAddr6, peerAddr6, 2, remoteMAC)), ReasonNeighbor},
		{"ND: another announces itself", In, 0, 0, ethernet(multicastMAC(allNodes), remoteMAC, etherTypeIPv6, ndPacket(ndAdvertisement, 0, 255, otherAddr6, allNodes, otherAddr6, 2, remoteMAC)), ReasonNoNeighbor},
		{"ND: another announces the neighbour", In, 0, 0, ethernet(multicastMAC(allNodes), remoteMAC, etherTypeIPv6, ndPacket(ndAdvertisement, 0, 255, otherAddr6, allNodes, peerAddr6, 2, remoteMAC)), ReasonNoNeighbor},
		{"ND: announcing this node", Out, 0, 0, ethernet(multicastMAC(allNodes), localMAC, etherTypeIPv6, ndPacket(ndAdvertisement, 0x20, 255, localAddr6, allNodes, localAddr6, 2, localMAC)), ReasonNoNeighbor},
		{"ND: announcing the neighbour", Out, 0, 0, ethernet(multicastMAC(allNodes), localMAC, etherTypeIPv6, ndPacket(ndAdvertisement, 0x20, 255, peerAddr6, allNodes, peerAddr6, 2, localMAC)), ReasonNoNeighbor},
		{"ND for another", Out, 0, 0, ethernet(multicastMAC(solicitedNode(otherAddr6)), localMAC, etherTypeIPv6, ndPacket(ndSolicitation, 0, 255, localAddr6, solicitedNode(otherAddr6), otherAddr6, 1, localMAC)), ReasonNoNeighbor},
		{"ND from another", In, 0, 0, ethernet(multicastMAC(own), remoteMAC, etherTypeIPv6, ndPacket(ndSolicitation, 0, 255, otherAddr6, own, localAddr6, 1, remoteMAC)), ReasonNoNeighbor},
		{"ND to another's group", Out, 0, 0, ethernet(multicastMAC(own), localMAC, etherTypeIPv6, ndPacket(ndSolicitation, 0, 255, localAddr6, own, peerAddr6, 1, localMAC)), ReasonNoNeighbor},
		{"ND asks all", Out, 0, 0, ethernet(multicastMAC(allNodes), localMAC, etherTypeIPv6, ndPacket(ndSolicitation, 0, 255, localAddr6, allNodes, peerAddr6, 1, localMAC)), ReasonNoNeighbor},
		{"ND asks for itself", In, 0, 0, back(ndPacket(ndSolicitation, 0, 255, peerAddr6, peerAddr6, peerAddr6, 1, remoteMAC)), ReasonNoNeighbor},
		{"duplicate address detection", Out, 0, 0, ethernet(multicastMAC(own), localMAC, etherTypeIPv6, ndPacket(ndSolicitation, 0, 255, unspecified, own, localAddr6, 0, nil)), ReasonNoNeighbor},
		{"duplicate address detection of the neighbour", In, 0, 0, ethernet(multicastMAC(snm), remoteMAC, etherTypeIPv6, ndPacket(ndSolicitation, 0, 255, unspecified, snm, peerAddr6, 0, nil)), ReasonNoNeighbor},
		{"ND that came over a router", In, 0, 0, back(ndPacket(ndAdvertisement, 0x60, 254, peerAddr6, localAddr6, peerAddr6, 2, remoteMAC)), ReasonNDFormat},
		{"ND with a code", Out, 0, 0, edit(ask, func(b []byte) { b[55] = 1 }), ReasonNDFormat},
		{"ND asks with flags", Out, 0, 0, edit(ask, func(b []byte) { b[58] = 0x40 }), ReasonNDFormat},
		{"ND answers as a router", Out, 0, 0, edit(answer, func(b []byte) { b[58] |= 0x80 }), ReasonNDFormat},
		{"ND answers with a reserved flag", In, 0, 0, edit(answered, func(b []byte) { b[58] |= 0x10 }), ReasonNDFormat},
		{"ND with reserved bits", Out, 0, 0, edit(answer, func(b []byte) { b[61] = 1 }), ReasonNDFormat},
		{"ND with another's hardware address", Out, 0, 0, edit(ask, func(b []byte) { b[85]++ }), ReasonNDFormat},
		{"ND with a group's hardware address", In, 0, 0, edit(asked, func(b []byte) { b[80] |= 1 }), ReasonNDFormat},
		{"ND asks with the other option", Out, 0, 0, edit(ask, func(b []byte) { b[78] = 2 }), ReasonNDFormat},
		{"ND with a nonce", In, 0, 0, edit(asked, func(b []byte) { b[78] = 14 }), ReasonNDFormat},
		{"ND with an option of another length", In, 0, 0, edit(asked, func(b []byte) { b[79] = 0 }), ReasonNDFormat},
		{"ND to another group's hardware address", Out, 0, 0, edit(ask, func(b []byte) { b[5]++ }), ReasonNDFormat},
		{"ND for one to a group's hardware address", In, 0, 0, edit(answered, func(b []byte) { copy(b, multicastMAC(allNodes)) }), ReasonNDFormat},
		{"ND to broadcast", Out, 0, 0, edit(ask, func(b []byte) { copy(b, broadcast) }), ReasonNDFormat},
		{"ND with two options", Out, 0, 0, edit(append(append([]byte{}, ask...), 1, 1, 0, 0, 0, 0, 0, 0), func(b []byte) { b[19] = 40 }), ReasonLength},
		{"ND, truncated", In, 0, 0, asked[:85], ReasonLength},
		{"ND without a target", In, 0, 0, edit(asked[:62], func(b []byte) { b[19] = 8 }), ReasonLength},
		{"router advertisement", In, 0, 0, edit(icmp(134, 255, 24), func(b []byte) { copy(b[6:], remoteMAC) }), ReasonNDFormat},
		{"router solicitation", Out, 0, 0, icmp(133, 255, 24), ReasonNDFormat},
		{"redirect", In, 0, 0, icmp(137, 255, 40), ReasonLength},
		{"redirect as long as a solicitation", In, 0, 0, icmp(137, 255, 32), ReasonNDFormat},
		{"echo", Out, mark, 0, icmp(128, 64, 32), ReasonNDFormat},
		{"packet too big", In, 0, 0, icmp(2, 64, 72), ReasonLength},
		{"MLD", Out, mark, 0, ethernet(multicastMAC(netip.MustParseAddr("ff02::16")), localMAC, etherTypeIPv6,
			ipv6(0, 1, localAddr6, netip.MustParseAddr("ff02::16"), slices.Concat([]byte{58, 0, 5, 2, 0, 0, 1, 0, 143, 0, 0, 0, 0, 0, 0, 1, 4, 0, 0, 0}, own.AsSlice()))), ReasonProtocol},
	}
}
