package link

import (
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
	"github.com/circuitseal/circuitseal/agent/plan"
)

func wantedIPv6() ([]plan.Interface, []plan.Table) {
	local, peer := netip.MustParseAddr("fd00:9::1"), netip.MustParseAddr("fd00:77::9")
	return []plan.Interface{{Name: "circ0", Addresses: []netip.Prefix{netip.PrefixFrom(local, 126)}}},
		[]plan.Table{{
			Number: instance.Table(7), Mark: instance.Mark(7),
			Routes:  []plan.Route{{Destination: netip.PrefixFrom(peer, 128), NextHop: netip.MustParseAddr("fd00:9::2"), Interface: "circ0", Source: local}},
			Control: []plan.Pair{{Local: local, Remote: peer}},
		}}
}

// An interface with an IPv6 address has that and no other, at once, and its table
// for marked packets; what the kernel drops when an interface goes down comes back.
func TestIPv6Link(t *testing.T) {
	l := newLab(t)
	l.wire(t, "circ0")
	ctx := t.Context()
	ifaces, tables := wantedIPv6()
	sync := func() {
		t.Helper()
		if _, err := l.driver.Claim(ctx, ifaces); err != nil {
			t.Fatal(err)
		}
		if err := l.driver.Sync(ctx, ifaces, tables); err != nil {
			t.Fatal(err)
		}
		l.wantPlanned(t, ifaces, tables)
	}
	sync()
	circ0, err := l.c.LinkByName("circ0")
	if err != nil {
		t.Fatal(err)
	}
	// One is the link's own, the other what the guard takes for the interface's; that
	// one the kernel takes into use by and by.
	tentative := func(a netlink.Addr) bool { return a.Flags&unix.IFA_F_TENTATIVE != 0 }
	var addresses []netlink.Addr
	for start := time.Now(); ; time.Sleep(time.Millisecond) {
		if addresses, err = l.c.AddrList(circ0, netlink.FAMILY_V6); err != nil {
			t.Fatal(err)
		}
		if len(addresses) == 2 && !slices.ContainsFunc(addresses, tentative) {
			break
		}
		if time.Since(start) > 10*time.Second {
			t.Fatalf("addresses %v, want two that need no detection of duplicates", addresses)
		}
	}
	mac := circ0.Attrs().HardwareAddr
	own := net.IP{0: 0xfe, 1: 0x80, 8: mac[0] ^ 2, 9: mac[1], 10: mac[2], 11: 0xff, 12: 0xfe, 13: mac[3], 14: mac[4], 15: mac[5]}
	if !slices.ContainsFunc(addresses, func(a netlink.Addr) bool { return a.IP.Equal(own) }) {
		t.Errorf("addresses %v, want %s among them", addresses, own)
	}
	for _, tt := range []struct {
		from, to string
		mark     uint32
		want     bool
	}{
		{"fd00:9::1", "fd00:77::9", instance.Mark(7), true},
		{"fd00:9::1", "fd00:77::9", instance.ControlMark, true},
		{"fd00:9::1", "fd00:9::2", instance.Mark(7), false},
		{"fd00:9::1", "fd00:9::2", instance.ControlMark, false},
		{"fd00:9::1", "fd00:77::8", instance.ControlMark, false},
		{"fd00:9::1", "fd00:9::2", 0, true},
		{"fd00:9::1", "fd00:77::9", 0, false},
	} {
		_, err := l.c.RouteGetWithOptions(net.ParseIP(tt.to), &netlink.RouteGetOptions{Mark: tt.mark, SrcAddr: net.ParseIP(tt.from)})
		if (err == nil) != tt.want {
			t.Errorf("from %s to %s with mark %#x: %v, want a route %t", tt.from, tt.to, tt.mark, err, tt.want)
		}
	}
	l.wantQuiet(t, ifaces, tables)

	// The kernel takes IPv6 addresses and routes away with the interface.
	if err := l.c.LinkSetDown(circ0); err != nil {
		t.Fatal(err)
	}
	sync()
	if err := l.circuit.Do(func() error {
		return os.WriteFile("/proc/sys/net/ipv6/conf/circ0/disable_ipv6", []byte("1"), 0)
	}); err != nil {
		t.Fatal(err)
	}
	sync()
	// The same interface with IPv4 only, and with both.
	six, sixTables := ifaces, tables
	ifaces, tables = wanted()
	sync()
	l.wantSysctls(t, "circ0")
	if left, err := l.c.AddrList(circ0, netlink.FAMILY_V6); err != nil || len(left) != 0 {
		t.Errorf("addresses %v and error %v, want none of IPv6", left, err)
	}
	ifaces[0].Addresses = append(ifaces[0].Addresses, six[0].Addresses...)
	tables[0].Routes = append(tables[0].Routes, sixTables[0].Routes...)
	sync()
	tables = nil
	sync()
	rules, err := l.c.RuleList(netlink.FAMILY_V6)
	if err != nil || slices.ContainsFunc(rules, func(r netlink.Rule) bool { return r.Protocol == instance.RouteProtocol }) {
		t.Errorf("rules %v and error %v, want none of ours", rules, err)
	}
}

// A tagged link has IPv6 on its own device, and nothing below it has any.
func TestIPv6VLAN(t *testing.T) {
	l := newLab(t)
	l.wire(t, "port0")
	l.requireVLANs(t)
	want := portWithLinks()
	for i := range want {
		if len(want[i].Addresses) > 0 {
			want[i].Addresses = []netip.Prefix{netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 15: byte(4*i + 1)}), 126)}
		}
	}
	for range 2 {
		if claimed, err := l.driver.Claim(t.Context(), want); err != nil || len(claimed) != len(want) {
			t.Fatalf("claimed %q: %v", claimed, err)
		}
		if err := l.driver.Sync(t.Context(), want, nil); err != nil {
			t.Fatal(err)
		}
		l.wantPlanned(t, want, nil)
	}
	for _, i := range want {
		link, err := l.c.LinkByName(i.Name)
		if err != nil {
			t.Fatal(err)
		}
		addresses, err := l.c.AddrList(link, netlink.FAMILY_V6)
		addresses = slices.DeleteFunc(addresses, func(a netlink.Addr) bool { return a.IP.IsLinkLocalUnicast() && len(i.Addresses) > 0 })
		if err != nil || len(addresses) != len(i.Addresses) {
			t.Errorf("%s has %v with error %v, want %v", i.Name, addresses, err, i.Addresses)
		}
	}
}

// A marked packet is at no time looked up in the main table, in IPv6 as in IPv4.
func TestDiffIPv6(t *testing.T) {
	ifaces, tables := wantedIPv6()
	have := state{interfaces: map[string]iface{"circ0": {index: 2, up: true, physical: true}}}
	c := diff(ifaces, tables, have)
	last := map[string]int{}
	for i, line := range strings.Split(c.String(), "\n") {
		for _, what := range []string{"route replace unreachable ::/0 table 0x43530007", "route replace unreachable ::/0 table 0x43530000", "rule add fwmark 0x43530007", "rule add fwmark 0x43530000", "rule add from"} {
			if strings.HasPrefix(line, what) {
				last[what] = i + 1
			}
		}
	}
	if len(last) != 5 || last["rule add fwmark 0x43530007"] < last["route replace unreachable ::/0 table 0x43530007"] ||
		last["rule add from"] < last["rule add fwmark 0x43530000"] {
		t.Errorf("order %v in\n%s", last, c)
	}
}
