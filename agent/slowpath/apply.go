package slowpath

import (
	"context"
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/circuitseal/circuitseal/agent/drift"
	"github.com/circuitseal/circuitseal/agent/instance"
	"github.com/circuitseal/circuitseal/agent/netdev"
)

// apply goes on after an error, but for one: beside a rule that stays, of the
// kernel's or of a LAN that has gone, nothing is built.
func (d *Driver) apply(ctx context.Context, h handles, c changes, have state) error {
	var errs []error
	ruleStays := false
	for _, x := range c.list {
		if ruleStays && !x.verb.removes() {
			break
		}
		if err := ctx.Err(); err != nil {
			return errors.Join(append(errs, err)...)
		}
		d.config.Log.Debug("slow path", "change", x.String())
		if err := write(h, x, have); err != nil {
			errs = append(errs, fmt.Errorf("slow path: %s: %w", x, err))
			ruleStays = ruleStays || x.verb == removeRule
			continue
		}
		d.config.Drift.Note(x.verb.kind(), x)
	}
	return errors.Join(errs...)
}

// kind is what a change is about, for the ledger of repairs.
func (v verb) kind() drift.Kind {
	switch v {
	case removeRule, addRule:
		return drift.SlowRule
	case removeRoute, addRoute:
		return drift.SlowRoute
	case addAddress, removeAddress:
		return drift.SlowAddress
	case removeMain, removeSlow, addPair, setMTU, silence, setUp:
	}
	return drift.SlowDevice
}

func write(h handles, x change, have state) error {
	main, slow := device(x.device, have.main), device(x.device, have.slow)
	switch x.verb {
	case removeRule:
		return gone(h.slow.RuleDel(ruleTo(x.rule)))
	case removeRoute:
		return gone(h.slow.RouteDel(routeTo(x.route, have)))
	case removeMain:
		return gone(h.main.LinkDel(main))
	case removeSlow:
		return gone(h.slow.LinkDel(slow))
	case addPair:
		return h.add(x.device, x.mtu)
	case setMTU:
		return errors.Join(h.main.LinkSetMTU(main, x.mtu), h.slow.LinkSetMTU(slow, x.mtu))
	case silence:
		return h.silence(main, slow)
	case setUp:
		// The end that sends comes last: with its carrier there, it can at once.
		return errors.Join(h.main.LinkSetUp(main), h.slow.LinkSetUp(slow))
	case addAddress:
		return h.slow.AddrAdd(slow, &netlink.Addr{IPNet: netdev.NetOf(x.address), Flags: unix.IFA_F_NODAD | unix.IFA_F_NOPREFIXROUTE})
	case removeAddress:
		return gone(h.slow.AddrDel(slow, &netlink.Addr{IPNet: netdev.NetOf(x.address)}))
	case addRoute:
		return h.slow.RouteReplace(routeTo(x.route, have))
	case addRule:
		return h.slow.RuleAdd(ruleTo(x.rule))
	}
	return fmt.Errorf("unknown change %d", x.verb)
}

// add leaves a pair down. It is silent before it is told to forward: an IPv6
// router joins groups, and says so.
func (h handles) add(name string, mtu int) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = name, mtu
	err := h.main.LinkAdd(&netlink.Veth{
		LinkAttrs: attrs, PeerName: name, PeerMTU: uint32(mtu), PeerNamespace: netlink.NsFd(h.away.FD()),
	})
	if err != nil {
		return err
	}
	main, err := h.main.LinkByName(name)
	if err != nil {
		return err
	}
	slow, err := h.slow.LinkByName(name)
	if err != nil {
		return err
	}
	return h.silence(main, slow)
}

func (h handles) silence(main, slow netlink.Link) error {
	return errors.Join(h.main.LinkSetARPOff(main), h.main.LinkSetMulticastOff(main),
		h.slow.LinkSetARPOff(slow), h.slow.LinkSetMulticastOff(slow))
}

func device(name string, ends map[string]end) netlink.Link {
	return &netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: ends[name].index, Name: name}}
}

func routeTo(x route, have state) *netlink.Route {
	return &netlink.Route{
		Family: families[familyOf(x.destination.Addr())], Table: int(x.table), Protocol: instance.RouteProtocol,
		Dst: netdev.NetOf(x.destination), Gw: x.gateway.AsSlice(), Flags: int(netlink.FLAG_ONLINK),
		LinkIndex: have.slow[x.device].index,
	}
}

func ruleTo(x rule) *netlink.Rule {
	r := netlink.NewRule()
	r.Family, r.Priority, r.Table, r.Protocol = families[x.family], x.priority, int(x.table), x.protocol
	if x.mask != 0 {
		r.Mark, r.Mask = x.mark, &x.mask
	}
	return r
}
