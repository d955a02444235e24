package guard

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/circuitseal/circuitseal/agent/plan"
)

// prove fails the test unless send reaches the tap: a tap that saw nothing has
// to have been able to see something.
func prove(t *testing.T, tap *packetSocket, frame []byte, send func()) {
	t.Helper()
	tap.received()
	send()
	if !tap.sees(frame, true) {
		t.Fatalf("with the layers off the tap misses %s", describe(frame))
	}
}

// tagged has a VLAN tag in the frame.
func tagged(frame []byte) []byte {
	return append(append(append([]byte{}, frame[:12]...), 0x81, 0, 0, 5), frame[12:]...)
}

// Every frame leaves and enters a real interface as Judge says, with the
// programs alone: packet sockets pass nftables by.
func TestProgramsOnTheWire(t *testing.T) {
	for _, dir := range []Direction{Out, In} {
		t.Run(dir.String(), func(t *testing.T) {
			l := newLab(t)
			l.must(l.quiet(l.circuit, "circ0"))
			l.up(false)
			g := l.guard()
			from, to := l.packets(l.circuit, "circ0"), l.packets(l.peer, "peer0")
			if dir == In {
				from, to = to, from
			}
			cases := slices.DeleteFunc(frameCases(), func(c frameCase) bool { return c.dir != dir || c.tag != 0 })
			if dir == Out {
				for _, c := range cases {
					prove(t, to, c.data, func() { from.send(c.data, c.mark) })
				}
			}
			l.must(g.Sync(t.Context(), ipsecPlan("circ0")))
			to.received()
			for _, c := range cases {
				before := packetsOf(t, g, dir, c.want)
				from.send(c.data, c.mark)
				arrived := to.sees(c.data, dir == Out && c.want.Pass())
				// A tap on the interface itself is ahead of ingress programs:
				// there the counters tell.
				if dir == Out && arrived != c.want.Pass() {
					t.Errorf("%s: arrives %t, want %t", c.name, arrived, c.want.Pass())
				}
				if got := packetsOf(t, g, dir, c.want); got != before+1 {
					t.Errorf("%s: counter %s goes from %d to %d, want one more", c.name, c.want, before, got)
				}
			}
		})
	}
}

func packetsOf(t *testing.T, g *Guard, d Direction, r Reason) uint64 {
	t.Helper()
	_, counters, err := g.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range counters {
		if c.Name == "guard_"+d.String()+"_"+r.String() && c.Interface == "circ0" {
			return c.Packets
		}
	}
	t.Fatalf("no counter for %s %s", d, r)
	return 0
}

// A tag in the frame is taken off before ingress programs see it, and kept
// beside the packet.
func TestTaggedFramesAreDropped(t *testing.T) {
	l := newLab(t)
	l.must(l.quiet(l.circuit, "circ0"))
	l.up(false)
	g := l.guard()
	l.must(g.Sync(t.Context(), onePlan("circ0")))
	in := ethernet(localMAC, remoteMAC, etherTypeIPv4, udp(tunnelRemote, tunnelLocal, make([]byte, 100)))
	l.packets(l.peer, "peer0").send(tagged(in), 0)
	if n := packetsOf(t, g, In, ReasonVLAN); n != 1 {
		t.Errorf("%d tagged frames counted, want 1", n)
	}
}

// An interface that comes up under the guard sends nothing by itself; without
// the guard it does.
func TestInterfaceComesUpSilently(t *testing.T) {
	for _, guarded := range []bool{false, true} {
		t.Run(strconv.FormatBool(guarded), func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			if guarded {
				l.arm(l.guard(), "circ0")
			}
			tap := l.packets(l.peer, "peer0")
			l.up(false)
			var n int
			for start := time.Now(); time.Since(start) < 1500*time.Millisecond; {
				n += len(tap.received())
			}
			if guarded && n > 0 || !guarded && n == 0 {
				t.Errorf("%d frames with guard %t", n, guarded)
			}
		})
	}
}

// layerCase is a packet that both layers can see: one that goes through the
// stack.
type layerCase struct {
	name   string
	mark   uint32
	packet []byte
}

func layerCases() []layerCase {
	var out []layerCase
	for _, c := range frameCases() {
		// The stack writes the lengths of packets that it sends, and refuses
		// those that it cannot read.
		if c.dir == Out && c.tag == 0 && binary.BigEndian.Uint16(c.data[12:]) == etherTypeIPv4 &&
			c.want != ReasonShort && c.want != ReasonLength && c.data[14]>>4 == 4 {
			out = append(out, layerCase{c.name, c.mark, c.data[etherHeader:]})
		}
	}
	return out
}

// The layers agree with Judge on what the stack sends, each alone and both
// together, and with both off everything arrives.
func TestEachLayerAlone(t *testing.T) {
	tests := []struct {
		name      string
		without   func(*lab)
		unguarded bool
	}{
		{"both", func(*lab) {}, false},
		{"nftables alone", (*lab).detach, false},
		{"eBPF alone", func(l *lab) { l.must(l.guard().removeNFT()) }, false},
		{"none", func(l *lab) { l.detach(); l.must(l.guard().removeNFT()) }, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l := newLab(t)
			l.must(l.quiet(l.circuit, "circ0"))
			l.up(false)
			g := l.guard()
			l.must(g.Sync(t.Context(), ipsecPlan("circ0")))
			l.must(g.Close())
			tt.without(l)
			tap, send := l.packets(l.peer, "peer0"), l.rawIP()
			for _, c := range layerCases() {
				want := tt.unguarded
				if !want {
					want, _ = Judge(ipsecPlan("circ0"), Frame{Out, "circ0", c.mark, 0, ethernet(remoteMAC, localMAC, etherTypeIPv4, c.packet)})
				}
				// The kernel tells a sender whose packet nftables drops.
				if err := send(c.packet, c.mark); err != nil && want {
					t.Errorf("%s: %v", c.name, err)
				}
				if got := tap.seesAny(anything, want); got != want {
					t.Errorf("%s: arrives %t, want %t", c.name, got, want)
				}
			}
		})
	}
}

// Coming in, the same: the tuple reaches the socket, and neither another peer
// nor a fragment does.
func TestEachLayerAloneIn(t *testing.T) {
	payload := make([]byte, 64)
	right := ethernet(localMAC, remoteMAC, etherTypeIPv4, udp(tunnelRemote, tunnelLocal, payload))
	other := netip.AddrPortFrom(peerAddr, tunnelRemote.Port()+1)
	wrong := ethernet(localMAC, remoteMAC, etherTypeIPv4, udp(other, tunnelLocal, payload))
	whole := udp(tunnelRemote, tunnelLocal, payload)
	// Two fragments of the right packet, cut behind 32 bytes.
	first := ipv4(protocolUDP, tunnelRemote.Addr(), tunnelLocal.Addr(), whole[ipHeader:ipHeader+32])
	second := ipv4(protocolUDP, tunnelRemote.Addr(), tunnelLocal.Addr(), whole[ipHeader+32:])
	first[6], second[7] = 0x20, 4
	fragments := [][]byte{ethernet(localMAC, remoteMAC, etherTypeIPv4, checksum(first)), ethernet(localMAC, remoteMAC, etherTypeIPv4, checksum(second))}

	tests := []struct {
		name    string
		without func(*lab)
		guarded bool
	}{
		{"none", func(l *lab) { l.detach(); l.must(l.guard().removeNFT()) }, false},
		{"nftables alone", (*lab).detach, true},
		{"eBPF alone", func(l *lab) { l.must(l.guard().removeNFT()) }, true},
		{"both", func(*lab) {}, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l := newLab(t)
			l.must(l.quiet(l.circuit, "circ0"))
			l.up(false)
			g := l.guard()
			l.must(g.Sync(t.Context(), onePlan("circ0")))
			l.must(g.Close())
			tt.without(l)
			fd, wire := l.udpSocket(mark), l.packets(l.peer, "peer0")
			wire.send(right, 0)
			if !l.arrives(fd, true) {
				t.Error("the tunnel's packet does not arrive")
			}
			wire.send(wrong, 0)
			if got := l.arrives(fd, !tt.guarded); got == tt.guarded {
				t.Errorf("another peer's packet arrives %t", got)
			}
			for _, f := range fragments {
				wire.send(f, 0)
			}
			if got := l.arrives(fd, !tt.guarded); got == tt.guarded {
				t.Errorf("a fragmented packet arrives %t", got)
			}
		})
	}
}

// A super-packet that wireguard-go hands to the kernel passes whole.
func TestSegmentationOffloadPasses(t *testing.T) {
	l := newLab(t)
	l.must(l.quiet(l.circuit, "circ0"))
	l.up(false)
	g := l.guard()
	l.must(g.Sync(t.Context(), onePlan("circ0")))
	fd, tap := l.udpSocket(mark), l.packets(l.peer, "peer0")
	l.must(unix.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_SEGMENT, 1000))
	l.must(unix.Sendto(fd, make([]byte, 40_000), 0, &unix.SockaddrInet4{Port: int(tunnelRemote.Port()), Addr: peerAddr.As4()}))
	var n int
	for _, f := range tap.received() {
		n += len(f) - etherHeader - ipHeader - udpHeader
	}
	if n < 40_000 {
		t.Errorf("%d bytes arrive, want 40000", n)
	}
	if got := packetsOf(t, g, Out, ReasonFlow); got != 1 {
		t.Errorf("%d frames counted, want one super-packet", got)
	}
}

// What is too big for the interface is cut behind nftables, and stops at the
// programs.
func TestOutgoingFragmentsAreDropped(t *testing.T) {
	l := newLab(t)
	l.must(l.quiet(l.circuit, "circ0"))
	l.up(false)
	g := l.guard()
	fd, tap := l.udpSocket(mark), l.packets(l.peer, "peer0")
	l.must(unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DONT))
	send := func() {
		l.must(unix.Sendto(fd, make([]byte, 3000), 0, &unix.SockaddrInet4{Port: int(tunnelRemote.Port()), Addr: peerAddr.As4()}))
	}
	send()
	if n := len(tap.received()); n != 3 {
		t.Fatalf("without a guard %d fragments arrive, want 3", n)
	}
	l.must(g.Sync(t.Context(), onePlan("circ0")))
	send()
	if n := len(tap.received()); n != 0 {
		t.Errorf("%d fragments arrive", n)
	}
	// The kernel gives the rest up when the first one does not leave.
	if n := packetsOf(t, g, Out, ReasonFragment); n != 1 {
		t.Errorf("%d fragments counted, want 1", n)
	}
}

// The kernel's own ARP finds the neighbour through both layers, and answers
// it; for another address not a frame leaves.
func TestKernelResolvesTheNeighborOnly(t *testing.T) {
	l := newLab(t)
	l.must(l.quiet(l.circuit, "circ0"))
	l.up(true)
	h := l.handle(l.peer)
	p, err := h.LinkByName("peer0")
	l.must(err)
	for _, a := range []string{"10.9.0.2/24", "10.9.0.9/24"} {
		addr, err := netlink.ParseAddr(a)
		l.must(err)
		l.must(h.AddrAdd(p, addr))
	}
	l.must(l.guard().Sync(t.Context(), onePlan("circ0")))
	tap, in := l.packets(l.peer, "peer0"), l.udpSocket(mark)
	l.must(unix.Sendto(in, []byte("hello"), 0, &unix.SockaddrInet4{Port: int(tunnelRemote.Port()), Addr: peerAddr.As4()}))
	if !tap.seesAny(func(f []byte) bool { return bytes.HasSuffix(f, []byte("hello")) }, true) {
		t.Error("the datagram does not follow ARP")
	}
	// The peer's own resolution, from the neighbour's address and from another.
	asked := ethernet(broadcast, remoteMAC, etherTypeARP, arp(arpRequest, remoteMAC, peerAddr, zeroMAC, localAddr))
	tap.send(asked, 0)
	if !tap.seesAny(anything, true) {
		t.Error("the neighbour gets no answer")
	}
	tap.send(edit(asked, func(b []byte) { b[31] = 9 }), 0)
	if n := len(tap.received()); n != 0 {
		t.Errorf("another host gets %d frames for an answer", n)
	}
}

// A router that takes over from another announces itself by ARP: the kernel
// believes it at once, and nobody else.
func TestNeighborAnnouncesItself(t *testing.T) {
	l := newLab(t)
	l.must(l.quiet(l.circuit, "circ0"))
	l.up(true)
	l.must(l.guard().Sync(t.Context(), onePlan("circ0")))
	h := l.handle(l.circuit)
	index := l.index(l.circuit, "circ0")
	l.must(h.NeighSet(&netlink.Neigh{LinkIndex: index, IP: peerAddr.AsSlice(), HardwareAddr: remoteMAC, State: netlink.NUD_REACHABLE}))
	mac := func() string {
		all, err := h.NeighList(index, netlink.FAMILY_V4)
		l.must(err)
		for _, n := range all {
			if n.IP.Equal(peerAddr.AsSlice()) {
				return n.HardwareAddr.String()
			}
		}
		return ""
	}
	second := []byte{2, 0, 0, 0, 0, 0x77}
	from := l.packets(l.peer, "peer0")
	// A stranger who asks for the neighbour changes nothing.
	from.send(ethernet(broadcast, second, etherTypeARP, arp(arpRequest, second, otherAddr, zeroMAC, peerAddr)), 0)
	time.Sleep(50 * time.Millisecond)
	if got := mac(); got != net.HardwareAddr(remoteMAC).String() {
		t.Errorf("the neighbour's hardware address became %s", got)
	}
	from.send(ethernet(broadcast, second, etherTypeARP, arp(arpRequest, second, peerAddr, zeroMAC, peerAddr)), 0)
	for deadline := time.Now().Add(10 * time.Second); mac() != net.HardwareAddr(second).String(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the neighbour's hardware address stays %s, want the announced one", mac())
		}
	}
}

// The programs outlive the agent, and nftables an interface that is deleted
// and made again; a restarted agent takes all up again.
func TestLayersOutliveAgentAndInterface(t *testing.T) {
	l := newLab(t)
	l.must(l.quiet(l.circuit, "circ0"))
	l.up(false)
	g := l.guard()
	l.must(g.Sync(t.Context(), onePlan("circ0")))
	l.must(g.Close())
	right := layerCases()[slices.IndexFunc(layerCases(), func(c layerCase) bool { return c.name == "tunnel out" })]
	check := func(when string) {
		t.Helper()
		tap, send := l.packets(l.peer, "peer0"), l.rawIP()
		if err := send(right.packet, mark); err != nil {
			t.Errorf("%s: %v", when, err)
		}
		if !tap.seesAny(anything, true) {
			t.Errorf("%s: the tunnel's packet does not arrive", when)
		}
		_ = send(right.packet, 0)
		if n := len(tap.received()); n != 0 {
			t.Errorf("%s: %d unmarked packets arrive", when, n)
		}
	}
	check("agent gone")

	h := l.handle(l.circuit)
	c, err := h.LinkByName("circ0")
	l.must(err)
	l.must(h.LinkDel(c))
	l.link("circ0", "peer0")
	l.must(l.quiet(l.circuit, "circ0"))
	l.up(false)
	check("interface made again, without programs")

	g = l.guard()
	l.must(g.Sync(t.Context(), onePlan("circ0")))
	requireAlive(t, g, true, true, true)
	if n := l.own(); n != len(hooks) {
		t.Errorf("%d programs attached, want %d: leftovers stay", n, len(hooks))
	}
	check("agent back")
}

func requireAlive(t *testing.T, g *Guard, namespace, ebpf, nft bool) {
	t.Helper()
	status, _, err := g.Status(t.Context())
	if err != nil {
		t.Error(err)
	}
	want := map[string]bool{LayerNamespace: namespace, LayerEBPF: ebpf, LayerNFTables: nft}
	if len(status) == 0 {
		t.Error("no status")
	}
	for _, s := range status {
		if s.Alive != want[s.Layer] {
			t.Errorf("%s of %s: alive %t, want %t", s.Layer, s.Interface, s.Alive, want[s.Layer])
		}
	}
}

// A restarted agent replaces the code and changes nothing else, while packets
// pass: not one is lost.
func TestRestartLosesNothing(t *testing.T) {
	l := newLab(t)
	l.must(l.quiet(l.circuit, "circ0"))
	l.up(false)
	want := onePlan("circ0")
	more := onePlan("circ0")
	extra := more.Flows[0]
	extra.Local = netip.AddrPortFrom(localAddr, 1)
	more.Flows = append(more.Flows, extra)
	first := l.guard()
	l.must(first.Sync(t.Context(), want))
	l.must(first.Close())
	fd, tap := l.udpSocket(mark), l.packets(l.peer, "peer0")
	stop, sent := make(chan struct{}), make(chan int)
	go func() {
		n := 0
		for {
			select {
			case <-stop:
				sent <- n
				return
			default:
				if unix.Sendto(fd, []byte{1}, 0, &unix.SockaddrInet4{Port: int(tunnelRemote.Port()), Addr: peerAddr.As4()}) == nil {
					n++
				}
				if n%16 == 0 {
					_ = unix.Nanosleep(&unix.Timespec{Nsec: 200_000}, nil)
				}
			}
		}
	}()
	for i := range 10 {
		g := l.guard()
		next := []plan.Guard{want, more}[i%2]
		l.armFor(g, next)
		l.must(g.Sync(t.Context(), next))
		l.must(g.Close())
	}
	close(stop)
	n, got := <-sent, len(tap.received())
	if got != n || n < 100 {
		t.Errorf("%d of %d packets arrive during 10 restarts, want all of at least 100", got, n)
	}
}
