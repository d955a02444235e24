package model

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// maxCircuits is how many circuits a connection can have: a group has at most
// 32 tunnels, two for each.
const maxCircuits = 16

func (c *checker) connection(k Key, s *ConnectionSpec) {
	c.ends(k, s)
	const list = "spec.circuits"
	switch n := len(s.Circuits); {
	case n == 0:
		c.add(k, list, "", "is required: the connection would have no tunnels", "at least one circuit")
	case n > maxCircuits:
		c.add(k, list, fmt.Sprint(n), fmt.Sprintf("has more than the %d circuits that a connection can use", maxCircuits), fmt.Sprintf("at most %d", maxCircuits))
		return
	}
	for i, name := range s.Circuits {
		field := at(list, i)
		if first := slices.Index(s.Circuits, name); first < i && name != "" {
			c.add(k, field, name, "stands in "+at(list, first)+" as well", "each circuit once")
			continue
		}
		c.private(k, field, Key{Kind: KindCircuit, Customer: k.Customer, Name: name})
	}
}

// private reports a circuit whose peering does not carry tunnels.
func (c *checker) private(k Key, field string, circuit Key) {
	s, ok := Lookup[*CircuitSpec](c.docs, circuit)
	if ok && (s.Peering == PeeringMicrosoft || s.Peering == PeeringPublic) {
		c.add(k, field, circuit.Name, "is a circuit with "+string(s.Peering)+" peering; tunnels run over private peering only", "a circuit with peering: private")
	}
}

// ends checks a connection's endpoints.
func (c *checker) ends(k Key, s *ConnectionSpec) {
	const list = "spec.endpoints"
	if n := len(s.Endpoints); n != 2 {
		c.add(k, list, strings.Join(s.Endpoints, ", "), fmt.Sprintf("has %d endpoints; a connection has exactly two", n), "the two endpoints, such as [hq, vnet-weu]")
	}
	var specs []*EndpointSpec
	for _, name := range s.Endpoints {
		key := Key{Kind: KindEndpoint, Customer: k.Customer, Name: name}
		if e, ok := Lookup[*EndpointSpec](c.docs, key); ok {
			specs = append(specs, e)
		}
	}
	if len(s.Endpoints) != 2 || len(specs) != 2 {
		return
	}
	a, b := specs[0], specs[1]
	c.encrypted(k, s, specs)
	switch last := at(list, 1); {
	case s.Endpoints[0] == s.Endpoints[1]:
		c.add(k, last, s.Endpoints[1], "is the same endpoint twice", "an endpoint at the other site")
	case a.Site == b.Site && a.Site != "":
		c.add(k, last, s.Endpoints[1], "is at the same site as the other endpoint, "+quoted(a.Site)+": nothing between them crosses a circuit", "an endpoint at another site")
	case a.Node == b.Node && a.Node != "":
		c.add(k, last, s.Endpoints[1], "is on the same node as the other endpoint, "+quoted(a.Node), "an endpoint on another node")
	}
}

// maxNodePrefixes is how many prefixes, near and far, the state of a node
// carries.
const maxNodePrefixes = 20_000

// groups checks what connections mean together: every tunnel is pinned, every
// destination belongs to one group, and a node reaches a link in one way.
func (c *checker) groups() {
	pairs := map[string]Key{}
	remotes := map[string]Key{}
	ways := map[string]way{}
	fars := map[string]far{}
	places := map[string]place{}
	keyed := map[string]keyedGateway{}
	for _, k := range c.keys {
		s, ok := c.docs[k].Spec.(*ConnectionSpec)
		if !ok {
			continue
		}
		tunnels, problems := Tunnels(c.docs, k)
		c.problems = append(c.problems, problems...)
		for _, t := range tunnels {
			for i, e := range t.Ends {
				node := c.usable(e.Node)
				if node == nil {
					continue
				}
				c.microsofts(k.Customer, t, e)
				c.oneFarNode(places, k, t, e.Node, t.Ends[1-i])
				c.oneKey(keyed, k.Customer, t, e.Node, t.Ends[1-i])
				if in, ok := c.underlay(node).with(e.Address); ok {
					c.oneWay(ways, k.Customer, t, e, in)
					c.oneFar(fars, k, t, e.Node, in, t.Ends[1-i])
				}
			}
		}
		c.room(k, s, tunnels)
		c.destinations(k, s, pairs, remotes)
	}
	for node, n := range c.carried {
		if n > maxNodePrefixes {
			c.add(Key{Kind: KindNode, Name: node}, "spec", fmt.Sprint(n), fmt.Sprintf("reaches more than the %d prefixes that a node can hold", maxNodePrefixes), "more nodes, or fewer, shorter prefixes")
		}
	}
}

// room reports a connection whose tunnels leave less than IPv6 needs inside, since
// they are of IPv6 themselves: the policy alone leaves enough, or is told so.
func (c *checker) room(k Key, s *ConnectionSpec, tunnels []Tunnel) {
	p, ok := Lookup[*EncryptionPolicySpec](c.docs, Key{Kind: KindEncryptionPolicy, Customer: k.Customer, Name: s.EncryptionPolicy})
	if !ok || p.Protocol != ProtocolWireGuard || p.InnerMTU(false) < MinPathMTU || p.InnerMTU(true) >= MinPathMTU {
		return
	}
	for _, t := range tunnels {
		if t.Ends[0].Address.Is6() {
			c.add(k, "spec.encryptionPolicy", s.EncryptionPolicy,
				fmt.Sprintf("has a pathMTU of %d, which leaves %d bytes inside a WireGuard tunnel over IPv6; IPv6, and with it the tunnel's probe, needs %d (RFC 8200, section 5)",
					p.OuterMTU(), p.InnerMTU(true), MinPathMTU),
				fmt.Sprintf("a policy with a pathMTU of %d or more", MinPathMTU+wireGuardOverhead(true)))
			return
		}
	}
}

// destinations reports a connection whose far site another one leads to
// already: for the same pair of sites, or from the same node.
func (c *checker) destinations(k Key, s *ConnectionSpec, pairs, remotes map[string]Key) {
	if len(s.Endpoints) != 2 {
		return
	}
	var ends [2]*EndpointSpec
	for i, name := range s.Endpoints {
		e, ok := Lookup[*EndpointSpec](c.docs, Key{Kind: KindEndpoint, Customer: k.Customer, Name: name})
		if !ok || e.Site == "" {
			return
		}
		ends[i] = e
	}
	if ends[0].Site == ends[1].Site {
		return
	}
	sites := []string{ends[0].Site, ends[1].Site}
	slices.Sort(sites)
	if first, taken := claimed(pairs, k, k.Customer+"\x00"+strings.Join(sites, "\x00")); taken {
		blamed, other := c.newer(first, k)
		c.add(blamed, "spec.endpoints", strings.Join(s.Endpoints, ", "),
			"connects sites "+quoted(sites[0])+" and "+quoted(sites[1])+", which "+other.String()+" does already: a destination would belong to two groups",
			"one connection for a pair of sites; more circuits go into its spec.circuits")
		return
	}
	for i, e := range ends {
		far := ends[1-i]
		if e.Node == "" {
			continue
		}
		c.carried[e.Node] += c.prefixes(k.Customer, far.Site)
		if first, taken := claimed(remotes, k, k.Customer+"\x00"+e.Node+"\x00"+far.Site); taken {
			blamed, other := c.newer(first, k)
			c.add(blamed, "spec.endpoints", strings.Join(s.Endpoints, ", "),
				"leads from node "+quoted(e.Node)+" to site "+quoted(far.Site)+", which "+other.String()+" does already: a destination would belong to two groups",
				"one connection from a node to a site")
		}
	}
}

// claimed is the connection that has a place already, if any; else k takes it.
func claimed(places map[string]Key, k Key, place string) (Key, bool) {
	if first, ok := places[place]; ok {
		return first, true
	}
	places[place] = k
	return Key{}, false
}

// newer says which of two colliding documents is blamed: the one that is not
// stored yet, else the second.
func (c *checker) newer(first, second Key) (blamed, other Key) {
	if c.docs[first].Revision == 0 && c.docs[second].Revision != 0 {
		return first, second
	}
	return second, first
}

func (c *checker) prefixes(customer, site string) int {
	s, ok := Lookup[*SiteSpec](c.docs, Key{Kind: KindSite, Customer: customer, Name: site})
	if !ok {
		return 0
	}
	return len(s.Prefixes)
}

// way is the interface through which a node reaches a link.
type way struct {
	iface    string
	endpoint Key
}

// oneWay reports an end that reaches a link through another interface than an
// endpoint before it: a link has one routing table on a node.
func (c *checker) oneWay(ways map[string]way, customer string, t Tunnel, e End, in InterfaceSpec) {
	link := LinkID(customer, t.Circuit, t.Link)
	mine := way{in.Name, Key{Kind: KindEndpoint, Customer: customer, Name: e.Endpoint}}
	first, taken := ways[e.Node+"\x00"+link]
	if !taken {
		ways[e.Node+"\x00"+link] = mine
		return
	}
	if first.iface == mine.iface {
		return
	}
	if blamed, _ := c.newer(first.endpoint, mine.endpoint); blamed == first.endpoint {
		first, mine = mine, first
	}
	c.add(mine.endpoint, "spec.underlay", e.Address.String(),
		"reaches link "+link+" through interface "+quoted(mine.iface)+", and "+first.endpoint.String()+" through "+quoted(first.iface)+": for now a node reaches a link through one interface",
		"addresses of the same interface for the same link")
}

// far is the link over which a router is to reach an address.
type far struct {
	link       string
	connection Key
}

// oneFar reports a bound far address that a node, through a router, is to reach
// over two links. The router sees addresses only, so it sends both the same way.
func (c *checker) oneFar(fars map[string]far, k Key, t Tunnel, node string, in InterfaceSpec, e End) {
	if in.Link != nil || !e.Bound {
		return
	}
	place := node + "\x00" + in.Name + "\x00" + e.Seen().String()
	mine := far{LinkID(k.Customer, t.Circuit, t.Link), k}
	first, taken := fars[place]
	if !taken {
		fars[place] = mine
		return
	}
	if first.link == mine.link {
		return
	}
	if blamed, _ := c.newer(first.connection, k); blamed == first.connection {
		first, mine = mine, first
	}
	// No customer learns from an error what another one has.
	other := "a tunnel of another customer"
	if first.connection.Customer == mine.connection.Customer {
		other = "link " + first.link + " for " + first.connection.String()
	}
	c.add(mine.connection, "spec.endpoints", e.Seen().String(),
		"is the far underlay address over link "+mine.link+", and over "+other+" as well: the router behind interface "+quoted(in.Name)+" of node "+quoted(node)+" sends both the same way, so they cannot be pinned to different links",
		"an underlay address of its own for every link that the node reaches")
}

// place is the node, or the gateway without our agent, that has an underlay address on a
// circuit, in words.
type place struct {
	at         string
	connection Key
}

// oneFarNode reports a far address that a node is to find at two nodes or gateways behind
// the same circuit: its packets reach one of them only.
func (c *checker) oneFarNode(places map[string]place, k Key, t Tunnel, node string, e End) {
	id := node + "\x00" + k.Customer + "\x00" + t.Circuit + "\x00" + e.Seen().String()
	mine := place{"node " + quoted(e.Node), k}
	if e.External() {
		mine.at = "gateway " + quoted(e.Endpoint)
	}
	first, taken := places[id]
	if !taken {
		places[id] = mine
		return
	}
	if first.at == mine.at {
		return
	}
	if blamed, _ := c.newer(first.connection, k); blamed == first.connection {
		first, mine = mine, first
	}
	c.add(mine.connection, "spec.endpoints", e.Seen().String(),
		"is the underlay address of "+mine.at+", and for "+first.connection.String()+" of "+first.at+": over circuit "+quoted(t.Circuit)+" node "+quoted(node)+" reaches one of the two only",
		"nodes with underlay addresses of their own")
}

// keyedGateway is one without our agent that a node knows by a pre-shared key, and where.
type keyedGateway struct {
	endpoint Key
	circuit  string
	address  netip.Addr
}

// oneKey reports a gateway that has a pre-shared key and the identity of another that the
// same node has: an end finds the key by the peer's identity alone (RFC 7296, section 2.15;
// charon tries all that fit), so one gateway's would do for the other.
func (c *checker) oneKey(keyed map[string]keyedGateway, customer string, t Tunnel, node string, e End) {
	mine := keyedGateway{Key{Kind: KindEndpoint, Customer: customer, Name: e.Endpoint}, t.Circuit, e.Seen()}
	s, ok := Lookup[*EndpointSpec](c.docs, mine.endpoint)
	if !ok || s.External == nil || s.External.Authentication != AuthPSK {
		return
	}
	identity := cmp.Or(s.External.Identity, mine.address.String())
	id := node + "\x00" + strings.ToLower(identity)
	if a, err := netip.ParseAddr(identity); err == nil {
		id = node + "\x00" + a.String()
	}
	first, taken := keyed[id]
	if !taken {
		keyed[id] = mine
		return
	}
	if first.endpoint == mine.endpoint || first.endpoint.Customer == customer && first.circuit == mine.circuit && first.address == mine.address {
		// The latter is an error of its own.
		return
	}
	blamed, other := c.newer(first.endpoint, mine.endpoint)
	// No customer learns from an error what another one has.
	what := "a gateway of another customer"
	if other.Customer == blamed.Customer {
		what = other.String()
	}
	c.add(blamed, "spec.external.identity", identity,
		"is that of "+what+" as well, and node "+quoted(node)+" has a pre-shared key for each: IKE finds the key by the gateway's identity alone",
		"an identity of its own, authentication: certificate, or another node")
}

// microsofts reports an end that has the address of Microsoft's edge on the
// link that its tunnel runs over: the edge would keep its packets.
func (c *checker) microsofts(customer string, t Tunnel, e End) {
	l, ok := lookupLink(c.docs, LinkRef{Customer: customer, Circuit: t.Circuit, Link: t.Link})
	if !ok || l.MicrosoftAddress() != e.Address {
		return
	}
	c.add(Key{Kind: KindEndpoint, Customer: customer, Name: e.Endpoint}, "spec.underlay", e.Address.String(),
		"is Microsoft's own address on link "+LinkID(customer, t.Circuit, t.Link)+", which its tunnel runs over", "an address of the node's subnet")
}
