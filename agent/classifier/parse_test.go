package classifier

import (
	"encoding/binary"
	"net/netip"
)

// parsed is the oracle's own reading of a packet.
type parsed struct {
	src, dst        netip.Addr
	ttl             byte
	protocol        byte
	l4              int
	fragment, later bool
	sport, dport    uint16
	// echo is set for an ICMPv6 echo right behind the IPv6 header.
	echo bool
	// icmp and icmp4 are types of messages, or -1.
	icmp, icmp4 int
	// mtuMessage is set for "fragmentation needed" and "packet too big", whole.
	mtuMessage bool
}

func parse(f frame, slack int) (p parsed, ok bool) {
	d := f.data
	if f.ethertype == 0x0800 {
		if len(d) < 20 || d[0]>>4 != 4 {
			return p, false
		}
		ihl, total := int(d[0]&15)*4, int(binary.BigEndian.Uint16(d[2:]))
		if total == 0 && f.gsoSize > 0 {
			total = len(d) + slack
		}
		if ihl < 20 || total < ihl || total > len(d)+slack {
			return p, false
		}
		flags := binary.BigEndian.Uint16(d[6:])
		p = parsed{src: netip.AddrFrom4([4]byte(d[12:16])), dst: netip.AddrFrom4([4]byte(d[16:20])), ttl: d[8], protocol: d[9], l4: ihl,
			fragment: flags&0x3fff != 0, later: flags&0x1fff != 0}
	} else {
		if len(d) < 40 || d[0]>>4 != 6 {
			return p, false
		}
		payload := int(binary.BigEndian.Uint16(d[4:]))
		if payload+40 > len(d)+slack || payload == 0 && d[6] == 0 && f.gsoSize == 0 {
			return p, false
		}
		p = parsed{src: netip.AddrFrom16([16]byte(d[8:24])), dst: netip.AddrFrom16([16]byte(d[24:40])), ttl: d[7], protocol: d[6]}
		p.echo = d[6] == 58 && len(d) > 40 && (d[40] == 128 || d[40] == 129)
		p.extensions(d)
	}
	if p.l4 > 0 && !p.fragment && (p.protocol == 6 || p.protocol == 17) && len(d) >= p.l4+4 {
		p.sport, p.dport = binary.BigEndian.Uint16(d[p.l4:]), binary.BigEndian.Uint16(d[p.l4+2:])
	}
	p.icmp, p.icmp4 = -1, -1
	if f.ethertype == 0x0800 && p.protocol == 1 && !p.later && len(d) > p.l4 {
		p.icmp4 = int(d[p.l4])
	}
	if p.protocol == 58 && p.l4 > 0 && len(d) > p.l4 {
		p.icmp = int(d[p.l4])
	}
	if !p.fragment && len(d) > p.l4+1 {
		p.mtuMessage = p.icmp == 2 || p.icmp4 == 3 && d[p.l4+1] == 4
	}
	return p, true
}

// extensions walks at most 8 extension headers.
func (p *parsed) extensions(d []byte) {
	next, at := d[6], 40
	p.protocol = 0
	for range 8 {
		switch next {
		case 0, 43, 60, 51, 135, 139, 140, 44:
		default:
			p.protocol, p.l4 = next, at
			return
		}
		if len(d) < at+4 {
			return
		}
		switch next {
		case 44:
			p.fragment = true
			p.later = p.later || binary.BigEndian.Uint16(d[at+2:])&0xfff8 != 0
			next, at = d[at], at+8
			if p.later {
				return
			}
		case 51:
			next, at = d[at], at+int(d[at+1])*4+8
		default:
			next, at = d[at], at+int(d[at+1])*8+8
		}
	}
}

// edited is the packet as a router with this MTU would send it on, but for
// checksums, which sameButChecksums compares.
func edited(d []byte, p parsed, mtu int) []byte {
	d = clamped(d, p, mtu)
	if p.src.Is4() {
		d[8]--
	} else {
		d[7]--
	}
	return d
}

// clamped is the packet with an MSS that the MTU holds.
func clamped(d []byte, p parsed, mtu int) []byte {
	d = append([]byte(nil), d...)
	headers := 60
	if p.src.Is4() {
		headers = 40
	}
	if at := mssOption(d, p); at > 0 && int(binary.BigEndian.Uint16(d[at:])) > mtu-headers {
		binary.BigEndian.PutUint16(d[at:], uint16(mtu-headers))
	}
	return d
}

// mssOption is where the MSS value of a SYN is, or 0.
func mssOption(d []byte, p parsed) int {
	if p.protocol != 6 || p.later || p.l4 == 0 || len(d) < p.l4+14 || d[p.l4+13]&2 == 0 {
		return 0
	}
	end := p.l4 + int(d[p.l4+12]>>4)*4
	for at := p.l4 + 20; at < end && at < len(d); {
		switch {
		case d[at] == 0:
			return 0
		case d[at] == 1:
			at++
			continue
		case at+1 >= end || at+1 >= len(d) || d[at+1] < 2:
			return 0
		case d[at] == 2 && d[at+1] == 4 && at+4 <= end:
			if at+4 > len(d) || len(d) < p.l4+18 {
				return 0
			}
			return at + 2
		}
		at += int(d[at+1])
	}
	return 0
}

// sum is the one's complement sum of RFC 1071, in 0..0xfffe.
func sum(parts ...[]byte) uint32 {
	var s uint32
	for _, d := range parts {
		for i, b := range d {
			if i%2 == 0 {
				s += uint32(b) << 8
			} else {
				s += uint32(b)
			}
		}
	}
	return s % 0xffff
}

// sameButChecksums compares a packet with what it should be; header checksums
// that were right before must be right now. MSS changes need the same of TCP's.
func sameButChecksums(was, want, got []byte, p parsed) bool {
	if len(want) != len(got) {
		return false
	}
	want, got = append([]byte(nil), want...), append([]byte(nil), got...)
	if p.src.Is4() {
		ihl := int(was[0]&15) * 4
		if sum(was[:ihl]) != sum(got[:ihl]) {
			return false
		}
		copy(want[10:12], got[10:12])
	}
	if p.protocol == 6 && !p.later && p.l4 > 0 && len(was) >= p.l4+18 {
		if sum(was[p.l4:]) != sum(got[p.l4:]) {
			return false
		}
		copy(want[p.l4+16:p.l4+18], got[p.l4+16:p.l4+18])
	}
	return string(want) == string(got)
}
