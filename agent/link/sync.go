package link

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/circuitseal/circuitseal/agent/instance"
	"github.com/circuitseal/circuitseal/agent/netdev"
	"github.com/circuitseal/circuitseal/agent/netns"
	"github.com/circuitseal/circuitseal/agent/plan"
)

// Sync gives the circuit namespace exactly these addresses, rules and tables.
// Rules and routes of other protocols than instance.RouteProtocol are left
// alone; addresses of planned interfaces are not. It writes only differences,
// goes on after an error, and joins the errors. A repeat is free.
func (d *Driver) Sync(ctx context.Context, ifaces []plan.Interface, tables []plan.Table) error {
	h, err := d.config.Circuit.Netlink()
	if err != nil {
		return fmt.Errorf("circuit namespace: %w", err)
	}
	defer h.Close()
	have, err := d.read(h)
	if err != nil {
		return err
	}
	return d.apply(ctx, h, diff(ifaces, tables, have), have)
}

// Plan is what Sync would write now.
func (d *Driver) Plan(ifaces []plan.Interface, tables []plan.Table) (Changes, error) {
	h, err := d.config.Circuit.Netlink()
	if err != nil {
		return Changes{}, fmt.Errorf("circuit namespace: %w", err)
	}
	defer h.Close()
	have, err := d.read(h)
	if err != nil {
		return Changes{}, err
	}
	return diff(ifaces, tables, have), nil
}

func (d *Driver) read(h *netlink.Handle) (state, error) {
	have := state{interfaces: map[string]iface{}}
	links, err := netns.Dump(h.LinkList)
	if err != nil {
		return state{}, fmt.Errorf("list interfaces of the circuit namespace: %w", err)
	}
	names := map[int]string{}
	for _, l := range links {
		a := l.Attrs()
		names[a.Index] = a.Name
		i := iface{index: a.Index, master: a.MasterIndex, up: a.RawFlags&unix.IFF_UP != 0, physical: d.physical(l)}
		if a.NetNsID < 0 {
			// With a link-netnsid the parent index is of another namespace.
			i.lower = a.ParentIndex
		}
		have.interfaces[a.Name] = i
	}
	addresses, err := netns.Dump(func() ([]netlink.Addr, error) { return h.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return state{}, fmt.Errorf("list addresses of the circuit namespace: %w", err)
	}
	for _, a := range addresses {
		name := names[a.LinkIndex]
		i, ok := have.interfaces[name]
		if prefix := netdev.PrefixOf(a.IPNet); !ok || prefix.Addr().Is6() && prefix.Addr().IsLinkLocalUnicast() {
			// The kernel gives and takes these.
			continue
		}
		i.addresses = append(i.addresses, address{prefix: netdev.PrefixOf(a.IPNet), peer: netdev.PrefixOf(a.Peer)})
		have.interfaces[name] = i
	}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		if err := have.readFamily(h, family, names); err != nil {
			return state{}, err
		}
	}
	return have, nil
}

// readFamily reads routes and rules. A kernel without IPv6 has none of it.
func (s *state) readFamily(h *netlink.Handle, family int, names map[int]string) error {
	rules, err := netns.Dump(func() ([]netlink.Rule, error) { return h.RuleList(family) })
	if family == netlink.FAMILY_V6 && (errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP)) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("list rules of the circuit namespace: %w", err)
	}
	for _, r := range rules {
		if r.Protocol != instance.RouteProtocol {
			continue
		}
		x := rule{
			priority: r.Priority, mark: r.Mark, table: uint32(r.Table), ipv6: family == netlink.FAMILY_V6,
			source: netdev.PrefixOf(r.Src), destination: netdev.PrefixOf(r.Dst),
		}
		if r.Mask != nil {
			x.mask = *r.Mask
		}
		s.rules = append(s.rules, x)
	}
	routes, err := netns.Dump(func() ([]netlink.Route, error) {
		// Table 0 with the table filter means every table.
		return h.RouteListFiltered(family, &netlink.Route{Protocol: instance.RouteProtocol},
			netlink.RT_FILTER_TABLE|netlink.RT_FILTER_PROTOCOL)
	})
	if err != nil {
		return fmt.Errorf("list routes of the circuit namespace: %w", err)
	}
	for _, r := range routes {
		if r.Protocol == instance.RouteProtocol {
			s.routes = append(s.routes, routeFrom(r, family, names))
		}
	}
	return nil
}

func (d *Driver) apply(ctx context.Context, h *netlink.Handle, c Changes, have state) error {
	var errs []error
	for _, p := range c.problems {
		errs = append(errs, errors.New(p))
	}
	for _, x := range c.list {
		if err := ctx.Err(); err != nil {
			return errors.Join(append(errs, err)...)
		}
		d.config.Log.Debug("circuit namespace", "change", x.String())
		if err := write(h, x, have); err != nil {
			errs = append(errs, fmt.Errorf("circuit namespace: %s: %w", x, err))
			continue
		}
		d.config.Drift.Note(x.verb.kind(), x)
	}
	return errors.Join(errs...)
}

func write(h *netlink.Handle, x change, have state) error {
	device := &netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: have.interfaces[x.device].index, Name: x.device}}
	switch x.verb {
	case addAddress:
		a := &netlink.Addr{IPNet: netdev.NetOf(x.address.prefix)}
		if x.address.prefix.Addr().Is6() {
			// Nobody else is on the link, and the guard lets no question out.
			a.Flags = unix.IFA_F_NODAD
		}
		return h.AddrAdd(device, a)
	case removeAddress:
		a := &netlink.Addr{IPNet: netdev.NetOf(x.address.prefix)}
		if x.address.peer.IsValid() {
			a.Peer = netdev.NetOf(x.address.peer)
		}
		return h.AddrDel(device, a)
	case release:
		return h.LinkSetNoMaster(device)
	case setUp:
		return h.LinkSetUp(device)
	case setDown:
		return h.LinkSetDown(device)
	case putRoute:
		return h.RouteReplace(routeTo(x.route, have))
	case removeRoute:
		return gone(h.RouteDel(routeTo(x.route, have)))
	case addRule:
		return h.RuleAdd(ruleTo(x.rule))
	case removeRule:
		return gone(h.RuleDel(ruleTo(x.rule)))
	}
	return fmt.Errorf("unknown change %d", x.verb)
}

// gone takes the absence of what was to be removed for success: the kernel
// removes routes by itself when an interface or an address goes.
func gone(err error) error {
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

func routeFrom(r netlink.Route, family int, names map[int]string) route {
	x := route{
		table:       uint32(r.Table),
		destination: netdev.PrefixOf(r.Dst),
		metric:      uint32(r.Priority),
		unreachable: r.Type == unix.RTN_UNREACHABLE,
	}
	if !x.destination.IsValid() {
		x.destination = end(0, family == netlink.FAMILY_V6).destination
	}
	if !x.unreachable {
		x.device = names[r.LinkIndex]
		x.nextHop = addrOf(r.Gw)
		x.source = addrOf(r.Src)
	}
	return x
}

func routeTo(x route, have state) *netlink.Route {
	r := &netlink.Route{
		Family:   familyOf(x.destination.Addr().Is6()),
		Table:    int(x.table),
		Protocol: instance.RouteProtocol,
		Dst:      netdev.NetOf(x.destination),
		Priority: int(x.metric),
	}
	if x.unreachable {
		r.Type = unix.RTN_UNREACHABLE
		return r
	}
	r.LinkIndex = have.interfaces[x.device].index
	if x.nextHop.IsValid() {
		r.Gw = x.nextHop.AsSlice()
	} else {
		r.Scope = netlink.SCOPE_LINK
	}
	if x.source.IsValid() {
		r.Src = x.source.AsSlice()
	}
	return r
}

func ruleTo(x rule) *netlink.Rule {
	r := netlink.NewRule()
	r.Family = familyOf(x.ipv6)
	r.Priority = x.priority
	r.Mark = x.mark
	r.Mask = &x.mask
	r.Table = int(x.table)
	r.Protocol = instance.RouteProtocol
	if x.source.IsValid() {
		r.Src = netdev.NetOf(x.source)
	}
	if x.destination.IsValid() {
		r.Dst = netdev.NetOf(x.destination)
	}
	return r
}

func familyOf(ipv6 bool) int {
	if ipv6 {
		return netlink.FAMILY_V6
	}
	return netlink.FAMILY_V4
}

func addrOf(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	return a.Unmap()
}
