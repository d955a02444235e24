package link

import (
	"errors"
	"fmt"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/circuitseal/circuitseal/agent/drift"
	"github.com/circuitseal/circuitseal/agent/instance"
	"github.com/circuitseal/circuitseal/agent/netns"
	"github.com/circuitseal/circuitseal/agent/plan"
)

// vlan is what the circuit namespace has under a VLAN device's name. The zero
// value is a device of another kind.
type vlan struct {
	parent string
	id     uint16
}

// vlanChanges lead from the VLAN devices that there are to those that are
// wanted. Names of what has to be removed come from the top down.
type vlanChanges struct {
	// wrong stand in the way of what is added.
	wrong []string
	add   []plan.Interface
	// stale are in no plan.
	stale []string
}

// diffVLANs wants interfaces in the order in which they stand on each other.
func diffVLANs(want []plan.Interface, have map[string]vlan) vlanChanges {
	var c vlanChanges
	planned := make(map[string]bool)
	goes := make(map[string]bool)
	for _, w := range want {
		if w.Parent == "" {
			continue
		}
		planned[w.Name] = true
		got, ok := have[w.Name]
		// A device goes with the one below it.
		if ok && got == (vlan{w.Parent, w.VLAN}) && !goes[w.Parent] {
			continue
		}
		if ok {
			goes[w.Name] = true
			c.wrong = append(c.wrong, w.Name)
		}
		c.add = append(c.add, w)
	}
	slices.Reverse(c.wrong)
	for name := range have {
		if !planned[name] {
			c.stale = append(c.stale, name)
		}
	}
	// "." of an upper device sorts behind "+" of the one below it.
	slices.Sort(c.stale)
	slices.Reverse(c.stale)
	return c
}

// vlans makes the VLAN devices whose parents are there, down and silent, and
// removes those that nobody wants any more. Only what stands in the way of a new
// one goes before it. links are all that the namespace had; made are those that are
// as wanted.
//
// They are loosely bound to their parents: else the kernel would take them up
// together with those, guarded or not (vlan_device_event in net/8021q/vlan.c).
func (d *Driver) vlans(h *netlink.Handle, links []netlink.Link, want []plan.Interface, claimed []string) (made []string, err error) {
	c := diffVLANs(want, d.readVLANs(links))
	var errs []error
	for _, name := range c.wrong {
		errs = append(errs, d.removeVLAN(h, name))
	}
	there := make(map[string]bool)
	for _, name := range claimed {
		there[name] = true
	}
	missing := make(map[string]bool)
	for _, w := range c.add {
		missing[w.Name] = true
	}
	var here []plan.Interface
	for _, w := range want {
		if w.Parent == "" || !there[w.Parent] {
			continue
		}
		if missing[w.Name] {
			if err := d.addVLAN(h, w); err != nil {
				errs = append(errs, err)
				continue
			}
		}
		there[w.Name] = true
		here = append(here, w)
	}
	made, err = d.silence(here)
	errs = append(errs, err)
	for _, name := range c.stale {
		errs = append(errs, d.removeVLAN(h, name))
	}
	return made, errors.Join(errs...)
}

// readVLANs finds the instance's VLAN devices among all interfaces.
func (d *Driver) readVLANs(links []netlink.Link) map[string]vlan {
	names := make(map[int]string, len(links))
	for _, l := range links {
		names[l.Attrs().Index] = l.Attrs().Name
	}
	have := make(map[string]vlan)
	for _, l := range links {
		a := l.Attrs()
		if !d.config.Instance.IsVLANDevice(a.Name) {
			continue
		}
		have[a.Name] = vlan{}
		if v, ok := l.(*netlink.Vlan); ok && a.NetNsID < 0 && v.VlanProtocol == netlink.VLAN_PROTOCOL_8021Q && v.LooseBinding != nil && *v.LooseBinding {
			have[a.Name] = vlan{names[a.ParentIndex], uint16(v.VlanId)}
		}
	}
	return have
}

func (d *Driver) addVLAN(h *netlink.Handle, w plan.Interface) error {
	parent, err := h.LinkByName(w.Parent)
	if err != nil {
		return fmt.Errorf("find %s for VLAN device %s: %w", w.Parent, w.Name, err)
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.ParentIndex = w.Name, parent.Attrs().Index
	loose := true
	err = h.LinkAdd(&netlink.Vlan{LinkAttrs: attrs, VlanId: int(w.VLAN), VlanProtocol: netlink.VLAN_PROTOCOL_8021Q, LooseBinding: &loose})
	switch {
	case errors.Is(err, unix.EEXIST):
		return fmt.Errorf("VLAN %d of circuit interface %q belongs to another device already: delete that", w.VLAN, w.Parent)
	case errors.Is(err, unix.EOPNOTSUPP):
		return fmt.Errorf("make VLAN %d of circuit interface %q: the kernel or the interface knows no VLANs: "+
			"load the module 8021q, or have the link handed over untagged", w.VLAN, w.Parent)
	case err != nil:
		return fmt.Errorf("make VLAN %d of circuit interface %q: %w", w.VLAN, w.Parent, err)
	}
	d.config.Log.Info("VLAN device made", "interface", w.Name, "parent", w.Parent, "vlan", w.VLAN)
	d.config.Drift.Note(drift.Interface, drift.Text(fmt.Sprintf("link add %s link %s type vlan id %d", w.Name, w.Parent, w.VLAN)))
	return nil
}

// removeVLAN takes the absence of the device for success: it goes with the one
// below it.
func (d *Driver) removeVLAN(h *netlink.Handle, name string) error {
	l, err := h.LinkByName(name)
	if err == nil {
		err = h.LinkDel(l)
	}
	if notFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove VLAN device %s: %w", name, err)
	}
	d.config.Log.Info("VLAN device removed", "interface", name)
	d.config.Drift.Note(drift.Interface, drift.Text("link del "+name))
	return nil
}

// removeVLANs removes all of an instance's.
func (d *Driver) removeVLANs(h *netlink.Handle) error {
	links, err := netns.Dump(h.LinkList)
	if err != nil {
		return fmt.Errorf("list interfaces of the circuit namespace: %w", err)
	}
	_, err = d.vlans(h, links, nil, nil)
	return err
}

// reservedName refuses the host's own interfaces names that are an agent's.
func reservedName(i instance.Instance, name string) error {
	if i.IsVLANDevice(name) {
		return fmt.Errorf("circuit interface %q: such names are for VLAN devices that the agent makes; rename it", name)
	}
	return nil
}
