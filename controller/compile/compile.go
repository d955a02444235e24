// Package compile turns what operators want, a snapshot of the model, into what
// each node should have. It is pure: no I/O, no clock, no log, and the same
// snapshot gives the same states byte for byte. It knows the model's documents
// and desired's values, and nothing of wires, stores or kernels.
package compile

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"github.com/circuitseal/circuitseal/controller/model"
	"github.com/circuitseal/circuitseal/proto/desired"
)

// Compile makes the state of every Node document, by node name. The snapshot's
// documents must be valid and its numbers those of Number; what is not is left
// out of the states rather than guessed.
//
// Connections with a revoked node (Snapshot.Revoked) are left out.
//
// A state holds what its node needs and no more: all circuit interfaces, so
// that they are closed from the start; for each customer with an endpoint on
// the node its LAN interface and its section; the links that tunnels use.
func Compile(s *model.Snapshot) map[string]desired.State { return Next(nil, s).States }

// compileAll makes the states of one part of a snapshot; see part.
func compileAll(s *model.Snapshot) map[string]desired.State {
	c := &compiler{snapshot: s, builders: map[string]*builder{}}
	for _, k := range sorted(s.Documents, model.KindNode) {
		if spec, ok := model.Lookup[*model.NodeSpec](s.Documents, k); ok {
			c.node(k.Name, spec)
		}
	}
	for _, k := range sorted(s.Documents, model.KindEndpoint) {
		if spec, ok := model.Lookup[*model.EndpointSpec](s.Documents, k); ok {
			c.endpoint(k, spec)
		}
	}
	for _, k := range sorted(s.Documents, model.KindConnection) {
		c.connection(k)
	}
	states := make(map[string]desired.State, len(c.builders))
	for name, b := range c.builders {
		states[name] = b.state(s.Authorities)
	}
	return states
}

type compiler struct {
	snapshot *model.Snapshot
	builders map[string]*builder
}

// builder collects one node's state.
type builder struct {
	spec       *model.NodeSpec
	interfaces map[string]desired.Interface
	links      map[string]desired.Link
	sections   map[string]*desired.Section
	identities map[string]desired.Identity
}

func (c *compiler) node(name string, spec *model.NodeSpec) {
	b := &builder{
		spec:       spec,
		interfaces: map[string]desired.Interface{},
		links:      map[string]desired.Link{},
		sections:   map[string]*desired.Section{},
		identities: map[string]desired.Identity{},
	}
	for _, in := range spec.Interfaces {
		if in.Role != model.RoleCircuit {
			continue
		}
		addresses := slices.Clone(model.InterfaceAddresses(c.snapshot.Documents, in))
		slices.SortFunc(addresses, netip.Prefix.Compare)
		b.interfaces[in.Name] = desired.Interface{Name: in.Name, Role: desired.RoleCircuit, Addresses: addresses}
	}
	c.builders[name] = b
}

// endpoint opens a customer's section on the endpoint's node.
func (c *compiler) endpoint(k model.Key, spec *model.EndpointSpec) {
	docs := c.snapshot.Documents
	b := c.builders[spec.Node]
	tenant := c.snapshot.Numbers.Tenants[k.Customer]
	site, ok := model.Lookup[*model.SiteSpec](docs, model.Key{Kind: model.KindSite, Customer: k.Customer, Name: spec.Site})
	if b == nil || tenant == 0 || !ok || b.sections[k.Customer] != nil {
		return
	}
	lan, count := b.spec.LAN(k.Customer)
	if count == 0 {
		return
	}
	b.interfaces[lan] = desired.Interface{Name: lan, Role: desired.RoleLAN, Customer: k.Customer}
	section := &desired.Section{Customer: k.Customer, Tenant: tenant}
	for _, p := range site.Prefixes {
		section.Locals = append(section.Locals, desired.LocalPrefix{Prefix: p, Interface: lan})
	}
	slices.SortFunc(section.Locals, func(a, b desired.LocalPrefix) int { return a.Prefix.Compare(b.Prefix) })
	b.sections[k.Customer] = section
}

// connection adds its group to the nodes at both ends.
func (c *compiler) connection(k model.Key) {
	docs := c.snapshot.Documents
	number := c.snapshot.Numbers.Groups[model.GroupID(k.Customer, k.Name)]
	tunnels, _ := model.Tunnels(docs, k)
	if number == 0 || len(tunnels) == 0 {
		return
	}
	// A revoked node has no end: its peer neither opens the tunnel nor sends what
	// was to go through it anywhere else.
	for _, e := range tunnels[0].Ends {
		if _, revoked := c.snapshot.Revoked(e.Node); revoked {
			return
		}
	}
	for end := range 2 {
		near, far := tunnels[0].Ends[end], tunnels[0].Ends[1-end]
		b := c.builders[near.Node]
		if b == nil || b.sections[k.Customer] == nil {
			continue
		}
		group := desired.Group{ID: model.GroupID(k.Customer, k.Name), Number: number, Remotes: c.prefixes(k.Customer, far.Endpoint)}
		carried, ok := c.carried(k, tunnels, end)
		if !ok {
			continue
		}
		group.MaxOffline, group.OfflineAction = offline(carried.policy)
		if group.Retiring = carried.retiring; carried.ipsec != nil {
			group.IPsec = &carried.ipsec.policy
		}
		for _, t := range tunnels {
			if made, ok := c.tunnel(k.Customer, b, t, end, carried); ok {
				group.Tunnels = append(group.Tunnels, made)
			}
		}
		if len(group.Tunnels) == 0 {
			group.IPsec, group.Retiring = nil, 0
		}
		slices.SortFunc(group.Tunnels, func(a, b desired.Tunnel) int { return cmp.Compare(a.ID, b.ID) })
		section := b.sections[k.Customer]
		section.Groups = append(section.Groups, group)
	}
}

// offline closes where the policy's word is unknown: what cannot be read must
// not go on for ever.
func offline(policy *model.EncryptionPolicySpec) (time.Duration, desired.OfflineAction) {
	age := policy.Offline()
	switch {
	case age == 0:
		return 0, 0
	case policy.OfflineAction == model.OfflineContinue:
		return age, desired.OfflineContinue
	}
	return age, desired.OfflineClose
}

// prefixes are those of an endpoint's site, sorted.
func (c *compiler) prefixes(customer, endpoint string) []netip.Prefix {
	docs := c.snapshot.Documents
	e, ok := model.Lookup[*model.EndpointSpec](docs, model.Key{Kind: model.KindEndpoint, Customer: customer, Name: endpoint})
	if !ok {
		return nil
	}
	site, ok := model.Lookup[*model.SiteSpec](docs, model.Key{Kind: model.KindSite, Customer: customer, Name: e.Site})
	if !ok {
		return nil
	}
	prefixes := slices.Clone(site.Prefixes)
	slices.SortFunc(prefixes, netip.Prefix.Compare)
	return prefixes
}

// tunnel makes one end of a tunnel, and the link that it runs over.
func (c *compiler) tunnel(customer string, b *builder, t model.Tunnel, end int, carried carriage) (desired.Tunnel, bool) {
	near, far := t.Ends[end], t.Ends[1-end]
	link := model.LinkID(customer, t.Circuit, t.Link)
	number, linkNumber := c.snapshot.Numbers.Tunnels[t.ID], c.snapshot.Numbers.Links[link]
	in, ok := model.InterfaceWith(c.snapshot.Documents, b.spec, near.Address)
	if !ok || number == 0 || number > maxTunnels || linkNumber == 0 {
		return desired.Tunnel{}, false
	}
	made := desired.Link{
		ID: link, Number: linkNumber, Interface: in.Name,
		NextHop: model.NextHop(c.snapshot.Documents, in),
	}
	if vlan, outer := model.Tags(c.snapshot.Documents, in); vlan != 0 {
		made.VLAN, made.OuterVLAN = uint16(vlan), uint16(outer)
		made.Addresses = model.InterfaceAddresses(c.snapshot.Documents, in)
	}
	b.links[link] = made
	probes := [2]netip.Addr{}
	probes[0], probes[1] = desired.ProbeAddresses(number)
	port := basePort + number
	tunnel := desired.Tunnel{
		ID: t.ID, Number: number, Link: link,
		Local:      netip.AddrPortFrom(near.Address, port),
		Remote:     netip.AddrPortFrom(far.Seen(), port),
		LocalProbe: probes[end], RemoteProbe: probes[1-end],
		MTU: carried.mtu(near.Address.Is6()),
	}
	if carried.wireguard {
		tunnel.WireGuard = c.wireGuard(t.ID, far.Node)
	}
	if carried.ipsec != nil {
		tunnel.IPsec = c.shared(t.ID, carried.ipsec)
	}
	return tunnel, true
}

// wireGuard is pending until the peer's key and a pre-shared key are there.
func (c *compiler) wireGuard(tunnel, far string) *desired.WireGuard {
	key := c.snapshot.Keys[model.TunnelEnd{Tunnel: tunnel, Node: far}]
	shared := c.snapshot.PresharedKeys[tunnel].Desired()
	if key.IsZero() || len(shared) == 0 {
		return &desired.WireGuard{}
	}
	return &desired.WireGuard{PeerKey: key, PresharedKeys: shared}
}

// state sorts what was collected.
func (b *builder) state(authorities [][]byte) desired.State {
	s := desired.State{CharonSocket: b.spec.CharonSocket}
	for _, in := range b.interfaces {
		s.Interfaces = append(s.Interfaces, in)
	}
	for _, l := range b.links {
		s.Links = append(s.Links, l)
	}
	for _, section := range b.sections {
		slices.SortFunc(section.Groups, func(a, b desired.Group) int { return cmp.Compare(a.ID, b.ID) })
		s.Sections = append(s.Sections, *section)
	}
	for _, i := range b.identities {
		s.Identities = append(s.Identities, i)
	}
	if len(s.Identities) > 0 {
		s.Authorities = authorities
	}
	slices.SortFunc(s.Identities, func(a, b desired.Identity) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortFunc(s.Interfaces, func(a, b desired.Interface) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortFunc(s.Links, func(a, b desired.Link) int { return cmp.Compare(a.ID, b.ID) })
	slices.SortFunc(s.Sections, func(a, b desired.Section) int { return cmp.Compare(a.Customer, b.Customer) })
	return s
}

// sorted are the keys of one kind, by customer and name.
func sorted(docs map[model.Key]model.Document, kind model.Kind) []model.Key {
	var keys []model.Key
	for k := range docs {
		if k.Kind == kind {
			keys = append(keys, k)
		}
	}
	slices.SortFunc(keys, func(a, b model.Key) int {
		return cmp.Or(cmp.Compare(a.Customer, b.Customer), cmp.Compare(a.Name, b.Name))
	})
	return keys
}
