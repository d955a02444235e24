package classifier

import (
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"

	"github.com/circuitseal/circuitseal/agent/netdev"
	"github.com/circuitseal/circuitseal/agent/netns"
	"github.com/circuitseal/circuitseal/agent/plan"
)

// readFacts looks up the interfaces that the plan names, and the devices of
// their slow paths. One that is missing is left out; rendering says what misses
// it. An error means that the facts are not known. It lists everything once,
// since asking for each interface, and for its addresses, costs as much again
// for each.
func (c *Classifier) readFacts(want plan.Classifier, view netdev.View) (facts, error) {
	devices, err := c.readDevices(view)
	if err != nil {
		return nil, err
	}
	f := facts{}
	for _, lan := range want.LANs {
		d, ok := devices[lan.Interface]
		if !ok {
			continue
		}
		if name, ok := c.config.Instance.SlowDevice(d.index); ok && devices[name].veth {
			d.slow = devices[name].index
		}
		f[lan.Interface] = d
	}
	for _, g := range want.Groups {
		for _, m := range g.Members {
			if d, ok := devices[m.Device]; ok {
				d.addresses = nil
				f[m.Device] = d
			}
		}
	}
	return f, nil
}

// readDevices are all interfaces by name, not by alternative names, which nothing
// keeps from being on a foreign interface.
func (c *Classifier) readDevices(view netdev.View) (map[string]device, error) {
	addresses, err := netns.Dump(func() ([]netlink.Addr, error) { return c.netlink.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	byIndex := map[int][]netip.Addr{}
	for _, a := range addresses {
		if ip, ok := netip.AddrFromSlice(a.IP); ok {
			byIndex[a.LinkIndex] = append(byIndex[a.LinkIndex], ip.Unmap())
		}
	}
	devices := make(map[string]device, view.Len())
	for i := range view.All() {
		devices[i.Name] = device{
			index: uint32(i.Index), ethernet: i.Ethernet, veth: i.Kind == "veth",
			// An XFRM interface claims to have no link layer, but shows the outer
			// packet's at ingress.
			header:    i.Ethernet || i.Kind == "xfrm",
			addresses: byIndex[i.Index],
		}
	}
	return devices, nil
}

// interfaceNames are the names of all interfaces by index.
func (c *Classifier) interfaceNames() (map[uint32]string, error) {
	var view netdev.View
	err := c.home.Do(func() (err error) {
		view, err = netdev.Read()
		return err
	})
	if err != nil {
		return nil, err
	}
	names := make(map[uint32]string, view.Len())
	for i := range view.All() {
		names[uint32(i.Index)] = i.Name
	}
	return names, nil
}
