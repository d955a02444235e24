package classifier

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"

	"github.com/circuitseal/circuitseal/agent/netns"
	"github.com/circuitseal/circuitseal/agent/plan"
)

var errMissing = errors.New("there is no such interface")

// readFacts looks up the interfaces that the plan names, and the devices of
// their slow paths. One that is missing is left out; rendering says what misses
// it. An error means that the facts are not known.
func (c *Classifier) readFacts(want plan.Classifier) (facts, error) {
	f := facts{}
	var errs []error
	read := func(name string, addresses bool) {
		switch d, err := c.readDevice(name, addresses); {
		case err == nil:
			f[name] = d
		case !errors.Is(err, errMissing):
			errs = append(errs, err)
		}
	}
	for _, lan := range want.LANs {
		read(lan.Interface, true)
		if err := c.readSlow(f, lan.Interface); err != nil {
			errs = append(errs, err)
		}
	}
	for _, g := range want.Groups {
		for _, m := range g.Members {
			read(m.Device, false)
		}
	}
	return f, errors.Join(errs...)
}

// readSlow finds the device of a LAN's slow path. There need not be one.
func (c *Classifier) readSlow(f facts, lan string) error {
	d, ok := f[lan]
	if !ok {
		return nil
	}
	name, ok := c.config.Instance.SlowDevice(d.index)
	if !ok {
		return nil
	}
	slow, err := c.readDevice(name, false)
	if errors.Is(err, errMissing) {
		return nil
	}
	if err == nil && slow.veth {
		d.slow = slow.index
		f[lan] = d
	}
	return err
}

func (c *Classifier) readDevice(name string, addresses bool) (device, error) {
	l, err := c.netlink.LinkByName(name)
	if missing := (netlink.LinkNotFoundError{}); errors.As(err, &missing) {
		return device{}, errMissing
	}
	if err != nil {
		return device{}, fmt.Errorf("look up interface %s: %w", name, err)
	}
	if l.Attrs().Name != name {
		// The kernel also answers to alternative names, which nothing keeps
		// from being on a foreign interface.
		return device{}, errMissing
	}
	d := device{index: uint32(l.Attrs().Index), ethernet: l.Attrs().EncapType == "ether", veth: l.Type() == "veth"}
	// An XFRM interface claims to have no link layer, but shows the outer
	// packet's at ingress.
	d.header = d.ethernet || l.Type() == "xfrm"
	if !addresses {
		return d, nil
	}
	list, err := netns.Dump(func() ([]netlink.Addr, error) { return c.netlink.AddrList(l, netlink.FAMILY_ALL) })
	if err != nil {
		return device{}, fmt.Errorf("list addresses of interface %s: %w", name, err)
	}
	for _, a := range list {
		if ip, ok := netip.AddrFromSlice(a.IP); ok {
			d.addresses = append(d.addresses, ip.Unmap())
		}
	}
	return d, nil
}

// interfaceNames are the names of all interfaces by index.
func (c *Classifier) interfaceNames() (map[uint32]string, error) {
	links, err := netns.Dump(c.netlink.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	names := map[uint32]string{}
	for _, l := range links {
		names[uint32(l.Attrs().Index)] = l.Attrs().Name
	}
	return names, nil
}
