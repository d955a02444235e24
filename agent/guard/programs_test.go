package guard

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strconv"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/google/go-cmp/cmp"

	"github.com/circuitseal/circuitseal/agent/instance"
	"github.com/circuitseal/circuitseal/agent/plan"
)

// runner runs the programs by hand (BPF_PROG_TEST_RUN) over maps synced from a
// plan of circ0 and circ1.
type runner struct {
	l      *lab
	g      *Guard
	policy policy
	index  map[string]uint32
	// tagging gives a frame a tag beside it and runs the guard's program.
	tagging [2]*ebpf.Program
}

func newRunner(t testing.TB, want plan.Guard) *runner {
	t.Helper()
	l := newLab(t)
	index := make(map[string]uint32)
	for i, name := range append([]string{"circ1"}, want.Interfaces...) {
		if name != "circ0" && index[name] == 0 {
			// Other interfaces stand for VLAN devices: the guard knows them by their
			// names, and not every kernel can make the latter.
			l.link(name, "peer"+strconv.Itoa(i+1))
		}
		index[name] = uint32(l.index(l.circuit, name))
	}
	index["circ0"] = uint32(l.index(l.circuit, "circ0"))
	g := l.guard()
	l.must(g.Sync(t.Context(), want))
	p, err := compile(want)
	l.must(err)
	r := &runner{l: l, g: g, policy: p, index: index}
	r.tagging[Out], r.tagging[In] = tagging(l, g.objects.GuardEgress), tagging(l, g.objects.GuardIngress)
	return r
}

// run must be called inside the circuit namespace: the kernel looks the
// interface up there.
func (r *runner) run(f Frame) (pass bool, why Reason, err error) {
	p := r.g.objects.GuardEgress
	if f.Direction == In {
		p = r.g.objects.GuardIngress
	}
	if f.Tag != 0 {
		p = r.tagging[f.Direction]
	}
	in, out := skBuff{CB: tagArguments(f.Tag), Mark: f.Mark, Ifindex: r.index[f.Interface]}, skBuff{}
	code, err := p.Run(&ebpf.RunOptions{Data: f.Data, Context: in, ContextOut: &out})
	return code == 0, Reason(out.CB[0]), err
}

// runnable leaves out what the kernel takes for no packet at all
// (bpf_prog_test_run_skb): less than an Ethernet header and a byte, more than a
// page has room for, and IP frames without an IP header.
func runnable(frame []byte) bool {
	if len(frame) <= etherHeader || len(frame) > 3000 {
		return false
	}
	switch binary.BigEndian.Uint16(frame[12:]) {
	case etherTypeIPv4:
		return len(frame) >= etherHeader+ipHeader
	case etherTypeIPv6:
		return len(frame) >= etherHeader+40
	}
	return true
}

// compare fails the test when program and Judge differ on a frame.
func (r *runner) compare(t testing.TB, f Frame) Reason {
	t.Helper()
	want := r.policy.judge(f)
	if !runnable(f.Data) {
		return want
	}
	pass, why, err := r.run(f)
	if err != nil {
		t.Errorf("run on %s: %v", describe(f.Data), err)
	}
	if pass != want.Pass() || why != want {
		t.Errorf("%s on %s with mark %#x and tag %#x, %s: program passes it %t (%s), want %t (%s)", f.Direction, f.Interface, f.Mark, f.Tag, describe(f.Data), pass, why, want.Pass(), want)
	}
	return want
}

func TestProgramsJudgeCases(t *testing.T) {
	r := newRunner(t, ipsecPlan("circ0"))
	r.l.must(r.l.circuit.Do(func() error {
		for _, tt := range frameCases() {
			r.compare(t, Frame{tt.dir, "circ0", tt.mark, tt.tag, tt.data})
		}
		return nil
	}))
}

// twoLinks has several flows on two interfaces that differ in little.
func twoLinks() plan.Guard {
	g := plan.Guard{Interfaces: []string{"circ0", "circ1"}}
	for i, name := range g.Interfaces {
		local := netip.AddrFrom4([4]byte{10, 9, byte(i), 1})
		remote := netip.AddrFrom4([4]byte{10, 9, byte(i), 2})
		g.Neighbors = append(g.Neighbors, plan.Neighbor{Interface: name, Local: local, Remote: remote})
		for n := range uint16(4) {
			g.Flows = append(g.Flows, plan.Flow{Interface: name, Mark: mark + uint32(i), Protocol: protocolUDP,
				Local: netip.AddrPortFrom(local, 51820+n), Remote: netip.AddrPortFrom(remote, 51820)})
		}
		g.Flows = append(g.Flows, ipsecFlows(name, mark+uint32(i), local, remote)...)
		g = addIPv6(g, name, mark+uint32(i), netip.AddrFrom16([16]byte{0xfd, 9, 9: byte(i), 15: 1}), netip.AddrFrom16([16]byte{0xfd, 9, 9: byte(i), 15: 2}))
	}
	return g
}

// randomFrame makes a frame that is right or nearly so, then perhaps spoils
// it.
func randomFrame(r *rand.Rand, g plan.Guard) Frame {
	f := Frame{Direction: Direction(r.IntN(2)), Interface: g.Neighbors[r.IntN(len(g.Neighbors))].Interface}
	flow := g.Flows[r.IntN(len(g.Flows))]
	if r.IntN(8) > 0 {
		f.Interface = flow.Interface
	}
	f.Mark = []uint32{flow.Mark, flow.Mark, flow.Mark, flow.Mark ^ 1, instance.ControlMark, 0, r.Uint32()}[r.IntN(7)]
	n := g.Neighbors[r.IntN(len(g.Neighbors))]
	if n.Interface != f.Interface && r.IntN(8) > 0 {
		n = g.Neighbors[slices.IndexFunc(g.Neighbors, func(n plan.Neighbor) bool { return n.Interface == f.Interface })]
	}
	here, there, own, far := localMAC, remoteMAC, n.Local, n.Remote
	from, to := flow.Local, flow.Remote
	if f.Direction == In {
		here, there, own, far, from, to = there, here, far, own, to, from
	}
	if own.Is6() {
		f.Data = randomIPv6(r, flow.Protocol, here, there, own, far, from, to)
		retag(r, &f, g)
		mutate(r, &f)
		return f
	}
	switch r.IntN(8) {
	case 0, 1, 2, 3:
		packet := udp(from, to, make([]byte, r.IntN(64)))
		if flow.Protocol == protocolESP {
			packet = ipv4(protocolESP, from.Addr(), to.Addr(), esp(1<<r.IntN(32), r.IntN(64)))
		}
		f.Data = ethernet(there, here, etherTypeIPv4, packet)
	case 4:
		f.Data = ethernet(broadcast, here, etherTypeARP, arp(arpRequest, here, own, zeroMAC, far))
	case 5:
		f.Data = ethernet(there, here, etherTypeARP, arp(arpReply, here, own, there, far))
	case 6:
		f.Data = ethernet(there, here, etherTypeIPv4, ipv4(byte(r.Uint32()), from.Addr(), to.Addr(), make([]byte, r.IntN(64))))
	case 7:
		f.Data = make([]byte, etherHeader+1+r.IntN(80))
		for i := range f.Data {
			f.Data[i] = byte(r.Uint32())
		}
	}
	retag(r, &f, g)
	mutate(r, &f)
	return f
}

// randomIPv6 is a packet of a flow, or one of neighbour discovery; where the flow
// is one of IPv4, the former is wrong.
func randomIPv6(r *rand.Rand, protocol byte, here, there []byte, own, far netip.Addr, from, to netip.AddrPort) []byte {
	six := func(a netip.AddrPort) netip.AddrPort {
		return netip.AddrPortFrom(netip.AddrFrom16(a.Addr().As16()), a.Port())
	}
	from, to = six(from), six(to)
	switch r.IntN(7) {
	case 0:
		group := solicitedNode(far)
		return ethernet(multicastMAC(group), here, etherTypeIPv6, ndPacket(ndSolicitation, 0, 255, own, group, far, byte(r.IntN(2)), here))
	case 1:
		return ethernet(there, here, etherTypeIPv6, ndPacket(ndSolicitation, 0, 255, own, far, far, 1, here))
	case 2:
		return ethernet(there, here, etherTypeIPv6, ndPacket(ndAdvertisement, byte(r.IntN(8))<<5, 255, own, far, own, 2*byte(r.IntN(2)), here))
	case 3:
		return ethernet(multicastMAC(allNodes), here, etherTypeIPv6, ndPacket(ndAdvertisement, 0x20, 255, own, allNodes, own, 2, here))
	}
	if protocol == protocolESP {
		return ethernet(there, here, etherTypeIPv6, ipv6(protocolESP, 64, from.Addr(), to.Addr(), esp(1<<r.IntN(32), r.IntN(64))))
	}
	return ethernet(there, here, etherTypeIPv6, udp6(from, to, make([]byte, r.IntN(64))))
}

func mutate(r *rand.Rand, f *Frame) {
	for range r.IntN(3) {
		switch r.IntN(6) {
		case 0:
			f.Data[r.IntN(len(f.Data))] ^= 1 << r.IntN(8)
		case 1:
			f.Data[r.IntN(min(86, len(f.Data)))] = byte(r.Uint32())
		case 2:
			f.Data = append(f.Data, make([]byte, r.IntN(24))...)
		case 3:
			f.Data = f.Data[:max(etherHeader+1, len(f.Data)-r.IntN(24))]
		case 4:
			types := []uint16{etherTypeIPv4, etherTypeARP, etherTypeIPv6, etherTypeVLAN, etherTypeQinQ, 0x88e5, 60}
			v := types[r.IntN(len(types))]
			f.Data[12], f.Data[13] = byte(v>>8), byte(v)
		case 5:
			if len(f.Data) > 21 {
				f.Data[20+r.IntN(2)] = byte(r.Uint32())
			}
		}
	}
}

func TestProgramsJudgeRandomFrames(t *testing.T) {
	g := both(twoLinks(), portPlan())
	r := newRunner(t, g)
	random := rand.New(rand.NewPCG(1, 2))
	seen := make(map[Reason]int)
	const frames = 30_000
	r.l.must(r.l.circuit.Do(func() error {
		for i := 0; i < frames && !t.Failed(); i++ {
			seen[r.compare(t, randomFrame(random, g))]++
		}
		return nil
	}))
	t.Logf("%d frames: %v", frames, seen)
	for why := range Reason(reasons) {
		if seen[why] < 5 {
			t.Errorf("%d random frames are judged %s, too few to say anything", seen[why], why)
		}
	}
}

func FuzzPrograms(f *testing.F) {
	r := newRunner(f, both(ipsecPlan("circ0"), portPlan()))
	for _, tt := range frameCases() {
		f.Add(uint8(tt.dir), tt.mark, tt.tag, tt.data)
	}
	for _, tt := range taggedCases() {
		f.Add(uint8(tt.dir), tt.mark, tt.tag, tt.data)
	}
	f.Fuzz(func(t *testing.T, direction uint8, mark, tag uint32, data []byte) {
		if t := tag >> 16; t != etherTypeVLAN && t != etherTypeQinQ {
			tag = 0
		}
		if !runnable(data) {
			t.Skip()
		}
		if err := r.l.circuit.Do(func() error {
			for _, name := range []string{"circ0", port} {
				r.compare(t, Frame{Direction(direction & 1), name, mark, tag, data})
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	})
}

// A random walk over plans ends at every step where a fresh start would, and
// at no point between is anything open that neither plan has, or closed that
// both have.
func TestMapsFollowPlans(t *testing.T) {
	all := both(twoLinks(), portPlan())
	r := newRunner(t, plan.Guard{Interfaces: all.Interfaces})
	random := rand.New(rand.NewPCG(3, 4))
	index := map[string]int{}
	for name, i := range r.index {
		index[name] = int(i)
	}
	for range 50 {
		next := plan.Guard{Interfaces: all.Interfaces, VLANs: all.VLANs}
		if random.IntN(4) == 0 {
			// Without the devices of one link.
			next = next.Only(slices.DeleteFunc(slices.Clone(all.Interfaces), func(s string) bool { return s == inner || s == outer }))
		}
		has := func(name string) bool { return slices.Contains(next.Interfaces, name) }
		for _, f := range all.Flows {
			if random.IntN(2) == 0 && has(f.Interface) {
				f.Mark += uint32(random.IntN(2)) * 16
				next.Flows = append(next.Flows, f)
			}
		}
		for _, n := range all.Neighbors {
			if random.IntN(2) == 0 && has(n.Interface) {
				next.Neighbors = append(next.Neighbors, n)
			}
		}
		p, err := compile(next)
		r.l.must(err)
		r.l.must(r.g.Sync(t.Context(), next))
		have, err := readMaps(r.g.objects)
		r.l.must(err)
		if diff := cmp.Diff(renderMaps(p, index), have, cmp.AllowUnexported(mapState{}), cmp.AllowUnexported(programStackKey{}, programFlowKey{}, programFlow{}, programNeighbor{})); diff != "" {
			t.Fatalf("maps (-want +got):\n%s", diff)
		}
	}
}

func TestDiffMapsAddsBeforeItDrops(t *testing.T) {
	key := func(port uint16) programFlowKey { return programFlowKey{LocalPort: port} }
	by := func(mark uint32) programFlow { return programFlow{Marks: [2]uint32{mark, mark}} }
	near := func(b byte) programNeighbor { return programNeighbor{Local: [16]byte{b}} }
	have := mapState{flows: map[programFlowKey]programFlow{key(1): by(1), key(2): by(2), key(3): by(3)}, neighbors: map[programNeighbor]bool{near(1): true}}
	want := mapState{flows: map[programFlowKey]programFlow{key(2): by(2), key(3): by(9), key(4): by(4)}, neighbors: map[programNeighbor]bool{near(2): true}}
	d := diffMaps(want, have)
	opts := cmp.AllowUnexported(mapPlan{}, programStackKey{}, programFlowKey{}, programFlow{}, programNeighbor{})
	if diff := cmp.Diff(mapPlan{
		setFlows:      map[programFlowKey]programFlow{key(3): by(9), key(4): by(4)},
		addNeighbors:  []programNeighbor{near(2)},
		dropFlows:     []programFlowKey{key(1)},
		dropNeighbors: []programNeighbor{near(1)},
	}, d, opts); diff != "" {
		t.Errorf("plan (-want +got):\n%s", diff)
	}
	if c := d.closing(); len(c.setFlows)+len(c.addNeighbors) > 0 {
		t.Errorf("closing opens %v %v", c.setFlows, c.addNeighbors)
	}
	if !diffMaps(want, want).empty() {
		t.Error("a repeat changes something")
	}
}
