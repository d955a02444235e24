package link

import (
	"errors"
	"net/netip"
	"slices"

	"github.com/circuitseal/circuitseal/agent/drift"
	"github.com/circuitseal/circuitseal/agent/netdev"
	"github.com/circuitseal/circuitseal/agent/plan"
)

// Of "all" and an interface's own value the kernel takes the larger one for
// rp_filter, arp_ignore and arp_announce (include/linux/inetdevice.h), so both
// are set. "default" is what an interface gets at the moment it arrives.
var (
	quiet = []netdev.Setting{
		{Family: netdev.IPv4, Name: "forwarding", Value: 0},
		// Marked packets leave by one table and come back by another.
		{Family: netdev.IPv4, Name: "rp_filter", Value: 0},
		// Answer for an address of this interface to its own subnet only.
		{Family: netdev.IPv4, Name: "arp_ignore", Value: 2},
		{Family: netdev.IPv4, Name: "arp_announce", Value: 2},
		{Family: netdev.IPv4, Name: "accept_redirects", Value: 0},
		{Family: netdev.IPv4, Name: "send_redirects", Value: 0},
		{Family: netdev.IPv4, Name: "accept_source_route", Value: 0},
		// Removing an address must not take others of its subnet along.
		{Family: netdev.IPv4, Name: "promote_secondaries", Value: 1},

		{Family: netdev.IPv6, Name: "disable_ipv6", Value: 1},
		{Family: netdev.IPv6, Name: "forwarding", Value: 0},
		{Family: netdev.IPv6, Name: "accept_ra", Value: 0},
		{Family: netdev.IPv6, Name: "accept_redirects", Value: 0},
	}
	// "all" cannot be set before anything exists and is not needed.
	noLinkLocal = netdev.Setting{Family: netdev.IPv6, Name: netdev.AddrGenMode, Value: netdev.NoAddress}
	// The address mode first, so that enabling IPv6 by hand later makes no address.
	quietInterface = slices.Concat([]netdev.Setting{noLinkLocal}, quiet)
	// quietIPv6 is quietInterface with IPv6, which comes last. It has a link-local
	// address, which the kernel asks from when it makes sure of a neighbour, and
	// looks for no duplicates: the guard lets no such question out.
	quietIPv6 = slices.Concat([]netdev.Setting{
		{Family: netdev.IPv6, Name: netdev.AddrGenMode, Value: netdev.HardwareAddress},
		{Family: netdev.IPv6, Name: "accept_dad", Value: 0},
	}, slices.DeleteFunc(slices.Clone(quiet), disablesIPv6), []netdev.Setting{{Family: netdev.IPv6, Name: "disable_ipv6", Value: 0}})
)

func disablesIPv6(s netdev.Setting) bool { return s.Family == netdev.IPv6 && s.Name == "disable_ipv6" }

// quietFor is what an interface is told: one without an IPv6 address has no IPv6.
func quietFor(i plan.Interface) []netdev.Setting {
	if slices.ContainsFunc(i.Addresses, func(p netip.Prefix) bool { return p.Addr().Is6() }) {
		return quietIPv6
	}
	return quietInterface
}

// silenceNamespace works on the calling thread's namespace.
func (d *Driver) silenceNamespace() error {
	errs := []error{netdev.Ensure("default", noLinkLocal, d.noted("default"))}
	for _, scope := range []string{"default", "all"} {
		for _, s := range quiet {
			errs = append(errs, netdev.Ensure(scope, s, d.noted(scope)))
		}
	}
	return errors.Join(errs...)
}

// noted takes note of what is set on an interface, "all" or "default".
func (d *Driver) noted(scope string) func(netdev.Setting) {
	return func(s netdev.Setting) { d.config.Drift.Note(drift.Sysctl, drift.Text(s.On(scope))) }
}
