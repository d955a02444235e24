package slowpath

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/circuitseal/circuitseal/agent/drift"
	"github.com/circuitseal/circuitseal/agent/netdev"
)

var (
	// Answers carry the mark of what they answer, and so take its LAN's table.
	// These are the namespace's own.
	reflects = []string{"ipv4/fwmark_reflect", "ipv6/fwmark_reflect"}
	// Whatever else the kernel does by itself is off.
	routing = []netdev.Setting{
		{Family: netdev.IPv4, Name: "forwarding", Value: 1},
		{Family: netdev.IPv4, Name: "rp_filter", Value: 0},
		{Family: netdev.IPv4, Name: "send_redirects", Value: 0},
		{Family: netdev.IPv4, Name: "accept_redirects", Value: 0},
		{Family: netdev.IPv4, Name: "accept_source_route", Value: 0},
		// No LAN's address serves for another LAN.
		{Family: netdev.IPv6, Name: "use_oif_addrs_only", Value: 1},
		{Family: netdev.IPv6, Name: "disable_ipv6", Value: 0},
		{Family: netdev.IPv6, Name: "accept_ra", Value: 0},
		{Family: netdev.IPv6, Name: "accept_redirects", Value: 0},
	}
	forwarding6 = netdev.Setting{Family: netdev.IPv6, Name: "forwarding", Value: 1}
	silent6     = netdev.Setting{Family: netdev.IPv6, Name: "forwarding", Value: 0}
	noAddress   = netdev.Setting{Family: netdev.IPv6, Name: netdev.AddrGenMode, Value: netdev.NoAddress}
	// routingEnd is an end in the slow path's namespace.
	routingEnd = slices.Concat([]netdev.Setting{noAddress, forwarding6}, routing)
	// apart is an end in the main namespace, which takes part in nothing there.
	apart = []netdev.Setting{
		{Family: netdev.IPv4, Name: "forwarding", Value: 0},
		{Family: netdev.IPv6, Name: "disable_ipv6", Value: 1},
	}
)

// prepareNamespace works on the calling thread's namespace.
func (d *Driver) prepareNamespace() error {
	errs := []error{netdev.Ensure("default", noAddress, d.noted("default"))}
	for _, name := range reflects {
		errs = append(errs, d.reflect(name))
	}
	for _, scope := range []string{"default", "all"} {
		for _, s := range routing {
			errs = append(errs, netdev.Ensure(scope, s, d.noted(scope)))
		}
	}
	// The first sets the second too. A new interface is silent before it
	// forwards.
	return errors.Join(append(errs,
		netdev.Ensure("all", forwarding6, d.noted("all")), netdev.Ensure("default", silent6, d.noted("default")))...)
}

// prepareEnds is for pairs that are there, before they are up.
func (d *Driver) prepareEnds(h handles, have state, names []string) error {
	each := func(view netdev.View, want []netdev.Setting) func() error {
		return func() error {
			var errs []error
			for _, name := range names {
				errs = append(errs, view.Ensure(name, want, d.noted(name)))
			}
			return errors.Join(errs...)
		}
	}
	return errors.Join(h.mainNS.Do(each(have.mainView, apart)), h.away.Do(each(have.slowView, routingEnd)))
}

// noted takes note of what is set on an interface, "all" or "default".
func (d *Driver) noted(scope string) func(netdev.Setting) {
	return func(s netdev.Setting) { d.config.Drift.Note(drift.SlowSysctl, drift.Text(s.On(scope))) }
}

// reflect writes only what differs. A kernel without the family has nothing to
// set.
func (d *Driver) reflect(name string) error {
	path := filepath.Join("/proc/sys/net", name)
	have, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) || err == nil && strings.TrimSpace(string(have)) == "1" {
		return nil
	}
	if err == nil {
		err = os.WriteFile(path, []byte("1"), 0)
	}
	if err != nil {
		return fmt.Errorf("set %s to 1: %w", path, err)
	}
	d.config.Drift.Note(drift.SlowSysctl, drift.Text(path+"=1"))
	return nil
}
