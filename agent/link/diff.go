package link

import (
	"cmp"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"

	"github.com/circuitseal/circuitseal/agent/drift"
	"github.com/circuitseal/circuitseal/agent/instance"
	"github.com/circuitseal/circuitseal/agent/plan"
)

// rulePriority is below the kernel's own rules for the main and default tables
// (32766 and 32767) and above that for local addresses (0). Control packets of
// no pair come to the last rule, behind all others.
const (
	rulePriority     = 0x4353
	lastRulePriority = rulePriority + 1
)

// unreachableMetric is the weakest that there is: any other route wins.
const unreachableMetric = math.MaxUint32

// metric6 is what the kernel makes of no metric in IPv6 (IP6_RT_PRIO_USER in
// include/uapi/linux/ipv6_route.h).
const metric6 = 1024

// state is what the circuit namespace has. Of routes and rules it holds only
// those that carry our protocol number.
type state struct {
	interfaces map[string]iface
	routes     []route
	rules      []rule
}

type iface struct {
	index     int
	up        bool
	physical  bool
	master    int // index of a bridge or bond that it was put into, 0 for none
	lower     int // index of the interface below a VLAN, 0 for none
	addresses []address
}

type address struct {
	prefix netip.Prefix
	// peer is valid on point-to-point addresses, which are never ours.
	peer netip.Prefix
}

type route struct {
	table       uint32
	destination netip.Prefix
	metric      uint32
	nextHop     netip.Addr
	device      string
	source      netip.Addr
	unreachable bool
}

// routeKey is what the kernel keeps apart (fib_table_insert in
// net/ipv4/fib_trie.c); of the rest a route is replaced.
type routeKey struct {
	table       uint32
	destination netip.Prefix
	metric      uint32
}

func (r route) key() routeKey { return routeKey{r.table, r.destination, r.metric} }

type rule struct {
	priority          int
	mark, mask, table uint32
	// source and destination are not valid where any will do.
	source, destination netip.Prefix
	// ipv6 tells whose packets it is for.
	ipv6 bool
}

type verb uint8

const (
	addAddress verb = iota
	removeAddress
	release // from a bridge or bond
	setUp
	setDown
	putRoute // adds or replaces
	removeRoute
	addRule
	removeRule
)

// kind is what the verb is about, for the ledger of repairs.
func (v verb) kind() drift.Kind {
	switch v {
	case addAddress, removeAddress:
		return drift.Address
	case putRoute, removeRoute:
		return drift.Route
	case addRule, removeRule:
		return drift.Rule
	case release, setUp, setDown:
	}
	return drift.Interface
}

// change is one write. Only the fields that its verb needs are set.
type change struct {
	verb    verb
	device  string
	address address
	route   route
	rule    rule
}

// Changes are the writes that lead from what there is to what is wanted, in
// their order. They print as one line each.
type Changes struct {
	list []change
	// problems are wishes that cannot be met, as sentences.
	problems []string
}

// Empty reports whether nothing has to be written.
func (c Changes) Empty() bool { return len(c.list) == 0 && len(c.problems) == 0 }

// String is for people.
func (c Changes) String() string {
	var b strings.Builder
	for _, x := range c.list {
		fmt.Fprintln(&b, x)
	}
	for _, p := range c.problems {
		fmt.Fprintln(&b, "problem:", p)
	}
	return b.String()
}

// diff orders its changes so that a marked packet is at no time looked up in
// the main table: a table ends in unreachable before its rule exists, and
// keeps that route until the rule is gone.
func diff(ifaces []plan.Interface, tables []plan.Table, have state) Changes {
	var c Changes
	remove := c.interfaces(ifaces, have)
	wantRoutes, wantRules := c.tables(tables, have)

	haveRoutes := make(map[routeKey]route, len(have.routes))
	for _, r := range have.routes {
		haveRoutes[r.key()] = r
	}
	for _, ends := range []bool{true, false} {
		for _, r := range wantRoutes {
			if old, ok := haveRoutes[r.key()]; r.unreachable == ends && (!ok || old != r) {
				c.list = append(c.list, change{verb: putRoute, route: r})
			}
		}
	}
	haveRules := make(map[rule]bool, len(have.rules))
	for _, r := range have.rules {
		haveRules[r] = true
	}
	stay := make(map[rule]bool, len(wantRules))
	for _, r := range wantRules {
		stay[r] = true
		if !haveRules[r] {
			c.list = append(c.list, change{verb: addRule, rule: r})
		}
	}

	wanted := make(map[routeKey]bool, len(wantRoutes))
	for _, r := range wantRoutes {
		wanted[r.key()] = true
	}
	stale := slices.DeleteFunc(slices.Clone(have.routes), func(r route) bool { return wanted[r.key()] })
	for _, r := range stale {
		if !r.unreachable {
			c.list = append(c.list, change{verb: removeRoute, route: r})
		}
	}
	for _, r := range have.rules {
		// Two of the same can exist when someone copied ours.
		if !stay[r] {
			c.list = append(c.list, change{verb: removeRule, rule: r})
		}
		stay[r] = false
	}
	for _, r := range stale {
		if r.unreachable {
			c.list = append(c.list, change{verb: removeRoute, route: r})
		}
	}
	c.list = append(c.list, remove...)
	return c
}

// interfaces appends additions, and returns removals for the end.
func (c *Changes) interfaces(ifaces []plan.Interface, have state) (remove []change) {
	planned := map[string]bool{}
	below := map[int]bool{}
	for _, want := range ifaces {
		planned[want.Name] = true
		got, ok := have.interfaces[want.Name]
		if !ok {
			c.problems = append(c.problems, fmt.Sprintf("circuit interface %q is not in the circuit namespace", want.Name))
			continue
		}
		below[got.lower] = true
		for _, p := range want.Addresses {
			if a := (address{prefix: p}); !slices.Contains(got.addresses, a) {
				c.list = append(c.list, change{verb: addAddress, device: want.Name, address: a})
			}
		}
		for _, a := range got.addresses {
			if a.peer.IsValid() || !slices.Contains(want.Addresses, a.prefix) {
				remove = append(remove, change{verb: removeAddress, device: want.Name, address: a})
			}
		}
		if got.master != 0 {
			c.list = append(c.list, change{verb: release, device: want.Name})
		}
		if !got.up {
			c.list = append(c.list, change{verb: setUp, device: want.Name})
		}
	}
	// The namespace is ours. An interface in it that the plan does not know
	// stays silent, unless a planned VLAN needs it.
	for name, got := range have.interfaces {
		if got.physical && got.up && !planned[name] && !below[got.index] {
			remove = append(remove, change{verb: setDown, device: name})
		}
	}
	slices.SortStableFunc(remove, func(a, b change) int {
		return cmp.Or(cmp.Compare(a.verb, b.verb), cmp.Compare(a.device, b.device))
	})
	return remove
}

// tables has besides them, while there are any, one for control packets that
// belong to no link: it leads nowhere.
func (c *Changes) tables(tables []plan.Table, have state) (routes []route, rules []rule) {
	control := map[plan.Pair]uint32{}
	for _, ipv6 := range []bool{false, true} {
		family := keepTables(tables, ipv6)
		if len(family) == 0 {
			continue
		}
		routes = append(routes, end(instance.Table(0), ipv6))
		rules = append(rules, rule{priority: lastRulePriority, mark: instance.ControlMark, mask: math.MaxUint32, table: instance.Table(0), ipv6: ipv6})
		for _, t := range family {
			routes = append(routes, end(t.Number, ipv6))
			rules = append(rules, c.control(t, ipv6, control)...)
			rules = append(rules, rule{priority: rulePriority, mark: t.Mark, mask: math.MaxUint32, table: t.Number, ipv6: ipv6})
		}
	}
	for _, t := range tables {
		for _, r := range t.Routes {
			if _, ok := have.interfaces[r.Interface]; !ok {
				c.problems = append(c.problems, fmt.Sprintf("route to %s: circuit interface %q is not in the circuit namespace", r.Destination, r.Interface))
				continue
			}
			x := route{
				table: t.Number, destination: r.Destination.Masked(),
				nextHop: r.NextHop, device: r.Interface, source: r.Source,
			}
			if x.destination.Addr().Is6() {
				x.metric = metric6
			}
			routes = append(routes, x)
		}
	}
	return routes, rules
}

// end is where a table ends.
func end(table uint32, ipv6 bool) route {
	everything := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	if ipv6 {
		everything = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	}
	return route{table: table, destination: everything, metric: unreachableMetric, unreachable: true}
}

// keepTables are those with rules for a family: all for IPv4, and for IPv6, which
// other interfaces have not at all, those that lead to something.
func keepTables(tables []plan.Table, ipv6 bool) []plan.Table {
	if !ipv6 {
		return tables
	}
	var out []plan.Table
	for _, t := range tables {
		if slices.ContainsFunc(t.Routes, func(r plan.Route) bool { return r.Destination.Addr().Is6() }) ||
			slices.ContainsFunc(t.Control, func(p plan.Pair) bool { return p.Local.Is6() }) {
			out = append(out, t)
		}
	}
	return out
}

// control are the rules for a table's control packets of a family; taken has the
// table of each pair.
func (c *Changes) control(t plan.Table, ipv6 bool, taken map[plan.Pair]uint32) (rules []rule) {
	for _, p := range t.Control {
		if p.Local.Is6() != ipv6 {
			continue
		}
		if other, ok := taken[p]; ok && other != t.Number {
			c.problems = append(c.problems, fmt.Sprintf("control packets from %s to %s: tables %#x and %#x both want them", p.Local, p.Remote, other, t.Number))
			continue
		} else if ok {
			continue
		}
		taken[p] = t.Number
		rules = append(rules, rule{
			priority: rulePriority, mark: instance.ControlMark, mask: math.MaxUint32, table: t.Number, ipv6: ipv6,
			source: netip.PrefixFrom(p.Local, p.Local.BitLen()), destination: netip.PrefixFrom(p.Remote, p.Remote.BitLen()),
		})
	}
	return rules
}

// String is the command of iproute2 that would do the same.
func (x change) String() string {
	switch x.verb {
	case addAddress:
		return fmt.Sprintf("address add %s dev %s", x.address.prefix, x.device)
	case removeAddress:
		return fmt.Sprintf("address del %s dev %s", x.address.prefix, x.device)
	case release:
		return fmt.Sprintf("link set %s nomaster", x.device)
	case setUp:
		return fmt.Sprintf("link set %s up", x.device)
	case setDown:
		return fmt.Sprintf("link set %s down", x.device)
	case putRoute:
		return "route replace " + x.route.String()
	case removeRoute:
		return "route del " + x.route.String()
	case addRule:
		return "rule add " + x.rule.String()
	case removeRule:
		return "rule del " + x.rule.String()
	}
	return fmt.Sprintf("verb %d", uint8(x.verb))
}

func (r route) String() string {
	var b strings.Builder
	if r.unreachable {
		b.WriteString("unreachable ")
	}
	b.WriteString(r.destination.String())
	if r.nextHop.IsValid() {
		fmt.Fprintf(&b, " via %s", r.nextHop)
	}
	if r.device != "" {
		fmt.Fprintf(&b, " dev %s", r.device)
	}
	fmt.Fprintf(&b, " table %#x", r.table)
	if r.source.IsValid() {
		fmt.Fprintf(&b, " src %s", r.source)
	}
	if r.metric != 0 {
		fmt.Fprintf(&b, " metric %d", r.metric)
	}
	return b.String()
}

func (r rule) String() string {
	var b strings.Builder
	if r.source.IsValid() {
		fmt.Fprintf(&b, "from %s ", r.source)
	}
	if r.destination.IsValid() {
		fmt.Fprintf(&b, "to %s ", r.destination)
	}
	fmt.Fprintf(&b, "fwmark %#x/%#x lookup %#x priority %d", r.mark, r.mask, r.table, r.priority)
	if r.ipv6 {
		b.WriteString(" of IPv6")
	}
	return b.String()
}
