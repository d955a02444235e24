package traffic

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// Fuzz are packets that nobody who keeps to the rules sends: any source to any
// destination of a pool, in many protocols. The same options give the same
// packets, so that a failure can be replayed from its seed.
type Fuzz struct {
	Canary Canary
	// Sender is written into every packet, so that who receives one can say whose
	// it was: letters, digits and dashes, at most 16.
	Sender string
	Seed   uint64
	Count  int
	// Own are the host's addresses, from which about half of all packets come.
	Own []netip.Addr
	// Pool has destinations, and sources that are not the host's. Of a prefix
	// any address is taken, of one of full length that one.
	Pool []netip.Prefix
}

// senderSize is the room for a sender in a packet.
const senderSize = 16

// family is where Pool and Own are sorted by.
type family struct {
	own  []netip.Addr
	pool []netip.Prefix
}

// Packets makes them, from the IP header on.
func (f Fuzz) Packets() ([][]byte, error) {
	if !validSender([]byte(f.Sender)) {
		return nil, fmt.Errorf("fuzz as %q: want at most %d letters, digits and dashes", f.Sender, senderSize)
	}
	v4, v6 := f.family(true), f.family(false)
	if len(v4.pool)+len(v6.pool) == 0 {
		return nil, errors.New("fuzz: want at least one address or prefix to send to")
	}
	r := rand.New(rand.NewPCG(f.Seed, uint64(len(f.Pool))))
	packets := make([][]byte, 0, f.Count)
	for i := range f.Count {
		from := v4
		if len(v4.pool) == 0 || len(v6.pool) > 0 && r.IntN(3) == 0 {
			from = v6
		}
		source, destination := from.source(r), pick(r, from.pool)
		packets = append(packets, packet(r, source, destination, f.payload(uint64(i)), 0))
	}
	return packets, nil
}

func (f Fuzz) family(is4 bool) family {
	return family{
		own:  slices.DeleteFunc(slices.Clone(f.Own), func(a netip.Addr) bool { return a.Is4() != is4 }),
		pool: slices.DeleteFunc(slices.Clone(f.Pool), func(p netip.Prefix) bool { return p.Addr().Is4() != is4 }),
	}
}

func (f family) source(r *rand.Rand) netip.Addr {
	if len(f.own) > 0 && r.IntN(2) == 0 {
		return f.own[r.IntN(len(f.own))]
	}
	return pick(r, f.pool)
}

// pick draws an address of any of the prefixes.
func pick(r *rand.Rand, pool []netip.Prefix) netip.Addr {
	p := pool[r.IntN(len(pool))]
	b := p.Masked().Addr().AsSlice()
	for bit := p.Bits(); bit < len(b)*8; bit++ {
		b[bit/8] |= byte(r.IntN(2)) << (7 - bit%8)
	}
	if p.IsSingleIP() {
		b = p.Addr().AsSlice()
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// payload is the canary, the sender, a number, and the canary again.
func (f Fuzz) payload(number uint64) []byte {
	b := slices.Concat(f.Canary[:16], f.Canary[:16], []byte(f.Sender), make([]byte, senderSize-len(f.Sender)))
	return append(binary.BigEndian.AppendUint64(b, number), f.Canary[:16]...)
}

// ports are those of services that are somewhere, of the outer packets of
// tunnels, and of what a carelessly written rule lets pass.
var ports = []uint16{Port, 22, 53, 67, 179, 443, 500, 546, 3784, 4500, 4789, 8443, 51820, 51821, 51822, 51823, 51824, 51825, 51826, 51827}

// packet is one of any protocol; depth counts how many it is wrapped in.
func packet(r *rand.Rand, source, destination netip.Addr, payload []byte, depth int) []byte {
	switch r.IntN(12) {
	case 0, 1, 2, 3:
		return ip(r, source, destination, unix.IPPROTO_UDP, udp(r, source, destination, payload))
	case 4, 5:
		return ip(r, source, destination, unix.IPPROTO_TCP, tcp(r, source, destination, payload))
	case 6, 7:
		protocol, kind := uint8(unix.IPPROTO_ICMP), byte(8)
		if source.Is6() {
			protocol, kind = unix.IPPROTO_ICMPV6, 128
		}
		return ip(r, source, destination, protocol, checked(source, destination, protocol, slices.Concat([]byte{kind, 0, 0, 0, 0, 1, 0, 1}, payload), 2))
	case 8:
		if depth == 0 {
			inner := packet(r, source, destination, payload, 1)
			protocol := uint8(unix.IPPROTO_IPIP)
			if source.Is6() {
				protocol = unix.IPPROTO_IPV6
			}
			return ip(r, source, destination, protocol, inner)
		}
		return ip(r, source, destination, unix.IPPROTO_ESP, slices.Concat([]byte{0, 0, 0x10, 1, 0, 0, 0, 1}, payload))
	case 9:
		return ip(r, source, destination, unix.IPPROTO_GRE, slices.Concat([]byte{0, 0, 8, 0}, payload))
	case 10:
		return ip(r, source, destination, unix.IPPROTO_SCTP, slices.Concat(make([]byte, 12), payload))
	}
	return ip(r, source, destination, uint8(r.IntN(256)), payload)
}

func udp(r *rand.Rand, source, destination netip.Addr, payload []byte) []byte {
	b := binary.BigEndian.AppendUint16(nil, ports[r.IntN(len(ports))])
	b = binary.BigEndian.AppendUint16(b, ports[r.IntN(len(ports))])
	b = binary.BigEndian.AppendUint16(b, uint16(8+len(payload)))
	return checked(source, destination, unix.IPPROTO_UDP, append(append(b, 0, 0), payload...), 6)
}

func tcp(r *rand.Rand, source, destination netip.Addr, payload []byte) []byte {
	b := binary.BigEndian.AppendUint16(nil, ports[r.IntN(len(ports))])
	b = binary.BigEndian.AppendUint16(b, ports[r.IntN(len(ports))])
	b = binary.BigEndian.AppendUint64(b, r.Uint64())
	b = append(b, 5<<4, byte(r.IntN(64)), 0xff, 0xff, 0, 0, 0, 0)
	return checked(source, destination, unix.IPPROTO_TCP, append(b, payload...), 16)
}

// ip adds a header (RFC 791, RFC 8200), now and then one of a fragment or with
// an option.
func ip(r *rand.Rand, source, destination netip.Addr, protocol uint8, body []byte) []byte {
	ttl := []byte{64, 64, 64, 64, 2, 1, 255}[r.IntN(7)]
	odd := r.IntN(12)
	if source.Is6() {
		if odd == 0 { // a hop-by-hop header with six bytes of padding
			body = slices.Concat([]byte{protocol, 0, 1, 4, 0, 0, 0, 0}, body)
			protocol = 0
		}
		if odd == 1 { // the last fragment of a packet that never comes
			body = slices.Concat([]byte{protocol, 0, 0, 64, 0, 0, 0, byte(r.IntN(256))}, body)
			protocol = unix.IPPROTO_FRAGMENT
		}
		b := binary.BigEndian.AppendUint32(nil, 6<<28|r.Uint32N(1<<20))
		b = binary.BigEndian.AppendUint16(b, uint16(len(body)))
		return slices.Concat(b, []byte{protocol, ttl}, source.AsSlice(), destination.AsSlice(), body)
	}
	var options []byte
	if odd == 0 { // record route, one slot
		options = []byte{7, 7, 4, 0, 0, 0, 0, 0}
	}
	flags := []uint16{0, 0x4000}[r.IntN(2)]
	if odd == 1 {
		flags = []uint16{0x2000, 8, 0x2008}[r.IntN(3)]
	}
	length := 20 + len(options)
	b := []byte{4<<4 | byte(length/4), byte(r.IntN(256))}
	b = binary.BigEndian.AppendUint16(b, uint16(length+len(body)))
	b = binary.BigEndian.AppendUint16(b, uint16(r.IntN(1<<16)))
	b = binary.BigEndian.AppendUint16(b, flags)
	b = slices.Concat(b, []byte{ttl, protocol, 0, 0}, source.AsSlice(), destination.AsSlice(), options)
	binary.BigEndian.PutUint16(b[10:], ^sum(0, b))
	return append(b, body...)
}

// checked fills in a checksum; ICMP of IPv4 has no pseudo header.
func checked(source, destination netip.Addr, protocol uint8, b []byte, at int) []byte {
	var start uint32
	if protocol != unix.IPPROTO_ICMP {
		start = uint32(sum(uint32(protocol)+uint32(len(b)), slices.Concat(source.AsSlice(), destination.AsSlice())))
	}
	c := ^sum(start, b)
	if c == 0 {
		c = 0xffff
	}
	binary.BigEndian.PutUint16(b[at:], c)
	return b
}

// sum is that of the Internet checksum (RFC 1071), not inverted.
func sum(start uint32, b []byte) uint16 {
	for ; len(b) > 1; b = b[2:] {
		start += uint32(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		start += uint32(b[0]) << 8
	}
	for start > 0xffff {
		start = start>>16 + start&0xffff
	}
	return uint16(start)
}
