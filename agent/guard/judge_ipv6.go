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
	remote := destination
	if asks {
		remote = target
		if destination != target && destination != solicitedNode(target) {
			return ReasonNoNeighbor
		}
	} else if source != target {
		return ReasonNoNeighbor
	}
	// Only the neighbour announces itself, and to all.
	if source == remote {
		return ReasonNoNeighbor
	}
	if f.Direction == In && !asks && remote == netip.IPv6LinkLocalAllNodes() {
		remote = source
	}
	key := neighborKey{f.Interface, stack, source, remote}
	if f.Direction == In {
		key.local, key.remote = key.remote, key.local
	}
	if !p.neighbors[key] {
		return ReasonNoNeighbor
	}
	return ReasonNeighbor
}

// solicitedNode follows RFC 4291, section 2.7.1.
func solicitedNode(a netip.Addr) netip.Addr {
	b := a.As16()
	return netip.AddrFrom16([16]byte{0: 0xff, 1: 2, 11: 1, 12: 0xff, 13: b[13], 14: b[14], 15: b[15]})
}
