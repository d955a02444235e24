package netdev

import (
	"errors"

	"github.com/vishvananda/netlink"
)

// quiet are the settings of a tunnel's device in the main namespace: its one
// address is the probe's, so it needs IPv6 (which a host may have off by default),
// and no link-local address. The address mode comes first: enabling IPv6 would
// make one.
var quiet = []Setting{
	{Family: IPv6, Name: AddrGenMode, Value: NoAddress},
	{Family: IPv6, Name: "accept_ra", Value: 0},
	{Family: IPv6, Name: "disable_ipv6", Value: 0},
}

// IsQuiet reports whether an interface has IPv6 and makes no address by itself. It
// works on the calling thread's namespace, which is that of the view. What the view
// does not tell is asked for: older kernels leave the address mode out with the
// statistics (inet6_fill_ifla6_attrs in net/ipv6/addrconf.c).
func IsQuiet(v View, name string) bool {
	for _, s := range quiet {
		have, ok := v.Get(name, s.Family, s.Name)
		if !ok {
			var err error
			if have, ok, err = Of(name, s); err != nil {
				return false
			}
		}
		if !ok || have != s.Value {
			return false
		}
	}
	return true
}

// MakeQuiet makes an interface so. It writes only what differs: the kernel takes the
// lock of all network configuration for these, and has a writer of a sysctl turn in
// circles until it is free, where one of netlink sleeps. It works on the calling
// thread's namespace, which is h's.
func MakeQuiet(h *netlink.Handle, l netlink.Link) error {
	// What netlink refuses, an older kernel takes by its sysctl.
	_ = h.LinkSetIP6AddrGenMode(l, NoAddress)
	if !Known(IPv6) {
		return errors.New("the kernel has no IPv6, which the tunnels' probes need: boot without ipv6.disable=1")
	}
	var errs []error
	for _, s := range quiet {
		errs = append(errs, Ensure(l.Attrs().Name, s, func(Setting) {}))
	}
	return errors.Join(errs...)
}
