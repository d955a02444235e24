package tap

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"net/netip"
)

// The crafted link: A and B are its ends and those of a WireGuard tunnel; A and
// C are IPsec ends. Every crafted frame goes from macA to macB.
var (
	craftA  = netip.MustParseAddr("172.16.10.1")
	craftB  = netip.MustParseAddr("172.16.10.2")
	craftC  = netip.MustParseAddr("172.16.10.3")
	craftA6 = netip.MustParseAddr("fd00::1")
	craftB6 = netip.MustParseAddr("fd00::2")

	macA  = []byte{2, 0, 0, 0, 0, 1}
	macB  = []byte{2, 0, 0, 0, 0, 2}
	noMAC = make([]byte, 6)
)

func craftInterface() Interface {
	return Interface{Name: "test", Link: Link{Addresses: []netip.Addr{craftA, craftB, craftA6, craftB6}, Tunnels: []Tunnel{
		{Protocol: WireGuard, A: craftA, B: craftB, PortA: 51820, PortB: 51820},
		{Protocol: IPsec, A: craftA, B: craftC},
	}}}
}

func craftEthernet(kind uint16, body []byte) []byte {
	return bytes.Join([][]byte{macB, macA, binary.BigEndian.AppendUint16(nil, kind), body}, nil)
}

// craftARP is a request (1) or a reply (2).
func craftARP(operation byte, senderMAC []byte, sender netip.Addr, targetMAC []byte, target netip.Addr, padding []byte) []byte {
	return craftEthernet(etherARP, bytes.Join([][]byte{{0, 1, 8, 0, 6, 4, 0, operation},
		senderMAC, sender.AsSlice(), targetMAC, target.AsSlice(), padding}, nil))
}

// craftND is a solicitation (135) or an advertisement (136) of craftA6.
func craftND(kind byte, flags uint32, options ...byte) []byte {
	return craftNDBetween(craftB6, craftA6, craftA6, kind, flags, options...)
}

// craftNDBetween is one from and to any address, of any target.
func craftNDBetween(from, to, target netip.Addr, kind byte, flags uint32, options ...byte) []byte {
	b := binary.BigEndian.AppendUint32([]byte{kind, 0, 0, 0}, flags)
	f := craftIPv6(protoICMPv6, append(append(b, target.AsSlice()...), options...))
	copy(f[14+8:], from.AsSlice())
	copy(f[14+24:], to.AsSlice())
	return f
}

// craftIPv4 goes from A to B.
func craftIPv4(proto byte, body []byte) []byte { return craftIPv4To(craftB, proto, body) }

func craftIPv4To(dst netip.Addr, proto byte, body []byte) []byte {
	return craftEthernet(etherIPv4, craftPacket4(dst, proto, body))
}

func craftPacket4(dst netip.Addr, proto byte, body []byte) []byte {
	h := make([]byte, 20)
	h[0], h[8], h[9] = 0x45, 64, proto
	binary.BigEndian.PutUint16(h[2:], uint16(20+len(body)))
	copy(h[12:], craftA.AsSlice())
	copy(h[16:], dst.AsSlice())
	binary.BigEndian.PutUint16(h[10:], ^onesSum(h))
	return append(h, body...)
}

func craftFragment(frame []byte) []byte {
	f := bytes.Clone(frame)
	f[14+6] |= 0x20
	return f
}

func craftIPv6(proto byte, body []byte) []byte {
	return craftEthernet(etherIPv6, craftPacket6(proto, body))
}

func craftPacket6(proto byte, body []byte) []byte {
	h := make([]byte, 40)
	h[0], h[6], h[7], h[8], h[24] = 0x60, proto, 255, 0xfe, 0xff
	binary.BigEndian.PutUint16(h[4:], uint16(len(body)))
	return append(h, body...)
}

func craftUDP(src, dst uint16, payload []byte) []byte {
	b := binary.BigEndian.AppendUint16(nil, src)
	b = binary.BigEndian.AppendUint16(b, dst)
	b = binary.BigEndian.AppendUint16(b, uint16(8+len(payload)))
	return append(append(b, 0, 0), payload...)
}

// craftUDP6 is an IPv6 packet between any addresses, with a datagram whose
// checksum is right.
func craftUDP6(payload []byte) []byte {
	p := craftPacket6(protoUDP, craftUDP(4000, 53, payload))
	copy(p[8:40], craftRandom(32))
	length := binary.BigEndian.AppendUint32(nil, uint32(len(p)-40))
	binary.BigEndian.PutUint16(p[46:], ^onesSum(p[8:40], length, []byte{0, protoUDP}, p[40:]))
	return p
}

// craftChange is b with another byte at one place.
func craftChange(b []byte, at int, v byte) []byte {
	b = bytes.Clone(b)
	b[at] = v
	return b
}

func craftRandom(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b)
	return b
}

// craftData is a WireGuard data message of n bytes; its content is random.
func craftData(n int) []byte {
	b := craftRandom(n)
	copy(b, []byte{4, 0, 0, 0})
	copy(b[8:16], []byte{7, 0, 0, 0, 0, 0, 0, 0})
	return b
}

// craftUnencrypted is a WireGuard data message as one that does not encrypt
// would make it: the packet, padded, and a tag.
func craftUnencrypted(packet []byte) []byte {
	padding := make([]byte, (16-len(packet)%16)%16)
	return bytes.Join([][]byte{craftData(16), packet, padding, craftRandom(16)}, nil)
}

func craftHandshake(kind byte, n int) []byte {
	b := craftRandom(n)
	copy(b, []byte{kind, 0, 0, 0})
	return b
}

// craftESP has a SPI, a sequence number and what follows them.
func craftESP(content []byte) []byte {
	return append([]byte{0xc0, 0, 0, 1, 0, 0, 0, 1}, content...)
}

// ikePayload is one payload of a crafted IKE message.
type ikePayload struct {
	kind byte
	body []byte
}

func craftIKE(exchange byte, payloads ...ikePayload) []byte {
	b := append(craftRandom(16), 0, 0x20, exchange, 0x08, 0, 0, 0, 0, 0, 0, 0, 0)
	for i, p := range payloads {
		next := byte(0)
		if i+1 < len(payloads) {
			next = payloads[i+1].kind
		}
		b = binary.BigEndian.AppendUint16(append(b, next, 0), uint16(4+len(p.body)))
		b = append(b, p.body...)
	}
	if len(payloads) > 0 {
		b[16] = payloads[0].kind
	}
	binary.BigEndian.PutUint32(b[24:], uint32(len(b)))
	return b
}

// craftSAInit is an IKE_SA_INIT request with one more payload.
func craftSAInit(more ...ikePayload) []byte {
	proposal := []byte{0, 0, 0, 36, 1, 1, 0, 3,
		3, 0, 0, 12, 1, 0, 0, 20, 0x80, 14, 1, 0, // AES-GCM with 256 bits
		3, 0, 0, 8, 2, 0, 0, 5, // PRF
		0, 0, 0, 8, 4, 0, 0, 31} // Curve25519
	return craftIKE(ikeSAInit, append([]ikePayload{
		{payloadSA, proposal},
		{payloadKE, append([]byte{0, 31, 0, 0}, craftRandom(32)...)},
		{payloadNonce, craftRandom(32)},
		{payloadNotify, append([]byte{0, 0, 0x40, 4}, craftRandom(20)...)},
	}, more...)...)
}
