package classifier

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"github.com/circuitseal/circuitseal/agent/plan"
	"github.com/circuitseal/circuitseal/proto/desired"
)

// mark is that of packets on their way into one of the group's tunnels.
func (b *bed) mark(g plan.Group) uint32 { return b.classifier.markBase | g.Number }

// oracle says what must become of a frame, by looking through the plan itself
// and never at what was made of it for the kernel.
func (b *bed) oracle(f frame, alive map[uint32]uint32) outcome {
	drop := func(r bpfReason) outcome { return outcome{reason: r} }
	if f.program == bpfProgCsLanIn && f.ethertype == 0x0806 {
		return drop(bpfReasonREASON_PASSED)
	}
	if f.ethertype != 0x0800 && f.ethertype != 0x86dd {
		if len(f.data) == 0 {
			return drop(bpfReasonREASON_MALFORMED)
		}
		return drop(bpfReasonREASON_NOT_IP)
	}
	slack := 0
	if f.program == bpfProgCsTunnelOut {
		slack = 14 // by hand, the frame has a header that it does not have there
	}
	p, ok := parse(f, slack)
	if !ok {
		return drop(bpfReasonREASON_MALFORMED)
	}
	switch f.program {
	case bpfProgCsLanIn:
		return b.oracleLAN(f, p, alive)
	case bpfProgCsTunnelIn:
		return b.oracleTunnelIn(f, p)
	case bpfProgCsSlowIn:
		return b.oracleSlow(f, p, alive)
	}
	return b.oracleTunnelOut(f, p)
}

func (b *bed) oracleLAN(f frame, p parsed, alive map[uint32]uint32) outcome {
	if desired.ProbePrefix.Contains(p.src) || desired.ProbePrefix.Contains(p.dst) {
		return outcome{reason: bpfReasonREASON_PROBE_ADDRESS}
	}
	if p.dst.Is6() && p.dst.IsMulticast() {
		if neededByHost(p) {
			return outcome{reason: bpfReasonREASON_PASSED}
		}
		return outcome{reason: bpfReasonREASON_UNROUTABLE_ADDRESS}
	}
	if f.mac != b.mac[f.device] {
		return outcome{reason: bpfReasonREASON_OTHER_HOST}
	}
	i := slices.IndexFunc(b.plan.LANs, func(l plan.LAN) bool { return l.Interface == f.device })
	tenant := b.plan.LANs[i].Tenant
	l, ok := b.local(tenant, p.src)
	fromHere := ok && l.Interface == f.device
	if b.own(f.device, p.dst) {
		return outcome{reason: b.oracleNode(p, fromHere)}
	}
	if nobody(p.src) || nobody(p.dst) {
		return outcome{reason: bpfReasonREASON_UNROUTABLE_ADDRESS}
	}
	if !fromHere {
		return outcome{reason: bpfReasonREASON_SPOOFED_SOURCE}
	}
	if p.ttl <= 1 {
		return outcome{reason: bpfReasonREASON_EXPIRED}
	}
	r, ok := b.remote(tenant, p.dst)
	if !ok {
		return outcome{reason: bpfReasonREASON_NO_REMOTE}
	}
	g := b.group(r.Group)
	m, ok := b.rendezvous(g, alive[g.Number], p)
	if !ok {
		return outcome{reason: bpfReasonREASON_NO_MEMBER}
	}
	if b.tooBig(f, p, m.MTU, m.Device) {
		if slow := b.slowDevice(f.device); b.index[slow] != 0 {
			return outcome{reason: bpfReasonREASON_SLOW_PATH, target: slow, data: clamped(f.data, p, m.MTU)}
		}
		return outcome{reason: bpfReasonREASON_TOO_BIG}
	}
	return outcome{reason: bpfReasonREASON_FORWARDED, target: m.Device, data: edited(f.data, p, m.MTU)}
}

// oracleSlow judges what comes back from a slow path.
func (b *bed) oracleSlow(f frame, p parsed, alive map[uint32]uint32) outcome {
	drop := func(r bpfReason) outcome { return outcome{reason: r} }
	i := slices.IndexFunc(b.plan.LANs, func(l plan.LAN) bool { return b.slowDevice(l.Interface) == f.device })
	lan := b.plan.LANs[i]
	home := func(a netip.Addr) bool {
		l, ok := b.local(lan.Tenant, a)
		return ok && l.Interface == lan.Interface
	}
	far6 := func(a netip.Addr) bool {
		_, ok := b.remote(lan.Tenant, a)
		return ok && a.Is6()
	}
	switch {
	case p.mtuMessage && (b.own(lan.Interface, p.src) || far6(p.src)):
		if !home(p.dst) || b.own(lan.Interface, p.dst) {
			return drop(bpfReasonREASON_NO_LOCAL)
		}
		return outcome{reason: bpfReasonREASON_TOLD_MTU, target: lan.Interface, data: f.data}
	case p.src.Is6():
		return drop(bpfReasonREASON_NOT_SLOW_PATH)
	case nobody(p.src), nobody(p.dst):
		return drop(bpfReasonREASON_UNROUTABLE_ADDRESS)
	case !home(p.src):
		return drop(bpfReasonREASON_SPOOFED_SOURCE)
	case p.ttl == 0:
		return drop(bpfReasonREASON_EXPIRED)
	}
	r, ok := b.remote(lan.Tenant, p.dst)
	if !ok {
		return drop(bpfReasonREASON_NO_REMOTE)
	}
	g := b.group(r.Group)
	m, ok := b.rendezvous(g, alive[g.Number], p)
	if !ok {
		return drop(bpfReasonREASON_NO_MEMBER)
	}
	if b.tooBig(f, p, m.MTU, m.Device) {
		return drop(bpfReasonREASON_TOO_BIG)
	}
	return outcome{reason: bpfReasonREASON_FORWARDED, target: m.Device, data: f.data}
}

// own is true of an address that the node has on the interface.
func (b *bed) own(device string, a netip.Addr) bool {
	return slices.ContainsFunc(b.addresses[device], func(p string) bool { return netip.MustParsePrefix(p).Addr() == a })
}

// oracleNode judges packets to the node's own addresses.
func (b *bed) oracleNode(p parsed, fromHere bool) bpfReason {
	six := p.dst.Is6()
	switch {
	case six && p.l4 == 0 && !p.later:
		return bpfReasonREASON_MALFORMED
	case !six && p.icmp4 == 5, six && (p.icmp == 134 || p.icmp == 137):
		return bpfReasonREASON_ROUTER_MESSAGE
	case six && p.ttl == 255 && !p.fragment && (p.icmp == 136 || p.icmp == 135 && (fromHere || p.src.IsLinkLocalUnicast())):
		return bpfReasonREASON_PASSED
	case !fromHere:
		return bpfReasonREASON_SPOOFED_SOURCE
	}
	for _, l := range b.plan.LANs {
		if l.Tenant != b.plan.LANs[0].Tenant {
			return bpfReasonREASON_NODE_IS_SHARED
		}
	}
	return bpfReasonREASON_PASSED
}

func (b *bed) oracleTunnelIn(f frame, p parsed) outcome {
	g, m := b.member(f.device)
	if desired.ProbePrefix.Contains(p.src) || desired.ProbePrefix.Contains(p.dst) {
		if p.src == m.RemoteProbe && p.dst == m.LocalProbe && p.echo {
			return outcome{reason: bpfReasonREASON_PASSED}
		}
		return outcome{reason: bpfReasonREASON_PROBE_ADDRESS}
	}
	if nobody(p.src) || nobody(p.dst) {
		return outcome{reason: bpfReasonREASON_UNROUTABLE_ADDRESS}
	}
	if r, ok := b.remote(g.Tenant, p.src); !ok || r.Group != g.Number {
		return outcome{reason: bpfReasonREASON_WRONG_SELECTOR}
	}
	l, ok := b.local(g.Tenant, p.dst)
	if !ok || b.own(l.Interface, p.dst) {
		return outcome{reason: bpfReasonREASON_NO_LOCAL}
	}
	if p.ttl <= 1 {
		return outcome{reason: bpfReasonREASON_EXPIRED}
	}
	if b.tooBig(f, p, 65535, l.Interface) {
		return outcome{reason: bpfReasonREASON_TOO_BIG}
	}
	return outcome{reason: bpfReasonREASON_FORWARDED, target: l.Interface, data: edited(f.data, p, m.MTU)}
}

func (b *bed) oracleTunnelOut(f frame, p parsed) outcome {
	g, m := b.member(f.device)
	if desired.ProbePrefix.Contains(p.src) || desired.ProbePrefix.Contains(p.dst) {
		if p.src == m.LocalProbe && p.dst == m.RemoteProbe && p.echo {
			return outcome{reason: bpfReasonREASON_PASSED}
		}
		return outcome{reason: bpfReasonREASON_PROBE_ADDRESS}
	}
	if f.mark != b.mark(g) {
		return outcome{reason: bpfReasonREASON_NOT_CLASSIFIED}
	}
	r, ok := b.remote(g.Tenant, p.dst)
	if _, from := b.local(g.Tenant, p.src); !ok || !from || r.Group != g.Number {
		return outcome{reason: bpfReasonREASON_WRONG_SELECTOR}
	}
	return outcome{reason: bpfReasonREASON_FORWARDED, data: f.data}
}

func (b *bed) local(tenant uint32, a netip.Addr) (best plan.Local, ok bool) {
	for _, l := range b.plan.Locals {
		if l.Tenant == tenant && l.Prefix.Contains(a) && (!ok || l.Prefix.Bits() > best.Prefix.Bits()) {
			best, ok = l, true
		}
	}
	return best, ok
}

func (b *bed) remote(tenant uint32, a netip.Addr) (best plan.Remote, ok bool) {
	for _, r := range b.plan.Remotes {
		if r.Tenant == tenant && r.Prefix.Contains(a) && (!ok || r.Prefix.Bits() > best.Prefix.Bits()) {
			best, ok = r, true
		}
	}
	return best, ok
}

func (b *bed) group(number uint32) plan.Group {
	i := slices.IndexFunc(b.plan.Groups, func(g plan.Group) bool { return g.Number == number })
	return b.plan.Groups[i]
}

func (b *bed) member(device string) (plan.Group, plan.Member) {
	for _, g := range b.plan.Groups {
		for _, m := range g.Members {
			if m.Device == device {
				return g, m
			}
		}
	}
	panic("no member " + device)
}

func (b *bed) rendezvous(g plan.Group, alive uint32, p parsed) (best plan.Member, ok bool) {
	usable := func(i int) bool {
		_, there := b.index[g.Members[i].Device]
		return there && alive&(1<<i) != 0
	}
	if !slices.ContainsFunc([]int{0, 1, 2}[:len(g.Members)], usable) {
		alive = 1<<32 - 1
	}
	var top uint64
	for i, m := range g.Members {
		if !usable(i) {
			continue
		}
		if s := mix64(flowHash(p)^uint64(m.Number)*0x9e3779b97f4a7c15) | 1; !ok || s > top {
			best, top, ok = m, s, true
		}
	}
	return best, ok
}

func flowHash(p parsed) uint64 {
	end := func(a netip.Addr, port uint16) uint64 {
		var x [16]byte
		copy(x[:], a.AsSlice())
		return mix64(mix64(binary.BigEndian.Uint64(x[:8])+0x9e3779b97f4a7c15)^binary.BigEndian.Uint64(x[8:])) + uint64(port)
	}
	protocol := uint64(0)
	if !p.fragment {
		protocol = uint64(p.protocol)
	}
	return mix64(mix64(end(p.src, p.sport)) + mix64(end(p.dst, p.dport)) + protocol)
}

func mix64(x uint64) uint64 {
	x ^= x >> 33
	x *= 0xff51afd7ed558ccd
	x ^= x >> 33
	x *= 0xc4ceb9fe1a85ec53
	return x ^ x>>33
}

func (b *bed) tooBig(f frame, p parsed, mtu int, device string) bool {
	if f.gsoSize == 0 {
		return len(f.data) > min(mtu, b.mtu[device])
	}
	headers := p.l4
	if p.l4 > 0 && p.protocol == 6 && len(f.data) > p.l4+12 {
		headers += int(f.data[p.l4+12]>>4) * 4
	} else if p.protocol == 17 {
		headers += 8
	}
	// By hand there is no transport header that the kernel could count
	// segments by: it judges the whole.
	return headers+f.gsoSize > mtu || len(f.data) > b.mtu[device]
}

func nobody(a netip.Addr) bool {
	if a.Is4() {
		x := a.As4()
		return x[0] == 0 || x[0] >= 224 || a.IsLoopback() || a.IsLinkLocalUnicast()
	}
	return a.IsMulticast() || a.IsLinkLocalUnicast() || a.IsLoopback() || a.IsUnspecified() || a.Is4In6()
}

func neededByHost(p parsed) bool {
	if p.protocol != 58 || p.fragment || p.l4 == 0 {
		return false
	}
	solicited := netip.MustParsePrefix("ff02::1:ff00:0/104").Contains(p.dst)
	allNodes := p.dst == netip.MustParseAddr("ff02::1")
	switch p.icmp {
	case 135, 136:
		return p.ttl == 255 && (solicited || allNodes)
	case 133:
		return p.ttl == 255 && p.dst == netip.MustParseAddr("ff02::2")
	case 130:
		return p.ttl == 1 && (solicited || allNodes)
	}
	return false
}
