package model

import (
	"fmt"
	"net/netip"
	"slices"
)

// Tunnel is a pair of underlay addresses of two endpoints, pinned to a link.
type Tunnel struct {
	// ID is customer/connection/circuit/link.
	ID      string
	Circuit string
	Link    LinkName
	// Ends are the two endpoints, the one with the smaller name first.
	Ends [2]End
}

// End is one end of a tunnel.
type End struct {
	Endpoint string
	// Node is empty for a gateway without our agent.
	Node    string
	Address netip.Addr
	// Bound reports whether the address lies on the tunnel's link alone; if not,
	// it reaches both links and the other end's is bound.
	Bound bool
	// Translated is what the far end sees in place of Address; not valid where it
	// sees that.
	Translated netip.Addr
}

// Seen is the address by which the far end knows this one.
func (e End) Seen() netip.Addr {
	if e.Translated.IsValid() {
		return e.Translated
	}
	return e.Address
}

// External reports whether no agent of ours is at this end.
func (e End) External() bool { return e.Node == "" }

// GatewayOf is the gateway without our agent at one end of a tunnel, and its endpoint; nil
// for none.
func GatewayOf(docs map[Key]Document, customer string, t Tunnel) (Key, *ExternalSpec) {
	for _, e := range t.Ends {
		k := Key{Kind: KindEndpoint, Customer: customer, Name: e.Endpoint}
		if s, ok := Lookup[*EndpointSpec](docs, k); ok && s.External != nil {
			return k, s.External
		}
	}
	return Key{}, nil
}

// Tunnels derives the tunnels of a connection, one for each link of each of its
// circuits, sorted by ID. An end's address for a link is the one bound to that
// link; an end whose addresses are all unbound gives its first address to
// primary links and its second to secondary ones, or its only one to both. A
// bound end is needed for every link: without one, nothing says over which link
// the outer packets travel.
//
// Problems say why tunnels are missing, at the endpoint or the connection that
// has to change. Missing documents, missing addresses and malformed fields are
// no problems here: Validate reports them where they stand.
func Tunnels(docs map[Key]Document, connection Key) ([]Tunnel, []Problem) {
	s, ok := Lookup[*ConnectionSpec](docs, connection)
	if !ok || len(s.Endpoints) != 2 || s.Endpoints[0] == s.Endpoints[1] || len(s.Circuits) > maxCircuits {
		return nil, nil
	}
	p := pinning{docs: docs, connection: connection}
	for i, name := range slices.Sorted(slices.Values(s.Endpoints)) {
		key := Key{Kind: KindEndpoint, Customer: connection.Customer, Name: name}
		spec, ok := Lookup[*EndpointSpec](docs, key)
		if !ok {
			return nil, nil
		}
		p.ends[i] = bind(key, spec)
		p.problems = append(p.problems, p.ends[i].problems...)
		if !p.ends[i].sound(docs) {
			return nil, p.problems
		}
	}
	if len(p.problems) > 0 {
		return nil, p.problems
	}
	if p.ends[0].free() && p.ends[1].free() {
		return nil, []Problem{{
			Document: connection.String(), Field: "spec.endpoints", Value: Shorten(fmt.Sprint(s.Endpoints)),
			Message: "neither endpoint binds its underlay addresses to links: its tunnels cannot be pinned to different links",
			Hint:    "circuit and link beside each underlay address of the on-premises endpoint",
		}}
	}
	circuits := slices.Clone(s.Circuits)
	slices.Sort(circuits)
	for _, circuit := range slices.Compact(circuits) {
		key := Key{Kind: KindCircuit, Customer: connection.Customer, Name: circuit}
		spec, ok := Lookup[*CircuitSpec](docs, key)
		if !ok {
			continue
		}
		for _, link := range LinkNames() {
			l, _ := spec.Links.Link(link)
			p.pin(circuit, link, l)
		}
	}
	return p.tunnels, p.problems
}

// pinning is the derivation of one connection's tunnels.
type pinning struct {
	docs       map[Key]Document
	connection Key
	ends       [2]binding
	tunnels    []Tunnel
	problems   []Problem
}

func (p *pinning) pin(circuit string, link LinkName, l LinkSpec) {
	t := Tunnel{
		ID:      TunnelID(p.connection.Customer, p.connection.Name, circuit, link),
		Circuit: circuit, Link: link,
	}
	whole := true
	for i, e := range p.ends {
		a, ok := e.address(circuit, link)
		if !ok {
			p.problems = append(p.problems, e.missing(p.connection, circuit, link, l))
		}
		whole = whole && ok && a.IsValid()
		t.Ends[i] = End{Endpoint: e.key.Name, Node: e.node, Address: a, Bound: !e.free(), Translated: e.translated[a]}
	}
	if !whole {
		return
	}
	if t.Ends[0].Address == t.Ends[1].Address {
		p.problems = append(p.problems, Problem{
			Document: p.connection.String(), Field: "spec.endpoints", Value: t.Ends[0].Address.String(),
			Message: "is the underlay address of both ends for the " + string(link) + " link of circuit " + quoted(circuit),
			Hint:    "endpoints on different nodes, with addresses of their own",
		})
		return
	}
	if a, b := t.Ends[0].Address, t.Ends[1].Address; a.Is4() != b.Is4() {
		p.problems = append(p.problems, Problem{
			Document: p.connection.String(), Field: "spec.endpoints", Value: a.String() + ", " + b.String(),
			Message: "are the underlay addresses for the " + string(link) + " link of circuit " + quoted(circuit) + ", one of IPv4 and one of IPv6: no packet has both",
			Hint:    "underlay addresses of one family at both ends; inside tunnels, both go",
		})
		return
	}
	p.tunnels = append(p.tunnels, t)
}

// binding is an endpoint's underlay addresses by the links that they belong to.
type binding struct {
	key  Key
	node string
	// bound has the addresses that are bound; unbound the others, in order.
	bound   map[circuitLink]netip.Addr
	unbound []netip.Addr
	// translated has what the far end sees of those that are translated.
	translated map[netip.Addr]netip.Addr
	problems   []Problem
}

type circuitLink struct {
	circuit string
	link    LinkName
}

// bind sorts an endpoint's underlay addresses. Its problems depend on the
// endpoint alone.
func bind(key Key, s *EndpointSpec) binding {
	b := binding{key: key, node: s.Node, bound: map[circuitLink]netip.Addr{}, translated: map[netip.Addr]netip.Addr{}}
	problem := func(field, value, message, hint string) {
		b.problems = append(b.problems, Problem{
			Document: key.String(), Field: field, Value: Shorten(value), Message: message, Hint: hint,
		})
	}
	if n := len(s.Underlay); n > maxUnderlay {
		problem("spec.underlay", fmt.Sprint(n), fmt.Sprintf("has more than the %d addresses that an endpoint can have", maxUnderlay), "several endpoints")
		return b
	}
	fields := map[circuitLink]string{}
	seen := map[netip.Addr]string{}
	firstUnbound := ""
	for i, u := range s.Underlay {
		field := at("spec.underlay", i)
		if first, ok := seen[u.Address]; ok && u.Address.IsValid() {
			problem(field+".address", u.Address.String(), "is the address of "+first+" as well: tunnels cannot be pinned to different links by it", "an address for each link")
			continue
		}
		seen[u.Address] = field
		if u.TranslatedTo.IsValid() {
			b.translated[u.Address] = u.TranslatedTo
		}
		switch {
		case u.Circuit == "" && u.Link == "":
			if firstUnbound == "" {
				firstUnbound = field
			}
			b.unbound = append(b.unbound, u.Address)
		case u.Circuit == "":
			problem(field+".circuit", "", "is required beside link: both together bind the address", "the circuit that the link belongs to")
		case u.Link == "":
			problem(field+".link", "", "is required beside circuit: both together bind the address", oneOf(LinkNames()))
		default:
			cl := circuitLink{u.Circuit, u.Link}
			if first, ok := fields[cl]; ok {
				problem(field+".link", string(u.Link),
					"the "+Shorten(string(u.Link))+" link of circuit "+quoted(u.Circuit)+" is bound to "+first+" already: tunnels cannot be pinned to different links",
					"one address for each link: bind this one to the other link")
				continue
			}
			fields[cl] = field
			b.bound[cl] = u.Address
		}
	}
	switch {
	case len(b.bound) > 0 && len(b.unbound) > 0:
		problem(firstUnbound, b.unbound[0].String(), "is bound to no link although others are: no tunnel would use it", "circuit and link beside every address, or beside none")
	case len(b.unbound) > len(LinkNames()):
		problem("spec.underlay", fmt.Sprint(len(b.unbound)), "has more unbound addresses than a circuit has links: no tunnel would use the rest", "one address, or one for each of the two links")
	}
	return b
}

// sound reports whether every binding names a link that exists. Where one does
// not, that is what has to be cured, and not what is missing because of it.
func (b binding) sound(docs map[Key]Document) bool {
	for cl := range b.bound {
		_, ok := lookupLink(docs, LinkRef{Customer: b.key.Customer, Circuit: cl.circuit, Link: cl.link})
		if !ok {
			return false
		}
	}
	return len(b.bound)+len(b.unbound) > 0
}

// free reports whether no address is bound to a link.
func (b binding) free() bool { return len(b.bound) == 0 }

// address is the one for a link, false when there is none.
func (b binding) address(circuit string, link LinkName) (netip.Addr, bool) {
	if a, ok := b.bound[circuitLink{circuit, link}]; ok {
		return a, true
	}
	if !b.free() || len(b.unbound) == 0 {
		return netip.Addr{}, false
	}
	i := min(slices.Index(LinkNames(), link), len(b.unbound)-1)
	return b.unbound[i], true
}

// missing is the problem of an end without an address for a link.
func (b binding) missing(connection Key, circuit string, link LinkName, l LinkSpec) Problem {
	address := "…"
	if a := l.CustomerAddress(); a.IsValid() {
		address = a.String()
	}
	return Problem{
		Document: b.key.String(), Field: "spec.underlay",
		Message: fmt.Sprintf("has no address for the %s link of circuit %s, which %s runs over: its tunnels cannot be pinned to different links", link, quoted(circuit), connection),
		Hint:    fmt.Sprintf("one more address: {address: %s, circuit: %s, link: %s}", address, Shorten(circuit), link),
	}
}
