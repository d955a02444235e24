package link

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/circuitseal/circuitseal/agent/instance"
	"github.com/circuitseal/circuitseal/agent/netdev"
	"github.com/circuitseal/circuitseal/agent/netns"
	"github.com/circuitseal/circuitseal/agent/netns/netnstest"
	"github.com/circuitseal/circuitseal/agent/plan"
)

type lab struct {
	driver        *Driver
	main, circuit netns.Namespace
	m, c          *netlink.Handle
}

func newLab(t *testing.T) lab {
	t.Helper()
	_, main := netnstest.New(t)
	_, circuit := netnstest.New(t)
	l := lab{
		driver: New(Config{Main: main, Circuit: circuit, Instance: "t", Log: slog.New(slog.DiscardHandler)}),
		main:   main, circuit: circuit,
	}
	for _, x := range []struct {
		n netns.Namespace
		h **netlink.Handle
	}{{main, &l.m}, {circuit, &l.c}} {
		h, err := x.n.Netlink()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(h.Close)
		*x.h = h
	}
	return l
}

// wire makes a veth pair with an address in the main namespace, as the host
// had configured it.
func (l lab) wire(t *testing.T, name string) {
	t.Helper()
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: name + "p"}
	if err := l.m.LinkAdd(veth); err != nil {
		t.Fatal(err)
	}
	far, err := l.m.LinkByName(name + "p")
	if err != nil {
		t.Fatal(err)
	}
	near, err := l.m.LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{
		l.m.AddrAdd(near, &netlink.Addr{IPNet: &net.IPNet{IP: net.IPv4(10, 9, 9, 9), Mask: net.CIDRMask(24, 32)}}),
		l.m.LinkSetUp(near), l.m.LinkSetUp(far),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
}

func named(names ...string) (out []plan.Interface) {
	for _, n := range names {
		out = append(out, plan.Interface{Name: n})
	}
	return out
}

func TestClaimSyncRelease(t *testing.T) {
	l := newLab(t)
	l.wire(t, "circ0")
	ctx := t.Context()
	ifaces, tables := wanted()

	for range 2 {
		if claimed, err := l.driver.Claim(ctx, named("circ0")); err != nil || len(claimed) != 1 {
			t.Fatal(err)
		}
	}
	claimed, err := l.c.LinkByName("circ0")
	if err != nil {
		t.Fatal(err)
	}
	if claimed.Attrs().RawFlags&unix.IFF_UP != 0 {
		t.Error("the interface is up before Sync")
	}
	l.wantSysctls(t, "circ0")

	if err := l.driver.Sync(ctx, ifaces, tables); err != nil {
		t.Fatal(err)
	}
	l.wantPlanned(t, ifaces, tables)
	l.wantMarkedRoute(t, "198.51.100.9", instance.Mark(7), "192.0.2.1")
	l.wantControl(t)
	if _, err := l.get("203.0.113.1", instance.Mark(7)); err == nil {
		t.Error("a marked packet to another address has a route")
	}
	if _, err := l.get("198.51.100.9", 0); err == nil {
		t.Error("a packet without a mark has a route to the peer")
	}
	l.wantQuiet(t, ifaces, tables)

	// What others break comes back; what is not ours stays.
	foreign := &netlink.Route{LinkIndex: claimed.Attrs().Index, Dst: netdev.NetOf(netip.MustParsePrefix("203.0.113.0/24")), Protocol: unix.RTPROT_STATIC, Scope: netlink.SCOPE_LINK, Table: 77}
	if err := l.c.RouteAdd(foreign); err != nil {
		t.Fatal(err)
	}
	if err := l.c.LinkSetDown(claimed); err != nil {
		t.Fatal(err)
	}
	if err := l.driver.Sync(ctx, ifaces, tables); err != nil {
		t.Fatal(err)
	}
	l.wantPlanned(t, ifaces, tables)
	if err := l.c.RouteAdd(foreign); err != nil {
		t.Fatal(err)
	}
	if err := l.driver.Sync(ctx, ifaces, nil); err != nil {
		t.Fatal(err)
	}
	l.wantPlanned(t, ifaces, nil)
	if err := l.c.RouteDel(foreign); err != nil {
		t.Errorf("the foreign route is gone: %v", err)
	}

	// A bridge cannot leave its namespace, nor can what some kernels make in each.
	if err := l.c.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "sit0"}}); err != nil {
		t.Fatal(err)
	}
	if err := l.driver.Release(ctx); err != nil {
		t.Fatal(err)
	}
	back, err := l.m.LinkByName("circ0")
	if err != nil {
		t.Fatal(err)
	}
	if back.Attrs().RawFlags&unix.IFF_UP != 0 {
		t.Error("the interface came back up")
	}
}

func TestClaimNamesWhatThereIs(t *testing.T) {
	l := newLab(t)
	l.wire(t, "circ1")
	l.wire(t, "eth7")
	claimed, err := l.driver.Claim(t.Context(), named("circ0", "../x", "circ1"))
	if err == nil || !slices.Equal(claimed, []string{"circ1"}) {
		t.Fatalf("claimed %q, error %v; want circ1 and an error", claimed, err)
	}
	for _, want := range []string{`circuit interface "circ0" does not exist on this host`, "circ1", "eth7", `circuit interface "../x": want`} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error %q lacks %q", err, want)
		}
	}
	if _, err := l.c.LinkByName("circ1"); err != nil {
		t.Errorf("one missing interface stopped the next: %v", err)
	}
}

func TestSyncMovesAddresses(t *testing.T) {
	l := newLab(t)
	l.wire(t, "circ0")
	ctx := t.Context()
	if claimed, err := l.driver.Claim(ctx, named("circ0")); err != nil || len(claimed) != 1 {
		t.Fatal(err)
	}
	for _, addresses := range [][]string{{"192.0.2.1/24", "192.0.2.5/24"}, {"192.0.2.5/24"}, {"192.0.2.5/30", "192.0.2.9/32"}, {}} {
		want := []plan.Interface{{Name: "circ0"}}
		for _, a := range addresses {
			want[0].Addresses = append(want[0].Addresses, netip.MustParsePrefix(a))
		}
		if err := l.driver.Sync(ctx, want, nil); err != nil {
			t.Fatal(err)
		}
		l.wantPlanned(t, want, nil)
	}
}

func TestWatch(t *testing.T) {
	l := newLab(t)
	l.wire(t, "circ0")
	ctx, cancel := context.WithCancel(t.Context())
	events, err := l.driver.Watch(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if claimed, err := l.driver.Claim(ctx, named("circ0")); err != nil || len(claimed) != 1 {
			t.Fatal(err)
		}
		wantEvent(t, events)
		if err := l.driver.Release(ctx); err != nil {
			t.Fatal(err)
		}
		wantEvent(t, events)
	}
	cancel()
	for range events {
	}
}

// A qdisc that goes takes programs of older kernels along.
func TestWatchTrafficControl(t *testing.T) {
	l := newLab(t)
	l.wire(t, "lan0")
	lan, err := l.m.LinkByName("lan0")
	if err != nil {
		t.Fatal(err)
	}
	for where, h := range map[string]*netlink.Handle{"main": l.m, "circuit": l.c} {
		t.Run(where, func(t *testing.T) {
			index := 1 // the loopback interface's
			if h == l.m {
				index = lan.Attrs().Index
			}
			qdisc := &netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT}}
			if err := h.QdiscAdd(qdisc); err != nil {
				t.Fatal(err)
			}
			filter := &netlink.U32{FilterAttrs: netlink.FilterAttrs{LinkIndex: index, Parent: netlink.HANDLE_MIN_INGRESS, Priority: 1, Protocol: unix.ETH_P_ALL}, ClassId: 1}
			if err := h.FilterAdd(filter); err != nil {
				t.Fatal(err)
			}
			time.Sleep(50 * time.Millisecond) // for what the links' own changes still announce
			ctx, cancel := context.WithCancel(t.Context())
			events, err := l.driver.Watch(ctx)
			if err != nil {
				t.Fatal(err)
			}
			if err := h.FilterDel(filter); err != nil {
				t.Fatal(err)
			}
			wantEvent(t, events)
			if err := h.QdiscDel(qdisc); err != nil {
				t.Fatal(err)
			}
			wantEvent(t, events)
			cancel()
			for range events {
			}
		})
	}
}

func wantEvent(t *testing.T, events <-chan struct{}) {
	t.Helper()
	select {
	case <-events:
	case <-time.After(5 * time.Second):
		t.Fatal("no event")
	}
}

// wantQuiet counts what the kernel announces: a repeat writes nothing.
func (l lab) wantQuiet(t *testing.T, ifaces []plan.Interface, tables []plan.Table) {
	t.Helper()
	time.Sleep(50 * time.Millisecond) // for what the link's own state change still announces
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	events, err := l.driver.Watch(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for range 10 {
		if err := l.driver.Sync(ctx, ifaces, tables); err != nil {
			t.Error(err)
		}
	}
	select {
	case <-events:
		t.Error("a repeated Sync wrote something")
	case <-time.After(50 * time.Millisecond):
	}
}

func (l lab) wantPlanned(t *testing.T, ifaces []plan.Interface, tables []plan.Table) {
	t.Helper()
	changes, err := l.driver.Plan(ifaces, tables)
	if err != nil {
		t.Fatal(err)
	}
	if !changes.Empty() {
		t.Errorf("Sync left to do:\n%s", changes)
	}
}

func (l lab) get(destination string, mark uint32) ([]netlink.Route, error) {
	return l.c.RouteGetWithOptions(net.ParseIP(destination), &netlink.RouteGetOptions{Mark: mark})
}

// wantControl looks up packets of charon's, whose sockets have one mark for all
// links, with a route beside that any other packet would take.
func (l lab) wantControl(t *testing.T) {
	t.Helper()
	circ0, err := l.c.LinkByName("circ0")
	if err != nil {
		t.Fatal(err)
	}
	all := &netlink.Route{LinkIndex: circ0.Attrs().Index, Dst: netdev.NetOf(netip.MustParsePrefix("198.51.100.0/24")), Gw: net.ParseIP("192.0.2.2")}
	if err := l.c.RouteAdd(all); err != nil {
		t.Fatal(err)
	}
	second := &netlink.Addr{IPNet: netdev.NetOf(netip.MustParsePrefix("192.0.2.5/32"))}
	if err := l.c.AddrAdd(circ0, second); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		from, to string
		mark     uint32
		want     bool
	}{
		{"192.0.2.1", "198.51.100.9", instance.ControlMark, true},
		{"192.0.2.1", "198.51.100.8", instance.ControlMark, false},
		{"192.0.2.5", "198.51.100.9", instance.ControlMark, false},
		{"192.0.2.1", "198.51.100.8", 0, true},
	} {
		_, err := l.c.RouteGetWithOptions(net.ParseIP(tt.to), &netlink.RouteGetOptions{Mark: tt.mark, SrcAddr: net.ParseIP(tt.from)})
		if (err == nil) != tt.want {
			t.Errorf("from %s to %s with mark %#x: %v, want a route %t", tt.from, tt.to, tt.mark, err, tt.want)
		}
	}
	for _, err := range []error{l.c.RouteDel(all), l.c.AddrDel(circ0, second)} {
		if err != nil {
			t.Error(err)
		}
	}
}

func (l lab) wantMarkedRoute(t *testing.T, destination string, mark uint32, source string) {
	t.Helper()
	routes, err := l.get(destination, mark)
	if err != nil {
		t.Fatal(err)
	}
	if got := routes[0].Src.String(); got != source {
		t.Errorf("packets to %s leave from %s, want %s", destination, got, source)
	}
}

func (l lab) wantSysctls(t *testing.T, name string) {
	t.Helper()
	err := l.circuit.Do(func() error {
		for file, want := range map[string]string{
			"ipv4/ip_forward": "0", "ipv4/conf/" + name + "/rp_filter": "0", "ipv4/conf/all/rp_filter": "0",
			"ipv4/conf/" + name + "/arp_ignore": "2", "ipv4/conf/" + name + "/arp_announce": "2",
			"ipv6/conf/" + name + "/disable_ipv6": "1", "ipv6/conf/" + name + "/accept_ra": "0",
			"ipv6/conf/" + name + "/addr_gen_mode": "1", "ipv6/conf/all/forwarding": "0",
		} {
			got, err := os.ReadFile("/proc/sys/net/" + file)
			if err != nil {
				return err
			}
			if g := strings.TrimSpace(string(got)); g != want {
				t.Errorf("%s = %s, want %s", file, g, want)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// What would be guarded in part only is not taken, and stays as it was.
func TestClaimRefusesWhatDoesNotStandAlone(t *testing.T) {
	l := newLab(t)
	for _, name := range []string{"eth1", "eth2", "eth3"} {
		l.wire(t, name)
	}
	index := func(name string) int {
		t.Helper()
		x, err := l.m.LinkByName(name)
		if err != nil {
			t.Fatal(err)
		}
		return x.Attrs().Index
	}
	for _, x := range []netlink.Link{
		&netlink.Macvlan{LinkAttrs: netlink.LinkAttrs{Name: "top1", ParentIndex: index("eth1")}, Mode: netlink.MACVLAN_MODE_BRIDGE},
		&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}},
	} {
		if err := l.m.LinkAdd(x); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.m.LinkSetMasterByIndex(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: index("eth2")}}, index("br0")); err != nil {
		t.Fatal(err)
	}
	if err := l.m.LinkAddAltName(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: index("eth3"), Name: "eth3"}}, "circuit"); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"eth1":    `has the device "top1" on top of it`,
		"top1":    `is a device on top of "eth1"`,
		"eth2":    `belongs to "br0"`,
		"circuit": `another name of "eth3"`,
	} {
		claimed, err := l.driver.Claim(t.Context(), named(name))
		if err == nil || !strings.Contains(err.Error(), want) || len(claimed) > 0 {
			t.Errorf("%s: claimed %q with error %v, want one that says %s", name, claimed, err, want)
		}
	}
	for _, name := range []string{"eth1", "eth2", "eth3"} {
		if x, err := l.m.LinkByName(name); err != nil || x.Attrs().RawFlags&unix.IFF_UP == 0 {
			t.Errorf("%s was touched: %v", name, err)
		}
	}
}
