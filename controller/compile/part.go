package compile

import (
	"reflect"
	"slices"
	"strings"

	"github.com/circuitseal/circuitseal/controller/model"
	"github.com/circuitseal/circuitseal/proto/desired"
)

// A state is compiled in parts, each from an extract of the snapshot: one for
// every node (its document and the circuits whose links end there), and one for
// every customer (its own documents and what it may know of the nodes that they
// name). What is not in an extract cannot get into a state, by accident or
// because somebody forgot that it matters: a customer's section never depends
// on another customer's documents, numbers or keys. Documents of the provider
// that are neither a customer nor a node are in every extract.
//
// Epoch, revision and the revisions of documents are in none, and of enrolments
// only which nodes are revoked: no state says anything else of them, or every
// state would change with each.

// nodePart is the extract for a node's own part.
func nodePart(s *model.Snapshot, r *reach, name string) *model.Snapshot {
	part := &model.Snapshot{
		Documents: map[model.Key]model.Document{},
		Numbers:   model.Numbers{Links: map[string]uint16{}},
	}
	key := model.Key{Kind: model.KindNode, Name: name}
	put(part, s, key)
	put(part, s, r.shared...)
	for _, circuit := range r.documents[key].circuits {
		put(part, s, circuit)
		for _, link := range model.LinkNames() {
			id := model.LinkID(circuit.Customer, circuit.Name, link)
			if n, ok := s.Numbers.Links[id]; ok {
				part.Numbers.Links[id] = n
			}
		}
	}
	return part
}

// customerPart is the extract for a customer's parts of its nodes.
func customerPart(s *model.Snapshot, r *reach, name string, numbers model.Numbers, keys map[model.TunnelEnd]desired.PublicKey) *model.Snapshot {
	part := &model.Snapshot{
		Documents: map[model.Key]model.Document{}, Numbers: numbers, Keys: keys,
		Enrolments: map[string]model.Enrolment{}, Revocations: map[model.Fingerprint]model.Revocation{},
		PresharedKeys: map[string]model.PresharedKeys{},
		Identities:    map[string]model.IdentityCertificates{}, Authorities: s.Authorities,
		Settled: map[string]model.Settled{},
	}
	for id := range numbers.Groups {
		if settled, ok := s.Settled[id]; ok {
			part.Settled[id] = settled
		}
	}
	for _, k := range r.customers[name] {
		if k.Kind != model.KindEndpoint {
			continue
		}
		id := model.IdentityName(k.Customer, k.Name)
		if own, ok := s.Identity(id); ok {
			// Whether its enrolment is good was judged just now.
			own.Enrolment, own.Revision = "", 0
			part.Identities[id] = own
		}
	}
	// A tunnel without a number has none either.
	for id := range numbers.Tunnels {
		if shared, ok := s.PresharedKeys[id]; ok {
			part.PresharedKeys[id] = shared
		}
	}
	put(part, s, r.customers[name]...)
	put(part, s, r.shared...)
	for node := range r.serve(name) {
		key := model.Key{Kind: model.KindNode, Name: node}
		if spec, ok := model.Lookup[*model.NodeSpec](s.Documents, key); ok {
			part.Documents[key] = model.Document{Key: key, Spec: seenBy(spec, name)}
		}
		if _, revoked := s.Revoked(node); revoked {
			fingerprint := s.Enrolments[node].Key
			part.Enrolments[node] = model.Enrolment{Key: fingerprint}
			part.Revocations[fingerprint] = model.Revocation{}
		}
	}
	return part
}

func put(part, s *model.Snapshot, keys ...model.Key) {
	for _, k := range keys {
		if d, ok := s.Documents[k]; ok {
			part.Documents[k] = model.Document{Key: k, Spec: d.Spec}
		}
	}
}

// seenBy is a node as one of its customers may know it: without the LANs of
// others, links of others, and interfaces that carry only such.
func seenBy(spec *model.NodeSpec, customer string) *model.NodeSpec {
	seen := *spec
	seen.Interfaces, seen.CharonSocket = nil, ""
	for _, in := range spec.Interfaces {
		if lan := spec.LANCustomer(in); lan != "" && lan != customer {
			continue
		}
		if in, ok := ownLinks(in, customer); ok {
			seen.Interfaces = append(seen.Interfaces, in)
		}
	}
	return &seen
}

// ownLinks is an interface without links of others, in whatever field they
// stand; false where it had some and none is left.
func ownLinks(in model.InterfaceSpec, customer string) (model.InterfaceSpec, bool) {
	foreign := func(r model.LinkRef) bool { return r.Customer != customer }
	had, has := 0, 0
	for _, f := range reflect.ValueOf(&in).Elem().Fields() {
		switch refs := f.Addr().Interface().(type) {
		case **model.LinkRef:
			if *refs == nil {
				continue
			}
			if had++; foreign(**refs) {
				*refs = nil
				continue
			}
			has++
		case *[]model.LinkRef:
			had += len(*refs)
			*refs = slices.DeleteFunc(slices.Clone(*refs), foreign)
			has += len(*refs)
		}
	}
	return in, had == 0 || has > 0
}

// split gives each of some customers its numbers and keys.
func split(s *model.Snapshot, customers set) (map[string]model.Numbers, map[string]map[model.TunnelEnd]desired.PublicKey) {
	numbers := make(map[string]model.Numbers, len(customers))
	keys := make(map[string]map[model.TunnelEnd]desired.PublicKey, len(customers))
	for name := range customers {
		numbers[name] = model.Numbers{
			Tenants: map[string]uint32{}, Links: map[string]uint16{},
			Groups: map[string]uint32{}, Tunnels: map[string]uint16{},
		}
		keys[name] = map[model.TunnelEnd]desired.PublicKey{}
	}
	give(customers, s.Numbers.Tenants, numbers, func(n model.Numbers) map[string]uint32 { return n.Tenants })
	give(customers, s.Numbers.Links, numbers, func(n model.Numbers) map[string]uint16 { return n.Links })
	give(customers, s.Numbers.Groups, numbers, func(n model.Numbers) map[string]uint32 { return n.Groups })
	give(customers, s.Numbers.Tunnels, numbers, func(n model.Numbers) map[string]uint16 { return n.Tunnels })
	for end, key := range s.Keys {
		if c := customerOf(end.Tunnel); customers[c] {
			keys[c][end] = key
		}
	}
	return numbers, keys
}

func give[N any](customers set, from map[string]N, to map[string]model.Numbers, class func(model.Numbers) map[string]N) {
	for name, n := range from {
		if c := customerOf(name); customers[c] {
			class(to[c])[name] = n
		}
	}
}

// customerOf is the customer of a name such as customer/connection.
func customerOf(name string) string {
	customer, _, _ := strings.Cut(name, "/")
	return customer
}
