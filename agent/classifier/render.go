package classifier

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/circuitseal/circuitseal/agent/instance"
	"github.com/circuitseal/circuitseal/agent/plan"
)

// device is what rendering must know of an interface of this host.
type device struct {
	index uint32
	// ethernet is true if the interface speaks Ethernet to the other side.
	ethernet bool
	// header is true if packets that come in still have a link-layer header.
	header    bool
	veth      bool
	addresses []netip.Addr
	// slow is the index of the device of a LAN's slow path, 0 if there is none.
	slow uint32
}

// facts are the devices of this host that a plan names.
type facts map[string]device

// state is the content of all maps.
type state struct {
	ports   map[uint32]bpfPort
	hosts   map[bpfHostKey]uint32
	locals  map[bpfPrefixKey]bpfLocal
	remotes map[bpfPrefixKey]bpfRemote
	groups  map[uint32]bpfGroup
}

func newState() state {
	return state{
		ports:   map[uint32]bpfPort{},
		hosts:   map[bpfHostKey]uint32{},
		locals:  map[bpfPrefixKey]bpfLocal{},
		remotes: map[bpfPrefixKey]bpfRemote{},
		groups:  map[uint32]bpfGroup{},
	}
}

// maxPorts is half the capacity of the map of ports and of counter slots, so
// that all ports can be replaced by others in one step. A LAN takes two, with its
// slow path: 1024 interfaces that a plan names always fit, whatever they are.
const maxPorts = 2048

// errTooMany says that a plan does not fit the maps at all.
var errTooMany = errors.New("too many interfaces")

// render turns a plan into the content of the maps, without counter slots and
// without knowledge of who is alive; see adopt. It leaves out what it cannot
// render and says so. A LAN without the device of a slow path has none, and
// drops what would need it.
func render(i instance.Instance, c plan.Classifier, f facts) (state, error) {
	s := newState()
	var errs []error
	fail := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }

	shared := uint32(0)
	if slices.ContainsFunc(c.LANs, func(l plan.LAN) bool { return l.Tenant != c.LANs[0].Tenant }) {
		shared = 1
	}
	lans := map[string]plan.LAN{}
	for _, lan := range c.LANs {
		d, ok := f[lan.Interface]
		switch {
		case lan.Tenant == 0:
			fail("LAN interface %s: tenant 0 is no tenant", lan.Interface)
		case i.IsTunnelDevice(lan.Interface), strings.HasPrefix(lan.Interface, i.SlowDevicePrefix()):
			fail("LAN interface %s: names that begin with %s, %s or %s are the agent's own devices", lan.Interface, i.DevicePrefix(), i.IPsecDevicePrefix(), i.SlowDevicePrefix())
		case !ok:
			fail("LAN interface %s: there is no such interface", lan.Interface)
		case !d.ethernet:
			fail("LAN interface %s: it is not an Ethernet interface", lan.Interface)
		default:
			lans[lan.Interface] = lan
			s.ports[d.index] = bpfPort{Ifindex: d.index, Kind: bpfPortKindPORT_LAN, Tenant: lan.Tenant, Header: 1, Shared: shared, Partner: d.slow}
			if d.slow != 0 {
				s.ports[d.slow] = bpfPort{Ifindex: d.slow, Kind: bpfPortKindPORT_SLOW, Tenant: lan.Tenant, Header: 1, Partner: d.index}
			}
			for _, a := range d.addresses {
				s.hosts[hostKey(d.index, a)] = 1
			}
		}
	}
	for _, l := range c.Locals {
		lan, ok := lans[l.Interface]
		switch {
		case !ok:
			fail("local prefix %s of tenant %d: %s is no usable LAN interface", l.Prefix, l.Tenant, l.Interface)
		case lan.Tenant != l.Tenant:
			fail("local prefix %s of tenant %d: LAN interface %s belongs to tenant %d", l.Prefix, l.Tenant, l.Interface, lan.Tenant)
		default:
			put(s.locals, &errs, "local", l.Tenant, l.Prefix, bpfLocal{Ifindex: f[l.Interface].index})
		}
	}
	for _, g := range c.Groups {
		if err := s.addGroup(i, g, f); err != nil {
			errs = append(errs, err)
		}
	}
	for _, r := range c.Remotes {
		if g, ok := s.groups[r.Group]; !ok || g.Tenant != r.Tenant {
			fail("remote prefix %s of tenant %d: the tenant has no group %d", r.Prefix, r.Tenant, r.Group)
			continue
		}
		put(s.remotes, &errs, "remote", r.Tenant, r.Prefix, bpfRemote{Group: r.Group})
	}
	if err := s.fits(); err != nil {
		return newState(), err
	}
	return s, errors.Join(errs...)
}

// fits counts in the words of whoever wrote the plan, who never named a slow
// path's device.
func (s *state) fits() error {
	if len(s.ports) <= maxPorts {
		return nil
	}
	var lans, tunnels int
	for _, p := range s.ports {
		switch p.Kind {
		case bpfPortKindPORT_LAN:
			lans++
		case bpfPortKindPORT_TUNNEL:
			tunnels++
		case bpfPortKindPORT_SLOW:
		}
	}
	return fmt.Errorf("classify %d LAN interfaces and %d tunnels: %w: at most %d are possible, a LAN with a slow path counts twice; nothing is changed",
		lans, tunnels, errTooMany, maxPorts)
}

// addGroup keeps the place of a member without a device, so that bits of the
// alive mask always mean the same members.
func (s *state) addGroup(inst instance.Instance, g plan.Group, f facts) error {
	switch _, twice := s.groups[g.Number]; {
	case g.Number == 0 || g.Tenant == 0:
		return fmt.Errorf("group %s: number %d and tenant %d must not be 0", g.ID, g.Number, g.Tenant)
	case g.Number > maxGroup:
		return fmt.Errorf("group %s: number %d is greater than %d, the greatest that a packet's mark can carry", g.ID, g.Number, maxGroup)
	case twice:
		return fmt.Errorf("group %s: number %d is taken by another group", g.ID, g.Number)
	case len(g.Members) > plan.MaxMembers:
		return fmt.Errorf("group %s: %d members, at most %d are possible", g.ID, len(g.Members), plan.MaxMembers)
	}
	v := bpfGroup{Tenant: g.Tenant, Count: uint32(len(g.Members))}
	var errs []error
	for i, m := range g.Members {
		v.Members[i] = bpfMember{Number: uint32(m.Number), Mtu: uint32(max(m.MTU, 0))}
		d, ok := f[m.Device]
		_, twice := s.ports[d.index]
		switch {
		case !inst.IsTunnelDevice(m.Device):
			errs = append(errs, fmt.Errorf("tunnel %s: %s is no tunnel device of this instance, whose names begin with %s or %s", m.Tunnel, m.Device, inst.DevicePrefix(), inst.IPsecDevicePrefix()))
		case m.MTU <= 0:
			errs = append(errs, fmt.Errorf("tunnel %s: MTU %d is not positive", m.Tunnel, m.MTU))
		case !ok:
			errs = append(errs, fmt.Errorf("tunnel %s: device %s is not there yet", m.Tunnel, m.Device))
		case twice:
			errs = append(errs, fmt.Errorf("tunnel %s: device %s belongs to another tunnel or LAN", m.Tunnel, m.Device))
		default:
			v.Members[i].Ifindex = d.index
			p := bpfPort{Ifindex: d.index, Kind: bpfPortKindPORT_TUNNEL, Tenant: g.Tenant, Group: g.Number, Mtu: uint32(m.MTU)}
			if d.header {
				p.Header = 1
			}
			// A probe address outside IPv6 stays zero and matches nothing:
			// the programs look at probe addresses of one /48 only.
			if m.LocalProbe.Is6() && m.RemoteProbe.Is6() {
				p.LocalProbe, p.RemoteProbe = m.LocalProbe.As16(), m.RemoteProbe.As16()
			}
			s.ports[d.index] = p
		}
	}
	s.groups[g.Number] = v
	return errors.Join(errs...)
}

func put[V comparable](to map[bpfPrefixKey]V, errs *[]error, what string, tenant uint32, p netip.Prefix, v V) {
	if !p.IsValid() || p.Masked() != p || p.Addr().Is4In6() {
		*errs = append(*errs, fmt.Errorf("%s prefix %s of tenant %d: want an IPv4 or IPv6 prefix without host bits", what, p, tenant))
		return
	}
	k := prefixKey(tenant, p)
	if was, twice := to[k]; twice && was != v {
		*errs = append(*errs, fmt.Errorf("%s prefix %s of tenant %d: it is there twice with different meanings", what, p, tenant))
		return
	}
	to[k] = v
}

// devices are the names of the tunnel devices that have a port and are not
// among unchecked.
func (s *state) devices(c plan.Classifier, f facts, unchecked map[uint32]bool) []string {
	names := []string{}
	for _, g := range c.Groups {
		for _, m := range g.Members {
			index := f[m.Device].index
			if p, ok := s.ports[index]; ok && p.Kind == bpfPortKindPORT_TUNNEL && !unchecked[index] {
				names = append(names, m.Device)
			}
		}
	}
	return names
}

// withholdSlow takes the slow paths on these devices out of use.
func (s *state) withholdSlow(ifindexes map[uint32]bool) {
	for n, p := range s.ports {
		if p.Kind == bpfPortKindPORT_LAN && ifindexes[p.Partner] {
			p.Partner = 0
			s.ports[n] = p
		}
	}
}

// withhold takes every member on one of these interfaces out of choice.
func (s *state) withhold(ifindexes map[uint32]bool) {
	for n, g := range s.groups {
		for i := range g.Members {
			if ifindexes[g.Members[i].Ifindex] {
				g.Members[i].Ifindex = 0
			}
		}
		s.groups[n] = g
	}
}

// adopt takes over from have what the plan does not say: which members are
// alive and where ports count. It returns the ports whose slot is new.
func (s *state) adopt(have state) (fresh []uint32) {
	s.adoptAlive(have.groups)
	used := map[uint32]bool{}
	for ifindex, p := range s.ports {
		was := have.ports[ifindex]
		if was.Slot == 0 || was.Kind != p.Kind || was.Tenant != p.Tenant || used[was.Slot] {
			continue
		}
		p.Slot = was.Slot
		s.ports[ifindex] = p
		used[p.Slot] = true
	}
	// A slot that is given up in this very step is still being counted in.
	for _, p := range have.ports {
		used[p.Slot] = true
	}
	next := uint32(1)
	for _, ifindex := range slices.Sorted(maps.Keys(s.ports)) {
		p := s.ports[ifindex]
		if p.Slot != 0 {
			continue
		}
		for used[next] {
			next++
		}
		p.Slot, used[next] = next, true
		s.ports[ifindex] = p
		fresh = append(fresh, ifindex)
	}
	return fresh
}

func (s *state) adoptAlive(have map[uint32]bpfGroup) {
	for n, g := range s.groups {
		if was, ok := have[n]; ok && was.Tenant == g.Tenant {
			g.Alive = carryAlive(g, was)
			s.groups[n] = g
		}
	}
}

func carryAlive(g, was bpfGroup) uint32 {
	alive := map[uint32]bool{}
	for i, m := range was.Members[:min(was.Count, plan.MaxMembers)] {
		alive[m.Number] = was.Alive&(1<<i) != 0
	}
	var mask uint32
	for i, m := range g.Members[:g.Count] {
		if alive[m.Number] {
			mask |= 1 << i
		}
	}
	return mask
}

func family(a netip.Addr) uint32 {
	if a.Is4() {
		return 4
	}
	return 6
}

// bytes16 is the address as the maps have it: IPv4 in the first four bytes.
func bytes16(a netip.Addr) (b [16]uint8) {
	copy(b[:], a.AsSlice())
	return b
}

// prefixKey counts the tenant and the family into the prefix, so that no
// prefix ever covers another tenant or family.
func prefixKey(tenant uint32, p netip.Prefix) bpfPrefixKey {
	return bpfPrefixKey{
		Prefixlen: uint32(64 + p.Bits()),
		Tenant:    tenant,
		Family:    family(p.Addr()),
		Addr:      bytes16(p.Addr()),
	}
}

func hostKey(ifindex uint32, a netip.Addr) bpfHostKey {
	return bpfHostKey{Ifindex: ifindex, Family: family(a), Addr: bytes16(a)}
}
