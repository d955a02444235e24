package classifier

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/circuitseal/circuitseal/agent/netns"
	"github.com/circuitseal/circuitseal/agent/plan"
)

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
