package ipsec

import (
	"errors"
	"fmt"
	"net"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/circuitseal/circuitseal/agent/drift"
	"github.com/circuitseal/circuitseal/agent/instance"
	"github.com/circuitseal/circuitseal/agent/netdev"
	"github.com/circuitseal/circuitseal/agent/netns"
)

// An XFRM interface looks up a route for each IPv6 packet that was redirected into
// it, and takes one by itself only (xfrmi_xmit in
// net/xfrm/xfrm_interface_core.c); for IPv4 it needs none. So there is one for all
// destinations by each, in a table of the instance's own, which only packets
// that the classifier has marked are looked up in: what the host sends by itself
// finds no way into a tunnel, and a change of prefixes changes no route. The metric
// is the interface's index, which no two have.

// innerMask is the part of a mark that is the instance's.
const innerMask uint32 = 0xffff0000

// innerRulePriority is before the main table's rule.
const innerRulePriority = 0x4353

// innerState is what the main namespace has for it.
type innerState struct {
	// routes are interface indexes.
	routes []int
	// rules is how many there are: one is enough.
	rules int
}

// syncInner gives each of the interfaces its route.
func (d *Driver) syncInner(h *netlink.Handle, interfaces []int) error {
	have, err := d.readInner(h)
	if err != nil {
		return err
	}
	var errs []error
	write := func(what string, err error) {
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", what, err))
			return
		}
		d.config.Log.Debug("IPsec", "change", what)
		d.config.Drift.Note(drift.IPsecRoute, drift.Text(what))
	}
	for _, i := range interfaces {
		if !slices.Contains(have.routes, i) {
			write(fmt.Sprintf("add inner route by interface %d", i), h.RouteReplace(d.innerRoute(i)))
		}
	}
	if len(interfaces) > 0 && have.rules == 0 {
		write("add rule for inner routes", h.RuleAdd(d.innerRule()))
	}
	if len(interfaces) == 0 {
		for range have.rules {
			write("remove rule for inner routes", netdev.Gone(h.RuleDel(d.innerRule())))
		}
	}
	for _, i := range have.routes {
		if !slices.Contains(interfaces, i) {
			write(fmt.Sprintf("remove inner route by interface %d", i), netdev.Gone(h.RouteDel(d.innerRoute(i))))
		}
	}
	return errors.Join(errs...)
}

// innerInterfaces are the XFRM interfaces that were there, and those just made.
func (d *Driver) innerInterfaces(h *hostNetlink, made []string, before map[string]device) ([]int, error) {
	var out []int
	var errs []error
	for name, x := range before {
		if x.main && x.kind == kindXFRM && !slices.Contains(made, name) {
			out = append(out, x.index)
		}
	}
	for _, name := range made {
		l, err := h.main.LinkByName(name)
		if _, none := errors.AsType[netlink.LinkNotFoundError](err); none || err == nil && l.Type() != kindXFRM {
			continue
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		out = append(out, l.Attrs().Index)
	}
	return out, errors.Join(errs...)
}

func (d *Driver) readInner(h *netlink.Handle) (innerState, error) {
	var s innerState
	routes, err := netns.Dump(func() ([]netlink.Route, error) {
		return h.RouteListFiltered(netlink.FAMILY_V6, &netlink.Route{Protocol: instance.RouteProtocol, Table: int(d.config.Instance.InnerTable())},
			netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return s, fmt.Errorf("list inner routes: %w", err)
	}
	for _, r := range routes {
		s.routes = append(s.routes, r.LinkIndex)
	}
	rules, err := netns.Dump(func() ([]netlink.Rule, error) { return h.RuleList(netlink.FAMILY_V6) })
	if err != nil {
		return s, fmt.Errorf("list rules: %w", err)
	}
	want := d.innerRule()
	for _, r := range rules {
		if r.Protocol == want.Protocol && r.Priority == want.Priority && r.Table == want.Table && r.Mark == want.Mark && r.Mask != nil && *r.Mask == innerMask {
			s.rules++
		}
	}
	return s, nil
}

func (d *Driver) innerRoute(index int) *netlink.Route {
	return &netlink.Route{
		Family: netlink.FAMILY_V6, Dst: &net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}, LinkIndex: index,
		Table: int(d.config.Instance.InnerTable()), Priority: index, Protocol: instance.RouteProtocol, Scope: unix.RT_SCOPE_UNIVERSE,
	}
}

func (d *Driver) innerRule() *netlink.Rule {
	r, mask := netlink.NewRule(), innerMask
	r.Family, r.Priority, r.Table, r.Protocol = netlink.FAMILY_V6, innerRulePriority, int(d.config.Instance.InnerTable()), instance.RouteProtocol
	r.Mark, r.Mask = d.config.Instance.InnerMark(), &mask
	return r
}
