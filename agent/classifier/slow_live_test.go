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
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/circuitseal/circuitseal/agent/netns"
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
