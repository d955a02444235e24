package slowpath

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/circuitseal/circuitseal/agent/instance"
	"github.com/circuitseal/circuitseal/agent/netdev"
	"github.com/circuitseal/circuitseal/agent/netns"
	"github.com/circuitseal/circuitseal/agent/plan"
)

var families = map[int]int{4: netlink.FAMILY_V4, 6: netlink.FAMILY_V6}

// own is true of an end of a slow path, by its name and kind.
func own(i instance.Instance, kind, name string) bool {
	return kind == "veth" && strings.HasPrefix(name, i.SlowDevicePrefix())
}

func (d *Driver) read(h handles, lans []plan.LAN) (have state, err error) {
	have = state{lans: map[string]lan{}, rules: map[rule]bool{}, routes: map[route]bool{}}
	have.ipv6 = netdev.Known(netdev.IPv6)
	if err := d.readMain(h, lans, &have); err != nil {
		return have, fmt.Errorf("main namespace: %w", err)
	}
	if err := d.readSlow(h, &have); err != nil {
		return have, fmt.Errorf("namespace of the slow path: %w", err)
	}
	return have, nil
}

func (d *Driver) readMain(h handles, lans []plan.LAN, have *state) (err error) {
	var names map[int]string
	if have.mainView, have.main, names, err = d.readEnds(h.mainNS, h.main, h.away); err != nil {
		return err
	}
	for _, l := range lans {
		if i, ok := have.mainView.Named(l.Interface); ok {
			have.lans[i.Name] = lan{index: uint32(i.Index)}
		}
	}
	return readAddresses(h.main, func(index int, p netip.Prefix) {
		if l, ok := have.lans[names[index]]; ok {
			l.addresses = append(l.addresses, p.Addr())
			have.lans[names[index]] = l
		}
	})
}

func (d *Driver) readSlow(h handles, have *state) (err error) {
	var names map[int]string
	if have.slowView, have.slow, names, err = d.readEnds(h.away, h.slow, h.mainNS); err != nil {
		return err
	}
	errs := []error{readAddresses(h.slow, func(index int, p netip.Prefix) {
		if e, ok := have.slow[names[index]]; ok {
			e.addresses = append(e.addresses, p)
			have.slow[names[index]] = e
		}
	})}
	for f := range families {
		if f == 4 || have.ipv6 {
			errs = append(errs, have.readRules(h.slow, f), have.readRoutes(h.slow, f, names))
		}
	}
	return errors.Join(errs...)
}

// readEnds finds what is ours in a namespace, and the names of all interfaces.
// The other ends are to be in other.
func (d *Driver) readEnds(n netns.Namespace, h *netlink.Handle, other netns.Namespace) (view netdev.View, found map[string]end, names map[int]string, err error) {
	err = n.Do(func() (err error) {
		view, err = netdev.Read()
		return err
	})
	if err != nil {
		return view, nil, nil, err
	}
	// Asked for after the list: it is given when an end of a pair is listed first.
	id, err := h.GetNetNsIdByFd(other.FD())
	if err != nil {
		return view, nil, nil, fmt.Errorf("ask for the number of the other namespace: %w", err)
	}
	found, names = map[string]end{}, make(map[int]string, view.Len())
	for i := range view.All() {
		names[i.Index] = i.Name
		if !own(d.config.Instance, i.Kind, i.Name) {
			continue
		}
		found[i.Name] = end{
			index: i.Index, peer: i.Parent, mtu: i.MTU,
			away:   i.Away >= 0 && i.Away == id,
			up:     i.Flags&unix.IFF_UP != 0,
			silent: i.Flags&(unix.IFF_NOARP|unix.IFF_MULTICAST) == unix.IFF_NOARP,
		}
	}
	return view, found, names, nil
}

func readAddresses(h *netlink.Handle, see func(index int, p netip.Prefix)) error {
	list, err := netns.Dump(func() ([]netlink.Addr, error) { return h.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range list {
		see(a.LinkIndex, netdev.PrefixOf(a.IPNet))
	}
	return nil
}

func (s state) readRules(h *netlink.Handle, family int) error {
	list, err := netns.Dump(func() ([]netlink.Rule, error) { return h.RuleList(families[family]) })
	if err != nil {
		return fmt.Errorf("list rules: %w", err)
	}
	for _, r := range list {
		x := rule{family: family, priority: r.Priority, mark: r.Mark, table: uint32(r.Table), protocol: r.Protocol}
		if r.Mask != nil {
			x.mask = *r.Mask
		}
		s.rules[x] = true
	}
	return nil
}

func (s state) readRoutes(h *netlink.Handle, family int, names map[int]string) error {
	list, err := netns.Dump(func() ([]netlink.Route, error) {
		// Table 0 with the table filter means every table.
		return h.RouteListFiltered(families[family], &netlink.Route{Protocol: instance.RouteProtocol},
			netlink.RT_FILTER_TABLE|netlink.RT_FILTER_PROTOCOL)
	})
	if err != nil {
		return fmt.Errorf("list routes: %w", err)
	}
	for _, r := range list {
		x := route{table: uint32(r.Table), destination: everything[family], gateway: addrOf(r.Gw), device: names[r.LinkIndex]}
		if r.Dst != nil {
			x.destination = netdev.PrefixOf(r.Dst)
		}
		s.routes[x] = true
	}
	return nil
}

func addrOf(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	return a.Unmap()
}
