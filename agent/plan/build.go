package plan

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/circuitseal/circuitseal/agent/instance"
	"github.com/circuitseal/circuitseal/proto/desired"
)

// udp is WireGuard's IP protocol number.
const udp = 17

// Build says what each driver has to bring about for a valid state. Every
// circuit interface is guarded, also one that carries no tunnel. Tunnels that
// still wait for their peer's key are listed as pending and open nothing; the
// prefixes behind them are known to the classifier all the same, so that
// packets to them are dropped as "no tunnel" and not as unknown.
func Build(inst instance.Instance, s desired.State) Plan { return BuildClosed(inst, s, nil) }

// BuildClosed is Build with some groups closed, by ID, each for a reason in
// words: their tunnels are pending, whatever they have.
func BuildClosed(inst instance.Instance, s desired.State, closed map[string]string) Plan {
	b := builder{inst: inst, closed: closed, links: map[string]desired.Link{}, devices: map[string]string{}, tables: map[string]*Table{}}
	for _, i := range s.Interfaces {
		switch i.Role {
		case desired.RoleCircuit:
			b.circuit(Interface{Name: i.Name, Addresses: i.Addresses})
		case desired.RoleLAN:
			for _, x := range s.Sections {
				if x.Customer == i.Customer {
					b.plan.Classifier.LANs = append(b.plan.Classifier.LANs, LAN{Interface: i.Name, Tenant: x.Tenant, MTU: b.leastMTU(x)})
				}
			}
		case desired.RoleManagement:
		}
	}
	order := make([]*Table, 0, len(s.Links))
	for _, l := range s.Links {
		b.links[l.ID] = l
		t := &Table{Number: instance.Table(l.Number), Mark: instance.Mark(l.Number)}
		b.tables[l.ID] = t
		order = append(order, t)
		b.devices[l.ID] = b.device(l)
		b.neighbors(l.ID, l.NextHop)
	}
	for _, x := range s.Sections {
		b.section(x)
	}
	for _, t := range order {
		b.plan.Tables = append(b.plan.Tables, *t)
	}
	return b.plan
}

type builder struct {
	inst   instance.Instance
	closed map[string]string
	links  map[string]desired.Link
	// devices have the interface with a link's addresses.
	devices map[string]string
	tables  map[string]*Table
	plan    Plan
}

// circuit adds a circuit interface, after the one that it stands on.
func (b *builder) circuit(i Interface) {
	b.plan.Interfaces = append(b.plan.Interfaces, i)
	b.plan.Guard.Interfaces = append(b.plan.Guard.Interfaces, i.Name)
	if i.Parent != "" {
		b.plan.Guard.VLANs = append(b.plan.Guard.VLANs, VLAN{Interface: i.Name, Parent: i.Parent, ID: i.VLAN})
	}
}

// device is the interface that has the link's addresses: for a tagged link a VLAN
// device, which it adds, with one below it for an outer tag.
func (b *builder) device(l desired.Link) string {
	if !l.Tagged() {
		return l.Interface
	}
	parent := l.Interface
	if l.OuterVLAN != 0 {
		parent = b.inst.OuterVLANDevice(l.Number)
		b.circuit(Interface{Name: parent, Parent: l.Interface, VLAN: l.OuterVLAN})
	}
	name := b.inst.VLANDevice(l.Number)
	b.circuit(Interface{Name: name, Addresses: l.Addresses, Parent: parent, VLAN: l.VLAN})
	return name
}

// neighbors lets each address of the link's interface resolve its next hop.
func (b *builder) neighbors(link string, hop netip.Addr) {
	for _, i := range b.plan.Interfaces {
		if i.Name != b.devices[link] {
			continue
		}
		for _, a := range i.Addresses {
			n := Neighbor{Interface: i.Name, Local: a.Addr(), Remote: hop}
			if a.Contains(hop) && !slices.Contains(b.plan.Guard.Neighbors, n) {
				b.plan.Guard.Neighbors = append(b.plan.Guard.Neighbors, n)
			}
		}
	}
}

func (b *builder) section(x desired.Section) {
	c := &b.plan.Classifier
	for _, l := range x.Locals {
		c.Locals = append(c.Locals, Local{Tenant: x.Tenant, Prefix: l.Prefix, Interface: l.Interface})
	}
	for _, g := range x.Groups {
		for _, r := range g.Remotes {
			c.Remotes = append(c.Remotes, Remote{Tenant: x.Tenant, Prefix: r, Group: g.Number})
		}
		group := Group{ID: g.ID, Number: g.Number, Tenant: x.Tenant}
		for _, t := range g.Tunnels {
			if reason := b.closed[g.ID]; reason != "" {
				b.plan.Pending = append(b.plan.Pending, Pending{ID: t.ID, Reason: reason})
				continue
			}
			if t.Pending() {
				b.plan.Pending = append(b.plan.Pending, Pending{ID: t.ID, Reason: "waits for the peer's public key and a pre-shared key"})
				continue
			}
			group.Members = append(group.Members, b.tunnel(t, g))
		}
		c.Groups = append(c.Groups, group)
	}
}

func (b *builder) tunnel(t desired.Tunnel, g desired.Group) Member {
	link := b.links[t.Link]
	mark := instance.Mark(link.Number)
	device := b.inst.Device(t.Number)

	allowed := append([]netip.Prefix(nil), g.Remotes...)
	allowed = append(allowed, host(t.RemoteProbe))
	b.plan.Tunnels = append(b.plan.Tunnels, Tunnel{
		ID: t.ID, Device: device, Mark: mark, MTU: int(t.MTU),
		Local: t.Local, Peer: t.Remote, PeerKey: t.WireGuard.PeerKey, PresharedKeys: t.WireGuard.PresharedKeys,
		AllowedIPs: allowed, LocalProbe: t.LocalProbe, RemoteProbe: t.RemoteProbe,
	})
	b.plan.Guard.Flows = append(b.plan.Guard.Flows, Flow{
		Tunnel: t.ID, Device: device, Interface: b.devices[t.Link], Mark: mark, Protocol: udp, Local: t.Local, Remote: t.Remote,
	})
	route := Route{
		Destination: host(t.Remote.Addr()), NextHop: link.NextHop,
		Interface: b.devices[t.Link], Source: t.Local.Addr(),
	}
	if table := b.tables[t.Link]; !slices.Contains(table.Routes, route) {
		table.Routes = append(table.Routes, route)
	}
	return Member{
		Tunnel: t.ID, Number: t.Number, Device: device, MTU: int(t.MTU),
		LocalProbe: t.LocalProbe, RemoteProbe: t.RemoteProbe,
	}
}

func (b *builder) leastMTU(x desired.Section) (least int) {
	for _, g := range x.Groups {
		if b.closed[g.ID] != "" {
			continue
		}
		for _, t := range g.Tunnels {
			if mtu := int(t.MTU); !t.Pending() && (least == 0 || mtu < least) {
				least = mtu
			}
		}
	}
	return least
}

func host(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// String is one line.
func (f Flow) String() string {
	return fmt.Sprintf("%s protocol %d %s -> %s mark %#x", f.Interface, f.Protocol, f.Local, f.Remote, f.Mark)
}
