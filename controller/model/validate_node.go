package model

import (
	"fmt"
	"net/netip"
	"path"
	"slices"
)

// maxSocketPath is what the kernel takes (unix(7), sun_path) with its final zero.
const maxSocketPath = 107

// What a node and an endpoint can have, well below what a state carries. Beyond
// that, one problem is told and nothing else looks at the list, so that the cost
// of validation stays near the length of the text.
const (
	maxInterfaces = 1000
	maxAddresses  = 64
	maxUnderlay   = 256
	// maxLinks is how many links a node can have by their VLANs, on all interfaces:
	// with two tags each, the guard has room for the devices of all beside
	// maxInterfaces.
	maxLinks = 512
)

// tagged is how many links the node's interfaces carry by their VLANs.
func (s *NodeSpec) tagged() (n int) {
	for _, in := range s.Interfaces {
		n += len(in.Links)
	}
	return n
}

// usable is a node whose interfaces can be looked at; nil where there is none.
func (c *checker) usable(name string) *NodeSpec {
	s, ok := Lookup[*NodeSpec](c.docs, Key{Kind: KindNode, Name: name})
	if !ok || len(s.Interfaces) > maxInterfaces || s.tagged() > maxLinks {
		return nil
	}
	for _, in := range s.Interfaces {
		if len(in.Addresses) > maxAddresses {
			return nil
		}
	}
	return s
}

func (c *checker) node(k Key, s *NodeSpec) {
	switch s.Owner {
	case OwnerProvider:
	case "":
		c.add(k, "spec.owner", "", "is required", "provider, or the name of a customer")
	}
	c.nodeExemptions(k, s.Exemptions)
	if s.OnDuplicateIdentity != "" {
		enum(c, k, "spec.onDuplicateIdentity", s.OnDuplicateIdentity, DuplicateAlarm, DuplicateQuarantine)
	}
	if p := s.CharonSocket; p != "" && (path.Clean(p) != p || !path.IsAbs(p) || len(p) > maxSocketPath) {
		c.add(k, "spec.charonSocket", p, fmt.Sprintf("is no absolute path, in its shortest form, of at most %d bytes", maxSocketPath), "such as /run/charon.vici")
	}
	const list = "spec.interfaces"
	switch n := len(s.Interfaces); {
	case n == 0:
		c.add(k, list, "", "is required: a node guards its circuit interfaces", "at least one interface")
	case n > maxInterfaces:
		c.add(k, list, fmt.Sprint(n), fmt.Sprintf("has more than the %d interfaces that a node can have", maxInterfaces), "several nodes")
		return
	}
	if n := s.tagged(); n > maxLinks {
		c.add(k, list, fmt.Sprint(n), fmt.Sprintf("has more than the %d links that a node can carry by their VLANs", maxLinks), "several nodes")
		return
	}
	names := map[string]string{}
	addresses := map[netip.Addr]string{}
	for i, in := range s.Interfaces {
		field := at(list, i)
		if n := len(in.Addresses); n > maxAddresses {
			c.add(k, field+".addresses", fmt.Sprint(n), fmt.Sprintf("has more than the %d addresses that an interface can have", maxAddresses), "several interfaces")
			in.Addresses = in.Addresses[:maxAddresses]
		}
		if p, hint := validInterfaceName(in.Name); p != "" {
			c.add(k, field+".name", in.Name, p, hint)
		} else if first, ok := names[in.Name]; ok {
			c.add(k, field+".name", in.Name, "is also the name of "+first, "another interface")
		} else {
			names[in.Name] = field
		}
		if enum(c, k, field+".role", in.Role, RoleCircuit, RoleLAN, RoleManagement) {
			c.interfaceOfRole(k, field, s, in)
		}
		for _, part := range in.parts(field) {
			for j, p := range InterfaceAddresses(c.docs, part.spec) {
				here := part.link
				if here == "" {
					here = at(field+".addresses", j)
				}
				if !p.IsValid() {
					continue
				}
				if first, ok := addresses[p.Addr()]; ok {
					c.add(k, here, p.Addr().String(), "is an address of "+first+" as well: the host could not tell the two apart", "an address that nothing else on the node has")
					continue
				}
				addresses[p.Addr()] = part.field
			}
		}
	}
	c.ownNextHops(k, s, addresses)
}

// ownNextHops reports interfaces whose next hop is an address of the node
// itself: what is to leave there would never leave the host.
func (c *checker) ownNextHops(k Key, s *NodeSpec, addresses map[netip.Addr]string) {
	for i, in := range s.Interfaces {
		field := at("spec.interfaces", i)
		for _, part := range in.parts(field) {
			hop := NextHop(c.docs, part.spec)
			owner, own := addresses[hop]
			// An interface's own address as its gateway is told as that.
			if in.Role != RoleCircuit || !own || owner == part.field {
				continue
			}
			here, hint := field+".gateway", "the address of the router"
			if part.link != "" {
				here, hint = part.link, "another address at "+owner
			}
			c.add(k, here, hop.String(), "is the neighbour that leads to the links, and an address of "+owner+" as well: packets would not leave the host", hint)
		}
	}
}

// part is an interface as one link has it, or all of one without tagged links.
type part struct {
	// spec has no Links; one of them is its Link.
	spec InterfaceSpec
	// field is where the part is said, link where its link is, "" for none.
	field, link string
}

// parts takes the interface at field apart.
func (in InterfaceSpec) parts(field string) []part {
	if len(in.Links) == 0 {
		p := part{spec: in, field: field}
		if in.Link != nil {
			p.link = field + ".link"
		}
		return []part{p}
	}
	out := make([]part, 0, len(in.Links))
	for i := range in.Links {
		here := at(field+".links", i)
		out = append(out, part{InterfaceSpec{Name: in.Name, Role: in.Role, Link: &in.Links[i]}, here, here})
	}
	return out
}

func (c *checker) interfaceOfRole(k Key, field string, s *NodeSpec, in InterfaceSpec) {
	if in.Role != RoleCircuit {
		only := "only circuit interfaces have one"
		if in.Link != nil {
			c.add(k, field+".link", LinkID(in.Link.Customer, in.Link.Circuit, in.Link.Link), only, "role: circuit, or leave it out")
		}
		if len(in.Links) > 0 {
			c.add(k, field+".links", fmt.Sprint(len(in.Links)), "only circuit interfaces have some", "role: circuit, or leave them out")
		}
		if len(in.Addresses) > 0 {
			c.add(k, field+".addresses", in.Addresses[0].String(), "only circuit interfaces have addresses here: the host keeps those of the others", "role: circuit, or leave it out")
		}
		if in.Gateway.IsValid() {
			c.add(k, field+".gateway", in.Gateway.String(), only, "role: circuit, or leave it out")
		}
	}
	if in.Role != RoleLAN && in.Customer != "" {
		c.add(k, field+".customer", in.Customer, "only LAN interfaces belong to a customer; a circuit interface has one through its link", "role: lan, or leave it out")
	}
	switch in.Role {
	case RoleLAN:
		c.lan(k, field, s, in)
	case RoleCircuit:
		c.circuitInterface(k, field, s, in)
	case RoleManagement:
	}
}

func (c *checker) lan(k Key, field string, s *NodeSpec, in InterfaceSpec) {
	customer := s.LANCustomer(in)
	switch {
	case customer == "":
		c.add(k, field+".customer", "", "is required on a provider's node: the customer whose packets the interface carries", "the name of a customer")
	case in.Customer != "" && !c.has(Key{Kind: KindCustomer, Name: in.Customer}):
	case c.foreign(s, customer):
		c.add(k, field+".customer", in.Customer, "the node belongs to customer "+quoted(s.Owner)+" and serves no other", s.Owner+", or a node that the provider owns")
	}
}

// foreign reports whether a customer is another one than the node's owner.
func (c *checker) foreign(s *NodeSpec, customer string) bool {
	return s.Owner != "" && s.Owner != OwnerProvider && s.Owner != customer
}

func (c *checker) circuitInterface(k Key, field string, s *NodeSpec, in InterfaceSpec) {
	if len(in.Links) > 0 {
		c.taggedLinks(k, field, s, in)
		return
	}
	if in.Link != nil {
		if len(in.Addresses) > 0 || in.Gateway.IsValid() {
			c.add(k, field+".link", LinkID(in.Link.Customer, in.Link.Circuit, in.Link.Link),
				"stands beside addresses or a gateway; the link's subnet says both", "either link, or addresses and gateway")
		}
		c.interfaceLink(k, field+".link", s, in.Link)
		if l, ok := lookupLink(c.docs, *in.Link); ok && l.FirstTag() != 0 {
			c.add(k, field+".link", LinkID(in.Link.Customer, in.Link.Circuit, in.Link.Link),
				fmt.Sprintf("has the VLAN %d, and link is for one that is handed over untagged and has the interface for itself", l.FirstTag()),
				"links, a list of this one and others")
		}
		return
	}
	if len(in.Addresses) == 0 && !in.Gateway.IsValid() {
		c.add(k, field, in.Name, "a circuit interface needs a link, or addresses and a gateway",
			"link: {customer, circuit, link} where a link ends here; addresses and gateway where a router leads to the links, as in Azure")
		return
	}
	if len(in.Addresses) == 0 {
		c.add(k, field+".addresses", "", "is required beside a gateway", "such as [172.20.255.4/28]")
	}
	inside := false
	var subnet netip.Prefix
	for i, p := range in.Addresses {
		if c.interfaceAddress(k, at(field+".addresses", i), p) {
			inside = inside || p.Contains(in.Gateway) && p.Addr() != in.Gateway
			subnet = p.Masked()
		}
	}
	if !in.Gateway.IsValid() {
		c.add(k, field+".gateway", "", "is required beside addresses: the router that leads to the links", "in Azure, the first address of the subnet")
	} else if c.address(k, field+".gateway", in.Gateway) && !inside && subnet.IsValid() {
		c.add(k, field+".gateway", in.Gateway.String(), "is not a neighbour on the interface: it is in none of its subnets, or it is the interface's own address", "a neighbour's address inside "+subnet.String())
	}
}

// taggedLinks wants the interface to tell every frame's link by its first tag,
// and nothing on it that has none.
func (c *checker) taggedLinks(k Key, field string, s *NodeSpec, in InterfaceSpec) {
	const alone = "tagged links share an interface with nothing that is untagged"
	if in.Link != nil {
		c.add(k, field+".link", LinkID(in.Link.Customer, in.Link.Circuit, in.Link.Link), "stands beside links: "+alone, "link for one that is handed over untagged, else links")
	}
	if len(in.Addresses) > 0 || in.Gateway.IsValid() {
		c.add(k, field+".links", fmt.Sprint(len(in.Links)), "stands beside addresses or a gateway: "+alone+", and their subnets say both", "either links, or addresses and gateway")
	}
	tags := map[int]string{}
	for i := range in.Links {
		here := at(field+".links", i)
		ref := &in.Links[i]
		c.interfaceLink(k, here, s, ref)
		l, ok := lookupLink(c.docs, *ref)
		if !ok {
			continue
		}
		tag := l.FirstTag()
		first, taken := tags[tag]
		switch {
		case tag == 0:
			c.add(k, here, LinkID(ref.Customer, ref.Circuit, ref.Link), "has no vlan, so that untagged frames would be its: "+alone,
				"a vlan in the circuit's document, or link on an interface of its own")
		case taken:
			c.add(k, here, fmt.Sprint(tag), "is the first tag of "+first+" as well: the interface could not tell their frames apart", "a first tag (outerVlan, or else vlan) of its own for every link of the interface")
		default:
			tags[tag] = here
		}
	}
}

// interfaceAddress checks an address with its subnet's length.
func (c *checker) interfaceAddress(k Key, field string, p netip.Prefix) bool {
	const want = "an address with its subnet's length such as 172.20.255.4/28"
	if !c.prefix(k, field, p, want) || !c.address(k, field, p.Addr()) {
		return false
	}
	last := p.Addr().Is4() && p.Bits() < 31 && !p.Contains(p.Addr().Next())
	if a := p.Addr(); p.Bits() < a.BitLen()-1 && (a == p.Masked().Addr() || last) {
		c.add(k, field, p.String(), "is the first or last address of the subnet, which stands for the subnet itself or for all of its hosts", "an address between them")
		return false
	}
	return true
}

func (c *checker) interfaceLink(k Key, field string, s *NodeSpec, ref *LinkRef) {
	if c.has(Key{Kind: KindCustomer, Name: ref.Customer}) && c.foreign(s, ref.Customer) {
		c.add(k, field+".customer", ref.Customer, "the node belongs to customer "+quoted(s.Owner)+" and serves no other", s.Owner+", or a node that the provider owns")
	}
	enum(c, k, field+".link", ref.Link, LinkNames()...)
}

// claims reports links that two interfaces claim: the customer side of a link
// has one address, so one interface of one node.
func (c *checker) claims() {
	type claim struct {
		key   Key
		field string
	}
	claimed := map[LinkRef]claim{}
	for _, k := range c.keys {
		s, ok := c.docs[k].Spec.(*NodeSpec)
		if !ok {
			continue
		}
		if s.tagged() > maxLinks {
			continue
		}
		for i, in := range s.Interfaces {
			for _, part := range in.parts(at("spec.interfaces", i)) {
				link := part.spec.Link
				if link == nil || in.Role != RoleCircuit || link.Circuit == "" {
					continue
				}
				mine := claim{k, part.link}
				first, taken := claimed[*link]
				if !taken {
					claimed[*link] = mine
					continue
				}
				if c.docs[first.key].Revision == 0 && c.docs[k].Revision != 0 {
					first, mine = mine, first
				}
				c.add(mine.key, mine.field, LinkID(link.Customer, link.Circuit, link.Link),
					"ends at "+first.key.String()+" "+first.field+" already, and its customer side has one address", "the other link, or another circuit")
			}
		}
	}
}

// InterfaceAddresses are what a circuit interface has itself: the customer side's
// address of its link with the subnet's length, or the addresses that the
// document gives. None for other roles, while the link is unknown, or where links
// come by VLANs: see InterfaceWith.
func InterfaceAddresses(docs map[Key]Document, in InterfaceSpec) []netip.Prefix {
	if in.Role != RoleCircuit || len(in.Links) > 0 {
		return nil
	}
	if in.Link == nil {
		return in.Addresses
	}
	l, ok := lookupLink(docs, *in.Link)
	if !ok || !l.CustomerAddress().IsValid() {
		return nil
	}
	return []netip.Prefix{netip.PrefixFrom(l.CustomerAddress(), l.Subnet.Bits())}
}

// NextHop is the neighbour through which a circuit interface reaches the far
// ends: Microsoft's edge on its link, or its gateway.
func NextHop(docs map[Key]Document, in InterfaceSpec) netip.Addr {
	if in.Link == nil {
		return in.Gateway
	}
	l, _ := lookupLink(docs, *in.Link)
	return l.MicrosoftAddress()
}

func lookupLink(docs map[Key]Document, ref LinkRef) (LinkSpec, bool) {
	s, ok := Lookup[*CircuitSpec](docs, Key{Kind: KindCircuit, Customer: ref.Customer, Name: ref.Circuit})
	if !ok {
		return LinkSpec{}, false
	}
	return s.Links.Link(ref.Link)
}

// Tags are the VLAN tags of an interface's link, 0 for none.
func Tags(docs map[Key]Document, in InterfaceSpec) (vlan, outer int) {
	if in.Link == nil {
		return 0, 0
	}
	l, _ := lookupLink(docs, *in.Link)
	return l.VLAN, l.OuterVLAN
}

// InterfaceWith finds the circuit interface of a node that has an address. Of one
// that carries links by their VLANs, it is the part that is that link's: with Link
// for its link, and without Links.
func InterfaceWith(docs map[Key]Document, s *NodeSpec, a netip.Addr) (InterfaceSpec, bool) {
	for _, in := range s.Interfaces {
		for _, part := range in.parts("") {
			for _, p := range InterfaceAddresses(docs, part.spec) {
				if p.IsValid() && p.Addr() == a {
					return part.spec, true
				}
			}
		}
	}
	return InterfaceSpec{}, false
}

// underlay are the addresses of a node's circuit interfaces, each with the part of
// an interface that has it, in the document's order and by address.
type underlay struct {
	list []nodeAddress
	// sorted has the list's places by address.
	sorted []nodeAddress
}

type nodeAddress struct {
	address netip.Addr
	part    part
}

// with is InterfaceWith.
func (u *underlay) with(a netip.Addr) (InterfaceSpec, bool) {
	i, ok := slices.BinarySearchFunc(u.sorted, a, func(x nodeAddress, a netip.Addr) int { return x.address.Compare(a) })
	if !ok {
		return InterfaceSpec{}, false
	}
	return u.sorted[i].part.spec, true
}

// in are the addresses that lie in a prefix.
func (u *underlay) in(p netip.Prefix) []nodeAddress {
	first, _ := slices.BinarySearchFunc(u.sorted, p.Masked().Addr(), func(x nodeAddress, a netip.Addr) int { return x.address.Compare(a) })
	n := first
	for n < len(u.sorted) && p.Contains(u.sorted[n].address) {
		n++
	}
	return u.sorted[first:n]
}

// underlay is made once for each node, however many endpoints are on it; empty
// for nil.
func (c *checker) underlay(s *NodeSpec) *underlay {
	if u := c.underlays[s]; u != nil {
		return u
	}
	u := &underlay{}
	c.underlays[s] = u
	if s == nil {
		return u
	}
	for i, in := range s.Interfaces {
		for _, part := range in.parts(at("spec.interfaces", i)) {
			for _, p := range InterfaceAddresses(c.docs, part.spec) {
				if p.IsValid() {
					u.list = append(u.list, nodeAddress{p.Addr(), part})
				}
			}
		}
	}
	u.sorted = slices.Clone(u.list)
	// Of interfaces with one address the first is meant, and told as wrong elsewhere.
	slices.SortStableFunc(u.sorted, func(a, b nodeAddress) int { return a.address.Compare(b.address) })
	return u
}
