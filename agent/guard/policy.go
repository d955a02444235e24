package guard

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/circuitseal/circuitseal/agent/instance"
	"github.com/circuitseal/circuitseal/agent/plan"
)

// policy is a plan.Guard as both layers and Judge take it: checked, and without
// duplicates.
type policy struct {
	interfaces []string
	// vlans has the VLAN devices by name.
	vlans map[string]plan.VLAN
	// stacks are the tags that interfaces carry. One that carries any has an entry
	// without tags, too, which says so.
	stacks    map[stackKey]bool
	flows     map[flowKey]marks
	neighbors map[neighborKey]bool
}

// marks are those that a flow's packets may have: the same twice, or the link's and
// that of control packets.
type marks [2]uint32

// tags are those of a frame as it is on an interface: none is 0, one its VLAN, of
// two the outer one is in the upper half.
type tags uint32

// push is t with a VLAN more, inside.
func (t tags) push(vlan uint16) tags { return t<<16 | tags(vlan) }

type stackKey struct {
	name string
	tags tags
}

// flowKey has ports of 0 for ESP.
type flowKey struct {
	name          string
	tags          tags
	protocol      uint8
	local, remote netip.AddrPort
}

// neighborKey has someLinkLocal in place of a link-local address.
type neighborKey struct {
	name          string
	tags          tags
	local, remote netip.Addr
}

// announces is true of a neighbour that tells its own hardware address, as
// routers do when another takes over (RFC 5227, section 3; RFC 4861, section 7.2.6):
// that only comes in.
func (k neighborKey) announces() bool { return k.local == k.remote }

// compile takes what is sound in g; an error names each thing that it left
// out, which then stays closed.
func compile(g plan.Guard) (policy, error) {
	p := policy{
		vlans:     make(map[string]plan.VLAN, len(g.VLANs)),
		stacks:    make(map[stackKey]bool),
		flows:     make(map[flowKey]marks, len(g.Flows)),
		neighbors: make(map[neighborKey]bool, len(g.Neighbors)),
	}
	known := make(map[string]bool, len(g.Interfaces))
	var errs []error
	for _, name := range g.Interfaces {
		if err := checkInterface(name); err != nil {
			errs = append(errs, err)
		} else if !known[name] {
			known[name] = true
			p.interfaces = append(p.interfaces, name)
		}
	}
	if n := len(p.interfaces); n > maxInterfaces {
		errs = append(errs, fmt.Errorf("guard %d interfaces: at most %d are possible", n, maxInterfaces))
	}
	errs = append(errs, p.addVLANs(g.VLANs, known))
	for _, f := range g.Flows {
		if err := p.addFlow(f, known); err != nil {
			errs = append(errs, fmt.Errorf("flow %s -> %s on %s: %w", f.Local, f.Remote, f.Interface, err))
		}
	}
	for _, n := range g.Neighbors {
		if err := p.addNeighbor(n, known); err != nil {
			errs = append(errs, fmt.Errorf("neighbour %s of %s on %s: %w", n.Remote, n.Local, n.Interface, err))
		}
	}
	return p, errors.Join(errs...)
}

// addVLANs wants devices in the order in which they stand on each other. What is
// left out is nobody's interface: without those below, it would pass for untagged.
func (p policy) addVLANs(vlans []plan.VLAN, known map[string]bool) error {
	var errs []error
	stacked, taken := make(map[string]bool, len(vlans)), make(map[stackKey]bool, len(vlans))
	for _, v := range vlans {
		stacked[v.Interface] = true
	}
	for _, v := range vlans {
		here := stackKey{v.Parent, tags(v.ID)}
		if err := p.addVLAN(v, known, stacked[v.Parent], taken[here]); err != nil {
			known[v.Interface] = false
			errs = append(errs, fmt.Errorf("VLAN device %s on %s: %w", v.Interface, v.Parent, err))
		}
		taken[here] = true
	}
	return errors.Join(errs...)
}

func (p policy) addVLAN(v plan.VLAN, known map[string]bool, onVLAN, taken bool) error {
	_, twice := p.vlans[v.Interface]
	parent, below := p.vlans[v.Parent]
	switch {
	case !known[v.Interface] || !known[v.Parent]:
		return errors.New("one of the two is not the guard's")
	case twice:
		return errors.New("it stands twice")
	case onVLAN && !below:
		return errors.New("want it behind the one that it stands on")
	case p.depth(v.Parent) > maxTags:
		return fmt.Errorf("more than %d tags", maxTags)
	case v.ID == 0 || v.ID >= vlanID:
		return fmt.Errorf("VLAN %d, want 1 to %d", v.ID, vlanID-1)
	case taken:
		return fmt.Errorf("VLAN %d is another device's", v.ID)
	case len(p.stacks)+2*maxTags > maxStacks:
		return fmt.Errorf("more than %d tags on interfaces", maxStacks)
	}
	if below {
		// What has the outer tag only is nobody's.
		delete(p.stacks, stackKey{parent.Parent, tags(parent.ID)})
	}
	p.vlans[v.Interface] = v
	p.below(v.Interface, func(name string, t tags) {
		if t != 0 {
			p.stacks[stackKey{name, t}] = true
			p.stacks[stackKey{name, 0}] = true
		}
	})
	return nil
}

// below tells an interface and those below it, each with the tags that frames of
// the first have there.
func (p policy) below(name string, tell func(name string, t tags)) {
	var t tags
	shift := 0
	tell(name, 0)
	for v, ok := p.vlans[name]; ok; v, ok = p.vlans[name] {
		t |= tags(v.ID) << shift
		shift += 16
		name = v.Parent
		tell(name, t)
	}
}

// depth is how many interfaces a frame passes, name and those below it.
func (p policy) depth(name string) (n int) {
	p.below(name, func(string, tags) { n++ })
	return n
}

// addFlow takes what several tunnels share: addresses and ports tell no tunnels
// apart where a key exchange is for all between two ends.
func (p policy) addFlow(f plan.Flow, known map[string]bool) error {
	key := flowKey{f.Interface, 0, f.Protocol, f.Local, f.Remote}
	want := marks{f.Mark, f.Mark}
	if f.Control {
		want[1] = instance.ControlMark
	}
	had, twice := p.flows[key]
	ports := f.Local.Port() != 0 && f.Remote.Port() != 0
	switch {
	case !known[f.Interface]:
		return errors.New("the interface is not one of the guard's")
	case p.stacks[stackKey{f.Interface, 0}]:
		return errors.New("the interface carries tagged links, want one of those")
	case f.Protocol != protocolUDP && f.Protocol != protocolESP:
		return fmt.Errorf("protocol %d, want UDP (%d) or ESP (%d)", f.Protocol, protocolUDP, protocolESP)
	case !usable(f.Local.Addr()) || !usable(f.Remote.Addr()) || f.Local.Addr().Is4() != f.Remote.Addr().Is4():
		return errors.New("want unicast addresses of one family, in IPv6 none that is link-local")
	case f.Protocol == protocolUDP && !ports:
		return errors.New("want ports other than 0")
	case f.Protocol == protocolESP && (f.Local.Port() != 0 || f.Remote.Port() != 0 || f.Control):
		return errors.New("ESP has no ports and is no control packet")
	case f.Mark == 0:
		return errors.New("mark 0 is every packet's, want the link's mark")
	case twice && had != want:
		return fmt.Errorf("both marks %#x and %#x, want the same of all tunnels between two ends", had, want)
	case !twice && len(p.flows)+p.depth(f.Interface) > maxFlows:
		return fmt.Errorf("more than %d flows", maxFlows)
	}
	p.below(f.Interface, func(name string, t tags) { p.flows[flowKey{name, t, f.Protocol, f.Local, f.Remote}] = want })
	return nil
}

func (p policy) addNeighbor(n plan.Neighbor, known map[string]bool) error {
	key := neighborKey{n.Interface, 0, n.Local, n.Remote}
	switch {
	case !known[n.Interface]:
		return errors.New("the interface is not one of the guard's")
	case p.stacks[stackKey{n.Interface, 0}]:
		return errors.New("the interface carries tagged links, want one of those")
	case !usable(n.Local) || !usable(n.Remote) || n.Local == n.Remote || n.Local.Is4() != n.Remote.Is4():
		return errors.New("want two unicast addresses of one family, in IPv6 none that is link-local")
	case !p.neighbors[key] && len(p.neighbors)+5*p.depth(n.Interface) > maxNeighbors:
		return fmt.Errorf("more than %d neighbours", maxNeighbors/5)
	}
	p.below(n.Interface, func(name string, t tags) {
		p.neighbors[neighborKey{name, t, n.Local, n.Remote}] = true
		p.neighbors[neighborKey{name, t, n.Remote, n.Remote}] = true
		if n.Local.Is6() {
			p.neighbors[neighborKey{name, t, n.Local, someLinkLocal}] = true
			p.neighbors[neighborKey{name, t, someLinkLocal, n.Remote}] = true
			p.neighbors[neighborKey{name, t, someLinkLocal, someLinkLocal}] = true
		}
	})
	return nil
}

// usable is a unicast address that circuits are numbered with. Link-local ones are
// among them in IPv4 only, where Azure has them, too.
func usable(a netip.Addr) bool {
	return (a.IsGlobalUnicast() || a.Is4() && a.IsLinkLocalUnicast()) && !a.Is4In6() && a.Zone() == ""
}

// checkInterface wants what the kernel takes for a name (dev_valid_name in
// net/core/dev.c) and never loopback, which stays open in the namespace.
func checkInterface(name string) error {
	bad := name == "" || len(name) > 15 || name == "." || name == ".." || name == "lo"
	for _, c := range []byte(name) {
		bad = bad || c <= ' ' || c == '/' || c == ':' || c == 0x7f
	}
	if bad {
		return fmt.Errorf("guard interface %.64q: want a circuit interface's name of 1 to 15 bytes", name)
	}
	return nil
}
