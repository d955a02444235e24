package scenario

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"rsc.io/script"

	"github.com/circuitseal/circuitseal/testlab/netns"
	"github.com/circuitseal/circuitseal/testlab/tap"
)

// host adds a machine, an appliance if it is a node. With addresses, which the
// script has to give it, it answers test traffic.
func (x *session) host(s *script.State, args []string) error {
	if x.rig == nil {
		return errNoLab
	}
	o, err := split(args, 1, "node=", "address=", "address6=")
	if err != nil {
		return err
	}
	var addresses [2]netip.Addr
	for i, key := range []string{"address", "address6"} {
		if o.settings[key] == "" {
			continue
		}
		if addresses[i], err = netip.ParseAddr(o.settings[key]); err != nil {
			return err
		}
	}
	h, node := netns.Host(o.words[0]), o.settings["node"]
	if err := x.rig.Lab.AddHost(s.Context(), h, node != ""); err != nil {
		return err
	}
	if node != "" {
		x.rig.AddNode(h, node)
		if err := s.Setenv("CIRCUIT_"+strings.ToUpper(string(h)), x.rig.CircuitNamespace(h)); err != nil {
			return err
		}
	}
	if addresses == ([2]netip.Addr{}) {
		return nil
	}
	return x.rig.Serve(h, addresses[0], addresses[1])
}

func (x *session) wire(s *script.State, args []string) error {
	if x.rig == nil {
		return errNoLab
	}
	if len(args) != 2 {
		return script.ErrUsage
	}
	a, nameA, errA := end(args[0])
	b, nameB, errB := end(args[1])
	if errA != nil || errB != nil {
		return fmt.Errorf("%q: want HOST:INTERFACE HOST:INTERFACE", args)
	}
	return x.rig.Lab.Wire(s.Context(), a, nameA, b, nameB)
}

func end(text string) (netns.Host, string, error) {
	h, name, ok := strings.Cut(text, ":")
	if !ok {
		return "", "", fmt.Errorf("%q: want HOST:INTERFACE", text)
	}
	return netns.Host(h), name, nil
}

// tunnel reads ADDRESS:PORT-ADDRESS:PORT, or ipsec:ADDRESS-ADDRESS.
func tunnel(text string) (tap.Tunnel, error) {
	if ends, ok := strings.CutPrefix(text, "ipsec:"); ok {
		a, b, _ := strings.Cut(ends, "-")
		from, errA := netip.ParseAddr(a)
		to, errB := netip.ParseAddr(b)
		if errA == nil && errB == nil {
			return tap.Of(tap.IPsec, netip.AddrPortFrom(from, 0), netip.AddrPortFrom(to, 0)), nil
		}
	}
	a, b, _ := strings.Cut(text, "-")
	from, errA := netip.ParseAddrPort(a)
	to, errB := netip.ParseAddrPort(b)
	if errA != nil || errB != nil {
		return tap.Tunnel{}, fmt.Errorf("tunnel %q: want ADDRESS:PORT-ADDRESS:PORT or ipsec:ADDRESS-ADDRESS, several joined by +", text)
	}
	return tap.Of(tap.WireGuard, from, to), nil
}

// addWatch has the tap watch one more interface, where only these addresses
// resolve each other and only this tunnel runs; on a VLAN, behind these tags only.
func (x *session) addWatch(args []string) error {
	o, err := split(args, 1, "label=", "addresses=", "tunnel=", "vlan=")
	if err != nil {
		return err
	}
	h, name, err := end(o.words[0])
	if err != nil {
		return err
	}
	i := tap.Interface{Name: name, Label: o.settings["label"]}
	for text := range strings.SplitSeq(o.settings["addresses"], ",") {
		a, err := netip.ParseAddr(text)
		if err != nil {
			return err
		}
		i.Addresses = append(i.Addresses, a)
	}
	for text := range strings.SplitSeq(o.settings["tunnel"], "+") {
		t, err := tunnel(text)
		if err != nil {
			return err
		}
		i.Tunnels = append(i.Tunnels, t)
	}
	if text := o.settings["vlan"]; text != "" {
		v := tap.VLAN{Link: i.Link}
		for t := range strings.SplitSeq(text, ".") {
			n, err := strconv.ParseUint(t, 10, 12)
			if err != nil {
				return fmt.Errorf("vlan=%s: want such as 100, or 300.100 with the outer one first", text)
			}
			v.Tags = append(v.Tags, uint16(n))
		}
		i.Link, i.VLANs = tap.Link{}, []tap.VLAN{v}
	}
	x.rig.Watch(h, i)
	return nil
}
