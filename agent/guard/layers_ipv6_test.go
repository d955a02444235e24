package guard

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// up6 gives circ0 its IPv6 address, and a link-local one, without duplicate address
// detection and takes it up, with the peer as a fixed neighbour unless ND is the
// subject.
func (l *lab) up6(resolve bool) {
	l.t.Helper()
	l.must(l.circuit.Do(func() error {
		for name, value := range map[string]string{"accept_dad": "0", "disable_ipv6": "0", "accept_ra": "0"} {
			if err := os.WriteFile("/proc/sys/net/ipv6/conf/circ0/"+name, []byte(value), 0); err != nil {
				return err
			}
		}
		return nil
	}))
	h := l.handle(l.circuit)
	c, err := h.LinkByName("circ0")
	l.must(err)
	l.must(h.AddrAdd(c, &netlink.Addr{IPNet: &net.IPNet{IP: localAddr6.AsSlice(), Mask: net.CIDRMask(64, 128)}, Flags: unix.IFA_F_NODAD}))
	l.must(h.LinkSetUp(c))
	// The kernel takes IPv6 into use when it has noticed the carrier.
	for start := time.Now(); ; time.Sleep(time.Millisecond) {
		routes, err := h.RouteListFiltered(netlink.FAMILY_V6, &netlink.Route{Table: unix.RT_TABLE_LOCAL, LinkIndex: c.Attrs().Index},
			netlink.RT_FILTER_TABLE|netlink.RT_FILTER_OIF)
		l.must(err)
		own := func(a netip.Addr) bool {
			return slices.ContainsFunc(routes, func(r netlink.Route) bool { return r.Dst != nil && r.Dst.IP.Equal(a.AsSlice()) })
		}
		if own(localAddr6) && own(ownLinkLocal(localMAC)) {
			break
		}
		if time.Since(start) > 10*time.Second {
			l.t.Fatalf("the addresses are not in use: %v", routes)
		}
	}
	if resolve {
		return
	}
	for _, a := range []netip.Addr{peerAddr6, otherAddr6, netip.MustParseAddr("fe80::1"), ownLinkLocal(remoteMAC)} {
		l.must(h.NeighSet(&netlink.Neigh{LinkIndex: c.Attrs().Index, State: unix.NUD_PERMANENT, IP: a.AsSlice(), HardwareAddr: remoteMAC}))
	}
}

// rawIPv6 sends IPv6 packets, header and all, from the circuit namespace, through
// nftables.
func (l *lab) rawIPv6() func(packet []byte, mark uint32) error {
	fd := l.socket(l.circuit, unix.AF_INET6, unix.SOCK_RAW, unix.IPPROTO_RAW)
	index := l.index(l.circuit, "circ0")
	return func(packet []byte, mark uint32) error {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, int(mark)); err != nil {
			return err
		}
		return unix.Sendto(fd, packet, 0, &unix.SockaddrInet6{Addr: [16]byte(packet[24:40]), ZoneId: uint32(index)})
	}
}

// The layers agree with Judge on what the stack sends over IPv6, ND included.
func TestEachLayerAloneIPv6(t *testing.T) {
	for _, tt := range []struct {
		name      string
		without   func(*lab)
		unguarded bool
		// alone tells that there is no eBPF, which alone looks at hardware addresses
		// and at what else could carry something.
		alone bool
	}{
		{"both", func(*lab) {}, false, false},
		{"nftables alone", (*lab).detach, false, true},
		{"eBPF alone", func(l *lab) { l.must(l.guard().removeNFT()) }, false, false},
		{"none", func(l *lab) { l.detach(); l.must(l.guard().removeNFT()) }, true, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			l.must(l.guard().Sync(t.Context(), ipsecPlan("circ0")))
			l.up6(false)
			tt.without(l)
			tap, send := l.packets(l.peer, "peer0"), l.rawIPv6()
			tap.received()
			seen := 0
			for _, c := range ipv6Cases() {
				// Lengths are the stack's own matter.
				if c.dir != Out || c.want == ReasonLength || c.want == ReasonShort || c.data[14]>>4 != 6 || tt.alone && (c.want == ReasonNDFormat || slices.Contains([]string{"ND asks from a link-local address that is not its own",
					"ND asks for a link-local address", "ND answers for another link-local address"}, c.name)) {
					continue
				}
				packet := c.data[etherHeader:]
				want := tt.unguarded
				if !want {
					// The stack chooses hardware addresses, and means well.
					frame := slices.Clone(c.data)
					if packet[24] == 0xff {
						copy(frame, multicastMAC(netip.AddrFrom16([16]byte(packet[24:]))))
					} else {
						copy(frame, remoteMAC)
					}
					want, _ = Judge(ipsecPlan("circ0"), Frame{Out, "circ0", c.mark, 0, frame})
				}
				if tt.unguarded && slices.Contains([]string{"IPv6 to a mapped address", "ND about mapped addresses", "duplicate address detection",
					"ND answers beyond the link-local prefix", "ND answers nobody"}, c.name) {
					// The stack itself sends nothing from or to such addresses.
					continue
				}
				if err := send(packet, c.mark); err != nil && want {
					t.Errorf("%s: %v", c.name, err)
				}
				if got := tap.seesAny(func(f []byte) bool { return bytes.HasSuffix(f, packet[8:]) }, want); got != want {
					t.Errorf("%s: arrives %t, want %t", c.name, got, want)
				}
				seen++
			}
			if seen < 25 {
				t.Errorf("%d packets sent, too few to say anything", seen)
			}
		})
	}
}

// Coming in, the same: a tunnel's packet reaches its socket, and nothing behind an
// extension header or in fragments does.
func TestEachLayerAloneIPv6In(t *testing.T) {
	local, remote := netip.AddrPortFrom(localAddr6, tunnelLocal.Port()), netip.AddrPortFrom(peerAddr6, tunnelRemote.Port())
	right := udp6(remote, local, make([]byte, 64))
	datagram := right[ipv6Header:]
	back := func(packet []byte) []byte { return ethernet(localMAC, remoteMAC, etherTypeIPv6, packet) }
	fragment := func(offset uint16, body []byte) []byte {
		h := binary.BigEndian.AppendUint16([]byte{protocolUDP, 0}, offset)
		return ipv6(protocolFrag, 64, peerAddr6, localAddr6, append(append(h, 0, 0, 0, 9), body...))
	}
	wrong := map[string][][]byte{
		"of another":            {udp6(netip.AddrPortFrom(peerAddr6, 9), local, nil)},
		"behind options":        {ipv6(60, 64, peerAddr6, localAddr6, append([]byte{protocolUDP, 0, 1, 4, 0, 0, 0, 0}, datagram...))},
		"in fragments":          {fragment(1, datagram[:32]), fragment(32, datagram[32:])},
		"in an atomic fragment": {fragment(0, datagram)},
	}
	for _, tt := range []struct {
		name    string
		without func(*lab)
		guarded bool
	}{
		{"none", func(l *lab) { l.detach(); l.must(l.guard().removeNFT()) }, false},
		{"nftables alone", (*lab).detach, true},
		{"eBPF alone", func(l *lab) { l.must(l.guard().removeNFT()) }, true},
		{"both", func(*lab) {}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			l.must(l.guard().Sync(t.Context(), ipsecPlan("circ0")))
			l.up6(false)
			tt.without(l)
			fd, wire := l.socket(l.circuit, unix.AF_INET6, unix.SOCK_DGRAM, 0), l.packets(l.peer, "peer0")
			l.must(unix.Bind(fd, &unix.SockaddrInet6{Port: int(local.Port()), Addr: localAddr6.As16()}))
			wire.send(back(right), 0)
			if !l.arrives(fd, true) {
				t.Error("the tunnel's packet does not arrive")
			}
			for name, packets := range wrong {
				for _, p := range packets {
					wire.send(back(p), 0)
				}
				if got := l.arrives(fd, !tt.guarded); got == tt.guarded {
					t.Errorf("a packet %s arrives %t", name, got)
				}
			}
		})
	}
}

// The kernel's own ND finds the neighbour through both layers, and answers it;
// another gets no answer, and nothing else leaves an interface that comes up:
// neither detection of duplicates, nor MLD, nor a search for routers.
func TestKernelResolvesTheIPv6NeighborOnly(t *testing.T) {
	l := newLab(t)
	l.must(l.guard().Sync(t.Context(), ipsecPlan("circ0")))
	tap := l.packets(l.peer, "peer0")
	l.up6(true)
	fd := l.socket(l.circuit, unix.AF_INET6, unix.SOCK_DGRAM, 0)
	l.must(unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, int(mark)))
	l.must(unix.Bind(fd, &unix.SockaddrInet6{Port: int(tunnelLocal.Port()), Addr: localAddr6.As16()}))
	l.must(unix.Sendto(fd, []byte("hello"), 0, &unix.SockaddrInet6{Port: int(tunnelRemote.Port()), Addr: peerAddr6.As16()}))
	// An interface that has just come up may miss what comes at once: like any host,
	// the peer answers each question, and asks again.
	snm := solicitedNode(peerAddr6)
	want := ethernet(multicastMAC(snm), localMAC, etherTypeIPv6, ndPacket(ndSolicitation, 0, 255, localAddr6, snm, peerAddr6, 1, localMAC))
	answered := false
	for start := time.Now(); !answered && time.Since(start) < 10*time.Second; {
		for _, f := range tap.received() {
			switch {
			case bytes.HasSuffix(f, []byte("hello")):
				answered = true
			case bytes.Equal(f, want):
				tap.send(ethernet(localMAC, remoteMAC, etherTypeIPv6, ndPacket(ndAdvertisement, 0xe0, 255, peerAddr6, localAddr6, peerAddr6, 2, remoteMAC)), 0)
			default:
				t.Errorf("%s leaves, want only %s", describe(f), describe(want))
			}
		}
	}
	if !answered {
		t.Fatal("the datagram does not follow the answer")
	}
	own := solicitedNode(localAddr6)
	ask := func(from netip.Addr) {
		tap.send(ethernet(multicastMAC(own), remoteMAC, etherTypeIPv6, ndPacket(ndSolicitation, 0, 255, from, own, localAddr6, 1, remoteMAC)), 0)
	}
	isAnswer := func(f []byte) bool { return len(f) > 54 && f[54] == ndAdvertisement }
	for start := time.Now(); ; {
		ask(peerAddr6)
		if slices.ContainsFunc(tap.received(), isAnswer) {
			break
		}
		if time.Since(start) > 10*time.Second {
			t.Fatal("the neighbour gets no answer")
		}
	}
	ask(otherAddr6)
	for _, f := range tap.received() {
		// What the kernel asks the neighbour by now is its right.
		if len(f) < 54 || f[54] != ndSolicitation || !bytes.Equal(f[62:78], peerAddr6.AsSlice()) {
			t.Errorf("somebody else's question has for an answer %s", describe(f))
		}
	}
}
