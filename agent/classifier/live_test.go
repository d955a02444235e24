package classifier

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/circuitseal/circuitseal/agent/instance"
	"github.com/circuitseal/circuitseal/agent/netns"
	"github.com/circuitseal/circuitseal/agent/netns/netnstest"
	"github.com/circuitseal/circuitseal/agent/plan"
	"github.com/circuitseal/circuitseal/agent/slowpath"
	"github.com/circuitseal/circuitseal/proto/desired"
)

const liveMTU = 1380

// site is a node with a LAN and a host on it, and two TUN devices as tunnels.
type site struct {
	t          *testing.T
	node, host netns.Namespace
	instance   instance.Instance
	plan       plan.Classifier
	classifier *Classifier
	// slow is nil but where a test wants slow paths.
	slow     *slowpath.Driver
	tuns     [2]*os.File
	received [2]atomic.Uint64
}

// newSite makes site number 1 or 2, whose prefixes are 10.n.0.0/24 and
// fd0n::/64; the host has the address ending in 2.
func newSite(t *testing.T, number int) *site {
	t.Helper()
	s := &site{t: t, instance: testInstance(t)}
	_, s.node = netnstest.New(t)
	_, s.host = netnstest.New(t)
	// Until duplicate address detection is done, no neighbour is solicited.
	for _, n := range []netns.Namespace{s.node, s.host} {
		for _, which := range []string{"all", "default"} {
			must(t, n.Do(func() error {
				return os.WriteFile("/proc/sys/net/ipv6/conf/"+which+"/accept_dad", []byte("0"), 0)
			}))
		}
	}
	h, err := s.node.Netlink()
	must(t, err)
	defer h.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "lan0"
	must(t, h.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsFd(s.host.FD())}))
	s.address(s.node, "lan0", fmt.Sprintf("10.%d.0.1/24", number), fmt.Sprintf("fd0%d::1/64", number))
	s.address(s.host, "eth0", fmt.Sprintf("10.%d.0.2/24", number), fmt.Sprintf("fd0%d::2/64", number))
	s.gateway(fmt.Sprintf("10.%d.0.1", number))
	s.gateway(fmt.Sprintf("fd0%d::1", number))

	pfx := func(n int) [2]netip.Prefix {
		return [2]netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("10.%d.0.0/24", n)), netip.MustParsePrefix(fmt.Sprintf("fd0%d::/64", n))}
	}
	s.plan.LANs = []plan.LAN{{Interface: "lan0", Tenant: 7}}
	g := plan.Group{ID: "contoso/live", Number: 5, Tenant: 7}
	for i := range s.tuns {
		name := s.instance.Device(uint16(i + 1))
		s.tuns[i] = s.tun(name)
		m := plan.Member{Tunnel: name, Number: uint16(i + 1), Device: name, MTU: liveMTU}
		m.LocalProbe, m.RemoteProbe = desired.ProbeAddresses(m.Number)
		if number == 2 {
			m.LocalProbe, m.RemoteProbe = m.RemoteProbe, m.LocalProbe
		}
		g.Members = append(g.Members, m)
	}
	s.plan.Groups = []plan.Group{g}
	for i := range 2 {
		s.plan.Locals = append(s.plan.Locals, plan.Local{Tenant: 7, Prefix: pfx(number)[i], Interface: "lan0"})
		s.plan.Remotes = append(s.plan.Remotes, plan.Remote{Tenant: 7, Prefix: pfx(3 - number)[i], Group: 5})
	}
	s.classifier = open(t, s.instance, s.node)
	checked, err := s.classifier.Sync(t.Context(), s.plan)
	must(t, err)
	if len(checked) != len(g.Members) {
		t.Fatalf("checked %q, want the devices of %d members", checked, len(g.Members))
	}
	for _, m := range g.Members {
		s.address(s.node, m.Device, m.LocalProbe.String()+"/128")
	}
	t.Cleanup(func() { must(t, s.classifier.Remove(context.Background())) })
	return s
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (s *site) address(n netns.Namespace, name string, list ...string) {
	s.t.Helper()
	h, err := n.Netlink()
	must(s.t, err)
	defer h.Close()
	l, err := h.LinkByName(name)
	must(s.t, err)
	for _, a := range list {
		addr, err := netlink.ParseAddr(a)
		must(s.t, err)
		addr.Flags = unix.IFA_F_NODAD
		must(s.t, h.AddrAdd(l, addr))
	}
	must(s.t, h.LinkSetUp(l))
	// The kernel takes up IPv6 addresses in work of its own, some time after
	// the device is up (net/ipv6/addrconf.c, addrconf_dad_work).
	for _, a := range list {
		ip, _, err := net.ParseCIDR(a)
		must(s.t, err)
		waitFor(s.t, a+" is the node's own", func() bool {
			r, err := h.RouteGet(ip)
			return err == nil && len(r) == 1 && r[0].Type == unix.RTN_LOCAL
		})
	}
}

// waitFor waits until a condition holds, for as long as no machine is too slow for.
func waitFor(t testing.TB, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !holds(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited 20 s until %s", what)
		}
	}
}

func (s *site) gateway(via string) {
	s.t.Helper()
	h, err := s.host.Netlink()
	must(s.t, err)
	defer h.Close()
	must(s.t, h.RouteAdd(&netlink.Route{Gw: net.ParseIP(via)}))
}

// tun makes a TUN device without packet information: what is read from the
// file entered the tunnel, what is written to it came out.
func (s *site) tun(name string) *os.File {
	s.t.Helper()
	var f *os.File
	must(s.t, s.node.Do(func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		ifr, err := unix.NewIfreq(name)
		if err != nil {
			return err
		}
		ifr.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
			return err
		}
		f = os.NewFile(uintptr(fd), name)
		return nil
	}))
	s.t.Cleanup(func() { _ = f.Close() })
	h, err := s.node.Netlink()
	must(s.t, err)
	defer h.Close()
	l, err := h.LinkByName(name)
	must(s.t, err)
	must(s.t, h.LinkSetMTU(l, liveMTU))
	return f
}

// join carries packets between the tunnels of two sites.
func join(a, b *site) {
	carry := func(from, to *site, i int) {
		buffer := make([]byte, 65536)
		for {
			n, err := from.tuns[i].Read(buffer)
			if errors.Is(err, os.ErrClosed) {
				return
			}
			if err != nil {
				continue
			}
			to.received[i].Add(1)
			_, _ = to.tuns[i].Write(buffer[:n])
		}
	}
	for i := range a.tuns {
		go carry(a, b, i)
		go carry(b, a, i)
	}
}

// dial opens a socket on the site's host.
func (s *site) dial(network, address string) net.Conn {
	s.t.Helper()
	var c net.Conn
	must(s.t, s.host.Do(func() (err error) {
		c, err = net.DialTimeout(network, address, 5*time.Second)
		return err
	}))
	s.t.Cleanup(func() { _ = c.Close() })
	return c
}

// echo answers UDP on both families on the site's host.
func (s *site) echo() { s.echoOn(":7777") }

func (s *site) echoOn(address string) {
	s.t.Helper()
	var c net.PacketConn
	must(s.t, s.host.Do(func() (err error) {
		c, err = net.ListenPacket("udp", address)
		return err
	}))
	s.t.Cleanup(func() { _ = c.Close() })
	go func() {
		b := make([]byte, 65536)
		for {
			n, from, err := c.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = c.WriteTo(b[:n], from)
		}
	}()
}

// ping tells a lost packet from a late one: a machine that stands still for a
// while makes deadlines pass before it delivers.
func ping(c net.Conn, patience time.Duration) error {
	if _, err := c.Write([]byte("hello")); err != nil {
		return err
	}
	var err error
	for range 2 {
		if err := c.SetReadDeadline(time.Now().Add(patience)); err != nil {
			return err
		}
		if _, err = c.Read(make([]byte, 100)); !errors.Is(err, os.ErrDeadlineExceeded) {
			break
		}
	}
	return err
}

func (s *site) counter(name, device string) (n uint64) {
	s.t.Helper()
	list, err := s.classifier.Counters()
	must(s.t, err)
	for _, c := range list {
		if c.Name == name && (device == "" || c.Interface == device) {
			n += c.Packets
		}
	}
	return n
}

func twoSites(t *testing.T) (a, b *site) {
	a, b = newSite(t, 1), newSite(t, 2)
	join(a, b)
	b.echo()
	return a, b
}

// Both families cross in both directions: neighbours are resolved although
// packets come out of a TUN without a link-layer header.
func TestLiveBothWays(t *testing.T) {
	a, b := twoSites(t)
	for _, address := range []string{"10.2.0.2:7777", "[fd02::2]:7777"} {
		if err := ping(a.dial("udp", address), 3*time.Second); err != nil {
			t.Errorf("ping %s: %v", address, err)
		}
	}
	if n := b.counter("classifier_tunnel_in_forwarded", ""); n != 2 {
		t.Errorf("%d packets came out of tunnels, want 2", n)
	}
	if n := a.counter("classifier_lan_forwarded", "lan0"); n != 2 {
		t.Errorf("%d packets of the LAN were forwarded, want 2", n)
	}
}

// TCP with segmentation offload gets through, with its MSS clamped.
func TestLiveTCP(t *testing.T) {
	a, b := twoSites(t)
	const size = 8 << 20
	for _, test := range []struct {
		address string
		mss     int
	}{{"10.2.0.2:7001", liveMTU - 40}, {"[fd02::2]:7001", liveMTU - 60}} {
		var l net.Listener
		must(t, b.host.Do(func() (err error) {
			l, err = net.Listen("tcp", test.address)
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
		c := a.dial("tcp", test.address)
		must(t, c.SetDeadline(time.Now().Add(30*time.Second)))
		raw, err := c.(*net.TCPConn).SyscallConn()
		must(t, err)
		must(t, raw.Control(func(fd uintptr) {
			// Options take part of each segment.
			if mss, err := syscall.GetsockoptInt(int(fd), syscall.IPPROTO_TCP, unix.TCP_MAXSEG); err != nil || mss > test.mss || mss < test.mss-40 {
				t.Errorf("MSS to %s: %d %v, want about %d", test.address, mss, err, test.mss)
			}
		}))
		if _, err := c.Write(make([]byte, size)); err != nil {
			t.Errorf("send to %s: %v", test.address, err)
		}
		must(t, c.Close())
		if n := <-got; n != size {
			t.Errorf("%s received %d bytes, want %d", test.address, n, size)
		}
		must(t, l.Close())
	}
}

// One map write moves the flows; a new process adopts it under traffic, and
// traffic goes on with none.
func TestLiveRestart(t *testing.T) {
	a, b := twoSites(t)
	c := a.dial("udp", "10.2.0.2:7777")
	must(t, ping(c, 3*time.Second))
	stop, lost := make(chan struct{}), make(chan error, 1)
	go func() {
		for n := 0; ; n++ {
			select {
			case <-stop:
				lost <- nil
				return
			default:
			}
			if err := ping(c, 3*time.Second); err != nil {
				lost <- fmt.Errorf("packet %d: %w", n, err)
				return
			}
		}
	}()
	for i := range a.tuns {
		mask := uint32(1) << i
		must(t, a.classifier.SetAlive(5, masked(a.plan.Groups[0], mask)))
		time.Sleep(20 * time.Millisecond)
		before := b.received[1-i].Load()
		for range 3 {
			must(t, a.classifier.Close())
			time.Sleep(20 * time.Millisecond)
			a.classifier = open(t, a.instance, a.node)
			for range 2 {
				_, err := a.classifier.Sync(t.Context(), a.plan)
				must(t, err)
			}
			if got, err := a.classifier.alive(5); err != nil || got != mask {
				t.Errorf("alive mask %b after a restart (%v), want %b", got, err, mask)
			}
		}
		if n := b.received[1-i].Load() - before; n != 0 {
			t.Errorf("%d packets went through a tunnel that is not alive", n)
		}
	}
	close(stop)
	if err := <-lost; err != nil {
		counted, _ := a.classifier.Counters()
		far, _ := b.classifier.Counters()
		t.Errorf("lost under restarts: %v\n%v\n%v", err, counted, far)
	}
	was, err := a.classifier.alive(5)
	must(t, err)
	must(t, a.classifier.SetAlive(5, map[uint16]bool{999: true}))
	if now, err := a.classifier.alive(5); err != nil || now != was {
		t.Errorf("a member that is not there changed the mask from %b to %b (%v)", was, now, err)
	}
	if _, err := a.classifier.alive(6); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("alive mask of an unknown group: %v, want os.ErrNotExist", err)
	}
}

// The node's own stack cannot send into a tunnel, the probe can, and nothing
// that a far node sends reaches the stack but the probe.
func TestLiveStack(t *testing.T) {
	a := newSite(t, 1)
	device := a.instance.Device(1)
	h, err := a.node.Netlink()
	must(t, err)
	defer h.Close()
	l, err := h.LinkByName(device)
	must(t, err)
	_, far, err := net.ParseCIDR("10.2.0.0/24")
	must(t, err)
	must(t, h.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: far}))
	remote := a.plan.Groups[0].Members[0].RemoteProbe
	must(t, h.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: &net.IPNet{IP: remote.AsSlice(), Mask: net.CIDRMask(128, 128)}}))
	must(t, a.node.Do(func() error {
		c, err := net.Dial("udp", "10.2.0.2:9")
		if err != nil {
			return err
		}
		defer func() { _ = c.Close() }()
		// tcx answers a drop with an error to the sender.
		_, _ = c.Write([]byte("from the node"))
		return nil
	}))
	if n := a.counter("classifier_tunnel_out_dropped_not_classified", device); n == 0 {
		t.Error("no packet of the node's own was dropped")
	}
	local := a.plan.Groups[0].Members[0].LocalProbe
	write := func(d []byte) {
		t.Helper()
		_, err := a.tuns[0].Write(d)
		must(t, err)
	}
	write(echoRequest(remote, local))
	must(t, a.tuns[0].SetReadDeadline(time.Now().Add(3*time.Second)))
	d := make([]byte, 2048)
	for {
		n, err := a.tuns[0].Read(d)
		must(t, err)
		if n > 40 && d[0]>>4 == 6 && d[6] == 58 && d[40] == 129 {
			break
		}
		t.Errorf("the node sent into the tunnel: %x", d[:n])
	}
	for _, test := range []struct {
		name    string
		packet  []byte
		counter string
	}{
		{"echo from elsewhere", echoRequest(netip.MustParseAddr("fd02::2"), local), "dropped_probe_address"},
		{"echo to the other tunnel's probe", echoRequest(remote, a.plan.Groups[0].Members[1].LocalProbe), "dropped_probe_address"},
		{"echo to the host", echoRequest(remote, netip.MustParseAddr("fd01::2")), "dropped_probe_address"},
		{"spoofed source", udp4(netip.MustParseAddr("10.1.0.9"), netip.MustParseAddr("10.1.0.2"), 1, 2), "dropped_wrong_selector"},
		{"unknown destination", udp4(netip.MustParseAddr("10.2.0.9"), netip.MustParseAddr("10.9.0.2"), 1, 2), "dropped_no_local"},
		{"truncated IPv4", []byte{0x45, 0, 0, 20, 0, 0, 0, 0, 64, 17}, "dropped_malformed"},
		{"truncated IPv6", echoRequest(remote, local)[:39], "dropped_malformed"},
	} {
		name := "classifier_tunnel_in_" + test.counter
		before := a.counter(name, device)
		write(test.packet)
		if n := a.counter(name, device) - before; n != 1 {
			t.Errorf("%s: %s rose by %d, want 1", test.name, test.counter, n)
		}
	}
}

func echoRequest(src, dst netip.Addr) []byte {
	d := make([]byte, 56)
	d[0], d[5], d[6], d[7], d[40] = 0x60, 16, 58, 64, 128
	copy(d[8:], src.AsSlice())
	copy(d[24:], dst.AsSlice())
	c := ^uint16(sum(pseudo(src, dst, 58, 16), d[40:]))
	d[42], d[43] = byte(c>>8), byte(c)
	return d
}
