package classifier

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/circuitseal/circuitseal/agent/netns"
	"github.com/circuitseal/circuitseal/agent/plan"
	"github.com/circuitseal/circuitseal/agent/slowpath"
)

// slowly gives the site slow paths, which nothing but the test keeps in order.
func (s *site) slowly() {
	s.t.Helper()
	s.slow = slowpath.New(slowpath.Config{Main: s.node, Instance: s.instance, Log: slog.New(slog.DiscardHandler)})
	s.t.Cleanup(func() { must(s.t, s.slow.Remove(context.Background())) })
	s.tellMTU(liveMTU)
}

// tellMTU makes it the MTU of all tunnels.
func (s *site) tellMTU(mtu int) {
	s.t.Helper()
	for i := range s.plan.LANs {
		s.plan.LANs[i].MTU = mtu
	}
	for _, g := range s.plan.Groups {
		for i := range g.Members {
			g.Members[i].MTU = mtu
		}
	}
	s.pass()
}

// pass is what the agent does again and again.
func (s *site) pass() {
	s.t.Helper()
	must(s.t, s.slow.Sync(s.t.Context(), s.plan.LANs))
	_, err := s.classifier.Sync(s.t.Context(), s.plan)
	must(s.t, err)
}

// device is the name of a LAN's slow path.
func (s *site) device(lan string) string {
	s.t.Helper()
	h, err := s.node.Netlink()
	must(s.t, err)
	defer h.Close()
	l, err := h.LinkByName(lan)
	must(s.t, err)
	name, ok := s.instance.SlowDevice(uint32(l.Attrs().Index))
	if !ok {
		s.t.Fatalf("no name for the slow path of %s", lan)
	}
	return name
}

func slowSites(t *testing.T) (a, b *site) {
	t.Helper()
	a, b = twoSites(t)
	a.slowly()
	b.slowly()
	return a, b
}

// discovery sets what a UDP socket does about the MTU.
func discovery(t *testing.T, c net.Conn, mode int) {
	t.Helper()
	raw, err := c.(*net.UDPConn).SyscallConn()
	must(t, err)
	must(t, raw.Control(func(fd uintptr) {
		if c.RemoteAddr().(*net.UDPAddr).IP.To4() != nil {
			must(t, unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_MTU_DISCOVER, mode))
			must(t, unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_RECVERR, 1))
			return
		}
		must(t, unix.SetsockoptInt(int(fd), unix.SOL_IPV6, unix.IPV6_MTU_DISCOVER, mode))
		must(t, unix.SetsockoptInt(int(fd), unix.SOL_IPV6, unix.IPV6_RECVERR, 1))
	}))
}

// told waits for the ICMP message that a socket gets: the MTU in it, and its
// source (struct sock_extended_err, include/uapi/linux/errqueue.h).
func told(t *testing.T, c net.Conn) (mtu uint32, from netip.Addr) {
	t.Helper()
	raw, err := c.(*net.UDPConn).SyscallConn()
	must(t, err)
	waitFor(t, "a socket is told the MTU", func() bool {
		done := false
		must(t, raw.Control(func(fd uintptr) {
			oob := make([]byte, 512)
			_, n, _, _, err := unix.Recvmsg(int(fd), make([]byte, 2048), oob, unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT)
			if err != nil {
				return
			}
			list, err := unix.ParseSocketControlMessage(oob[:n])
			must(t, err)
			d := list[0].Data
			mtu, done = binary.NativeEndian.Uint32(d[8:]), true
			if binary.NativeEndian.Uint16(d[16:]) == unix.AF_INET {
				from, _ = netip.AddrFromSlice(d[20:24])
			} else {
				from, _ = netip.AddrFromSlice(d[24:40])
			}
		}))
		return done
	})
	return mtu, from
}

// roundTrip sends a datagram and waits until it comes back whole.
func roundTrip(c net.Conn, size int, patience time.Duration) error {
	sent := make([]byte, size)
	for i := range sent {
		sent[i] = byte(rand.Uint32())
	}
	if _, err := c.Write(sent); err != nil {
		return err
	}
	if err := c.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	got := make([]byte, size+1)
	n, err := c.Read(got)
	if err != nil {
		return err
	}
	if !bytes.Equal(sent, got[:n]) {
		return fmt.Errorf("%d bytes came back as %d others", size, n)
	}
	return nil
}

// Senders that discover the MTU learn it, from the node's address on their LAN.
func TestSlowPathTellsTheMTU(t *testing.T) {
	a, _ := slowSites(t)
	for _, test := range []struct {
		to, from string
		mode     int
	}{
		{"10.2.0.2:7777", "10.1.0.1", unix.IP_PMTUDISC_DO},
		{"[fd02::2]:7777", "fd01::1", unix.IPV6_PMTUDISC_DO},
	} {
		answered := a.counter("classifier_slow_told_mtu", "lan0")
		c := a.dial("udp", test.to)
		discovery(t, c, test.mode)
		_, err := c.Write(make([]byte, 1400))
		must(t, err)
		if mtu, from := told(t, c); mtu != liveMTU || from != netip.MustParseAddr(test.from) {
			t.Errorf("%s: MTU %d is told by %s, want %d by %s", test.to, mtu, from, liveMTU, test.from)
		}
		if n := a.counter("classifier_slow_told_mtu", "lan0") - answered; n != 1 {
			t.Errorf("%s: %d messages were counted, want 1", test.to, n)
		}
		// It is the greatest that gets through.
		if err := roundTrip(c, liveMTU-48, 3*time.Second); err != nil {
			t.Errorf("%s: a packet of the told MTU: %v", test.to, err)
		}
	}
	if n := a.counter("classifier_lan_slow_path", "lan0"); n != 2 {
		t.Errorf("%d packets took the slow path, want 2", n)
	}
	if n := a.counter("classifier_lan_dropped_too_big", ""); n != 0 {
		t.Errorf("%d packets were dropped as too big", n)
	}
}

// IPv4 without DF arrives whole, by whichever member, in both directions; a
// datagram's pieces stay together.
func TestSlowPathFragments(t *testing.T) {
	a, b := slowSites(t)
	must(t, a.classifier.SetAlive(5, masked(a.plan.Groups[0], 0b11)))
	must(t, b.classifier.SetAlive(5, masked(b.plan.Groups[0], 0b11)))
	// Answers are without DF too.
	must(t, b.host.Do(func() error { return os.WriteFile("/proc/sys/net/ipv4/ip_no_pmtu_disc", []byte("1"), 0) }))
	for host := range 8 {
		b.address(b.host, "eth0", fmt.Sprintf("10.2.0.%d/24", 10+host))
		b.echoOn(fmt.Sprintf("10.2.0.%d:7778", 10+host))
	}
	for _, size := range []int{1353, 1400, 1472, 1473, 4000, 9000} {
		for host := range 8 {
			c := a.dial("udp", fmt.Sprintf("10.2.0.%d:7778", 10+host))
			discovery(t, c, unix.IP_PMTUDISC_DONT)
			if err := roundTrip(c, size, 5*time.Second); err != nil {
				t.Fatalf("%d bytes: %v", size, err)
			}
		}
	}
	if a.counter("classifier_slow_forwarded", "lan0") == 0 || b.counter("classifier_slow_forwarded", "lan0") == 0 {
		t.Error("no fragment was counted")
	}
	// A super-packet whose segments are too big is cut twice.
	c := a.dial("udp", "10.2.0.10:7778")
	discovery(t, c, unix.IP_PMTUDISC_DONT)
	raw, err := c.(*net.UDPConn).SyscallConn()
	must(t, err)
	must(t, raw.Control(func(fd uintptr) {
		must(t, unix.SetsockoptInt(int(fd), unix.SOL_UDP, unix.UDP_SEGMENT, 1400))
	}))
	taken := a.counter("classifier_lan_slow_path", "lan0")
	_, err = c.Write(make([]byte, 4*1400))
	must(t, err)
	must(t, c.SetReadDeadline(time.Now().Add(5*time.Second)))
	for i := range 4 {
		if n, err := c.Read(make([]byte, 2048)); err != nil || n != 1400 {
			t.Errorf("segment %d: %d bytes came back, %v", i, n, err)
		}
	}
	if n := a.counter("classifier_lan_slow_path", "lan0") - taken; n != 1 {
		t.Errorf("%d packets took the slow path, want 1 super-packet", n)
	}
	for i := range a.tuns {
		if b.received[i].Load() == 0 {
			t.Errorf("tunnel %d carried nothing", i+1)
		}
	}
	if n := a.counter("classifier_slow_dropped_too_big", ""); n != 0 {
		t.Errorf("%d packets came back too big", n)
	}
}

// A connection whose segments fit until the tunnel shrank goes on: what is
// queued as super-packets for the old size is answered too.
func TestSlowPathSavesTCP(t *testing.T) {
	a, b := slowSites(t)
	for _, address := range []string{"10.2.0.2:7001", "[fd02::2]:7001"} {
		var l net.Listener
		must(t, b.host.Do(func() (err error) {
			l, err = net.Listen("tcp", address)
			return err
		}))
		got := make(chan int64, 1)
		go func() {
			c, err := l.Accept()
			if err != nil {
				got <- -1
				return
			}
			n, _ := io.Copy(io.Discard, c)
			got <- n
			_ = c.Close()
		}()
		a.tellMTU(liveMTU)
		c := a.dial("tcp", address)
		must(t, c.SetDeadline(time.Now().Add(30*time.Second)))
		const size = 1 << 20
		_, err := c.Write(make([]byte, size))
		must(t, err)
		before := a.counter("classifier_slow_told_mtu", "lan0")
		a.tellMTU(1300)
		if _, err := c.Write(make([]byte, size)); err != nil {
			t.Errorf("send to %s: %v", address, err)
		}
		must(t, c.Close())
		if n := <-got; n != 2*size {
			t.Errorf("%s received %d bytes, want %d", address, n, 2*size)
		}
		if a.counter("classifier_slow_told_mtu", "lan0") == before {
			t.Errorf("%s: the sender was told nothing", address)
		}
		must(t, l.Close())
	}
}

// With any part missing packets are dropped, and the next pass repairs it. The
// node routes here, and would send them to another network in clear.
func TestSlowPathBroken(t *testing.T) {
	a, _ := slowSites(t)
	outside := a.outside()
	h, err := a.node.Netlink()
	must(t, err)
	defer h.Close()
	c := a.dial("udp", "10.2.0.2:7777")
	discovery(t, c, unix.IP_PMTUDISC_DONT)
	must(t, roundTrip(c, 4000, 5*time.Second))
	for _, test := range []struct {
		name   string
		breaks func()
		// again is a counter that rises with the next pass of the classifier alone.
		again string
	}{
		{"namespace deleted", func() {
			must(t, netns.Remove(a.instance.SlowNamespace()))
			// The kernel takes namespaces down in work of its own.
			waitFor(t, "the pair is gone", func() bool { _, err := h.LinkByName(a.device("lan0")); return err != nil })
		}, "classifier_lan_dropped_too_big"},
		{"pair deleted", func() {
			l, err := h.LinkByName(a.device("lan0"))
			must(t, err)
			must(t, h.LinkDel(l))
		}, "classifier_lan_dropped_too_big"},
		{"near end down", func() {
			l, err := h.LinkByName(a.device("lan0"))
			must(t, err)
			must(t, h.LinkSetDown(l))
		}, "classifier_lan_slow_path"},
		{"nothing judges what comes back", func() {
			l, err := h.LinkByName(a.device("lan0"))
			must(t, err)
			found, err := a.classifier.readAttached()
			must(t, err)
			must(t, a.classifier.detachAll(found, []attachment{{bpfProgCsSlowIn, uint32(l.Attrs().Index)}}))
		}, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			test.breaks()
			before := a.counter("classifier_lan_slow_path", "lan0")
			if err := roundTrip(c, 1400, 100*time.Millisecond); err == nil {
				t.Error("a packet got through")
			}
			if n := a.counter("classifier_lan_slow_path", "lan0") - before; n != 1 {
				t.Errorf("%d packets were counted, want 1", n)
			}
			if test.again != "" {
				_, err := a.classifier.Sync(t.Context(), a.plan)
				must(t, err)
				before := a.counter(test.again, "lan0")
				if err := roundTrip(c, 1400, 100*time.Millisecond); err == nil {
					t.Error("a packet got through after a pass of the classifier")
				}
				if n := a.counter(test.again, "lan0") - before; n != 1 {
					t.Errorf("%s rose by %d, want 1", test.again, n)
				}
			}
			a.pass()
			// The kernel notices a carrier that comes back in work of its own.
			waitFor(t, "a packet gets through after the next pass", func() bool {
				c := a.dial("udp", "10.2.0.2:7777")
				discovery(t, c, unix.IP_PMTUDISC_DONT)
				return roundTrip(c, 4000, 500*time.Millisecond) == nil
			})
		})
	}
	if n := outside.saw(t, "\x0a\x02\x00\x02"); n != 0 {
		t.Errorf("%d packets went out in clear", n)
	}
}

// outside makes the node a router whose default route leads to a network that
// somebody listens in.
func (s *site) outside() *listener {
	s.t.Helper()
	e := &estate{site: site{t: s.t, node: s.node}, hosts: map[string]*listener{}}
	e.network("mgmt0", []string{"192.0.2.1/24"})
	h, err := s.node.Netlink()
	must(s.t, err)
	defer h.Close()
	must(s.t, h.RouteAdd(&netlink.Route{Gw: net.IPv4(192, 0, 2, 2)}))
	l, err := h.LinkByName("mgmt0")
	must(s.t, err)
	must(s.t, h.NeighAdd(&netlink.Neigh{LinkIndex: l.Attrs().Index, IP: net.IPv4(192, 0, 2, 2),
		HardwareAddr: e.hosts["mgmt0"].mac, State: netlink.NUD_PERMANENT}))
	must(s.t, s.node.Do(func() error { return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0) }))
	return e.hosts["mgmt0"]
}

// Two tenants have the same prefixes, the same hosts, and the node the same
// addresses on their LANs. What one sends is answered to it alone.
func TestSlowPathOfTwoTenants(t *testing.T) {
	e := newEstate(t, [2]int{1, 1}, [2]uint32{7, 8})
	for _, tenant := range []uint32{7, 8} {
		e.plan.Remotes = append(e.plan.Remotes, plan.Remote{Tenant: tenant, Prefix: netip.MustParsePrefix("fd02::/64"), Group: tenant - 6})
	}
	e.slowly()
	both := []string{"lan0", "lan1"}
	large := bytes.Repeat([]byte(secret), 56)
	six := icmp6("fd01::2", "fd02::2", append([]byte{128, 0, 0, 0, 0, 0, 0, 0}, large...)...)
	for i, lan := range both {
		other := both[1-i]
		four, whole := largeEcho4("10.2.0.2", 0x40, large), largeEcho4("10.2.0.2", 0, large)
		for _, test := range []struct {
			name      string
			ethertype uint16
			packet    []byte
			answer    string
		}{
			// Type and code, and the MTU.
			{"IPv4", 0x0800, four, "\x03\x04"},
			{"IPv6", 0x86dd, six, "\x02\x00"},
		} {
			for _, h := range e.hosts {
				h.saw(t, "")
			}
			told := e.counter("classifier_slow_told_mtu", lan)
			e.hosts[lan].send(t, test.ethertype, test.packet)
			waitFor(t, test.name+" is answered on "+lan, func() bool { return e.hosts[lan].saw(t, secret) > 0 })
			if n := e.counter("classifier_slow_told_mtu", lan) - told; n != 1 {
				t.Errorf("%s from %s: %d messages, want 1", test.name, lan, n)
			}
			for _, elsewhere := range []string{other, "mgmt0"} {
				if n := e.hosts[elsewhere].saw(t, secret); n != 0 {
					t.Errorf("%s from %s was seen %d times in %s", test.name, lan, n, elsewhere)
				}
			}
		}
		// Fragments go into the tenant's own tunnel.
		e.hosts[lan].send(t, 0x0800, whole)
		must(t, e.tuns[i].SetReadDeadline(time.Now().Add(5*time.Second)))
		b, pieces := make([]byte, 2048), 0
		for pieces < 2 {
			n, err := e.tuns[i].Read(b)
			must(t, err)
			if bytes.Contains(b[:n], []byte(secret)) && binary.BigEndian.Uint16(b[6:])&0x3fff != 0 {
				pieces++
			}
		}
		must(t, e.tuns[1-i].SetReadDeadline(time.Now().Add(50*time.Millisecond)))
		for {
			n, err := e.tuns[1-i].Read(b)
			if err != nil {
				break
			}
			if bytes.Contains(b[:n], []byte(secret)) {
				t.Errorf("a fragment from %s is in the other tenant's tunnel", lan)
			}
		}
	}
}

// The addresses that the node has on other tenants' LANs are in the slow path's
// namespace too; far hosts may well have the same.
func TestSlowPathKnowsNoAddressesOfItsOwn(t *testing.T) {
	e := newEstate(t, [2]int{1, 9}, [2]uint32{7, 8})
	e.plan.Remotes = append(e.plan.Remotes,
		plan.Remote{Tenant: 7, Prefix: netip.MustParsePrefix("10.9.0.0/16"), Group: 1},
		plan.Remote{Tenant: 7, Prefix: netip.MustParsePrefix("fd09::/64"), Group: 1})
	e.slowly()
	large := bytes.Repeat([]byte(secret), 56)
	for _, test := range []struct {
		ethertype uint16
		packet    []byte
	}{
		{0x0800, largeEcho4("10.9.0.1", 0x40, large)},
		{0x86dd, icmp6("fd01::2", "fd09::1", append([]byte{128, 0, 0, 0, 0, 0, 0, 0}, large...)...)},
	} {
		e.hosts["lan0"].saw(t, "")
		e.hosts["lan0"].send(t, test.ethertype, test.packet)
		waitFor(t, "lan0 is told the MTU", func() bool { return e.hosts["lan0"].saw(t, secret) > 0 })
	}
	if n := e.counter("classifier_slow_told_mtu", "lan0"); n != 2 {
		t.Errorf("%d messages, want 2", n)
	}
	if n := e.hosts["lan1"].saw(t, secret); n != 0 {
		t.Errorf("%d packets reached the other tenant", n)
	}
}

// largeEcho4 is from 10.1.0.2 and has these flags, 0x40 for DF.
func largeEcho4(dst string, flags byte, payload []byte) []byte {
	d := append(echo4("10.1.0.2", dst)[:28], payload...)
	binary.BigEndian.PutUint16(d[2:], uint16(len(d)))
	d[5], d[6] = 77, flags // 77 is the identification
	d[10], d[11], d[22], d[23] = 0, 0, 0, 0
	binary.BigEndian.PutUint16(d[10:], ^uint16(sum(d[:20])))
	binary.BigEndian.PutUint16(d[22:], ^uint16(sum(d[20:])))
	return d
}

// Whatever comes out of the slow path's device, nothing but a message about the
// MTU reaches the LAN, and nothing but the tenant's own packets a tunnel.
func TestSlowPathIsNotTrusted(t *testing.T) {
	e := newEstate(t, [2]int{1, 9}, [2]uint32{7, 8})
	e.plan.Remotes = append(e.plan.Remotes, plan.Remote{Tenant: 7, Prefix: netip.MustParsePrefix("fd02::/64"), Group: 1})
	e.slowly()
	slow, err := netns.Open(e.instance.SlowNamespace())
	must(t, err)
	defer func() { _ = slow.Close() }()
	inject := e.injector(slow, "lan0")
	h, err := e.node.Netlink()
	must(t, err)
	defer h.Close()
	near, err := h.LinkByName(e.device("lan0"))
	must(t, err)
	// An operator may have raised it.
	for _, n := range []netns.Namespace{e.node, slow} {
		h, err := n.Netlink()
		must(t, err)
		defer h.Close()
		l, err := h.LinkByName(e.device("lan0"))
		must(t, err)
		must(t, h.LinkSetMTU(l, 1500))
	}
	// For the host itself, so that its stack would take what gets there.
	mac := near.Attrs().HardwareAddr
	message := func(src, dst string, kind, code byte) []byte {
		d := echo4(src, dst)
		d[20], d[21] = kind, code
		return d
	}
	fragment := func(offset byte) []byte {
		d := message("10.1.0.1", "10.1.0.2", 3, 4)
		d[6], d[7] = 0x20, offset
		return d
	}
	expired := echo4("10.1.0.2", "10.2.0.2")
	expired[8] = 0
	for _, test := range []struct {
		name      string
		ethertype uint16
		packet    []byte
		want      string
	}{
		{"message from the node", 0x0800, message("10.1.0.1", "10.1.0.2", 3, 4), "told_mtu"},
		{"message from the node, IPv6", 0x86dd, icmp6("fd01::1", "fd01::2", append([]byte{2, 0, 0, 0, 0, 0, 5, 0}, secret...)...), "told_mtu"},
		{"packet to the far site", 0x0800, echo4("10.1.0.2", "10.2.0.2"), "forwarded"},
		{"message from the other tenant's address", 0x0800, message("10.9.0.1", "10.1.0.2", 3, 4), "dropped_spoofed_source"},
		{"message to the other tenant", 0x0800, message("10.1.0.1", "10.9.0.2", 3, 4), "dropped_no_local"},
		{"message to the far site", 0x0800, message("10.1.0.1", "10.2.0.2", 3, 4), "dropped_no_local"},
		{"message to the node itself", 0x0800, message("10.1.0.1", "10.1.0.1", 3, 4), "dropped_no_local"},
		{"message from a host", 0x0800, message("10.1.0.3", "10.1.0.2", 3, 4), "dropped_no_remote"},
		{"other message from the node", 0x0800, message("10.1.0.1", "10.1.0.2", 3, 1), "dropped_no_remote"},
		{"redirect from the node", 0x0800, message("10.1.0.1", "10.1.0.2", 5, 1), "dropped_no_remote"},
		{"echo from the node", 0x0800, echo4("10.1.0.1", "10.1.0.2"), "dropped_no_remote"},
		{"first fragment of a message", 0x0800, fragment(0), "dropped_no_remote"},
		{"later fragment of a message", 0x0800, fragment(1), "dropped_no_remote"},
		{"other tenant's source", 0x0800, echo4("10.9.0.2", "10.2.0.2"), "dropped_spoofed_source"},
		{"far source", 0x0800, echo4("10.2.0.2", "10.1.0.2"), "dropped_spoofed_source"},
		{"foreign source", 0x0800, echo4("8.8.8.8", "10.2.0.2"), "dropped_spoofed_source"},
		{"foreign destination", 0x0800, echo4("10.1.0.2", "8.8.8.8"), "dropped_no_remote"},
		{"multicast", 0x0800, echo4("10.1.0.2", "224.0.0.1"), "dropped_unroutable_address"},
		{"expired", 0x0800, expired, "dropped_expired"},
		{"still too big", 0x0800, largeEcho4("10.2.0.2", 0, bytes.Repeat([]byte(secret), 55)), "dropped_too_big"},
		{"IPv6 to the far site", 0x86dd, icmp6("fd01::2", "fd02::2", 128, 0, 0, 0, 0, 0, 0, 0), "dropped_not_slow_path"},
		{"IPv6 echo from the node", 0x86dd, icmp6("fd01::1", "fd01::2", 128, 0, 0, 0, 0, 0, 0, 0), "dropped_not_slow_path"},
		{"IPv6 redirect", 0x86dd, icmp6("fd01::1", "fd01::2", 137, 0, 0, 0, 0, 0, 0, 0), "dropped_not_slow_path"},
		{"router advertisement", 0x86dd, icmp6("fe80::1", "ff02::1", 134, 0, 0, 0, 0, 0, 0, 0), "dropped_not_slow_path"},
		{"IPv6 message from the far site", 0x86dd, icmp6("fd02::1", "fd01::2", 2, 0, 0, 0, 0, 0, 5, 0), "told_mtu"},
		{"IPv6 message from the far site to the other tenant", 0x86dd, icmp6("fd02::1", "fd09::2", 2, 0, 0, 0, 0, 0, 5, 0), "dropped_no_local"},
		{"IPv6 message from the other tenant's address", 0x86dd, icmp6("fd09::1", "fd01::2", 2, 0, 0, 0, 0, 0, 5, 0), "dropped_not_slow_path"},
		{"truncated", 0x0800, echo4("10.1.0.2", "10.2.0.2")[:19], "dropped_malformed"},
		{"ARP", 0x0806, make([]byte, 28), "dropped_not_ip"},
	} {
		before := map[string]uint64{}
		for r := range reasons {
			before[reasons[r]] = e.counter("classifier_slow_"+reasons[r], "lan0")
		}
		inject(mac, test.ethertype, test.packet)
		name := "classifier_slow_" + test.want
		waitFor(t, test.name+" is "+test.want, func() bool { return e.counter(name, "lan0") > before[test.want] })
		for r, n := range before {
			if got := e.counter("classifier_slow_"+r, "lan0") - n; got != 0 && r != test.want {
				t.Errorf("%s is %s, want %s", test.name, r, test.want)
			}
		}
	}
	waitFor(t, "the messages reach the LAN", func() bool { return e.hosts["lan0"].saw(t, secret) > 0 })
	for _, lan := range []string{"lan1", "mgmt0"} {
		if n := e.hosts[lan].saw(t, secret); n != 0 {
			t.Errorf("%s saw %d packets", lan, n)
		}
	}
}

// injector sends frames from the far end of a LAN's slow path.
func (s *site) injector(slow netns.Namespace, lan string) func(to net.HardwareAddr, ethertype uint16, packet []byte) {
	s.t.Helper()
	var fd int
	must(s.t, slow.Do(func() error {
		i, err := net.InterfaceByName(s.device(lan))
		if err != nil {
			return err
		}
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		return unix.Bind(fd, &unix.SockaddrLinklayer{Ifindex: i.Index})
	}))
	s.t.Cleanup(func() { _ = unix.Close(fd) })
	return func(to net.HardwareAddr, ethertype uint16, packet []byte) {
		s.t.Helper()
		f := append(slices.Clone(to), 2, 0, 0, 0, 0, 1)
		_, err := unix.Write(fd, append(binary.BigEndian.AppendUint16(f, ethertype), packet...))
		must(s.t, err)
	}
}

// What has no LAN's mark finds no way in the slow path's namespace, whatever its
// destination: nothing that the main namespace sends there comes back.
func TestSlowPathWithoutMark(t *testing.T) {
	e := newEstate(t, [2]int{1, 1}, [2]uint32{7, 8})
	e.slowly()
	slow, err := netns.Open(e.instance.SlowNamespace())
	must(t, err)
	defer func() { _ = slow.Close() }()
	var far *net.Interface
	must(t, slow.Do(func() (err error) {
		far, err = net.InterfaceByName(e.device("lan0"))
		return err
	}))
	inject := e.injector(e.node, "lan0")
	received := e.arrivals(slow)
	for _, dst := range []string{"10.2.0.2", "10.1.0.1", "10.1.0.2", "127.0.0.1"} {
		inject(far.HardwareAddr, 0x0800, echo4("10.1.0.2", dst))
	}
	if n := e.arrivals(slow) - received; n != 4 {
		t.Errorf("%d packets came into the namespace, want 4", n)
	}
	for r := range reasons {
		if n := e.counter("classifier_slow_"+reasons[r], ""); n != 0 {
			t.Errorf("%d packets came back, %s", n, reasons[r])
		}
	}
}

// arrivals is what came into the far end of lan0's slow path.
func (s *site) arrivals(slow netns.Namespace) uint64 {
	s.t.Helper()
	h, err := slow.Netlink()
	must(s.t, err)
	defer h.Close()
	l, err := h.LinkByName(s.device("lan0"))
	must(s.t, err)
	return l.Attrs().Statistics.RxPackets
}
