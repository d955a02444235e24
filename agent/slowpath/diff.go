package slowpath

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"net/netip"
	"slices"
	"strings"

	"github.com/circuitseal/circuitseal/agent/instance"
	"github.com/circuitseal/circuitseal/agent/netdev"
	"github.com/circuitseal/circuitseal/agent/plan"
)

// state is what there is of an instance's slow paths, and the LANs that are
// wanted.
type state struct {
	lans map[string]lan
	// main and slow are the ends in the two namespaces, by name.
	main, slow map[string]end
	// rules are all of the namespace, routes those with our protocol number.
	rules  map[rule]bool
	routes map[route]bool
	// ipv6 is false on a kernel without.
	ipv6 bool
	// The views are all interfaces of the two namespaces.
	mainView, slowView netdev.View
}

type lan struct {
	index     uint32
	addresses []netip.Addr
}

// end is one end of a pair, and peer the index of what is at its other end; away
// tells that this is in the other namespace of the two, since each numbers its
// interfaces for itself.
type end struct {
	index, peer int
	away        bool
	mtu         int
	up          bool
	// silent ends resolve no neighbours and join no groups.
	silent    bool
	addresses []netip.Prefix
}

type rule struct {
	family, priority  int
	mark, mask, table uint32
	protocol          uint8
}

type route struct {
	table       uint32
	destination netip.Prefix
	gateway     netip.Addr
	device      string
}

const rulePriority = 0x4353

// Gateways exist nowhere. With one as next hop the kernel keeps one neighbour a
// LAN, not one for each destination; its hardware address is the device's own,
// so that what comes out in the main namespace is for no host there.
var gateways = map[int]netip.Addr{
	4: netip.MustParseAddr("169.254.67.83"),
	6: netip.MustParseAddr("fe80::c5ea:4353"),
}

var everything = map[int]netip.Prefix{
	4: netip.PrefixFrom(netip.IPv4Unspecified(), 0),
	6: netip.PrefixFrom(netip.IPv6Unspecified(), 0),
}

type verb uint8

// The order is that of changes, up to addPair.
const (
	removeRule verb = iota
	removeRoute
	removeMain
	removeSlow
	addPair
	setMTU // of both ends
	silence
	setUp
	addAddress
	removeAddress
	addRoute
	addRule
)

// removes is true of the verbs that a list of changes begins with.
func (v verb) removes() bool { return v < addPair }

// change is one write. Only the fields that its verb needs are set.
type change struct {
	verb    verb
	device  string
	mtu     int
	address netip.Prefix
	route   route
	rule    rule
}

// changes are the writes that lead from what there is to what is wanted, in
// their order.
type changes struct {
	list []change
	// ready are the pairs that are there.
	ready []string
	// made are the pairs that these make, so that there is more to do after them.
	made []string
}

// pair is a slow path as it should be.
type pair struct {
	name      string
	lan       uint32
	mtu       int
	families  []int
	addresses []netip.Prefix
}

// minIPv6 is the least MTU of an interface with IPv6 (RFC 8200, section 5).
const minIPv6 = 1280

// wanted leaves out LANs that do not exist, whose tenant has no tunnel, or
// whose index is too great for a name.
func wanted(i instance.Instance, lans []plan.LAN, have state) map[string]pair {
	want := map[string]pair{}
	for _, l := range lans {
		x, there := have.lans[l.Interface]
		name, ok := i.SlowDevice(x.index)
		if !there || !ok || l.MTU <= 0 {
			continue
		}
		p := pair{name: name, lan: x.index, mtu: l.MTU, families: []int{4}}
		if have.ipv6 && l.MTU >= minIPv6 {
			p.families = append(p.families, 6)
		}
		for _, a := range senders(x.addresses) {
			if slices.Contains(p.families, familyOf(a)) {
				p.addresses = append(p.addresses, netip.PrefixFrom(a, a.BitLen()))
			}
		}
		want[name] = p
	}
	return want
}

// senders are the addresses that ICMP may come from. A link-local one is
// no more than a makeshift: routers on the LAN do not pass it on.
func senders(all []netip.Addr) []netip.Addr {
	global := func(a netip.Addr) bool { return a.Is6() && !a.IsLinkLocalUnicast() }
	if !slices.ContainsFunc(all, global) {
		return all
	}
	return slices.DeleteFunc(slices.Clone(all), func(a netip.Addr) bool { return a.Is6() && !global(a) })
}

func familyOf(a netip.Addr) int {
	if a.Is4() {
		return 4
	}
	return 6
}

// diff takes rules away first and adds them last: a packet whose mark no rule
// knows goes nowhere. Where one can not be taken away, the rest waits. The kernel's own rules are among what goes, so that there
// is nothing but the LANs' tables: no destination is the namespace's own,
// though every LAN's addresses are there.
func diff(i instance.Instance, lans []plan.LAN, have state) changes {
	want := wanted(i, lans, have)
	names := slices.Sorted(maps.Keys(want))
	wantRules, wantRoutes := map[rule]bool{}, map[route]bool{}
	var c changes
	var tail []change
	for _, name := range names {
		p := want[name]
		if !have.paired(name) {
			continue
		}
		c.ready = append(c.ready, name)
		for _, f := range p.families {
			r := route{table: instance.SlowTable(p.lan), destination: everything[f], gateway: gateways[f], device: name}
			u := rule{family: f, priority: rulePriority, mark: p.lan, mask: math.MaxUint32, table: r.table, protocol: instance.RouteProtocol}
			wantRoutes[r], wantRules[u] = true, true
			if !have.routes[r] {
				tail = append(tail, change{verb: addRoute, route: r})
			}
			if !have.rules[u] {
				tail = append(tail, change{verb: addRule, rule: u})
			}
		}
	}
	for r := range have.rules {
		if !wantRules[r] {
			c.list = append(c.list, change{verb: removeRule, rule: r})
		}
	}
	for r := range have.routes {
		if !wantRoutes[r] {
			c.list = append(c.list, change{verb: removeRoute, route: r})
		}
	}
	for name := range have.main {
		if _, ok := want[name]; !ok || !have.paired(name) {
			c.list = append(c.list, change{verb: removeMain, device: name})
		}
	}
	for name := range have.slow {
		if _, ok := want[name]; !ok || !have.paired(name) {
			c.list = append(c.list, change{verb: removeSlow, device: name})
		}
	}
	slices.SortFunc(c.list, func(a, b change) int {
		return cmp.Or(cmp.Compare(a.verb, b.verb), strings.Compare(a.String(), b.String()))
	})
	for _, name := range names {
		if have.paired(name) {
			c.list = append(c.list, ends(want[name], have.main[name], have.slow[name])...)
			continue
		}
		c.list = append(c.list, change{verb: addPair, device: name, mtu: want[name].mtu})
		c.made = append(c.made, name)
	}
	c.list = append(c.list, tail...)
	return c
}

// ends orders what is to be done to a pair: it is silent before it is up, and up
// before it gets addresses, which IPv6 takes back otherwise.
func ends(want pair, main, slow end) (list []change) {
	if main.mtu != want.mtu || slow.mtu != want.mtu {
		list = append(list, change{verb: setMTU, device: want.name, mtu: want.mtu})
	}
	if !main.silent || !slow.silent {
		list = append(list, change{verb: silence, device: want.name})
	}
	if !main.up || !slow.up {
		list = append(list, change{verb: setUp, device: want.name})
	}
	for _, a := range want.addresses {
		if !slices.Contains(slow.addresses, a) {
			list = append(list, change{verb: addAddress, device: want.name, address: a})
		}
	}
	for _, a := range slow.addresses {
		if !slices.Contains(want.addresses, a) {
			list = append(list, change{verb: removeAddress, device: want.name, address: a})
		}
	}
	return list
}

// paired is true if both ends are there and each is the other's.
func (s state) paired(name string) bool {
	m, ok := s.main[name]
	x, there := s.slow[name]
	return ok && there && m.away && x.away && m.peer == x.index && x.peer == m.index
}

// String is the command of iproute2 that would do the same.
func (x change) String() string {
	switch x.verb {
	case removeRule:
		return "rule del " + x.rule.String()
	case removeRoute:
		return "route del " + x.route.String()
	case removeMain:
		return "link del " + x.device
	case removeSlow:
		return fmt.Sprintf("link del %s in the slow namespace", x.device)
	case addPair:
		return fmt.Sprintf("link add %s mtu %d type veth", x.device, x.mtu)
	case setMTU:
		return fmt.Sprintf("link set %s mtu %d", x.device, x.mtu)
	case silence:
		return fmt.Sprintf("link set %s arp off multicast off", x.device)
	case setUp:
		return fmt.Sprintf("link set %s up", x.device)
	case addAddress:
		return fmt.Sprintf("address add %s dev %s", x.address, x.device)
	case removeAddress:
		return fmt.Sprintf("address del %s dev %s", x.address, x.device)
	case addRoute:
		return "route add " + x.route.String()
	case addRule:
		return "rule add " + x.rule.String()
	}
	return fmt.Sprintf("verb %d", uint8(x.verb))
}

func (r route) String() string {
	return fmt.Sprintf("%s via %s dev %s onlink table %#x", r.destination, r.gateway, r.device, r.table)
}

func (r rule) String() string {
	return fmt.Sprintf("IPv%d fwmark %#x/%#x lookup %#x priority %d", r.family, r.mark, r.mask, r.table, r.priority)
}
