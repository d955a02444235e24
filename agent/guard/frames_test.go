package guard

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"github.com/circuitseal/circuitseal/agent/instance"
	"github.com/circuitseal/circuitseal/agent/plan"
)

var (
	localMAC  = []byte{0x02, 0, 0, 0, 0, 1}
	remoteMAC = []byte{0x02, 0, 0, 0, 0, 2}
	mark      = instance.Mark(7)

	localAddr, peerAddr = netip.MustParseAddr("10.9.0.1"), netip.MustParseAddr("10.9.0.2")
	otherAddr           = netip.MustParseAddr("10.9.0.3")
	tunnelLocal         = netip.AddrPortFrom(localAddr, 51820)
	tunnelRemote        = netip.AddrPortFrom(peerAddr, 51821)
)

// onePlan has one interface with one tunnel and one neighbour.
func onePlan(name string) plan.Guard {
	return plan.Guard{
		Interfaces: []string{name},
		Flows:      []plan.Flow{{Interface: name, Mark: mark, Protocol: protocolUDP, Local: tunnelLocal, Remote: tunnelRemote}},
		Neighbors:  []plan.Neighbor{{Interface: name, Local: localAddr, Remote: peerAddr}},
	}
}

// ipsecPlan is onePlan with an IPsec tunnel between the same ends: key exchange on
// one port, ESP, and both on another. All of that is there between IPv6 ends, too.
func ipsecPlan(name string) plan.Guard {
	g := onePlan(name)
	g.Flows = append(g.Flows, ipsecFlows(name, mark, localAddr, peerAddr)...)
	return addIPv6(g, name, mark, localAddr6, peerAddr6)
}

func ipsecFlows(name string, mark uint32, local, remote netip.Addr) []plan.Flow {
	at := func(a netip.Addr, port uint16) netip.AddrPort { return netip.AddrPortFrom(a, port) }
	return []plan.Flow{
		{Interface: name, Mark: instance.ControlMark, Protocol: protocolUDP, Local: at(local, 500), Remote: at(remote, 500)},
		{Interface: name, Mark: mark, Control: true, Protocol: protocolUDP, Local: at(local, 4500), Remote: at(remote, 4500)},
		{Interface: name, Mark: mark, Protocol: protocolESP, Local: at(local, 0), Remote: at(remote, 0)},
	}
}

func ethernet(to, from []byte, etherType uint16, payload []byte) []byte {
	out := append(append([]byte{}, to...), from...)
	return append(binary.BigEndian.AppendUint16(out, etherType), payload...)
}

func ipv4(protocol byte, from, to netip.Addr, payload []byte) []byte {
	out := make([]byte, ipHeader, ipHeader+len(payload))
	out[0], out[8], out[9] = 0x45, 64, protocol
	binary.BigEndian.PutUint16(out[2:], uint16(ipHeader+len(payload)))
	copy(out[12:], from.AsSlice())
	copy(out[16:], to.AsSlice())
	return append(checksum(out), payload...)
}

func udp(from, to netip.AddrPort, payload []byte) []byte {
	out := make([]byte, udpHeader, udpHeader+len(payload))
	binary.BigEndian.PutUint16(out, from.Port())
	binary.BigEndian.PutUint16(out[2:], to.Port())
	binary.BigEndian.PutUint16(out[4:], uint16(udpHeader+len(payload)))
	return ipv4(protocolUDP, from.Addr(), to.Addr(), append(out, payload...))
}

func arp(operation uint16, senderMAC []byte, sender netip.Addr, targetMAC []byte, target netip.Addr) []byte {
	out := binary.BigEndian.AppendUint16([]byte{0, 1, 8, 0, 6, 4}, operation)
	out = append(append(out, senderMAC...), sender.AsSlice()...)
	return append(append(out, targetMAC...), target.AsSlice()...)
}

// esp has an SPI, a sequence number and content of this length.
func esp(spi uint32, content int) []byte {
	return append(binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(nil, spi), 1), make([]byte, content)...)
}

// frameCase is a frame on the one interface of ipsecPlan.
type frameCase struct {
	name string
	dir  Direction
	mark uint32
	// tag is a Frame's.
	tag  uint32
	data []byte
	want Reason
}

func edit(frame []byte, f func([]byte)) []byte {
	out := append([]byte{}, frame...)
	f(out)
	return out
}

func frameCases() []frameCase {
	payload := make([]byte, 100)
	out := ethernet(remoteMAC, localMAC, etherTypeIPv4, udp(tunnelLocal, tunnelRemote, payload))
	in := ethernet(localMAC, remoteMAC, etherTypeIPv4, udp(tunnelRemote, tunnelLocal, payload))
	ask := ethernet(broadcast, localMAC, etherTypeARP, arp(arpRequest, localMAC, localAddr, zeroMAC, peerAddr))
	answer := ethernet(remoteMAC, localMAC, etherTypeARP, arp(arpReply, localMAC, localAddr, remoteMAC, peerAddr))
	asked := ethernet(broadcast, remoteMAC, etherTypeARP, arp(arpRequest, remoteMAC, peerAddr, zeroMAC, localAddr))
	pad := make([]byte, 18)
	other := netip.AddrPortFrom(otherAddr, tunnelRemote.Port())
	// An IP header with one option word (end of list).
	options := func(frame []byte) []byte {
		o := append(append(append([]byte{}, frame[:34]...), 0, 0, 0, 0), frame[34:]...)
		o[14] = 0x46
		binary.BigEndian.PutUint16(o[16:], binary.BigEndian.Uint16(o[16:])+4)
		return o
	}
	raw := func(protocol byte) []byte {
		return ethernet(remoteMAC, localMAC, etherTypeIPv4, ipv4(protocol, localAddr, peerAddr, payload))
	}
	return slices.Concat(ipsecCases(), ipv6Cases(), []frameCase{
		{"tunnel out", Out, mark, 0, out, ReasonFlow},
		{"tunnel out, mark of another link", Out, mark + 1, 0, out, ReasonMark},
		{"tunnel out, no mark", Out, 0, 0, out, ReasonMark},
		{"tunnel out, smallest", Out, mark, 0, ethernet(remoteMAC, localMAC, etherTypeIPv4, udp(tunnelLocal, tunnelRemote, nil)), ReasonFlow},
		{"tunnel out, do not fragment", Out, mark, 0, edit(out, func(b []byte) { b[20] = 0x40 }), ReasonFlow},
		{"tunnel in, going out", Out, mark, 0, in, ReasonNoFlow},
		{"tunnel in", In, 0, 0, in, ReasonFlow},
		{"tunnel in, padded", In, 0, 0, append(ethernet(localMAC, remoteMAC, etherTypeIPv4, udp(tunnelRemote, tunnelLocal, nil)), pad...), ReasonFlow},
		{"tunnel in, padded too far", In, 0, 0, append(ethernet(localMAC, remoteMAC, etherTypeIPv4, udp(tunnelRemote, tunnelLocal, nil)), make([]byte, 19)...), ReasonLength},
		{"tunnel out, padded", Out, mark, 0, append(ethernet(remoteMAC, localMAC, etherTypeIPv4, udp(tunnelLocal, tunnelRemote, nil)), 0), ReasonLength},
		{"tunnel out, coming in", In, mark, 0, out, ReasonNoFlow},
		{"tagged out", Out, mark, etherTypeVLAN<<16 | 5, out, ReasonVLAN},
		{"tagged in", In, 0, etherTypeVLAN<<16 | 5, in, ReasonVLAN},
		{"tag in the frame", Out, mark, 0, append(append(append([]byte{}, out[:12]...), 0x81, 0, 0, 5), out[12:]...), ReasonVLAN},
		{"QinQ in the frame", In, 0, 0, append(append(append([]byte{}, in[:12]...), 0x88, 0xa8, 0, 5), in[12:]...), ReasonVLAN},
		{"mark without tuple: port", Out, mark, 0, edit(out, func(b []byte) { b[37]++ }), ReasonNoFlow},
		{"mark without tuple: source port", Out, mark, 0, edit(out, func(b []byte) { b[35]++ }), ReasonNoFlow},
		{"mark without tuple: address", Out, mark, 0, ethernet(remoteMAC, localMAC, etherTypeIPv4, udp(tunnelLocal, other, payload)), ReasonNoFlow},
		{"from another peer", In, 0, 0, ethernet(localMAC, remoteMAC, etherTypeIPv4, udp(other, tunnelLocal, payload)), ReasonNoFlow},
		{"first fragment", Out, mark, 0, edit(out, func(b []byte) { b[20] = 0x20 }), ReasonFragment},
		{"later fragment", Out, mark, 0, edit(out, func(b []byte) { b[21] = 1 }), ReasonFragment},
		{"reserved bit", Out, mark, 0, edit(out, func(b []byte) { b[20] = 0x80 }), ReasonFragment},
		{"fragment in", In, 0, 0, edit(in, func(b []byte) { b[20] = 0x20 }), ReasonFragment},
		{"IP options", Out, mark, 0, options(out), ReasonIPHeader},
		{"IP options in", In, 0, 0, options(in), ReasonIPHeader},
		{"IP version 6 in an IPv4 frame", Out, mark, 0, edit(out, func(b []byte) { b[14] = 0x65 }), ReasonIPHeader},
		{"UDP length short of IP's", Out, mark, 0, edit(out, func(b []byte) { b[39]-- }), ReasonLength},
		{"IP length short of the frame's", Out, mark, 0, edit(out, func(b []byte) { b[17]--; b[39]-- }), ReasonLength},
		{"IP length beyond the frame", In, 0, 0, edit(in, func(b []byte) { b[17]++; b[39]++ }), ReasonLength},
		{"IP length below its headers", In, 0, 0, edit(in, func(b []byte) { b[16], b[17] = 0, 27 }), ReasonLength},
		{"TCP", Out, mark, 0, raw(6), ReasonProtocol},
		{"ICMP", Out, mark, 0, raw(1), ReasonProtocol},
		{"GRE", Out, mark, 0, raw(47), ReasonProtocol},
		{"IPIP", Out, mark, 0, raw(4), ReasonProtocol},
		{"SIT", Out, mark, 0, raw(41), ReasonProtocol},
		{"AH", Out, mark, 0, raw(51), ReasonProtocol},
		{"SCTP", Out, mark, 0, raw(132), ReasonProtocol},
		{"the neighbour announces itself", In, 0, 0, ethernet(broadcast, remoteMAC, etherTypeARP, arp(arpRequest, remoteMAC, peerAddr, zeroMAC, peerAddr)), ReasonNeighbor},
		{"the neighbour announces itself by a reply", In, 0, 0, ethernet(broadcast, remoteMAC, etherTypeARP, arp(arpReply, remoteMAC, peerAddr, broadcast, peerAddr)), ReasonNeighbor},
		{"somebody else announces itself", In, 0, 0, ethernet(broadcast, remoteMAC, etherTypeARP, arp(arpRequest, remoteMAC, otherAddr, zeroMAC, otherAddr)), ReasonNoNeighbor},
		{"somebody announces this node's address", In, 0, 0, ethernet(broadcast, remoteMAC, etherTypeARP, arp(arpRequest, remoteMAC, localAddr, zeroMAC, localAddr)), ReasonNoNeighbor},
		{"announcing this node", Out, 0, 0, ethernet(broadcast, localMAC, etherTypeARP, arp(arpRequest, localMAC, localAddr, zeroMAC, localAddr)), ReasonNoNeighbor},
		{"announcing the neighbour", Out, 0, 0, ethernet(broadcast, localMAC, etherTypeARP, arp(arpRequest, localMAC, peerAddr, zeroMAC, peerAddr)), ReasonNoNeighbor},
		{"LLDP", Out, 0, 0, ethernet([]byte{1, 0x80, 0xc2, 0, 0, 0xe}, localMAC, 0x88cc, payload), ReasonEtherType},
		{"MACsec", Out, mark, 0, ethernet(remoteMAC, localMAC, 0x88e5, payload), ReasonEtherType},
		{"length instead of a type", In, 0, 0, ethernet(localMAC, remoteMAC, 100, payload), ReasonEtherType},
		{"short", Out, mark, 0, out[:41], ReasonShort},
		{"ARP request out", Out, 0, 0, ask, ReasonNeighbor},
		{"ARP reply out", Out, 0, 0, answer, ReasonNeighbor},
		{"ARP unicast request out", Out, 0, 0, edit(ask, func(b []byte) { copy(b, remoteMAC) }), ReasonNeighbor},
		{"ARP request in", In, 0, 0, asked, ReasonNeighbor},
		{"ARP request in, padded", In, 0, 0, append(append([]byte{}, asked...), pad...), ReasonNeighbor},
		{"ARP out with padding", Out, 0, 0, append(append([]byte{}, ask...), pad...), ReasonLength},
		{"ARP in with a payload", In, 0, 0, append(append([]byte{}, asked...), make([]byte, 19)...), ReasonLength},
		{"ARP announcement", Out, 0, 0, edit(ask, func(b []byte) { copy(b[38:], localAddr.AsSlice()) }), ReasonNoNeighbor},
		{"ARP probe", Out, 0, 0, edit(ask, func(b []byte) { copy(b[28:], []byte{0, 0, 0, 0}) }), ReasonNoNeighbor},
		{"ARP for another", Out, 0, 0, edit(ask, func(b []byte) { b[41]++ }), ReasonNoNeighbor},
		{"ARP from another", In, 0, 0, edit(asked, func(b []byte) { b[31]++ }), ReasonNoNeighbor},
		{"ARP with another's sender", Out, 0, 0, edit(ask, func(b []byte) { b[27]++ }), ReasonARPHardware},
		{"ARP request with data for a target", Out, 0, 0, edit(ask, func(b []byte) { b[33] = 1 }), ReasonARPHardware},
		{"ARP reply with data for a target", Out, 0, 0, edit(answer, func(b []byte) { b[33]++ }), ReasonARPHardware},
		{"ARP to a multicast address", Out, 0, 0, edit(ask, func(b []byte) { b[5] = 0xfe }), ReasonARPHardware},
		{"RARP operation", Out, 0, 0, edit(ask, func(b []byte) { b[21] = 3 }), ReasonARPFormat},
		{"ARP operation 0", In, 0, 0, edit(asked, func(b []byte) { b[21] = 0 }), ReasonARPFormat},
		{"ARP of other hardware", Out, 0, 0, edit(ask, func(b []byte) { b[15] = 6 }), ReasonARPFormat},
	})
}

// ipsecCases are frames of a key exchange and of ESP.
func ipsecCases() []frameCase {
	payload := make([]byte, 100)
	at := func(a netip.Addr, port uint16) netip.AddrPort { return netip.AddrPortFrom(a, port) }
	there := func(protocol byte, b []byte) []byte {
		return ethernet(remoteMAC, localMAC, etherTypeIPv4, ipv4(protocol, localAddr, peerAddr, b))
	}
	back := func(protocol byte, b []byte) []byte {
		return ethernet(localMAC, remoteMAC, etherTypeIPv4, ipv4(protocol, peerAddr, localAddr, b))
	}
	out := func(from, to uint16) []byte {
		return ethernet(remoteMAC, localMAC, etherTypeIPv4, udp(at(localAddr, from), at(peerAddr, to), payload))
	}
	in := func(from, to uint16) []byte {
		return ethernet(localMAC, remoteMAC, etherTypeIPv4, udp(at(peerAddr, from), at(localAddr, to), payload))
	}
	good, goodIn := there(protocolESP, esp(0xc0000001, 100)), back(protocolESP, esp(0xc0000001, 100))
	options := append(append(append([]byte{}, good[:34]...), 1, 1, 1, 0), good[34:]...)
	options[14], options[17] = 0x46, options[17]+4
	cases := []frameCase{
		{"ESP", Out, mark, 0, good, ReasonFlow},
		{"ESP in", In, 0, 0, goodIn, ReasonFlow},
		{"ESP without the mark", Out, 0, 0, good, ReasonMark},
		{"ESP with another link's mark", Out, mark + 1, 0, good, ReasonMark},
		{"ESP with the mark of control packets", Out, instance.ControlMark, 0, good, ReasonMark},
		{"ESP to another", Out, mark, 0, edit(good, func(b []byte) { copy(b[30:], otherAddr.AsSlice()) }), ReasonNoFlow},
		{"ESP from another", Out, mark, 0, edit(good, func(b []byte) { copy(b[26:], otherAddr.AsSlice()) }), ReasonNoFlow},
		{"ESP in from another", In, 0, 0, edit(goodIn, func(b []byte) { copy(b[26:], otherAddr.AsSlice()) }), ReasonNoFlow},
		{"ESP in, going out", Out, mark, 0, goodIn, ReasonNoFlow},
		{"ESP, first fragment", Out, mark, 0, edit(good, func(b []byte) { b[20] = 0x20 }), ReasonFragment},
		{"ESP, later fragment", In, 0, 0, edit(goodIn, func(b []byte) { b[21] = 8 }), ReasonFragment},
		{"ESP with IP options", Out, mark, 0, checksummed(options), ReasonIPHeader},
		{"ESP without content", Out, mark, 0, there(protocolESP, esp(0xc0000001, 0)), ReasonLength},
		{"ESP that is too short to be encrypted", Out, mark, 0, there(protocolESP, esp(0xc0000001, minESP-8-1)), ReasonLength},
		{"ESP, shortest", Out, mark, 0, there(protocolESP, esp(0xc0000001, minESP-8)), ReasonFlow},
		{"ESP in, truncated", In, 0, 0, goodIn[:len(goodIn)-1], ReasonLength},
		{"ESP in, truncated to its SPI", In, 0, 0, goodIn[:etherHeader+ipHeader+4], ReasonShort},
		{"ESP in with a byte behind it", In, 0, 0, append(append([]byte{}, goodIn...), 0), ReasonLength},
		{"ESP, IP length of the header only", In, 0, 0, edit(goodIn, func(b []byte) { b[17] = ipHeader }), ReasonLength},
		{"ESP with SPI 0", Out, mark, 0, there(protocolESP, esp(0, 100)), ReasonSPI},
		{"ESP with a reserved SPI", In, 0, 0, back(protocolESP, esp(255, 100)), ReasonSPI},
		{"ESP with the smallest SPI", Out, mark, 0, there(protocolESP, esp(256, 100)), ReasonFlow},
		{"AH in", In, 0, 0, back(51, esp(0xc0000001, 100)), ReasonProtocol},
		{"IPComp", Out, mark, 0, there(108, payload), ReasonProtocol},

		{"IKE", Out, instance.ControlMark, 0, out(500, 500), ReasonFlow},
		{"IKE in", In, 0, 0, in(500, 500), ReasonFlow},
		{"IKE without a mark", Out, 0, 0, out(500, 500), ReasonMark},
		{"IKE with the link's mark", Out, mark, 0, out(500, 500), ReasonMark},
		{"IKE from another port", Out, instance.ControlMark, 0, out(501, 500), ReasonNoFlow},
		{"IKE to another port", Out, instance.ControlMark, 0, out(500, 4500), ReasonNoFlow},
		{"IKE in from another port", In, 0, 0, in(4500, 500), ReasonNoFlow},
		{"IKE in from a port of a NAT", In, 0, 0, in(40000, 4500), ReasonNoFlow},
		{"IKE in fragments", Out, instance.ControlMark, 0, edit(out(500, 500), func(b []byte) { b[20] = 0x20 }), ReasonFragment},
		{"port 4500 by charon", Out, instance.ControlMark, 0, out(4500, 4500), ReasonFlow},
		{"port 4500 by the kernel", Out, mark, 0, out(4500, 4500), ReasonFlow},
		{"port 4500 in", In, 0, 0, in(4500, 4500), ReasonFlow},
		{"port 4500 without a mark", Out, 0, 0, out(4500, 4500), ReasonMark},
		{"port 4500 of another link", Out, mark + 1, 0, out(4500, 4500), ReasonMark},
		{"WireGuard with the mark of control packets", Out, instance.ControlMark, 0,
			ethernet(remoteMAC, localMAC, etherTypeIPv4, udp(tunnelLocal, tunnelRemote, payload)), ReasonMark},
		{"control packet of no tunnel", Out, instance.ControlMark, 0, out(53, 53), ReasonNoFlow},
	}
	return cases
}

// checksummed is a frame of IPv4 with options of 4 bytes, its checksum set right.
func checksummed(frame []byte) []byte {
	packet := frame[etherHeader:]
	packet[10], packet[11] = 0, 0
	var sum uint32
	for i := 0; i < ipHeader+4; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(packet[i:]))
	}
	sum = sum>>16 + sum&0xffff
	binary.BigEndian.PutUint16(packet[10:], ^uint16(sum+sum>>16))
	return frame
}

// checksum is an edited IPv4 packet with its header checksum set right.
func checksum(packet []byte) []byte {
	packet[10], packet[11] = 0, 0
	var sum uint32
	for i := 0; i < ipHeader; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(packet[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(packet[10:], ^uint16(sum))
	return packet
}
