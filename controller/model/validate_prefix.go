package model

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/circuitseal/circuitseal/proto/desired"
)

// prefix reports a prefix that is missing, or of a form that does not belong in
// a document.
func (c *checker) prefix(k Key, field string, p netip.Prefix, want string) bool {
	switch {
	case !p.IsValid():
		c.add(k, field, "", "is required", want)
	case p.Addr().Is4In6():
		hint := want
		if p.Bits() >= 96 {
			hint = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96).String()
		}
		c.add(k, field, p.String(), "is IPv4 written as IPv6 (RFC 4291, section 2.5.5.2), which no packet carries", hint)
	default:
		return true
	}
	return false
}

// masked reports a prefix with bits set behind its length.
func (c *checker) masked(k Key, field string, p netip.Prefix) bool {
	if p == p.Masked() {
		return true
	}
	c.add(k, field, p.String(), fmt.Sprintf("has bits set behind its first %d: it is an address, or the length is wrong", p.Bits()), p.Masked().String())
	return false
}

// address reports an address that is missing or that no unicast packet has.
func (c *checker) address(k Key, field string, a netip.Addr) bool {
	const want = "a unicast address such as 172.20.255.4"
	switch {
	case !a.IsValid():
		c.add(k, field, "", "is required", want)
	case a.Zone() != "":
		c.add(k, field, a.String(), "has a zone, which means something on one host only", a.WithZone("").String())
	case a.Is4In6():
		c.add(k, field, a.String(), "is IPv4 written as IPv6 (RFC 4291, section 2.5.5.2), which no packet carries", a.Unmap().String())
	default:
		if r, ok := reservedFor(netip.PrefixFrom(a, a.BitLen())); ok && r.what != linkLocal4 {
			c.add(k, field, a.String(), "is in "+r.prefix.String()+", "+r.what, want)
			return false
		}
		return true
	}
	return false
}

// reserved is a prefix that no site, link or interface may use.
type reserved struct {
	prefix netip.Prefix
	what   string
}

const linkLocal4 = "which is link-local (RFC 3927)"

// reservedFor finds a reserved prefix that p overlaps with.
func reservedFor(p netip.Prefix) (reserved, bool) {
	for _, r := range []reserved{
		{desired.ProbePrefix, "which holds the probe addresses of tunnels"},
		{netip.PrefixFrom(netip.AddrFrom4([4]byte{127}), 8), "which is loopback (RFC 1122)"},
		{netip.PrefixFrom(netip.AddrFrom4([4]byte{169, 254}), 16), linkLocal4},
		{netip.PrefixFrom(netip.AddrFrom4([4]byte{224}), 4), "which is multicast (RFC 5771)"},
		{netip.PrefixFrom(netip.AddrFrom4([4]byte{240}), 4), "which is reserved (RFC 1112)"},
		{netip.PrefixFrom(netip.AddrFrom4([4]byte{}), 8), "which is \"this network\" (RFC 1122)"},
		{netip.PrefixFrom(netip.IPv6Loopback(), 128), "which is loopback (RFC 4291)"},
		{netip.PrefixFrom(netip.IPv6Unspecified(), 128), "which is the unspecified address (RFC 4291)"},
		{netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfe, 0x80}), 10), "which is link-local (RFC 4291)"},
		{netip.PrefixFrom(netip.AddrFrom16([16]byte{0xff}), 8), "which is multicast (RFC 4291)"},
		{netip.PrefixFrom(netip.AddrFrom16([16]byte{10: 0xff, 11: 0xff}), 96), "which is IPv4 written as IPv6 (RFC 4291)"},
	} {
		if p.Overlaps(r.prefix) {
			return r, true
		}
	}
	return reserved{}, false
}

// maxSitePrefixes is what Azure takes over private peering.
const maxSitePrefixes = 4_000

func (c *checker) site(k Key, s *SiteSpec) {
	enum(c, k, "spec.type", s.Type, SiteOnPremises, SiteAzureVNet)
	const list = "spec.prefixes"
	switch n := len(s.Prefixes); {
	case n == 0:
		c.add(k, list, "", "is required: a site without prefixes protects nothing", "at least one prefix such as 10.1.0.0/16")
	case n > maxSitePrefixes:
		c.add(k, list, fmt.Sprint(n), fmt.Sprintf("has more than the %d prefixes that Azure takes over private peering", maxSitePrefixes), "fewer, shorter prefixes")
	}
	for i, p := range s.Prefixes {
		c.sitePrefix(k, at(list, i), p)
	}
	if s.SecurityRules != nil {
		c.siteRules(k, s.SecurityRules)
	}
}

func (c *checker) sitePrefix(k Key, field string, p netip.Prefix) bool {
	if !c.prefix(k, field, p, "a prefix such as 10.1.0.0/16") || !c.masked(k, field, p) {
		return false
	}
	if p.Bits() == 0 {
		c.add(k, field, p.String(), "is every address: the tunnel would take traffic that no policy names", "the prefixes that are in use at the site")
		return false
	}
	if r, ok := reservedFor(p); ok {
		c.add(k, field, p.String(), "overlaps with "+r.prefix.String()+", "+r.what, "the prefixes that hosts at the site have")
		return false
	}
	return true
}

// use is a prefix of a customer, and where it comes from.
type use struct {
	prefix netip.Prefix
	key    Key
	field  string
	class  useClass
}

type useClass uint8

const (
	useSite useClass = iota
	useLink
	useUnderlay
)

// overlaps reports, customer by customer, prefixes that would make it unclear
// to whom a destination belongs.
func (c *checker) overlaps() {
	customers := map[string][]use{}
	nodes := map[Key]bool{}
	put := func(customer string, u use) {
		if u.prefix.IsValid() && u.prefix == u.prefix.Masked() && u.prefix.Bits() > 0 && !u.prefix.Addr().Is4In6() {
			customers[customer] = append(customers[customer], u)
		}
	}
	sites := map[string][]netip.Prefix{}
	for _, k := range c.keys {
		switch s := c.docs[k].Spec.(type) {
		case *SiteSpec:
			sites[k.Customer] = append(sites[k.Customer], s.Prefixes...)
			for i, p := range s.Prefixes {
				put(k.Customer, use{p, k, at("spec.prefixes", i), useSite})
			}
		case *CircuitSpec:
			for _, name := range LinkNames() {
				l, _ := s.Links.Link(name)
				put(k.Customer, use{l.Subnet, k, "spec.links." + string(name) + ".subnet", useLink})
			}
		case *EndpointSpec:
			// A node's addresses count once for each customer that it serves.
			if s.External == nil {
				served := Key{Kind: KindNode, Customer: k.Customer, Name: s.Node}
				nodes[served] = true
			}
			c.gatewayUses(k, s, func(u use) { put(k.Customer, u) })
		}
	}
	for served := range nodes {
		u := c.underlay(c.usable(served.Name))
		node := Key{Kind: KindNode, Name: served.Name}
		// A node has addresses for hundreds of customers; of interest are those that
		// the prefixes of this one hold.
		for _, p := range outermost(sites[served.Customer]) {
			for _, x := range u.in(p) {
				put(served.Customer, use{netip.PrefixFrom(x.address, x.address.BitLen()), node, x.part.field, useUnderlay})
			}
		}
	}
	for _, uses := range customers {
		c.overlapsOf(uses)
	}
}

// gatewayUses are the addresses of a gateway without our agent, as it has them and as
// they are seen from here.
func (c *checker) gatewayUses(k Key, s *EndpointSpec, put func(use)) {
	if s.External == nil || len(s.Underlay) > maxUnderlay {
		return
	}
	for i, u := range s.Underlay {
		put(use{netip.PrefixFrom(u.Address, u.Address.BitLen()), k, at("spec.underlay", i) + ".address", useUnderlay})
		put(use{netip.PrefixFrom(u.TranslatedTo, u.TranslatedTo.BitLen()), k, at("spec.underlay", i) + ".translatedTo", useUnderlay})
	}
}

// outermost are the prefixes that no other one contains.
func outermost(prefixes []netip.Prefix) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range slices.SortedFunc(slices.Values(prefixes), netip.Prefix.Compare) {
		if p.IsValid() && (len(out) == 0 || !out[len(out)-1].Overlaps(p)) {
			out = append(out, p)
		}
	}
	return out
}

// overlapsOf goes through one customer's prefixes in order. Prefixes nest, so
// those that contain the current one are exactly those still on the stack: the
// work is near linear, however many there are.
func (c *checker) overlapsOf(uses []use) {
	slices.SortFunc(uses, func(a, b use) int {
		if r := a.prefix.Compare(b.prefix); r != 0 {
			return r
		}
		if a.class != b.class {
			return int(a.class) - int(b.class)
		}
		if r := compareKeys(a.key, b.key); r != 0 {
			return r
		}
		return compareFields(a.field, b.field)
	})
	var stack []use
	// One conflict with the underlay says enough about a site's prefix.
	told := map[string]bool{}
	for _, u := range uses {
		for len(stack) > 0 && !stack[len(stack)-1].prefix.Overlaps(u.prefix) {
			stack = stack[:len(stack)-1]
		}
		for _, outer := range slices.Backward(stack) {
			if outer.class == u.class && u.class != useUnderlay {
				c.collide(outer, u)
				break
			}
			site, other := outer, u
			if u.class == useSite {
				site, other = u, outer
			}
			if site.class == useSite && other.class != useSite {
				if id := site.key.String() + site.field; !told[id] {
					told[id] = true
					c.swallow(site, other)
				}
				break
			}
		}
		stack = append(stack, u)
	}
}

// collide reports two prefixes of the same class; the newer document is blamed.
func (c *checker) collide(a, b use) {
	if c.docs[a.key].Revision == 0 && c.docs[b.key].Revision != 0 {
		a, b = b, a
	}
	where := a.key.String() + " " + a.field
	if a.key == b.key {
		where = a.field + " of the same document"
	}
	why := "a destination must belong to one site of a customer"
	hint := "prefixes that no other site of the customer has"
	if b.class == useLink {
		why, hint = "a neighbour must be on one link of a customer", "a subnet of its own for every link"
	}
	c.add(b.key, b.field, b.prefix.String(), fmt.Sprintf("overlaps with %s (%s): %s", a.prefix, where, why), hint)
}

// swallow reports a site's prefix that overlaps with what tunnels run over.
func (c *checker) swallow(site, other use) {
	what := "the subnet of a link"
	if other.class == useUnderlay {
		what = "an underlay address"
	}
	c.add(site.key, site.field, site.prefix.String(),
		fmt.Sprintf("overlaps with %s, %s (%s %s): what tunnels run over cannot lie inside of them", other.prefix, what, other.key, other.field),
		"prefixes without the underlay, split around it if need be")
}
