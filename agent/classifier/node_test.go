package classifier

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/circuitseal/circuitseal/agent/netns"
	"github.com/circuitseal/circuitseal/agent/netns/netnstest"
	"github.com/circuitseal/circuitseal/agent/plan"
)

// estate is a node with two LANs and a management network, which has the
// default route, and on each network a host that sees every frame.
type estate struct {
	site
	hosts map[string]*listener
}

// listener is a host's raw socket.
type listener struct {
	fd  int
	mac net.HardwareAddr
	// node is the node's address on that network.
	node net.HardwareAddr
}

// newEstate makes LANs lan0 and lan1 of two tenants, with 10.x.0.0/16 and
// fd0x::/64 each: the node has the addresses ending in 1, the host those ending
// in 2. Behind a tunnel of each is 10.2.0.0/16.
func newEstate(t *testing.T, octets [2]int, tenants [2]uint32) *estate {
	t.Helper()
	e := &estate{site: site{t: t, instance: testInstance(t)}, hosts: map[string]*listener{}}
	_, e.node = netnstest.New(t)
	for i, octet := range octets {
		name := fmt.Sprintf("lan%d", i)
		e.network(name, []string{fmt.Sprintf("10.%d.0.1/16", octet), fmt.Sprintf("fd0%d::1/64", octet), "fe80::1/64"})
		e.plan.LANs = append(e.plan.LANs, plan.LAN{Interface: name, Tenant: tenants[i]})
		for _, p := range []string{fmt.Sprintf("10.%d.0.0/16", octet), fmt.Sprintf("fd0%d::/64", octet)} {
			e.plan.Locals = append(e.plan.Locals, plan.Local{Tenant: tenants[i], Prefix: netip.MustParsePrefix(p), Interface: name})
		}
		device := e.instance.Device(uint16(i + 1))
		e.tuns[i] = e.tun(device)
		e.address(e.node, device)
		g := plan.Group{ID: "group-" + name, Number: uint32(1 + i), Tenant: tenants[i]}
		g.Members = []plan.Member{{Tunnel: device, Number: uint16(i + 1), Device: device, MTU: liveMTU}}
		e.plan.Groups = append(e.plan.Groups, g)
		if i == 0 || tenants[1] != tenants[0] {
			e.plan.Remotes = append(e.plan.Remotes, plan.Remote{Tenant: tenants[i], Prefix: netip.MustParsePrefix("10.2.0.0/16"), Group: g.Number})
		}
	}
	e.network("mgmt0", []string{"192.0.2.1/24"})
	h, err := e.node.Netlink()
	must(t, err)
	defer h.Close()
	must(t, h.RouteAdd(&netlink.Route{Gw: net.IPv4(192, 0, 2, 2)}))
	e.classifier = open(t, e.instance, e.node)
	_, err = e.classifier.Sync(t.Context(), e.plan)
	must(t, err)
	t.Cleanup(func() { must(t, e.classifier.Remove(context.Background())) })
	return e
}

// network makes one whose host has the same addresses, but for the last digit.
func (e *estate) network(name string, addresses []string) {
	e.t.Helper()
	_, host := netnstest.New(e.t)
	h, err := e.node.Netlink()
	must(e.t, err)
	defer h.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	must(e.t, h.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsFd(host.FD())}))
	e.address(e.node, name, addresses...)
	var others []string
	for _, a := range addresses {
		p := netip.MustParsePrefix(a)
		others = append(others, netip.PrefixFrom(p.Addr().Next(), p.Bits()).String())
	}
	e.address(host, "eth0", others...)
	l, err := h.LinkByName(name)
	must(e.t, err)
	e.hosts[name] = listen(e.t, host, l.Attrs().HardwareAddr)
}

func listen(t *testing.T, host netns.Namespace, node net.HardwareAddr) *listener {
	t.Helper()
	l := &listener{node: node}
	must(t, host.Do(func() (err error) {
		const all = uint16(unix.ETH_P_ALL>>8 | unix.ETH_P_ALL&0xff<<8) // as networks have it
		i, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		l.mac = i.HardwareAddr
		if l.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, int(all)); err != nil {
			return err
		}
		return unix.Bind(l.fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: i.Index})
	}))
	t.Cleanup(func() { _ = unix.Close(l.fd) })
	return l
}

// send sends a packet to the node.
func (l *listener) send(t *testing.T, ethertype uint16, packet []byte) {
	t.Helper()
	f := append(append([]byte(nil), l.node...), l.mac...)
	f = append(binary.BigEndian.AppendUint16(f, ethertype), packet...)
	_, err := unix.Write(l.fd, f)
	must(t, err)
}

// saw counts frames with this text that came to the host.
func (l *listener) saw(t *testing.T, text string) (n int) {
	t.Helper()
	b := make([]byte, 65536)
	for {
		size, from, err := unix.Recvfrom(l.fd, b, 0)
		if errors.Is(err, unix.EAGAIN) {
			return n
		}
		must(t, err)
		if from.(*unix.SockaddrLinklayer).Pkttype != unix.PACKET_OUTGOING && bytes.Contains(b[:size], []byte(text)) {
			n++
		}
	}
}

// sends sends a packet from a LAN three times and waits until all were judged
// so. Hosts send other packets of their own accord.
func (e *estate) sends(lan string, ethertype uint16, packet []byte, want string) {
	e.t.Helper()
	name := "classifier_lan_" + want
	before := e.counter(name, lan)
	for range 3 {
		e.hosts[lan].send(e.t, ethertype, packet)
	}
	waitFor(e.t, "3 packets from "+lan+" are "+want, func() bool { return e.counter(name, lan) >= before+3 })
}

const secret = "the payload of one tenant"

func echo4(src, dst string) []byte {
	d := make([]byte, 28, 28+len(secret))
	d[0], d[8], d[9], d[20] = 0x45, 64, 1, 8
	d = append(d, secret...)
	binary.BigEndian.PutUint16(d[2:], uint16(len(d)))
	copy(d[12:], netip.MustParseAddr(src).AsSlice())
	copy(d[16:], netip.MustParseAddr(dst).AsSlice())
	binary.BigEndian.PutUint16(d[10:], ^uint16(sum(d[:20])))
	binary.BigEndian.PutUint16(d[22:], ^uint16(sum(d[20:])))
	return d
}

// icmp6 is a message with hop limit 255.
func icmp6(src, dst string, message ...byte) []byte {
	s, d := netip.MustParseAddr(src), netip.MustParseAddr(dst)
	binary.BigEndian.PutUint16(message[2:], ^uint16(sum(pseudo(s, d, 58, len(message)), message)))
	p := make([]byte, 40)
	p[0], p[4], p[5], p[6], p[7] = 0x60, byte(len(message)>>8), byte(len(message)), 58, 255
	copy(p[8:], s.AsSlice())
	copy(p[24:], d.AsSlice())
	return append(p, message...)
}

// The node's stack answers by the main table. A LAN host that forges its source
// would make it answer into another network.
func TestNoAnswerToForgedSources(t *testing.T) {
	e := newEstate(t, [2]int{1, 9}, [2]uint32{7, 7})
	for _, src := range []string{
		"10.9.0.2",  // on another LAN
		"192.0.2.2", // in the management network
		"10.2.0.77", // protected, far away
	} {
		e.sends("lan0", 0x0800, echo4(src, "10.1.0.1"), "dropped_spoofed_source")
	}
	for _, name := range []string{"lan1", "mgmt0"} {
		if n := e.hosts[name].saw(t, secret); n != 0 {
			t.Errorf("%s got %d answers", name, n)
		}
	}
	// It answers those who say who they are.
	e.hosts["lan0"].saw(t, "")
	e.sends("lan0", 0x0800, echo4("10.1.0.2", "10.1.0.1"), "passed")
	waitFor(t, "the node answers", func() bool { return e.hosts["lan0"].saw(t, secret) > 0 })
}

// Where two tenants have the same prefixes, an answer might go to either.
func TestSharedNodeAnswersNoTenant(t *testing.T) {
	e := newEstate(t, [2]int{1, 1}, [2]uint32{7, 8})
	for _, lan := range []string{"lan0", "lan1"} {
		e.sends(lan, 0x0800, echo4("10.1.0.2", "10.1.0.1"), "dropped_node_is_shared")
		e.sends(lan, 0x86dd, icmp6("fd01::2", "fd01::1", append([]byte{128, 0, 0, 0, 0, 0, 0, 0}, secret...)...), "dropped_node_is_shared")
	}
	for name, host := range e.hosts {
		if n := host.saw(t, secret); n != 0 {
			t.Errorf("%s got %d answers", name, n)
		}
	}
	// Its link-layer address is still to be had, on each LAN.
	for _, lan := range []string{"lan0", "lan1"} {
		mac := e.hosts[lan].node
		arp := append([]byte{0, 1, 8, 0, 6, 4, 0, 1}, e.hosts[lan].mac...)
		arp = append(arp, 10, 1, 0, 2, 0, 0, 0, 0, 0, 0, 10, 1, 0, 1)
		e.sends(lan, 0x0806, arp, "passed")
		waitFor(t, "ARP is answered on "+lan, func() bool {
			return e.hosts[lan].saw(t, "\x00\x02"+string(mac)+"\x0a\x01\x00\x01") > 0
		})
		solicitation := append([]byte{135, 0, 0, 0, 0, 0, 0, 0}, netip.MustParseAddr("fd01::1").AsSlice()...)
		e.sends(lan, 0x86dd, icmp6("fe80::2", "fd01::1", append(append(solicitation, 1, 1), e.hosts[lan].mac...)...), "passed")
		// Solicited, RFC 4861, section 4.4.
		advertised := "\x40\x00\x00\x00" + string(netip.MustParseAddr("fd01::1").AsSlice())
		waitFor(t, "a solicitation is answered on "+lan, func() bool { return e.hosts[lan].saw(t, advertised) > 0 })
	}
}

// No LAN host tells the node where to route, not even in a message to the
// node's own address.
func TestNoHostRoutesTheNode(t *testing.T) {
	e := newEstate(t, [2]int{1, 9}, [2]uint32{7, 7})
	advertisement := []byte{134, 0, 0, 0, 64, 0, 0x07, 0x08, 0, 0, 0, 0, 0, 0, 0, 0,
		3, 4, 64, 0xc0, 0, 0, 0x0e, 0x10, 0, 0, 0x0e, 0x10, 0, 0, 0, 0, 0x20, 1, 0x0d, 0xb8, 0xbe, 0xef, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	e.sends("lan0", 0x86dd, icmp6("fe80::2", "fe80::1", advertisement...), "dropped_router_message")
	redirect := make([]byte, 40)
	redirect[0] = 137
	e.sends("lan0", 0x86dd, icmp6("fe80::2", "fd01::1", redirect...), "dropped_router_message")
	four := echo4("10.1.0.2", "10.1.0.1")
	four[20] = 5
	e.sends("lan0", 0x0800, four, "dropped_router_message")

	// The kernel would not listen either, and this is repaired.
	read := func(file string) (value string) {
		t.Helper()
		must(t, e.node.Do(func() error {
			b, err := os.ReadFile("/proc/sys/net/" + file)
			value = string(bytes.TrimSpace(b))
			return err
		}))
		return value
	}
	for range 2 {
		for file, want := range map[string]string{
			"ipv4/conf/lan0/arp_ignore": "1", "ipv4/conf/lan1/accept_redirects": "0",
			"ipv6/conf/lan0/accept_ra": "0", "ipv6/conf/lan1/accept_redirects": "0",
		} {
			if got := read(file); got != want {
				t.Errorf("%s is %s, want %s", file, got, want)
			}
			// The other end of what is wanted: 0 for 1, 1 for 0.
			worse := map[string]string{"0": "1", "1": "0"}[want]
			must(t, e.node.Do(func() error { return os.WriteFile("/proc/sys/net/"+file, []byte(worse), 0) }))
		}
		_, err := e.classifier.Sync(t.Context(), e.plan)
		must(t, err)
	}
	// An operator may be stricter.
	must(t, e.node.Do(func() error { return os.WriteFile("/proc/sys/net/ipv4/conf/lan0/arp_ignore", []byte("2"), 0) }))
	_, err := e.classifier.Sync(t.Context(), e.plan)
	must(t, err)
	if got := read("ipv4/conf/lan0/arp_ignore"); got != "2" {
		t.Errorf("arp_ignore of an operator became %s", got)
	}
	if got, want := read("ipv6/conf/mgmt0/accept_ra"), read("ipv6/conf/default/accept_ra"); got != want {
		t.Errorf("accept_ra of an interface that is no LAN is %s, want the default %s", got, want)
	}
}

// Nobody on a LAN answers for the node's own address there.
func TestTunnelToTheNode(t *testing.T) {
	e := newEstate(t, [2]int{1, 9}, [2]uint32{7, 8})
	device := e.instance.Device(1)
	const name = "classifier_tunnel_in_dropped_no_local"
	for range 3 {
		_, err := e.tuns[0].Write(echo4("10.2.0.5", "10.1.0.1"))
		must(t, err)
	}
	if n := e.counter(name, device); n != 3 {
		t.Errorf("%d of 3 packets to the node's own address were dropped", n)
	}
	_, err := e.tuns[0].Write(echo4("10.2.0.5", "10.1.0.2"))
	must(t, err)
	waitFor(t, "the LAN host gets its packet", func() bool { return e.hosts["lan0"].saw(t, secret) > 0 })
	if n := e.counter(name, device); n != 3 {
		t.Errorf("%d packets were dropped in all, want 3", n)
	}
}
