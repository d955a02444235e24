package guard

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/circuitseal/circuitseal/agent/plan"
)

// policy is a plan.Guard as both layers and Judge take it: checked, and without
// duplicates.
type policy struct {
	interfaces []string
	// flows holds the mark of each.
	flows     map[flowKey]uint32
	neighbors map[neighborKey]bool
	// links holds the one interface of each mark.
	links map[uint32]string
}

type flowKey struct {
	name          string
	local, remote netip.AddrPort
}

type neighborKey struct {
	name          string
	local, remote netip.Addr
}

// announces is true of a neighbour that tells its own hardware address, as
// routers do when another takes over (RFC 5227, section 3): that only comes in.
func (k neighborKey) announces() bool { return k.local == k.remote }

// compile takes what is sound in g; an error names each thing that it left
// out, which then stays closed.
func compile(g plan.Guard) (policy, error) {
	p := policy{
		flows:     make(map[flowKey]uint32, len(g.Flows)),
		neighbors: make(map[neighborKey]bool, len(g.Neighbors)),
		links:     make(map[uint32]string),
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

func (p policy) addFlow(f plan.Flow, known map[string]bool) error {
	key := flowKey{f.Interface, f.Local, f.Remote}
	had, twice := p.flows[key]
	link, used := p.links[f.Mark]
	switch {
	case !known[f.Interface]:
		return errors.New("the interface is not one of the guard's")
	case f.Protocol != protocolUDP:
		return fmt.Errorf("protocol %d, want UDP (%d)", f.Protocol, protocolUDP)
	case !usable(f.Local.Addr()) || !usable(f.Remote.Addr()) || f.Local.Port() == 0 || f.Remote.Port() == 0:
		return errors.New("want IPv4 unicast addresses and ports other than 0")
	case f.Mark == 0:
		return errors.New("mark 0 is every packet's, want the link's mark")
	case twice && had != f.Mark:
		return fmt.Errorf("both marks %#x and %#x, want one", had, f.Mark)
	// nftables looks mark and interface up apart from mark and tuple.
	case used && link != f.Interface:
		return fmt.Errorf("mark %#x is also on %s, want one interface for a mark", f.Mark, link)
	case !twice && len(p.flows) == maxFlows:
		return fmt.Errorf("more than %d flows", maxFlows)
	}
	p.flows[key] = f.Mark
	p.links[f.Mark] = f.Interface
	return nil
}

func (p policy) addNeighbor(n plan.Neighbor, known map[string]bool) error {
	key := neighborKey{n.Interface, n.Local, n.Remote}
	switch {
	case !known[n.Interface]:
		return errors.New("the interface is not one of the guard's")
	case n.Local.Is6() && n.Remote.Is6() && !n.Local.Is4In6():
		// An IPv6 link: nothing of it passes yet, and nothing else suffers.
		return nil
	case !usable(n.Local) || !usable(n.Remote) || n.Local == n.Remote:
		return errors.New("want two IPv4 unicast addresses")
	case !p.neighbors[key] && len(p.neighbors) > maxNeighbors-2:
		return fmt.Errorf("more than %d neighbours", maxNeighbors/2)
	}
	p.neighbors[key] = true
	p.neighbors[neighborKey{n.Interface, n.Remote, n.Remote}] = true
	return nil
}

// only is p without what is on interfaces that are not in names.
func (p policy) only(names map[string]int) policy {
	out := policy{flows: map[flowKey]uint32{}, neighbors: map[neighborKey]bool{}, links: map[uint32]string{}}
	has := func(name string) bool { _, ok := names[name]; return ok }
	for _, name := range p.interfaces {
		if has(name) {
			out.interfaces = append(out.interfaces, name)
		}
	}
	for k, mark := range p.flows {
		if has(k.name) {
			out.flows[k] = mark
			out.links[mark] = k.name
		}
	}
	for k := range p.neighbors {
		if has(k.name) {
			out.neighbors[k] = true
		}
	}
	return out
}

func usable(a netip.Addr) bool {
	return a.Is4() && !a.IsUnspecified() && !a.IsMulticast() && !a.IsLoopback() && a != netip.AddrFrom4([4]byte{255, 255, 255, 255})
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
