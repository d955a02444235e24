package classifier

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"slices"

	"github.com/circuitseal/circuitseal/agent/plan"
)

// Addresses that lie on, between and beside the prefixes of testPlan.
var addresses4 = []string{
	"10.1.0.1", "10.1.0.2", "10.1.127.255", "10.1.128.0", "10.1.128.1", "10.1.200.9", "10.0.255.255", "10.2.0.0", "10.2.0.9", "10.2.2.255",
	"10.2.3.0", "10.2.3.3", "10.2.3.4", "10.2.3.5", "10.2.4.0", "10.2.255.255", "10.3.0.0", "192.0.2.1", "8.8.8.8", "224.0.0.1", "239.1.1.1",
	"255.255.255.255", "127.0.0.1", "169.254.1.1", "0.0.0.0", "240.0.0.1",
}

var addresses6 = []string{
	"fd01::1", "fd01::2", "fd01:0:7fff:ffff::1", "fd01:0:8000::1", "fd01:0:8000::5", "fd00:ffff::1", "fd02::1", "fd02:0:2:ffff::", "fd02:0:3::",
	"fd02:0:3::7", "fd02:0:4::1", "fd02:ffff::1", "fd03::1", "2001:db8::1", "fe80::1", "fe80::99", "ff02::1", "ff02::2", "ff02::16",
	"ff02::1:ff00:1", "ff05::2", "::", "::1", "::ffff:10.1.0.2", "fdc5:5ea1:7d10::1:1", "fdc5:5ea1:7d10::1:2", "fdc5:5ea1:7d10::2:1",
	"fdc5:5ea1:7d10::2:2", "fdc5:5ea1:7d10::6:1", "fdc5:5ea1:7d10::6:2", "fdc5:5ea1:7d10:1::1", "fdc5:5ea1:7d11::1",
}

func pick[T any](r *rand.Rand, list ...T) T { return list[r.IntN(len(list))] }

// usual says whether the ordinary is to happen, so that most packets get far.
func usual(r *rand.Rand) bool { return r.IntN(8) != 0 }

// randomFrame makes a frame of one program and device.
func (b *bed) randomFrame(r *rand.Rand) frame {
	f := frame{program: pick(r, bpfProgCsLanIn, bpfProgCsLanIn, bpfProgCsTunnelIn, bpfProgCsTunnelOut, bpfProgCsSlowIn)}
	switch f.program {
	case bpfProgCsLanIn:
		f.device = pick(r, b.plan.LANs...).Interface
	case bpfProgCsSlowIn:
		f.device = pick(r, b.slowPaths()...)
	default:
		f.device = pick(r, b.tunnels()...)
		g, _ := b.member(f.device)
		f.mark = b.mark(g)
	}
	f.mac = b.mac[f.device]
	if !usual(r) {
		f.mac = [6]byte{0x33, 0x33, 0, 0, 0, 1}
	}
	if !usual(r) {
		f.mark = pick(r, uint32(0), 1, 0x43530001, b.mark(pick(r, b.plan.Groups...)))
	}
	if r.IntN(2) == 0 {
		f.ethertype, f.data = 0x0800, b.random4(r, f)
	} else {
		f.ethertype, f.data = 0x86dd, b.random6(r, f)
	}
	switch r.IntN(40) {
	case 0:
		f.data = f.data[:min(len(f.data), fixedHeader(f.ethertype)+r.IntN(len(f.data)))]
	case 1:
		f.data = append(f.data, make([]byte, r.IntN(60))...)
	case 2:
		f.ethertype = pick[uint16](r, 0x0806, 0x88cc, 0x8847, 0x86dd, 0x0800)
	case 3:
		f.data[r.IntN(len(f.data))] ^= 1 << r.IntN(8)
	case 4:
		f.gsoSize = pick(r, 500, 1200, 1340, 1348, 1360, 1380, 1400)
	}
	// The kernel runs no program by hand on less; live traffic shows that.
	for len(f.data) < fixedHeader(f.ethertype) {
		f.data = append(f.data, 0)
	}
	return f
}

// slowPaths are the devices of LANs' slow paths that exist.
func (b *bed) slowPaths() (list []string) {
	for _, l := range b.plan.LANs {
		if name := b.slowDevice(l.Interface); b.index[name] != 0 {
			list = append(list, name)
		}
	}
	return list
}

// tunnels are the devices of the plan that exist.
func (b *bed) tunnels() (list []string) {
	for _, g := range b.plan.Groups {
		for _, m := range g.Members {
			if _, there := b.index[m.Device]; there {
				list = append(list, m.Device)
			}
		}
	}
	return list
}

func fixedHeader(ethertype uint16) int {
	switch ethertype {
	case 0x0800:
		return 20
	case 0x86dd:
		return 40
	}
	return 1
}

// choose takes addresses from a pool, mostly such that fit the direction.
func (b *bed) choose(r *rand.Rand, f frame, pool []string) (src, dst netip.Addr) {
	any := func() netip.Addr { return netip.MustParseAddr(pick(r, pool...)) }
	src, dst = any(), any()
	for range 30 {
		_, srcLocal := b.local(7, src)
		_, srcRemote := b.remote(7, src)
		_, dstLocal := b.local(7, dst)
		_, dstRemote := b.remote(7, dst)
		if f.program == bpfProgCsTunnelIn && srcRemote && dstLocal || f.program != bpfProgCsTunnelIn && srcLocal && dstRemote {
			break
		}
		if r.IntN(20) == 0 {
			break
		}
		src, dst = any(), any()
	}
	if r.IntN(8) == 0 {
		dst = b.nodeAddress(r, f, src.Is4())
	}
	if f.program == bpfProgCsSlowIn && r.IntN(2) == 0 {
		src, dst = b.nodeAddress(r, f, src.Is4()), src
	}
	return src, dst
}

// nodeAddress is one that the node has on a LAN: on the frame's if that is one.
func (b *bed) nodeAddress(r *rand.Rand, f frame, four bool) netip.Addr {
	device := f.device
	switch {
	case f.program == bpfProgCsLanIn:
	case f.program == bpfProgCsSlowIn && usual(r):
		i := slices.IndexFunc(b.plan.LANs, func(l plan.LAN) bool { return b.slowDevice(l.Interface) == f.device })
		device = b.plan.LANs[i].Interface
	default:
		device = pick(r, b.plan.LANs...).Interface
	}
	for {
		if a := netip.MustParsePrefix(pick(r, b.addresses[device]...)).Addr(); a.Is4() == four {
			return a
		}
	}
}

func (b *bed) random4(r *rand.Rand, f frame) []byte {
	src, dst := b.choose(r, f, addresses4)
	options := 0
	if !usual(r) {
		options = 4 * (1 + r.IntN(10))
	}
	protocol := pick[byte](r, 6, 6, 17, 1, 47, 50, 132)
	if f.program == bpfProgCsSlowIn {
		protocol = pick[byte](r, protocol, 1)
	}
	payload := transport(r, protocol, src, dst)
	d := make([]byte, 20+options+len(payload))
	d[0] = 0x40 | byte(5+options/4)
	if !usual(r) {
		d[0] = byte(r.Uint32())
	}
	binary.BigEndian.PutUint16(d[2:], uint16(len(d)))
	if !usual(r) {
		binary.BigEndian.PutUint16(d[2:], pick(r, 0, uint16(r.Uint32()), uint16(len(d)-1), uint16(len(d)+1)))
	}
	binary.BigEndian.PutUint16(d[4:], uint16(r.Uint32()))
	if !usual(r) {
		binary.BigEndian.PutUint16(d[6:], pick[uint16](r, 0x2000, 0x2001, 0x0001, 0x4000, 0x8000, 0x1fff))
	}
	d[8] = ttl(r)
	d[9] = protocol
	copy(d[12:16], src.AsSlice())
	copy(d[16:20], dst.AsSlice())
	for i := range options {
		d[20+i] = pick[byte](r, 0, 1, 0x94, 4, 0x83, 7)
	}
	copy(d[20+options:], payload)
	binary.BigEndian.PutUint16(d[10:], ^uint16(sum(d[:20+options])))
	return d
}

func (b *bed) random6(r *rand.Rand, f frame) []byte {
	src, dst := b.choose(r, f, addresses6)
	protocol := pick[byte](r, 6, 6, 17, 58, 58, 47, 59, 132)
	if slices.Contains(b.tunnels(), f.device) && r.IntN(6) == 0 {
		_, m := b.member(f.device)
		src, dst = m.LocalProbe, m.RemoteProbe
		if f.program == bpfProgCsTunnelIn {
			src, dst = dst, src
		}
	}
	body := transport(r, protocol, src, dst)
	next := protocol
	if r.IntN(3) == 0 {
		for range pick(r, 1, 1, 2, 3, 7, 8, 9) {
			kind := pick[byte](r, 0, 43, 60, 44, 51, 135, 139, 140)
			h := make([]byte, 8*(1+r.IntN(2)))
			h[0], h[1] = next, byte(len(h)/8-1)
			switch kind {
			case 44:
				h = h[:8]
				h[1] = byte(r.Uint32())
				binary.BigEndian.PutUint16(h[2:], pick[uint16](r, 0, 1, 1, 8, 0xfff9, 6))
			case 51:
				h[1] = byte(len(h)/4 - 2)
			}
			if r.IntN(20) == 0 {
				h[1] = byte(r.Uint32())
			}
			body = append(h, body...)
			next = kind
		}
	}
	d := make([]byte, 40, 40+len(body))
	binary.BigEndian.PutUint32(d, r.Uint32()&0x0fffffff|6<<28)
	binary.BigEndian.PutUint16(d[4:], uint16(len(body)))
	if !usual(r) {
		binary.BigEndian.PutUint16(d[4:], pick(r, 0, uint16(r.Uint32()), uint16(len(body)-1), uint16(len(body)+1)))
	}
	d[6] = next
	d[7] = ttl(r)
	copy(d[8:24], src.AsSlice())
	copy(d[24:40], dst.AsSlice())
	return append(d, body...)
}

func ttl(r *rand.Rand) byte {
	if usual(r) {
		return pick[byte](r, 64, 255)
	}
	return pick[byte](r, 0, 1, 2)
}

// transport makes a payload with a right checksum where that matters here.
func transport(r *rand.Rand, protocol byte, src, dst netip.Addr) []byte {
	size := pick(r, 0, 1, 8, 60, 100, 400)
	if !usual(r) {
		size = pick(r, 1200, 1240, 1300, 1320, 1336, 1340, 1350, 1360, 1380, 1400, 1410, 1420, 1440, 1460, 1480, 1500, 2000)
	}
	if protocol != 6 {
		d := make([]byte, 8+size)
		for i := range d {
			d[i] = byte(r.Uint32())
		}
		if protocol == 1 {
			d[0], d[1] = pick[byte](r, 0, 3, 3, 3, 5, 8), pick[byte](r, 0, 1, 4, 4, 4)
		}
		if protocol == 58 {
			d[0] = pick[byte](r, 2, 2, 2, 128, 129, 130, 131, 133, 134, 135, 136, 137)
		}
		return d
	}
	options := tcpOptions(r)
	d := make([]byte, 20+len(options)+size)
	binary.BigEndian.PutUint16(d, uint16(r.Uint32()))
	binary.BigEndian.PutUint16(d[2:], pick[uint16](r, 80, 443, uint16(r.Uint32())))
	binary.BigEndian.PutUint32(d[4:], r.Uint32())
	d[12] = byte(5+len(options)/4) << 4
	if r.IntN(20) == 0 {
		d[12] = byte(r.Uint32())
	}
	d[13] = pick[byte](r, 2, 2, 0x12, 0x10, 0x18, 4)
	copy(d[20:], options)
	binary.BigEndian.PutUint16(d[16:], ^uint16(sum(pseudo(src, dst, protocol, len(d)), d)))
	return d
}

func tcpOptions(r *rand.Rand) []byte {
	var o []byte
	for range r.IntN(6) {
		switch r.IntN(6) {
		case 0:
			o = append(o, 1)
		case 1:
			o = append(o, 4, 2)
		case 2:
			o = append(o, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8)
		case 3, 4:
			o = append(o, 2, 4, 0, 0)
			binary.BigEndian.PutUint16(o[len(o)-2:], pick[uint16](r, 0, 536, 1220, 1239, 1240, 1241, 1360, 1361, 1380, 1381, 1460, 8960, 65535))
		case 5:
			o = append(o, pick[byte](r, 0, 2, 3, 254), byte(r.Uint32()))
		}
	}
	for len(o)%4 != 0 {
		o = append(o, pick[byte](r, 0, 1, 2))
	}
	return o[:min(len(o), 40)]
}

// pseudo is the pseudo-header of RFC 9293, section 3.1, and RFC 8200, section 8.1.
func pseudo(src, dst netip.Addr, protocol byte, length int) []byte {
	d := append(src.AsSlice(), dst.AsSlice()...)
	return append(d, 0, protocol, byte(length>>8), byte(length))
}
