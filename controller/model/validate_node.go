package model

import (
	"fmt"
	"iter"
	"net/netip"
)

// What a node and an endpoint can have, well below what a state carries. Beyond
// that, one problem is told and nothing else looks at the list, so that the cost
// of validation stays near the length of the text.
const (
	maxInterfaces = 256
	maxAddresses  = 64
	maxUnderlay   = 256
)

// usable is a node whose interfaces can be looked at; nil where there is none.
func (c *checker) usable(name string) *NodeSpec {
	s, ok := Lookup[*NodeSpec](c.docs, Key{Kind: KindNode, Name: name})
	if !ok || len(s.Interfaces) > maxInterfaces {
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
	const list = "spec.interfaces"
	switch n := len(s.Interfaces); {
	case n == 0:
		c.add(k, list, "", "is required: a node guards its circuit interfaces", "at least one interface")
	case n > maxInterfaces:
		c.add(k, list, fmt.Sprint(n), fmt.Sprintf("has more than the %d interfaces that a node can have", maxInterfaces), "several nodes")
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
		for j, p := range InterfaceAddresses(c.docs, in) {
			here := at(field+".addresses", j)
			if in.Link != nil {
				here = field + ".link"
			}
			if !p.IsValid() {
				continue
			}
			if first, ok := addresses[p.Addr()]; ok {
				c.add(k, here, p.Addr().String(), "is an address of "+first+" as well: the host could not tell the two apart", "an address that nothing else on the node has")
				continue
			}
			addresses[p.Addr()] = field
		}
	}
	c.ownNextHops(k, s, addresses)
}

// ownNextHops reports interfaces whose next hop is an address of the node
// itself: what is to leave there would never leave the host.
func (c *checker) ownNextHops(k Key, s *NodeSpec, addresses map[netip.Addr]string) {
	for i, in := range s.Interfaces {
		field := at("spec.interfaces", i)
		hop := NextHop(c.docs, in)
		owner, own := addresses[hop]
		// An interface's own address as its gateway is told as that.
		if in.Role != RoleCircuit || !own || owner == field {
			continue
		}
		here, hint := field+".gateway", "the address of the router"
		if in.Link != nil {
			here, hint = field+".link", "another address at "+owner
		}
		c.add(k, here, hop.String(), "is the neighbour that leads to the links, and an address of "+owner+" as well: packets would not leave the host", hint)
	}
}

func (c *checker) interfaceOfRole(k Key, field string, s *NodeSpec, in InterfaceSpec) {
	if in.Role != RoleCircuit {
		only := "only circuit interfaces have one"
		if in.Link != nil {
			c.add(k, field+".link", LinkID(in.Link.Customer, in.Link.Circuit, in.Link.Link), only, "role: circuit, or leave it out")
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
	if in.Link != nil {
		if len(in.Addresses) > 0 || in.Gateway.IsValid() {
			c.add(k, field+".link", LinkID(in.Link.Customer, in.Link.Circuit, in.Link.Link),
				"stands beside addresses or a gateway; the link's subnet says both", "either link, or addresses and gateway")
		}
		c.interfaceLink(k, field+".link", s, in.Link)
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
	} else if c.outside4(k, field+".gateway", in.Gateway, in.Gateway.String(), "an IPv4 address") && c.address(k, field+".gateway", in.Gateway) && !inside && subnet.IsValid() {
		c.add(k, field+".gateway", in.Gateway.String(), "is not a neighbour on the interface: it is in none of its subnets, or it is the interface's own address", "a neighbour's address inside "+subnet.String())
	}
}

// interfaceAddress checks an address with its subnet's length.
func (c *checker) interfaceAddress(k Key, field string, p netip.Prefix) bool {
	const want = "an address with its subnet's length such as 172.20.255.4/28"
	if !c.prefix(k, field, p, want) || !c.outside4(k, field, p.Addr(), p.String(), want) || !c.address(k, field, p.Addr()) {
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
		for i, in := range s.Interfaces {
			if in.Link == nil || in.Role != RoleCircuit || in.Link.Circuit == "" {
				continue
			}
			mine := claim{k, at("spec.interfaces", i) + ".link"}
			first, taken := claimed[*in.Link]
			if !taken {
				claimed[*in.Link] = mine
				continue
			}
			if c.docs[first.key].Revision == 0 && c.docs[k].Revision != 0 {
				first, mine = mine, first
			}
			c.add(mine.key, mine.field, LinkID(in.Link.Customer, in.Link.Circuit, in.Link.Link),
				"ends at "+first.key.String()+" "+first.field+" already, and its customer side has one address", "the other link, or another circuit")
		}
	}
}

// InterfaceAddresses are what a circuit interface has: the customer side's
// address of its link with the subnet's length, or the addresses that the
// document gives. None for other roles, or while the link is unknown.
func InterfaceAddresses(docs map[Key]Document, in InterfaceSpec) []netip.Prefix {
	if in.Role != RoleCircuit {
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

// InterfaceWith finds the circuit interface of a node that has an address.
func InterfaceWith(docs map[Key]Document, s *NodeSpec, a netip.Addr) (InterfaceSpec, bool) {
	for _, in := range s.Interfaces {
		for _, p := range InterfaceAddresses(docs, in) {
			if p.IsValid() && p.Addr() == a {
				return in, true
			}
		}
	}
	return InterfaceSpec{}, false
}

// underlay are the addresses of a node's circuit interfaces, each with the
// index of its interface; none for nil.
func (c *checker) underlay(s *NodeSpec) iter.Seq2[netip.Addr, int] {
	return func(yield func(netip.Addr, int) bool) {
		if s == nil {
			return
		}
		for i, in := range s.Interfaces {
			for _, p := range InterfaceAddresses(c.docs, in) {
				if p.IsValid() && !yield(p.Addr(), i) {
					return
				}
			}
		}
	}
}
