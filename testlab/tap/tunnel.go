package tap

import (
	"encoding/binary"
)

// IP protocol numbers.
const (
	protoTCP    = 6
	protoUDP    = 17
	protoESP    = 50
	protoICMPv6 = 58
)

var protoNames = map[uint8]Kind{1: "icmp", 2: "igmp", 4: "ipip", protoTCP: "tcp", protoUDP: "udp", 41: "sit", 47: "gre", protoESP: "esp", 132: "sctp"}

func protoName(p uint8) Kind {
	if n, ok := protoNames[p]; ok {
		return n
	}
	return "ip-other"
}

// packet judges what the outer header carries.
func (in *Inspector) packet(p packet, m Meta) Verdict {
	for i, t := range in.tunnels {
		fromA := p.src == t.A && p.dst == t.B
		if !fromA && (p.src != t.B || p.dst != t.A) {
			continue
		}
		f := in.flows[flowKey{i, fromA}]
		switch {
		case t.Protocol == WireGuard && p.proto == protoUDP:
			src, dst := t.PortA, t.PortB
			if !fromA {
				src, dst = dst, src
			}
			if u, ok := datagram(p.payload); ok && portFits(src, u.src) && portFits(dst, u.dst) {
				return in.wireguard(f, u.payload, m.Segment)
			}
		case t.Protocol == IPsec && p.proto == protoESP:
			return esp(f, ESP, p.payload)
		case t.Protocol == IPsec && p.proto == protoUDP:
			if u, ok := datagram(p.payload); ok {
				return ipsecUDP(f, u)
			}
		}
	}
	return clear(protoName(p.proto), "%s, %s to %s", protoName(p.proto), p.src, p.dst)
}

func portFits(want, have uint16) bool { return want == have || want == 0 && have >= 1024 }

type udp struct {
	src, dst uint16
	payload  []byte
}

// datagram follows RFC 768; the length must be exact.
func datagram(b []byte) (udp, bool) {
	if len(b) < 8 || int(binary.BigEndian.Uint16(b[4:])) != len(b) {
		return udp{}, false
	}
	return udp{src: binary.BigEndian.Uint16(b), dst: binary.BigEndian.Uint16(b[2:]), payload: b[8:]}, true
}

// wireguard judges one datagram, or all those that a super-frame stands for.
func (in *Inspector) wireguard(f *flow, payload []byte, segment int) Verdict {
	if segment <= 0 || segment > len(payload) {
		segment = len(payload)
	}
	for first := true; first || len(payload) > 0; first = false {
		n := min(segment, len(payload))
		if v := in.message(f, payload[:n]); v.Clear != "" {
			return v
		}
		payload = payload[n:]
	}
	return allowed(WireGuardMessages)
}

// Sizes of WireGuard's messages (whitepaper, sections 5.4.2 to 5.4.7).
const (
	initiationSize = 148
	responseSize   = 92
	cookieSize     = 64
	dataOverhead   = 32
	// dataSlack is what follows a packet: padding and the tag.
	dataSlack = 15 + 16
)

// espSlack is what may follow a packet (RFC 4303, section 2): padding to 16
// bytes, its length, the next header, and a check value of 32 bytes at most.
const espSlack = 15 + 2 + 32

// message judges one WireGuard message.
func (in *Inspector) message(f *flow, b []byte) Verdict {
	if len(b) < dataOverhead || b[1] != 0 || b[2] != 0 || b[3] != 0 {
		return clear(WireGuardMessages, "datagram of %d bytes between tunnel ends that is no WireGuard message", len(b))
	}
	// Random content of each: ephemeral key and what is encrypted, without the
	// second MAC, which is mostly zero.
	content, ok := b[16:], false
	switch b[0] {
	case 1:
		ok, content = len(b) == initiationSize, b[8:max(8, len(b)-16)]
	case 2:
		ok, content = len(b) == responseSize, b[12:max(12, len(b)-16)]
	case 3:
		ok, content = len(b) == cookieSize, b[8:]
	case 4:
		// The counter never comes near 2^48 in a session of two minutes.
		ok = (len(b)%16 == 0 || in.innerMTU > 0 && len(b) == in.innerMTU+dataOverhead) && b[14] == 0 && b[15] == 0
	}
	if !ok {
		return clear(WireGuardMessages, "WireGuard type %d with the wrong shape, %d bytes", b[0], len(b))
	}
	if zero(content[:16]) || f.predictable(content) {
		return clear(WireGuardMessages, "WireGuard type %d whose content is predictable, %d bytes", b[0], len(b))
	}
	if b[0] == 4 && holdsPacket(content, dataSlack) {
		return clear(WireGuardMessages, "WireGuard data that is an IP packet, %d bytes", len(b))
	}
	return allowed(WireGuardMessages)
}

// esp judges an ESP packet (RFC 4303, section 2): SPI above the reserved ones,
// a sequence number, and encrypted content aligned to 4 bytes.
func esp(f *flow, k Kind, b []byte) Verdict {
	if len(b) < 8+8+16 || len(b)%4 != 0 || binary.BigEndian.Uint32(b) < 256 || binary.BigEndian.Uint32(b[4:]) == 0 {
		return clear(k, "%s with the wrong shape, %d bytes", k, len(b))
	}
	if f.predictable(b[16:]) {
		return clear(k, "%s whose content is predictable, %d bytes", k, len(b))
	}
	// The null cipher has no initialization vector, or one of 8 bytes (RFC 2410, RFC 4543).
	if holdsPacket(b[8:], espSlack) || holdsPacket(b[16:], espSlack) {
		return clear(k, "%s that holds an IP packet, %d bytes", k, len(b))
	}
	return allowed(k)
}

// ipsecUDP judges IKE and ESP in UDP (RFC 7296, section 3.1; RFC 3948).
func ipsecUDP(f *flow, u udp) Verdict {
	b := u.payload
	switch {
	case u.src == 500 && u.dst == 500:
		return ike(b)
	case u.src != 4500 || u.dst != 4500:
		return clear("udp", "UDP port %d to %d between IPsec ends", u.src, u.dst)
	case len(b) == 1 && b[0] == 0xff:
		return allowed(ESPInUDP)
	case len(b) >= 4 && binary.BigEndian.Uint32(b) == 0:
		return ike(b[4:])
	}
	return esp(f, ESPInUDP, b)
}
