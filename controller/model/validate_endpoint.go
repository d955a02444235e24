package model

import (
	"fmt"
	"slices"
	"strings"
)

func (c *checker) endpoint(k Key, s *EndpointSpec) {
	if s.External != nil {
		c.external(k, s)
	}
	node := c.usable(s.Node)
	if node != nil {
		c.serves(k, s, node)
	}
	if len(s.Underlay) == 0 {
		c.add(k, "spec.underlay", "", "is required: tunnels need outer addresses", "such as {address: 172.16.10.1, circuit: er-ams, link: primary}")
	}
	problems := bind(k, s).problems
	c.problems = append(c.problems, problems...)
	if len(s.Underlay) > maxUnderlay {
		return
	}
	for i, u := range s.Underlay {
		field := at("spec.underlay", i)
		// One mistake in a binding is told once.
		bound := !slices.ContainsFunc(problems, func(p Problem) bool {
			return p.Field == field || strings.HasPrefix(p.Field, field+".")
		})
		if u.Circuit != "" {
			bound = c.has(Key{Kind: KindCircuit, Customer: k.Customer, Name: u.Circuit}) && bound
		}
		if u.Link != "" {
			bound = enum(c, k, field+".link", u.Link, LinkNames()...) && bound
		}
		if !c.address(k, field+".address", u.Address) {
			continue
		}
		if u.TranslatedTo.IsValid() && c.address(k, field+".translatedTo", u.TranslatedTo) && u.TranslatedTo.Is4() != u.Address.Is4() {
			c.add(k, field+".translatedTo", u.TranslatedTo.String(), "is of another family than "+u.Address.String()+": what makes IPv4 of IPv6 is no one-to-one translation of addresses", "an address of the same family")
		}
		if s.External != nil && s.External.Type == GatewayAzure && !u.Address.Is4() {
			c.add(k, field+".address", u.Address.String(), "is of IPv6: an Azure VPN Gateway has tunnels over IPv4 only", "the gateway's private IPv4 address")
		}
		if node != nil {
			c.underlayOf(k, field, u, s.Node, node, bound)
		}
	}
}

// serves checks that the node may and can carry the customer's endpoint.
func (c *checker) serves(k Key, s *EndpointSpec, node *NodeSpec) {
	if c.foreign(node, k.Customer) {
		c.add(k, "spec.node", s.Node, "belongs to another customer; only the provider's nodes serve several", "a node that the provider or "+quoted(k.Customer)+" owns")
		return
	}
	switch _, n := node.LAN(k.Customer); {
	case n == 0:
		c.add(k, "spec.node", s.Node, "has no LAN interface of customer "+quoted(k.Customer)+": what the tunnels carry would have nowhere to go",
			"a node with an interface {role: lan, customer: "+Shorten(k.Customer)+"}")
	case n > 1:
		c.add(k, "spec.node", s.Node, fmt.Sprintf("has %d LAN interfaces of customer %s; for now exactly one per customer and node works", n, quoted(k.Customer)),
			"one LAN interface of this customer on the node")
	}
}

// underlayOf checks that the node has an underlay address, and that it is bound
// to the link on which it lies. Bound says whether the binding itself is sound.
func (c *checker) underlayOf(k Key, field string, u UnderlaySpec, name string, node *NodeSpec, bound bool) {
	in, ok := c.underlay(node).with(u.Address)
	if !ok && !c.linked(node) {
		return
	}
	if !ok {
		hint := "an address of the node's circuit interfaces"
		var have []string
		for _, x := range c.underlay(node).list {
			if l := x.part.spec.Link; l != nil && l.Customer != k.Customer {
				continue
			}
			if have = append(have, x.address.String()); len(have) == 8 {
				break
			}
		}
		slices.Sort(have)
		if len(have) > 0 {
			hint = oneOf(have)
		}
		c.add(k, field+".address", u.Address.String(), "is not an address of a circuit interface of "+(Key{Kind: KindNode, Name: name}).String(), hint)
		return
	}
	if hop := NextHop(c.docs, in); hop.IsValid() && hop.Is4() != u.Address.Is4() {
		c.add(k, field+".address", u.Address.String(), "is of another family than "+hop.String()+", through which its interface reaches the far ends",
			"an address of that family, or an interface with a gateway of this one")
	}
	if in.Link == nil {
		return
	}
	there := LinkID(in.Link.Customer, in.Link.Circuit, in.Link.Link)
	if in.Link.Customer != k.Customer {
		c.add(k, field+".address", u.Address.String(), "lies on a link of another customer", "an address on a circuit of customer "+quoted(k.Customer))
		return
	}
	want := fmt.Sprintf("circuit: %s, link: %s", Shorten(in.Link.Circuit), Shorten(string(in.Link.Link)))
	switch {
	case !bound:
	case u.Circuit == "" && u.Link == "":
		c.add(k, field, u.Address.String(), "lies on link "+Shorten(there)+" and has to be bound to it", want)
	case u.Circuit != "" && u.Link != "" && (u.Circuit != in.Link.Circuit || u.Link != in.Link.Link):
		c.add(k, field+".link", u.Circuit+"/"+string(u.Link), "is not the link on which "+u.Address.String()+" lies, which is "+Shorten(there), want)
	}
}

// linked reports whether every link that the node's interfaces name exists.
// While one does not, nobody knows all of the node's addresses.
func (c *checker) linked(node *NodeSpec) bool {
	for _, in := range node.Interfaces {
		for _, part := range in.parts("") {
			if part.spec.Link == nil {
				continue
			}
			if l, ok := lookupLink(c.docs, *part.spec.Link); !ok || !l.Subnet.IsValid() {
				return false
			}
		}
	}
	return true
}

// oneSitePerNode reports a customer's second site on a node: they would share
// the customer's LAN interface, and nothing could tell their packets apart.
func (c *checker) oneSitePerNode() {
	type served struct{ node, customer string }
	first := map[served]Key{}
	for _, k := range c.keys {
		s, ok := c.docs[k].Spec.(*EndpointSpec)
		if !ok || s.Node == "" || s.Site == "" {
			continue
		}
		here := served{s.Node, k.Customer}
		other, taken := first[here]
		if !taken {
			first[here] = k
			c.carried[s.Node] += c.prefixes(k.Customer, s.Site)
			continue
		}
		o, _ := Lookup[*EndpointSpec](c.docs, other)
		if o.Site == s.Site {
			continue
		}
		mine := k
		if c.docs[other].Revision == 0 && c.docs[k].Revision != 0 {
			mine, other, s, o = other, k, o, s
		}
		c.add(mine, "spec.site", s.Site, "node "+quoted(s.Node)+" serves site "+quoted(o.Site)+" of this customer already ("+other.String()+"): for now a node serves one site of a customer",
			quoted(o.Site)+", or another node")
	}
}
