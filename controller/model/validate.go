package model

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strconv"
)

// Validate says everything that is wrong with a whole set of documents: each
// one by itself, and all of them together, sorted by document and field. Source
// and Line of the problems are empty. It never panics, whatever the documents
// hold; a set without problems can be compiled.
//
// Documents with a Revision are stored already. That matters in two places:
// public peering is refused to new documents only, and of two that collide the
// new one is blamed.
func Validate(docs map[Key]Document) []Problem { return ValidateBut(docs, nil) }

// ValidateBut is Validate, except that nothing is said of fields of documents, by
// their Key.String, of which enough was told already.
func ValidateBut(docs map[Key]Document, told func(document, field string) bool) []Problem {
	c := &checker{docs: docs, told: told, names: map[Key][]string{}, carried: map[string]int{}, underlays: map[*NodeSpec]*underlay{}}
	all := slices.SortedFunc(maps.Keys(docs), compareKeys)
	for _, k := range all {
		class := Key{Kind: k.Kind, Customer: k.Customer}
		c.names[class] = append(c.names[class], k.Name)
	}
	for _, k := range all {
		if c.identity(k, docs[k]) {
			c.keys = append(c.keys, k)
		}
	}
	for _, k := range c.keys {
		c.references(k)
		switch s := docs[k].Spec.(type) {
		case *CustomerSpec:
			c.customer(k, s)
		case *CircuitSpec:
			c.circuit(k, s)
		case *SiteSpec:
			c.site(k, s)
		case *NodeSpec:
			c.node(k, s)
		case *EndpointSpec:
			c.endpoint(k, s)
		case *EncryptionPolicySpec:
			c.policy(k, s)
		case *ConnectionSpec:
			c.connection(k, s)
		case *SecurityRuleSetSpec:
			c.ruleSet(k, s)
		case *ApplianceSpec:
			c.appliance(k, s)
		case *ServiceChainSpec:
			c.chain(k, s)
		case *ExemptionSpec:
			c.exemption(k, s)
		case *CryptoProfileSpec:
			c.cryptoProfile(k, s)
		}
	}
	c.overlaps()
	c.claims()
	c.oneSitePerNode()
	c.groups()
	slices.SortFunc(c.problems, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.Document, b.Document), compareFields(a.Field, b.Field),
			cmp.Compare(a.Message, b.Message), cmp.Compare(a.Value, b.Value), cmp.Compare(a.Hint, b.Hint))
	})
	return slices.Compact(c.problems)
}

// compareFields orders field paths so that [2] comes before [10].
func compareFields(a, b string) int {
	for a != "" && b != "" {
		na, nb := digits(a), digits(b)
		if na > 0 && nb > 0 {
			if r := cmp.Or(cmp.Compare(na, nb), cmp.Compare(a[:na], b[:nb])); r != 0 {
				return r
			}
			a, b = a[na:], b[nb:]
			continue
		}
		if a[0] != b[0] {
			return cmp.Compare(a[0], b[0])
		}
		a, b = a[1:], b[1:]
	}
	return cmp.Compare(len(a), len(b))
}

// digits counts the digits at the start of s.
func digits(s string) int {
	n := 0
	for n < len(s) && s[n] >= '0' && s[n] <= '9' {
		n++
	}
	return n
}

func compareKeys(a, b Key) int {
	return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Customer, b.Customer), cmp.Compare(a.Name, b.Name))
}

// checker collects what is wrong with a set.
type checker struct {
	docs map[Key]Document
	// keys are those of documents with a usable spec, sorted.
	keys []Key
	told func(document, field string) bool
	// names are those of all documents by kind and customer, for hints; guesses
	// counts the comparisons that hints have cost.
	names   map[Key][]string
	guesses int
	// carried counts the prefixes, near and far, that nodes have to hold.
	carried map[string]int
	// underlays are those of nodes that were asked for.
	underlays map[*NodeSpec]*underlay
	problems  []Problem
}

// add reports a problem. Value, message and hint may hold foreign text only
// where it went through Shorten or quoted.
func (c *checker) add(k Key, field, value, message, hint string) {
	if c.told != nil && c.told(k.String(), field) {
		return
	}
	c.problems = append(c.problems, Problem{
		Document: k.String(), Field: field, Value: Shorten(value), Message: message, Hint: hint,
	})
}

// identity checks a document's name, its customer, and that there is a spec.
func (c *checker) identity(k Key, d Document) bool {
	if p, hint := ValidName(k.Name); p != "" {
		c.add(k, "metadata.name", k.Name, p, hint)
	}
	if k.Kind == KindCustomer && k.Name == OwnerProvider {
		c.add(k, "metadata.name", k.Name, "is the word for the provider itself: nodes with this owner would belong to both", "another name")
	}
	switch {
	case !k.Kind.HasCustomer():
		if k.Customer != "" {
			c.add(k, "metadata.customer", k.Customer, "documents of kind "+string(k.Kind)+" belong to the provider and have no customer", "leave it out")
		}
	default:
		if p, hint := ValidName(k.Customer); p != "" {
			c.add(k, "metadata.customer", k.Customer, p, hint)
		} else {
			c.exists(k, "metadata.customer", Key{Kind: KindCustomer, Name: k.Customer})
		}
	}
	if NewSpec(k.Kind) == nil {
		c.add(k, "kind", string(k.Kind), "there is no such kind", oneOf(Kinds()))
		return false
	}
	if d.Spec == nil || reflect.ValueOf(d.Spec).IsNil() {
		c.add(k, "spec", "", "is required", "what the "+string(k.Kind)+" should be")
		return false
	}
	if got := KindOf(d.Spec); got != k.Kind {
		c.add(k, "spec", string(got), "is the spec of another kind than "+string(k.Kind), "a spec of the document's own kind")
		return false
	}
	return true
}

// exists reports a reference to a document that does not exist.
func (c *checker) exists(k Key, field string, ref Key) bool {
	if ref.Name == "" {
		c.add(k, field, "", "is required", "the name of a document of kind "+string(ref.Kind))
		return false
	}
	if _, ok := c.docs[ref]; ok {
		return true
	}
	hint := "the name of an existing document, or of one in the same apply"
	if near := c.guess(k.Customer, ref); near != "" {
		hint = "did you mean " + quoted(near) + "?"
	} else if ref.Kind == KindCryptoProfile {
		hint = "a built-in profile (" + oneOf(BuiltInProfiles()) + "), or " + c.ownProfiles(ref.Customer)
	}
	c.add(k, field, ref.Name, "there is no "+ref.String(), hint)
	return false
}

// maxGuesses bounds what hints cost when thousands of references are wrong.
const maxGuesses = 100_000

// guess is the name that a reference in a document of a customer most likely
// meant, if any. It does not tell a customer of nodes that others own.
func (c *checker) guess(customer string, ref Key) string {
	names := c.names[Key{Kind: ref.Kind, Customer: ref.Customer}]
	if c.guesses += len(names); c.guesses > maxGuesses {
		return ""
	}
	if ref.Kind == KindNode {
		names = slices.DeleteFunc(slices.Clone(names), func(name string) bool {
			s, ok := Lookup[*NodeSpec](c.docs, Key{Kind: KindNode, Name: name})
			return ok && c.foreign(s, customer)
		})
	}
	if ref.Kind == KindCryptoProfile {
		names = slices.Concat(names, BuiltInProfiles())
	}
	return Nearest(ref.Name, names)
}

// notYet refuses a field, where it is set, that is right and would look as if
// it were in force while no agent knows it.
func (c *checker) notYet(k Key, field string, set bool, why string) {
	if set {
		c.add(k, field, "", why, "leave it out until they can")
	}
}

// enum reports a word that is not one of those allowed.
func enum[T ~string](c *checker, k Key, field string, v T, allowed ...T) bool {
	if slices.Contains(allowed, v) {
		return true
	}
	if v == "" {
		c.add(k, field, "", "is required", oneOf(allowed))
		return false
	}
	words := make([]string, len(allowed))
	for i, a := range allowed {
		words[i] = string(a)
	}
	hint := oneOf(allowed)
	if near := Nearest(string(v), words); near != "" {
		hint = "did you mean " + quoted(near) + "?"
	}
	c.add(k, field, string(v), "must be "+oneOf(allowed), hint)
	return false
}

// between reports a number outside its range.
func (c *checker) between(k Key, field string, v, low, high int, unit string) bool {
	if v >= low && v <= high {
		return true
	}
	c.add(k, field, strconv.Itoa(v), fmt.Sprintf("is not %d to %d%s", low, high, unit), fmt.Sprintf("%d to %d", low, high))
	return false
}

// required reports a number that is not set, or out of its range.
func (c *checker) required(k Key, field string, v, low, high int, unit string) {
	if v == 0 {
		c.add(k, field, "", "is required", fmt.Sprintf("%d to %d%s", low, high, unit))
		return
	}
	c.between(k, field, v, low, high, unit)
}

// at is the path of an element of a list.
func at(list string, i int) string { return list + "[" + strconv.Itoa(i) + "]" }

func (c *checker) customer(k Key, s *CustomerSpec) {
	enum(c, k, "spec.model", s.Model, ConnectThrough, ConnectTo)
	c.text(k, "spec.displayName", s.DisplayName, 128)
}

// What ExpressRoute offers, in Mb/s.
const (
	minBandwidth = 50
	maxBandwidth = 100_000
)

func (c *checker) circuit(k Key, s *CircuitSpec) {
	if s.Enforcement != "" && enum(c, k, "spec.enforcement", s.Enforcement, EnforcementEnforce, EnforcementObserve) {
		c.notYet(k, "spec.enforcement", s.Enforcement == EnforcementObserve, "agents of this version cannot observe yet: they would enforce")
	}
	if s.Peering == PeeringPublic {
		if c.docs[k].Revision == 0 {
			c.add(k, "spec.peering", string(s.Peering), "Azure has retired public peering: it is read and not created any more",
				"private for a circuit that carries tunnels, else microsoft")
		}
	} else {
		enum(c, k, "spec.peering", s.Peering, PeeringPrivate, PeeringMicrosoft)
	}
	if s.BandwidthMbps == 0 {
		c.add(k, "spec.bandwidthMbps", "", "is required", fmt.Sprintf("%d to %d", minBandwidth, maxBandwidth))
	} else {
		c.between(k, "spec.bandwidthMbps", s.BandwidthMbps, minBandwidth, maxBandwidth, " Mb/s, which is what ExpressRoute offers")
	}
	for _, name := range LinkNames() {
		l, _ := s.Links.Link(name)
		c.link(k, "spec.links."+string(name), l)
	}
}

// maxVLAN is the last tag that names a VLAN (IEEE 802.1Q, table 9-2).
const maxVLAN = 4094

// linkBits is the length of a link's subnet: room for two addresses that hosts may
// have.
func linkBits(a netip.Addr) int { return a.BitLen() - 2 }

func (c *checker) link(k Key, field string, l LinkSpec) {
	if l.VLAN != 0 {
		c.between(k, field+".vlan", l.VLAN, 1, maxVLAN, "")
	}
	if l.OuterVLAN != 0 && c.between(k, field+".outerVlan", l.OuterVLAN, 1, maxVLAN, "") && l.VLAN == 0 {
		c.add(k, field+".outerVlan", strconv.Itoa(l.OuterVLAN), "is a tag in front of another one, which is missing", "vlan beside it, or vlan alone for a link with one tag")
	}
	field += ".subnet"
	if !c.prefix(k, field, l.Subnet, "a /30 such as 172.16.10.0/30, or a /126 of IPv6") || !c.masked(k, field, l.Subnet) {
		return
	}
	if bits := linkBits(l.Subnet.Addr()); l.Subnet.Bits() != bits {
		c.add(k, field, l.Subnet.String(), fmt.Sprintf("is no /%d: a link has two addresses, the customer side's and Microsoft's", bits),
			netip.PrefixFrom(l.Subnet.Addr(), bits).Masked().String())
		return
	}
	if r, ok := reservedFor(l.Subnet); ok && r.what != linkLocal4 {
		c.add(k, field, l.Subnet.String(), "overlaps with "+r.prefix.String()+", "+r.what, "a subnet that is agreed with the network provider")
	}
}

func (c *checker) policy(k Key, s *EncryptionPolicySpec) {
	known := enum(c, k, "spec.protocol", s.Protocol, ProtocolWireGuard, ProtocolIPsec)
	c.offline(k, s)
	c.duration(k, "spec.pskRotation", s.PSKRotation, "5m", "24h")
	c.ipsec(k, s)
	if s.PathMTU == 0 || !c.between(k, "spec.pathMTU", s.PathMTU, MinPathMTU, MaxPathMTU, " bytes") {
		return
	}
	if known && s.Protocol == ProtocolWireGuard && s.InnerMTU(false) < MinPathMTU {
		c.add(k, "spec.pathMTU", strconv.Itoa(s.PathMTU),
			fmt.Sprintf("leaves %d bytes for packets inside a WireGuard tunnel; IPv6, and with it the tunnel's probe, needs %d (RFC 8200, section 5)", s.InnerMTU(false), MinPathMTU),
			fmt.Sprintf("%d or more", MinPathMTU+wireGuardOverhead(false)))
	}
}

func (c *checker) offline(k Key, s *EncryptionPolicySpec) {
	c.duration(k, "spec.maxOfflineAge", s.MaxOfflineAge, minOfflineAge, maxOfflineAge)
	switch {
	case s.MaxOfflineAge == "" && s.OfflineAction != "":
		c.add(k, "spec.offlineAction", string(s.OfflineAction), "says what to do after a time that is not set", "spec.maxOfflineAge, such as 30d")
	case s.MaxOfflineAge != "":
		enum(c, k, "spec.offlineAction", s.OfflineAction, OfflineContinue, OfflineClose)
	}
}
