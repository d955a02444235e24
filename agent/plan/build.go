package plan

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"github.com/circuitseal/circuitseal/agent/instance"
	"github.com/circuitseal/circuitseal/proto/desired"
)

// IP protocol numbers.
const (
	udp = 17
	esp = 50
)

// The UDP ports of IKE, and of IKE and ESP behind a NAT (RFC 7296, section 2.23).
const (
	ikePort  = 500
	natTPort = 4500
)

// Build says what each driver has to bring about for a valid state. Every
// circuit interface is guarded, also one that carries no tunnel. Tunnels that
// still wait for a key or certificate are listed as pending and open nothing; the
// prefixes behind them are known to the classifier all the same, so that
// packets to them are dropped as "no tunnel" and not as unknown.
func Build(inst instance.Instance, s desired.State) Plan { return BuildClosed(inst, s, nil) }

// BuildClosed is Build with some groups closed, by ID, each for a reason in
// words: their tunnels are pending, whatever they have.
func BuildClosed(inst instance.Instance, s desired.State, closed map[string]string) Plan {
	b := builder{inst: inst, state: s, closed: closed, links: map[string]desired.Link{}, devices: map[string]string{}, tables: map[string]*Table{}}
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
	b.plan.IPsec = IPsec{Socket: s.CharonSocket, Identities: s.Identities, Authorities: s.Authorities}
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
	state  desired.State
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
	locals := make([]netip.Prefix, 0, len(x.Locals))
	for _, l := range x.Locals {
		locals = append(locals, l.Prefix)
		c.Locals = append(c.Locals, Local{Tenant: x.Tenant, Prefix: l.Prefix, Interface: l.Interface})
	}
	for _, g := range x.Groups {
		for _, r := range g.Remotes {
			c.Remotes = append(c.Remotes, Remote{Tenant: x.Tenant, Prefix: r, Group: g.Number})
		}
		group := Group{ID: g.ID, Number: g.Number, Tenant: x.Tenant}
		for _, t := range g.Tunnels {
			for _, protocol := range protocols(t) {
				reason := b.closed[g.ID]
				if reason == "" {
					reason = b.waits(g, t, protocol)
				}
				if reason != "" {
					b.plan.Pending = append(b.plan.Pending, Pending{ID: t.ID, Protocol: protocol, Retiring: protocol == g.Retiring, Reason: reason})
					continue
				}
				var m Member
				if protocol == desired.ProtocolIPsec {
					m = b.ipsec(locals, g, t)
				} else {
					m = b.wireGuard(t, g)
				}
				m.Retiring, m.External = protocol == g.Retiring, protocol == desired.ProtocolIPsec && g.IPsec.External
				group.Members = append(group.Members, m)
			}
		}
		slices.SortStableFunc(group.Members, func(a, b Member) int { return cmp.Compare(a.Number, b.Number) })
		group.Members = b.fit(group.Members)
		c.Groups = append(c.Groups, group)
	}
}

// protocols are those that a tunnel has, one or, while one takes over from the
// other, two.
func protocols(t desired.Tunnel) []desired.Protocol {
	var all []desired.Protocol
	if t.WireGuard != nil {
		all = append(all, desired.ProtocolWireGuard)
	}
	if t.IPsec != nil {
		all = append(all, desired.ProtocolIPsec)
	}
	return all
}

func (b *builder) waits(g desired.Group, t desired.Tunnel, protocol desired.Protocol) string {
	if protocol == desired.ProtocolIPsec {
		return g.IPsecWaits(t, b.state.Identities)
	}
	if t.WireGuard.Pending() {
		return "waits for the peer's public key and a pre-shared key"
	}
	return ""
}

// fit leaves out members on their way out for which the group has no room; their
// tunnels stay, and carry nothing.
func (b *builder) fit(members []Member) []Member {
	for i := len(members) - 1; i >= 0 && len(members) > MaxMembers; i-- {
		if members[i].Retiring {
			members = slices.Delete(members, i, i+1)
		}
	}
	return members
}

func (b *builder) wireGuard(t desired.Tunnel, g desired.Group) Member {
	mark := instance.Mark(b.links[t.Link].Number)
	device := b.inst.Device(t.Number)

	allowed := append([]netip.Prefix(nil), g.Remotes...)
	allowed = append(allowed, host(t.RemoteProbe))
	b.plan.Tunnels = append(b.plan.Tunnels, Tunnel{
		ID: t.ID, Device: device, Mark: mark, MTU: int(t.MTU), Retiring: g.Retiring == desired.ProtocolWireGuard,
		Local: t.Local, Peer: t.Remote, PeerKey: t.WireGuard.PeerKey, PresharedKeys: t.WireGuard.PresharedKeys,
		AllowedIPs: allowed, LocalProbe: t.LocalProbe, RemoteProbe: t.RemoteProbe,
	})
	b.plan.Guard.Flows = append(b.plan.Guard.Flows, Flow{
		Tunnel: t.ID, Device: device, Interface: b.devices[t.Link], Mark: mark, Protocol: udp, Local: t.Local, Remote: t.Remote,
	})
	b.route(t)
	return Member{
		Tunnel: t.ID, Number: t.Number, Device: device, MTU: int(t.MTU),
		LocalProbe: t.LocalProbe, RemoteProbe: t.RemoteProbe,
	}
}

// ipsecMember sets a tunnel's member by IPsec apart from the one by WireGuard.
// No tunnel's number is as great: its UDP port would be none.
const ipsecMember = 1 << 15

func (b *builder) ipsec(locals []netip.Prefix, g desired.Group, t desired.Tunnel) Member {
	mark := instance.Mark(b.links[t.Link].Number)
	device := b.inst.IPsecDevice(t.Number)
	first, _ := desired.ProbeAddresses(t.Number)
	made := IPsecTunnel{
		ID: t.ID, Device: device, Number: t.Number, InterfaceID: instance.InterfaceID(t.Number), Mark: mark, MTU: int(t.MTU),
		Local: t.Local.Addr(), Remote: t.Remote.Addr(), Retiring: g.Retiring == desired.ProtocolIPsec,
		Initiates: g.IPsec.External || t.LocalProbe == first,
		Policy:    g.IPsec.For(t), PresharedKeys: t.IPsec.PresharedKeys, Locals: locals, Remotes: g.Remotes,
	}
	if !g.IPsec.External {
		made.LocalProbe, made.RemoteProbe = desired.IPsecProbe(t.LocalProbe), desired.IPsecProbe(t.RemoteProbe)
	}
	b.plan.IPsec.Tunnels = append(b.plan.IPsec.Tunnels, made)
	flow := func(protocol uint8, port uint16, mark uint32, control bool) {
		b.plan.Guard.Flows = append(b.plan.Guard.Flows, Flow{
			Tunnel: t.ID, Device: device, Interface: b.devices[t.Link], Mark: mark, Control: control, Protocol: protocol,
			Local: netip.AddrPortFrom(made.Local, port), Remote: netip.AddrPortFrom(made.Remote, port),
		})
	}
	flow(udp, ikePort, instance.ControlMark, false)
	flow(udp, natTPort, mark, true)
	if !g.IPsec.UDPEncapsulation {
		flow(esp, 0, mark, false)
	}
	table := b.route(t)
	if pair := (Pair{made.Local, made.Remote}); !slices.Contains(table.Control, pair) {
		table.Control = append(table.Control, pair)
	}
	return Member{
		Tunnel: t.ID, Number: t.Number | ipsecMember, Device: device, MTU: int(t.MTU),
		LocalProbe: made.LocalProbe, RemoteProbe: made.RemoteProbe,
	}
}

// route leads to a tunnel's far end over its link.
func (b *builder) route(t desired.Tunnel) *Table {
	route := Route{
		Destination: host(t.Remote.Addr()), NextHop: b.links[t.Link].NextHop,
		Interface: b.devices[t.Link], Source: t.Local.Addr(),
	}
	table := b.tables[t.Link]
	if !slices.Contains(table.Routes, route) {
		table.Routes = append(table.Routes, route)
	}
	return table
}

func (b *builder) leastMTU(x desired.Section) (least int) {
	for _, g := range x.Groups {
		if b.closed[g.ID] != "" {
			continue
		}
		for _, t := range g.Tunnels {
			made := slices.ContainsFunc(protocols(t), func(p desired.Protocol) bool { return b.waits(g, t, p) == "" })
			if mtu := int(t.MTU); made && (least == 0 || mtu < least) {
				least = mtu
			}
		}
	}
	return least
}

func host(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// String is one line.
func (f Flow) String() string {
	text := fmt.Sprintf("%s protocol %d %s -> %s mark %#x", f.Interface, f.Protocol, f.Local, f.Remote, f.Mark)
	if f.Control {
		text += " or control"
	}
	return text
}
