package tap

import "encoding/binary"

// Sizes of IP headers without options.
const (
	minIPv4 = 20
	minIPv6 = 40
)

// holdsPacket reports whether content begins with an IP packet that ends no
// more than slack bytes before content does. Chi-square does not see that of a
// packet whose own payload is random, such as TLS. For random content not to
// pass as a packet a checksum has to be right: IPv4's own, and in IPv6, which
// has none, that of TCP, UDP or ICMPv6. Chance does so less than once in 10^9.
func holdsPacket(content []byte, slack int) bool {
	fits := func(n int) bool { return n <= len(content) && n >= len(content)-slack }
	switch {
	case len(content) >= minIPv4 && content[0]>>4 == 4:
		header, total := int(content[0]&15)*4, int(binary.BigEndian.Uint16(content[2:]))
		reserved := content[6]&0x80 != 0
		return header >= minIPv4 && header <= total && fits(total) && !reserved && onesSum(content[:header]) == 0xffff
	case len(content) >= minIPv6 && content[0]>>4 == 6:
		total, proto := minIPv6+int(binary.BigEndian.Uint16(content[4:])), content[6]
		if !fits(total) || proto != protoTCP && proto != protoUDP && proto != protoICMPv6 {
			return false
		}
		// RFC 8200, section 8.1.
		addresses, length := content[8:minIPv6], binary.BigEndian.AppendUint32(nil, uint32(total-minIPv6))
		return onesSum(addresses, length, []byte{0, proto}, content[minIPv6:total]) == 0xffff
	}
	return false
}

// onesSum is the ones' complement sum of RFC 1071 over parts, of which all but
// the last have an even length. With a right checksum inside it is 0xffff.
func onesSum(parts ...[]byte) uint16 {
	var s uint32
	for _, p := range parts {
		for i, v := range p {
			s += uint32(v) << (8 * (1 - i&1))
		}
	}
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}
