package slowpath

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/circuitseal/circuitseal/agent/instance"
	"github.com/circuitseal/circuitseal/agent/netns"
	"github.com/circuitseal/circuitseal/agent/plan"
)

var families = map[int]int{4: netlink.FAMILY_V4, 6: netlink.FAMILY_V6}

// own is true of an end of a slow path, by its name and kind.
func own(i instance.Instance, l netlink.Link) bool {
	return l.Type() == "veth" && strings.HasPrefix(l.Attrs().Name, i.SlowDevicePrefix())
}

func (d *Driver) read(h handles, lans []plan.LAN) (have state, err error) {
	have = state{lans: map[string]lan{}, rules: map[rule]bool{}, routes: map[route]bool{}}
	_, err = os.Stat(procNet + "/ipv6")
	have.ipv6 = err == nil
	if have.main, err = d.readEnds(h.main, func(l netlink.Link) error { return readLAN(h.main, l, lans, have.lans) }); err != nil {
		return have, fmt.Errorf("main namespace: %w", err)
	}
	names := map[int]string{}
	have.slow, err = d.readEnds(h.slow, func(l netlink.Link) error {
		names[l.Attrs().Index] = l.Attrs().Name
		return nil
	})
	if err == nil {
		err = have.readAddresses(h.slow, names)
	}
	for f := range families {
		if err == nil && (f == 4 || have.ipv6) {
			err = errors.Join(have.readRules(h.slow, f), have.readRoutes(h.slow, f, names))
		}
	}
	if err != nil {
		return have, fmt.Errorf("namespace of the slow path: %w", err)
	}
	return have, nil
}

// readEnds finds what is ours in a namespace, and shows each of all interfaces
// to see.
func (d *Driver) readEnds(h *netlink.Handle, see func(netlink.Link) error) (map[string]end, error) {
	links, err := netns.Dump(h.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	found := map[string]end{}
	for _, l := range links {
		if err := see(l); err != nil {
			return nil, err
		}
		if !own(d.config.Instance, l) {
			continue
		}
		a := l.Attrs()
		found[a.Name] = end{
			index: a.Index, peer: a.ParentIndex, mtu: a.MTU,
			up:     a.RawFlags&unix.IFF_UP != 0,
			silent: a.RawFlags&(unix.IFF_NOARP|unix.IFF_MULTICAST) == unix.IFF_NOARP,
		}
	}
	return found, nil
}

func readLAN(h *netlink.Handle, l netlink.Link, lans []plan.LAN, into map[string]lan) error {
	name := l.Attrs().Name
	if !slices.ContainsFunc(lans, func(x plan.LAN) bool { return x.Interface == name }) {
		return nil
	}
	list, err := netns.Dump(func() ([]netlink.Addr, error) { return h.AddrList(l, netlink.FAMILY_ALL) })
	if err != nil {
		return fmt.Errorf("list addresses of LAN interface %s: %w", name, err)
	}
	x := lan{index: uint32(l.Attrs().Index)}
	for _, a := range list {
		x.addresses = append(x.addresses, addrOf(a.IP))
	}
	into[name] = x
	return nil
}

func (s state) readAddresses(h *netlink.Handle, names map[int]string) error {
	list, err := netns.Dump(func() ([]netlink.Addr, error) { return h.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range list {
		if e, ok := s.slow[names[a.LinkIndex]]; ok {
			e.addresses = append(e.addresses, prefixOf(a.IPNet))
			s.slow[names[a.LinkIndex]] = e
		}
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
			x.destination = prefixOf(r.Dst)
		}
		s.routes[x] = true
	}
	return nil
}

func prefixOf(n *net.IPNet) netip.Prefix {
	ones, _ := n.Mask.Size()
	return netip.PrefixFrom(addrOf(n.IP), ones)
}

func addrOf(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	return a.Unmap()
}
