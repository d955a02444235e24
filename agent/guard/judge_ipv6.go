package guard

import (
	"bytes"
	"encoding/binary"
	"net/netip"
)

const (
	ipv6Header     = 40
	protocolICMPv6 = 58
	protocolFrag   = 44

	ndSolicitation  = 135
	ndAdvertisement = 136
	ndHopLimit      = 255
	// ndBare is neighbour discovery without an option, ndWhole with the one that
	// there may be (RFC 4861, sections 4.3, 4.4 and 4.6.1).
	ndBare  = 24
	ndWhole = 32
	// Flags of an advertisement: from a router; solicited and override.
	ndRouter       = 0x80
	ndFlags        = 0x60
	ndSourceOption = 1
	ndTargetOption = 2
)

// judgeIPv6 wants no extension header: none is on any packet of ours.
func (p policy) judgeIPv6(f Frame, stack tags) Reason {
	if len(f.Data) < etherHeader+ipv6Header {
		return ReasonShort
	}
	ip := f.Data[etherHeader:]
	protocol, length := ip[6], int(binary.BigEndian.Uint16(ip[4:]))
	switch {
	case ip[0]>>4 != 6:
		return ReasonIPHeader
	case protocol == protocolFrag:
		return ReasonFragment
	case protocol == protocolICMPv6:
		return p.judgeND(f, stack)
	case protocol != protocolUDP && protocol != protocolESP:
		return ReasonProtocol
	case !f.lengthFits(ipv6Header + length):
		return ReasonLength
	case len(ip) < ipv6Header+udpHeader:
		return ReasonShort
	}
	source, destination := netip.AddrFrom16([16]byte(ip[8:])), netip.AddrFrom16([16]byte(ip[24:]))
	return p.judgeTransport(f, stack, protocol, source, destination, ip[ipv6Header:], length)
}

// judgeND judges ICMPv6.
func (p policy) judgeND(f Frame, stack tags) Reason {
	to, from, ip := f.Data[:6], f.Data[6:12], f.Data[etherHeader:]
	length := int(binary.BigEndian.Uint16(ip[4:]))
	if length != ndBare && length != ndWhole || !f.lengthFits(ipv6Header+length) {
		return ReasonLength
	}
	nd := ip[ipv6Header:]
	asks := nd[0] == ndSolicitation
	option, flags := byte(ndTargetOption), byte(ndFlags)
	switch {
	case asks:
		option, flags = ndSourceOption, 0
	case f.Direction == In:
		flags |= ndRouter
	}
	if ip[7] != ndHopLimit || !asks && nd[0] != ndAdvertisement || nd[1] != 0 || nd[4]&^flags != 0 || nd[5]|nd[6]|nd[7] != 0 {
		return ReasonNDFormat
	}
	if length == ndWhole && (nd[ndBare] != option || nd[ndBare+1] != 1 || nd[ndBare+2]&1 != 0 ||
		f.Direction == Out && !bytes.Equal(nd[ndBare+2:ndWhole], from)) {
		return ReasonNDFormat
	}
	source, destination, target := netip.AddrFrom16([16]byte(ip[8:])), netip.AddrFrom16([16]byte(ip[24:])), netip.AddrFrom16([16]byte(nd[8:]))
	// RFC 2464, section 7.
	if to[0]&1 != 0 && (ip[24] != 0xff || to[0] != 0x33 || to[1] != 0x33 || !bytes.Equal(to[2:], ip[36:40])) {
		return ReasonNDFormat
	}
	if source.IsUnspecified() || destination.IsUnspecified() {
		return ReasonNoNeighbor
	}
	other := destination
	if asks {
		other = target
		if destination != target && destination != solicitedNode(target) {
			return ReasonNoNeighbor
		}
	} else if source != target {
		return ReasonNoNeighbor
	}
	// Only the neighbour announces itself, and to all.
	if source == other {
		return ReasonNoNeighbor
	}
	key := neighborKey{f.Interface, stack, source, other}
	// Whatever link-local address the neighbour asks from, and is answered at.
	anyFrom, anyTo := asks && f.Direction == In, !asks && f.Direction == Out
	if source == ownLinkLocal(from) || anyFrom && linkLocal.Contains(source) {
		key.local = someLinkLocal
	}
	switch {
	case f.Direction == In && !asks && other == allNodesAddr:
		key.remote = source
	case other == ownLinkLocal(to) && !anyTo || anyTo && linkLocal.Contains(other):
		key.remote = someLinkLocal
	}
	if f.Direction == In {
		key.local, key.remote = key.remote, key.local
	}
	if !p.neighbors[key] {
		return ReasonNoNeighbor
	}
	return ReasonNeighbor
}

var (
	allNodesAddr = netip.IPv6LinkLocalAllNodes()
	// linkLocal follows RFC 4291, section 2.5.6.
	linkLocal = netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfe, 0x80}), 64)
	// someLinkLocal stands for a link-local address in a neighborKey.
	someLinkLocal = netip.IPv6Unspecified()
)

// ownLinkLocal is what an interface with this hardware address makes of it (RFC
// 4291, appendix A).
func ownLinkLocal(mac []byte) netip.Addr {
	return netip.AddrFrom16([16]byte{0: 0xfe, 1: 0x80, 8: mac[0] ^ 2, 9: mac[1], 10: mac[2], 11: 0xff, 12: 0xfe, 13: mac[3], 14: mac[4], 15: mac[5]})
}

// solicitedNode follows RFC 4291, section 2.7.1.
func solicitedNode(a netip.Addr) netip.Addr {
	b := a.As16()
	return netip.AddrFrom16([16]byte{0: 0xff, 1: 2, 11: 1, 12: 0xff, 13: b[13], 14: b[14], 15: b[15]})
}
