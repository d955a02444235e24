package guard

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"

	"github.com/circuitseal/circuitseal/agent/instance"
	"github.com/circuitseal/circuitseal/agent/plan"
)

const (
	port = "port0"
	// What one customer's circuit has: an inner device on an outer one.
	inner, outer        = "cs.1", "cs+1"
	innerVLAN, outerTag = 100, 300
	// Another customer's has one tag.
	single, singleVLAN = "cs.2", 200
)

var (
	innerMark, singleMark = instance.Mark(1), instance.Mark(2)
	singleLocal           = netip.MustParseAddrPort("10.8.0.1:51822")
	singleRemote          = netip.MustParseAddrPort("10.8.0.2:51822")
)

// portPlan has a port that carries two links, one by two tags and one by one.
func portPlan() plan.Guard {
	return plan.Guard{
		Interfaces: []string{port, outer, inner, single},
		VLANs: []plan.VLAN{
			{Interface: outer, Parent: port, ID: outerTag}, {Interface: inner, Parent: outer, ID: innerVLAN},
			{Interface: single, Parent: port, ID: singleVLAN},
		},
		Flows: []plan.Flow{
			{Interface: inner, Mark: innerMark, Protocol: protocolUDP, Local: tunnelLocal, Remote: tunnelRemote},
			{Interface: single, Mark: singleMark, Protocol: protocolUDP, Local: singleLocal, Remote: singleRemote},
			{Interface: inner, Mark: innerMark, Protocol: protocolUDP,
				Local: netip.AddrPortFrom(localAddr6, tunnelLocal.Port()), Remote: netip.AddrPortFrom(peerAddr6, tunnelRemote.Port())},
		},
		Neighbors: []plan.Neighbor{
			{Interface: inner, Local: localAddr, Remote: peerAddr},
			{Interface: single, Local: singleLocal.Addr(), Remote: singleRemote.Addr()},
			{Interface: inner, Local: localAddr6, Remote: peerAddr6},
		},
	}
}

func both(a, b plan.Guard) plan.Guard {
	return plan.Guard{
		Interfaces: slices.Concat(a.Interfaces, b.Interfaces), VLANs: slices.Concat(a.VLANs, b.VLANs),
		Flows: slices.Concat(a.Flows, b.Flows), Neighbors: slices.Concat(a.Neighbors, b.Neighbors),
	}
}

// vlan is a tag as Frame.Tag has it.
func vlan(id uint16) uint32 { return etherTypeVLAN<<16 | uint32(id) }

// inData puts tags into a frame, the outer one first.
func inData(frame []byte, tags ...uint32) []byte {
	out := slices.Clone(frame[:12])
	for _, t := range tags {
		out = binary.BigEndian.AppendUint32(out, t)
	}
	return append(out, frame[12:]...)
}

// taggedCases are frames on the port of portPlan.
func taggedCases() []frameCase {
	payload := make([]byte, 100)
	contoso := ethernet(remoteMAC, localMAC, etherTypeIPv4, udp(tunnelLocal, tunnelRemote, payload))
	back := ethernet(localMAC, remoteMAC, etherTypeIPv4, udp(tunnelRemote, tunnelLocal, payload))
	fabrikam := ethernet(remoteMAC, localMAC, etherTypeIPv4, udp(singleLocal, singleRemote, payload))
	ask := ethernet(broadcast, localMAC, etherTypeARP, arp(arpRequest, localMAC, localAddr, zeroMAC, peerAddr))
	asked := ethernet(broadcast, remoteMAC, etherTypeARP, arp(arpRequest, remoteMAC, peerAddr, zeroMAC, localAddr))
	small := ethernet(localMAC, remoteMAC, etherTypeIPv4, udp(tunnelRemote, tunnelLocal, nil))
	flow6 := ethernet(remoteMAC, localMAC, etherTypeIPv6, udp6(netip.AddrPortFrom(localAddr6, tunnelLocal.Port()), netip.AddrPortFrom(peerAddr6, tunnelRemote.Port()), payload))
	ask6 := ethernet(remoteMAC, localMAC, etherTypeIPv6, ndPacket(ndSolicitation, 0, 255, localAddr6, peerAddr6, peerAddr6, 1, localMAC))
	s, c, f := vlan(outerTag), vlan(innerVLAN), vlan(singleVLAN)
	cases := []frameCase{
		{"untagged", Out, innerMark, 0, contoso, ReasonUntagged},
		{"untagged in", In, 0, 0, back, ReasonUntagged},
		{"untagged ARP", Out, 0, 0, ask, ReasonUntagged},
		{"untagged, nothing known", In, 0, 0, ethernet(localMAC, remoteMAC, 0x88cc, payload), ReasonUntagged},
		{"no frame", In, 0, s, back[:12], ReasonShort},
		{"a tag and nothing", In, 0, s, inData(back, c)[:17], ReasonShort},
	}
	for _, tt := range []struct {
		name string
		dir  Direction
		mark uint32
		tags []uint32
		data []byte
		want Reason
	}{
		{"two tags", Out, innerMark, []uint32{s, c}, contoso, ReasonFlow},
		{"two tags in", In, 0, []uint32{s, c}, back, ReasonFlow},
		{"two tags in, padded before them", In, 0, []uint32{s, c}, append(slices.Clone(small), make([]byte, 18)...), ReasonFlow},
		{"two tags in, padded too far", In, 0, []uint32{s, c}, append(slices.Clone(small), make([]byte, 19)...), ReasonLength},
		{"two tags without the mark", Out, 0, []uint32{s, c}, contoso, ReasonMark},
		{"two tags with the other customer's mark", Out, singleMark, []uint32{s, c}, contoso, ReasonMark},
		{"ARP behind two tags", Out, 0, []uint32{s, c}, ask, ReasonNeighbor},
		{"ARP in behind two tags", In, 0, []uint32{s, c}, asked, ReasonNeighbor},
		{"one tag", Out, singleMark, []uint32{f}, fabrikam, ReasonFlow},
		{"the other customer's packet behind two tags", Out, singleMark, []uint32{s, c}, fabrikam, ReasonNoFlow},
		{"the other customer's packet behind one tag", Out, innerMark, []uint32{f}, contoso, ReasonNoFlow},
		{"the other customer's packet in", In, 0, []uint32{f}, back, ReasonNoFlow},
		{"the other customer's ARP", Out, 0, []uint32{f}, ask, ReasonNoNeighbor},
		{"the other customer's ARP in", In, 0, []uint32{f}, asked, ReasonNoNeighbor},
		{"swapped tags", Out, innerMark, []uint32{c, s}, contoso, ReasonVLAN},
		{"swapped tags in", In, 0, []uint32{c, s}, back, ReasonVLAN},
		{"outer tag only", In, 0, []uint32{s}, back, ReasonVLAN},
		{"inner tag only", Out, innerMark, []uint32{c}, contoso, ReasonVLAN},
		{"one tag before another's", In, 0, []uint32{f, c}, back, ReasonVLAN},
		{"outer tag before another's", In, 0, []uint32{s, f}, back, ReasonVLAN},
		{"unknown tag", In, 0, []uint32{vlan(7)}, back, ReasonVLAN},
		{"priority tag", In, 0, []uint32{vlan(0)}, back, ReasonPriorityTag},
		{"priority tag out", Out, innerMark, []uint32{vlan(0xe000)}, contoso, ReasonPriorityTag},
		{"priority tag before both", In, 0, []uint32{vlan(0), s, c}, back, ReasonPriorityTag},
		{"priority tag behind the outer one", In, 0, []uint32{s, vlan(0)}, back, ReasonPriorityTag},
		{"reserved tag", In, 0, []uint32{s, vlan(0xfff)}, back, ReasonPriorityTag},
		{"three tags", Out, innerMark, []uint32{s, c, c}, contoso, ReasonTags},
		{"three tags in", In, 0, []uint32{s, c, f}, back, ReasonTags},
		{"four tags", In, 0, []uint32{s, c, c, c}, back, ReasonTags},
		{"802.1ad", In, 0, []uint32{etherTypeQinQ<<16 | outerTag, c}, back, ReasonVLAN},
		{"802.1ad inside", In, 0, []uint32{s, etherTypeQinQ<<16 | innerVLAN}, back, ReasonVLAN},
		{"802.1ad for one tag", Out, singleMark, []uint32{etherTypeQinQ<<16 | singleVLAN}, fabrikam, ReasonVLAN},
		{"priority in", In, 0, []uint32{s | 0xa000, c | 0x7000}, back, ReasonFlow},
		{"priority out", Out, innerMark, []uint32{s | 0x2000, c}, contoso, ReasonVLAN},
		{"drop eligible out", Out, innerMark, []uint32{s, c | 0x1000}, contoso, ReasonVLAN},
		{"IPv6", Out, innerMark, []uint32{s, c}, ethernet(remoteMAC, localMAC, etherTypeIPv6, ipv6(protocolUDP, 64, localAddr6, peerAddr6, make([]byte, 100))), ReasonLength},
		{"IPv6 of nobody", Out, innerMark, []uint32{s, c}, ethernet(remoteMAC, localMAC, etherTypeIPv6, udp6(netip.AddrPortFrom(localAddr6, 1), netip.AddrPortFrom(peerAddr6, 1), payload)), ReasonNoFlow},
		{"IPv6 behind two tags", Out, innerMark, []uint32{s, c}, flow6, ReasonFlow},
		{"IPv6 behind the other customer's tag", Out, innerMark, []uint32{f}, flow6, ReasonNoFlow},
		{"ND behind two tags", Out, 0, []uint32{s, c}, ask6, ReasonNeighbor},
		{"the other customer's ND", Out, 0, []uint32{f}, ask6, ReasonNoNeighbor},
	} {
		cases = append(cases,
			frameCase{tt.name + ", in the frame", tt.dir, tt.mark, 0, inData(tt.data, tt.tags...), tt.want},
			frameCase{tt.name + ", one beside it", tt.dir, tt.mark, tt.tags[0], inData(tt.data, tt.tags[1:]...), tt.want},
		)
	}
	return cases
}

func TestJudgeTags(t *testing.T) {
	for _, tt := range taggedCases() {
		t.Run(tt.name, func(t *testing.T) {
			if _, got := Judge(portPlan(), Frame{tt.dir, port, tt.mark, tt.tag, tt.data}); got != tt.want {
				t.Errorf("judged %s, want %s", got, tt.want)
			}
		})
	}
}

func TestProgramsJudgeTags(t *testing.T) {
	r := newRunner(t, portPlan())
	r.l.must(r.l.circuit.Do(func() error {
		for _, tt := range taggedCases() {
			r.compare(t, Frame{tt.dir, port, tt.mark, tt.tag, tt.data})
			// Further up, the frame has fewer tags, and these are too many or wrong.
			r.compare(t, Frame{tt.dir, outer, tt.mark, tt.tag, tt.data})
			r.compare(t, Frame{tt.dir, inner, tt.mark, tt.tag, tt.data})
		}
		return nil
	}))
}

// On its way through the devices a packet loses its tags one by one, and is
// judged on each.
func TestEveryDeviceJudges(t *testing.T) {
	r := newRunner(t, portPlan())
	packet := ethernet(remoteMAC, localMAC, etherTypeIPv4, udp(tunnelLocal, tunnelRemote, make([]byte, 100)))
	r.l.must(r.l.circuit.Do(func() error {
		for _, tt := range []struct {
			name string
			tag  uint32
			data []byte
			want Reason
		}{
			{inner, 0, packet, ReasonFlow},
			{inner, vlan(innerVLAN), packet, ReasonVLAN},
			{outer, vlan(innerVLAN), packet, ReasonFlow},
			{outer, 0, packet, ReasonUntagged},
			{outer, vlan(outerTag), packet, ReasonVLAN},
			{port, vlan(outerTag), inData(packet, vlan(innerVLAN)), ReasonFlow},
			{port, vlan(outerTag), packet, ReasonVLAN},
			{single, 0, packet, ReasonNoFlow},
		} {
			f := Frame{Out, tt.name, innerMark, tt.tag, tt.data}
			if got := r.compare(t, f); got != tt.want {
				t.Errorf("on %s with tag %#x: %s, want %s", tt.name, tt.tag, got, tt.want)
			}
		}
		return nil
	}))
}

// Every frame enters and leaves a port as Judge says: what a wire brings has its
// first tag taken off by then, what a packet socket sends has all in it.
func TestTagsOnTheWire(t *testing.T) {
	for _, dir := range []Direction{Out, In} {
		t.Run(dir.String(), func(t *testing.T) {
			l := newLab(t)
			for i, name := range []string{port, outer, inner, single} {
				l.link(name, "end"+string(rune('0'+i)))
			}
			l.must(l.quiet(l.circuit, port))
			g := l.guard()
			l.must(g.Sync(t.Context(), portPlan()))
			h := l.handle(l.circuit)
			p, err := h.LinkByName(port)
			l.must(err)
			l.must(h.LinkSetUp(p))
			from, to := l.packets(l.circuit, port), l.packets(l.peer, "end0")
			if dir == In {
				from, to = to, from
			}
			to.received()
			for _, c := range taggedCases() {
				if c.dir != dir || c.tag != 0 || len(c.data) < etherHeader {
					continue
				}
				before := countOn(t, g, port, dir, c.want)
				from.send(c.data, c.mark)
				if dir == Out && to.sees(c.data, c.want.Pass()) != c.want.Pass() {
					t.Errorf("%s: crosses %t, want %t", c.name, !c.want.Pass(), c.want.Pass())
				}
				if after := countOn(t, g, port, dir, c.want); after <= before {
					t.Errorf("%s: not counted as %s", c.name, c.want)
				}
			}
		})
	}
}

func countOn(t *testing.T, g *Guard, name string, dir Direction, why Reason) uint64 {
	t.Helper()
	_, counters, err := g.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range counters {
		if c.Interface == name && c.Name == "guard_"+dir.String()+"_"+why.String() {
			return c.Packets
		}
	}
	t.Fatalf("no counter of %s on %s", why, name)
	return 0
}

func TestCompileVLANs(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*plan.Guard)
		want   string
		// flows of the three that stay open, on all interfaces.
		flows int
	}{
		{"sound", func(*plan.Guard) {}, "", 8},
		{"child before parent", func(g *plan.Guard) { slices.Reverse(g.VLANs) }, "behind the one that it stands on", 2},
		{"parent unknown", func(g *plan.Guard) { g.VLANs[0].Parent = "eth9" }, "one of the two is not the guard's", 2},
		{"child unknown", func(g *plan.Guard) { g.VLANs[2].Interface = "eth9" }, "one of the two is not the guard's", 7},
		{"VLAN 0", func(g *plan.Guard) { g.VLANs[2].ID = 0 }, "want 1 to 4094", 6},
		{"VLAN 4095", func(g *plan.Guard) { g.VLANs[2].ID = 4095 }, "want 1 to 4094", 6},
		{"same tag", func(g *plan.Guard) { g.VLANs[2].ID = outerTag }, "another device's", 6},
		{"twice", func(g *plan.Guard) { g.VLANs = append(g.VLANs, plan.VLAN{Interface: inner, Parent: port, ID: 9}) }, "stands twice", 2},
		{"three tags", func(g *plan.Guard) {
			g.VLANs[2].Parent = inner
		}, "more than 2 tags", 6},
		{"flow on the port", func(g *plan.Guard) { g.Flows[0].Interface = port }, "carries tagged links", 5},
		{"flow on the outer device", func(g *plan.Guard) { g.Flows[0].Interface = outer }, "carries tagged links", 5},
		{"neighbour on the port", func(g *plan.Guard) { g.Neighbors[0].Interface = port }, "carries tagged links", 8},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g := portPlan()
			tt.change(&g)
			p, err := compile(g)
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("error %v, want %q", err, tt.want)
			}
			if len(p.flows) != tt.flows {
				t.Errorf("%d flows, want %d: %v", len(p.flows), tt.flows, p.flows)
			}
		})
	}
}

// Without one of its interfaces, nothing of a link is open on the others.
func TestGuardWithoutADevice(t *testing.T) {
	for missing, want := range map[string]int{port: 0, outer: 2, inner: 2, single: 6} {
		names := slices.DeleteFunc(portPlan().Interfaces, func(s string) bool { return s == missing })
		p, err := compile(portPlan().Only(names))
		if err != nil || len(p.flows) != want {
			t.Errorf("without %s: %d flows and error %v, want %d", missing, len(p.flows), err, want)
		}
	}
}

// retag puts a frame on one of the interfaces that it passes on its way, with
// the tags that it has there or nearly those.
func retag(r *rand.Rand, f *Frame, g plan.Guard) {
	p, _ := compile(g)
	type place struct {
		name string
		tags tags
	}
	var places []place
	p.below(f.Interface, func(name string, t tags) { places = append(places, place{name, t}) })
	at := places[r.IntN(len(places))]
	f.Interface = at.name
	var list []uint32
	if at.tags > vlanID {
		list = append(list, vlan(uint16(at.tags>>16)))
	}
	if at.tags != 0 {
		list = append(list, vlan(uint16(at.tags)))
	}
	for range r.IntN(8) / 5 {
		known := []uint32{vlan(outerTag), vlan(innerVLAN), vlan(singleVLAN), vlan(0), vlan(vlanID), vlan(uint16(r.Uint32())), etherTypeQinQ<<16 | outerTag}
		add := known[r.IntN(len(known))]
		switch i := r.IntN(len(list) + 1); {
		case r.IntN(2) == 0:
			list = slices.Insert(list, i, add)
		case i < len(list) && r.IntN(2) == 0:
			list = slices.Delete(list, i, i+1)
		case i < len(list):
			list[i] = add
		}
	}
	if len(list) > 0 && r.IntN(2) == 0 {
		f.Tag, list = list[0], list[1:]
	}
	f.Data = inData(f.Data, list...)
}

// tagging runs a program on a frame with the tag that tagArguments gives, as the
// kernel has it of an interface that takes tags off or puts them on.
func tagging(l *lab, next *ebpf.Program) *ebpf.Program {
	l.t.Helper()
	array, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.ProgramArray, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	l.must(err)
	l.t.Cleanup(func() { _ = array.Close() })
	l.must(array.Put(uint32(0), next))
	const cb = 48
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.SchedCLS, License: "Apache-2.0",
		Instructions: asm.Instructions{
			asm.Mov.Reg(asm.R6, asm.R1),
			asm.LoadMem(asm.R2, asm.R6, cb, asm.Word),
			asm.LoadMem(asm.R3, asm.R6, cb+4, asm.Word),
			asm.FnSkbVlanPush.Call(),
			asm.JNE.Imm(asm.R0, 0, "failed"),
			asm.Mov.Reg(asm.R1, asm.R6),
			asm.LoadMapPtr(asm.R2, array.FD()),
			asm.Mov.Imm(asm.R3, 0),
			asm.FnTailCall.Call(),
			asm.Mov.Imm(asm.R0, 99).WithSymbol("failed"),
			asm.Return(),
		},
	})
	l.must(err)
	l.t.Cleanup(func() { _ = p.Close() })
	return p
}

func tagArguments(tag uint32) (cb [5]uint32) {
	cb[0] = uint32(binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, uint16(tag>>16))))
	cb[1] = tag & 0xffff
	return cb
}

// In nftables, packets have no tags: ports and outer devices are in no set, so
// that nothing is for them.
func TestNFTKnowsUppermostDevices(t *testing.T) {
	p, err := compile(portPlan())
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]bool{}
	for _, table := range renderNFT(p) {
		for _, s := range table.sets {
			for element := range s.elements {
				for _, name := range portPlan().Interfaces {
					found[name] = found[name] || strings.Contains(element, string(nameField(name)))
				}
			}
		}
	}
	if !found[inner] || !found[single] || found[outer] || found[port] {
		t.Errorf("sets name %v, want %s and %s only", found, inner, single)
	}
}

// A node's greatest number of links with two tags fits into the guard, beside as
// many untagged ones as it can have interfaces.
func TestCompileManyLinks(t *testing.T) {
	// As in controller/model.
	const links, ports = 512, 1000
	var g plan.Guard
	link := func(name string, i uint16) {
		local, remote := netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 1}), netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 2})
		g.Interfaces = append(g.Interfaces, name)
		g.Neighbors = append(g.Neighbors, plan.Neighbor{Interface: name, Local: local, Remote: remote})
		g.Flows = append(g.Flows, plan.Flow{Interface: name, Mark: instance.Mark(i + 1), Protocol: protocolUDP,
			Local: netip.AddrPortFrom(local, 51820+i), Remote: netip.AddrPortFrom(remote, 51820)})
	}
	g.Interfaces = append(g.Interfaces, "trunk")
	for i := range uint16(ports - 1) {
		link(fmt.Sprint("port", i), links+i)
	}
	for i := range uint16(links) {
		below, above := fmt.Sprint("cs+", i), fmt.Sprint("cs.", i)
		g.Interfaces = append(g.Interfaces, below)
		g.VLANs = append(g.VLANs, plan.VLAN{Interface: below, Parent: "trunk", ID: i + 1}, plan.VLAN{Interface: above, Parent: below, ID: 7})
		link(above, i)
	}
	p, err := compile(g)
	if err != nil || len(p.flows) != 3*links+ports-1 || len(p.neighbors) != 6*links+2*(ports-1) || len(p.stacks) > maxStacks {
		t.Errorf("%d flows, %d neighbours, %d stacks and error %v", len(p.flows), len(p.neighbors), len(p.stacks), err)
	}
}
