package tap

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
)

// Kind names what a frame is. The allowed ones are promise 1's list.
type Kind string

// The allowed kinds.
const (
	ARP               Kind = "arp"
	ND                Kind = "nd"
	WireGuardMessages Kind = "wireguard"
	ESP               Kind = "esp"
	ESPInUDP          Kind = "esp-in-udp"
	IKE               Kind = "ike"
)

// Verdict is what the inspector makes of one frame.
type Verdict struct {
	// Kind is set for what was recognised, allowed or not.
	Kind Kind
	// Clear says why the frame is outside the list; empty when it is on it.
	Clear string
	// Canary reports that the frame holds the canary; then Clear is set too.
	Canary bool
}

func allowed(k Kind) Verdict { return Verdict{Kind: k} }

func clear(k Kind, format string, args ...any) Verdict {
	return Verdict{Kind: k, Clear: fmt.Sprintf(format, args...)}
}

// Meta is what the kernel says about a frame beside its bytes.
type Meta struct {
	// Segment is the payload size of each datagram when the frame stands for
	// several (UDP segmentation offload), or 0.
	Segment int
	// VLAN is set when the kernel has taken a VLAN tag off the frame.
	VLAN bool
	// Tag is that tag: its ethertype, then priority and VLAN.
	Tag uint32
	// Truncated is set when bytes are missing at the end.
	Truncated bool
}

// Inspector judges the frames of one interface. It is not for several
// goroutines at once. Its memory is bounded by its configuration.
type Inspector struct {
	canary    []byte
	innerMTU  int
	addresses []netip.Addr
	tunnels   []Tunnel
	flows     map[flowKey]*flow
	// links judge what is behind the tags of an interface that carries several,
	// nil for one that carries none.
	links map[string]*Inspector
}

// flowKey is a direction of a tunnel: its index, and whether A sends.
type flowKey struct {
	tunnel int
	fromA  bool
}

// NewInspector expects a configuration that Validate accepts.
func NewInspector(c Config, i Interface) *Inspector {
	canary, _ := hex.DecodeString(c.Canary)
	in := &Inspector{canary: canary, innerMTU: c.InnerMTU, addresses: i.Addresses, tunnels: i.Tunnels, flows: make(map[flowKey]*flow)}
	for t := range i.Tunnels {
		in.flows[flowKey{t, true}], in.flows[flowKey{t, false}] = new(flow), new(flow)
	}
	for _, v := range i.VLANs {
		if in.links == nil {
			in.links = make(map[string]*Inspector)
		}
		in.links[fmt.Sprint(v.Tags)] = NewInspector(c, Interface{Link: v.Link})
	}
	return in
}

// Ethernet types (IEEE 802 numbers).
const (
	etherIPv4 = 0x0800
	etherARP  = 0x0806
	etherIPv6 = 0x86dd
)

// Inspect judges an Ethernet frame. It keeps nothing of it.
func (in *Inspector) Inspect(frame []byte, m Meta) Verdict {
	v := in.parse(frame, m)
	if len(in.canary) > 0 && bytes.Contains(frame, in.canary) {
		v.Canary = true
		if v.Clear == "" {
			v.Clear = "holds the canary"
		}
	}
	return v
}

func (in *Inspector) parse(frame []byte, m Meta) Verdict {
	switch {
	case len(frame) < 14:
		return clear("malformed", "frame of %d bytes", len(frame))
	case m.Truncated:
		return clear("truncated", "frame was truncated, so that nothing can be said of it")
	case in.links != nil:
		return in.tagged(frame, m)
	case m.VLAN:
		return clear("vlan", "VLAN tag on an untagged link")
	}
	dst, src, body := frame[:6], frame[6:12], frame[14:]
	switch t := binary.BigEndian.Uint16(frame[12:]); t {
	case etherARP:
		return in.arp(dst, src, body)
	case etherIPv4:
		return in.ipv4(body, m)
	case etherIPv6:
		return in.ipv6(dst, src, body, m)
	default:
		return clear("ethernet", "ethertype %#04x", t)
	}
}

// arp allows requests and replies between the link's own addresses (RFC 826),
// whose hardware addresses say no more than the frame's do. In a request that
// of the target is zero, also when it goes to one neighbour (net/ipv4/arp.c of
// Linux, arp_solicit).
func (in *Inspector) arp(dst, src, b []byte) Verdict {
	if len(b) < 28 {
		return clear(ARP, "ARP of %d bytes", len(b))
	}
	if !bytes.Equal(b[:6], []byte{0, 1, 8, 0, 6, 4}) || b[6] != 0 || b[7] != 1 && b[7] != 2 {
		return clear(ARP, "ARP that is no request or reply for IPv4 on Ethernet")
	}
	sender, target := netip.AddrFrom4([4]byte(b[14:18])), netip.AddrFrom4([4]byte(b[24:28]))
	// A probe (RFC 5227) has no sender address.
	if !slices.Contains(in.addresses, target) || !sender.IsUnspecified() && !slices.Contains(in.addresses, sender) {
		return clear(ARP, "ARP for %s from %s, which are not both the link's own", target, sender)
	}
	request := b[7] == 1
	senderMAC, targetMAC := b[8:14], b[18:24]
	if !bytes.Equal(senderMAC, src) || request && !zero(targetMAC) || !request && !bytes.Equal(targetMAC, dst) {
		return clear(ARP, "ARP from %x to %x whose hardware addresses are not those of its frame", senderMAC, targetMAC)
	}
	if !zero(b[28:]) {
		return clear(ARP, "ARP with content behind it")
	}
	return allowed(ARP)
}

// packet is an IP packet without its header.
type packet struct {
	src, dst netip.Addr
	proto    uint8
	payload  []byte
}

// ipv4 follows RFC 791.
func (in *Inspector) ipv4(b []byte, m Meta) Verdict {
	if len(b) < 20 || b[0]>>4 != 4 {
		return clear("malformed", "IPv4 header is broken")
	}
	header, total := int(b[0]&15)*4, int(binary.BigEndian.Uint16(b[2:]))
	if header < 20 || total < header || total > len(b) {
		return clear("malformed", "IPv4 lengths do not fit: header %d, total %d, frame %d", header, total, len(b))
	}
	p := packet{src: netip.AddrFrom4([4]byte(b[12:16])), dst: netip.AddrFrom4([4]byte(b[16:20])), proto: b[9], payload: b[header:total]}
	switch {
	case header != 20:
		return clear("ipv4-options", "IPv4 options, %s to %s", p.src, p.dst)
	case binary.BigEndian.Uint16(b[6:])&0x3fff != 0:
		// Outer packets fit, so that no outer fragment is ever needed.
		return clear("fragment", "IPv4 fragment, %s to %s", p.src, p.dst)
	case !zero(b[total:]):
		return clear("trailer", "content behind the IPv4 packet, %s to %s", p.src, p.dst)
	}
	return in.packet(p, m)
}

// ipv6 follows RFC 8200. No extension header is on the list.
func (in *Inspector) ipv6(dst, src, b []byte, m Meta) Verdict {
	if len(b) < 40 || b[0]>>4 != 6 {
		return clear("malformed", "IPv6 header is broken")
	}
	total := 40 + int(binary.BigEndian.Uint16(b[4:]))
	if total > len(b) {
		return clear("malformed", "IPv6 lengths do not fit: total %d, frame %d", total, len(b))
	}
	p := packet{src: netip.AddrFrom16([16]byte(b[8:24])), dst: netip.AddrFrom16([16]byte(b[24:40])), proto: b[6], payload: b[40:total]}
	if !zero(b[total:]) {
		return clear("trailer", "content behind the IPv6 packet, %s to %s", p.src, p.dst)
	}
	if p.proto == protoICMPv6 {
		return in.nd(p, dst, src, b[7])
	}
	return in.packet(p, m)
}

// nd allows solicitations and advertisements of the link's own addresses
// (RFC 4861, sections 4.3, 4.4 and 7.1), with one option at most: the frame's
// own source, which a solicitation gives in option 1, an advertisement in 2. The
// link's own are, too, those link-local addresses that follow from the frame's
// hardware addresses; whoever speaks may do so from another one, as routers do.
func (in *Inspector) nd(p packet, dst, src []byte, hopLimit uint8) Verdict {
	var option, flags byte
	var owner []byte
	switch b := p.payload; {
	case len(b) >= 24 && b[0] == 135:
		option, flags, owner = 1, 0, dst
	case len(b) >= 24 && b[0] == 136:
		option, flags, owner = 2, 0xe0, src
	default:
		return clear("icmpv6", "ICMPv6 from %s to %s", p.src, p.dst)
	}
	target, rest := netip.AddrFrom16([16]byte(p.payload[8:24])), p.payload[24:]
	if hopLimit != 255 || p.payload[1] != 0 || !slices.Contains(in.addresses, target) && target != linkLocalOf(owner) {
		return clear(ND, "neighbour discovery of %s from %s that is not the link's own", target, p.src)
	}
	speaks := func(a netip.Addr) bool { return slices.Contains(in.addresses, a) || linkLocal.Contains(a) }
	if !speaks(p.src) || !speaks(p.dst) && p.dst != solicited(target) && (option == 1 || p.dst != netip.IPv6LinkLocalAllNodes()) {
		return clear(ND, "neighbour discovery of %s between %s and %s, which are not both the link's own", target, p.src, p.dst)
	}
	if p.payload[4]&^flags != 0 || !zero(p.payload[5:8]) || len(rest) > 0 && !bytes.Equal(rest, append([]byte{option, 1}, src...)) {
		return clear(ND, "neighbour discovery of %s from %s with content of its own", target, p.src)
	}
	return allowed(ND)
}

// linkLocal follows RFC 4291, section 2.5.6.
var linkLocal = netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfe, 0x80}), 64)

// linkLocalOf follows RFC 4291, appendix A.
func linkLocalOf(mac []byte) netip.Addr {
	return netip.AddrFrom16([16]byte{0xfe, 0x80, 8: mac[0] ^ 2, 9: mac[1], 10: mac[2], 11: 0xff, 12: 0xfe, 13: mac[3], 14: mac[4], 15: mac[5]})
}

// solicited follows RFC 4291, section 2.7.1.
func solicited(a netip.Addr) netip.Addr {
	b := a.As16()
	return netip.AddrFrom16([16]byte{0xff, 2, 11: 1, 12: 0xff, 13: b[13], 14: b[14], 15: b[15]})
}

func zero(b []byte) bool {
	for _, v := range b {
		if v != 0 {
			return false
		}
	}
	return true
}
