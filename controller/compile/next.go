package compile

import (
	"cmp"
	"maps"
	"slices"

	"github.com/circuitseal/circuitseal/controller/model"
	"github.com/circuitseal/circuitseal/proto/desired"
)

// Result is what a snapshot was compiled to. It is shared and never changed.
type Result struct {
	// States has the state of every Node document, by node name.
	States map[string]desired.State
	// Compiled are the nodes that were compiled for this result, sorted; the
	// states of all others are those of the result before. Only what is in a
	// changed document's reach is among them, and what has a state no more.
	Compiled []string

	snapshot *model.Snapshot
	reach    *reach
	// nodes and customers are the parts that States are joined from: a node's
	// own, and by customer those of its nodes.
	nodes     map[string]desired.State
	customers map[string]map[string]desired.State
}

// Next compiles a snapshot as Compile does, and takes from the result before,
// which may be nil, what cannot have changed. What a state says never depends
// on before: every part is compiled from the documents, numbers and keys in its
// reach alone, and compiled anew when one of these is another one.
func Next(before *Result, s *model.Snapshot) *Result {
	r := &Result{
		States: map[string]desired.State{}, snapshot: s,
		nodes: map[string]desired.State{}, customers: map[string]map[string]desired.State{},
	}
	if before == nil {
		before = &Result{snapshot: &model.Snapshot{}, reach: newReach(nil, nil)}
		r.reach = newReach(s.Documents, nil)
	} else {
		r.reach = newReach(s.Documents, before.reach)
	}
	d := differ{before: before.snapshot, after: s, is: r.reach, nodes: set{}, customers: set{}}
	d.documents()
	d.numbers()
	d.keys()
	d.presharedKeys()
	d.identities()
	d.settled()
	d.revocations()

	touched := set{}
	for name := range r.reach.nodes {
		if !d.nodes[name] {
			r.nodes[name] = before.nodes[name]
			continue
		}
		touched[name] = true
		r.nodes[name] = compileAll(nodePart(s, r.reach, name))[name]
	}
	numbers, keys := split(s, d.customers)
	for name := range r.reach.customers {
		if !d.customers[name] {
			r.customers[name] = before.customers[name]
			continue
		}
		r.customers[name] = compileAll(customerPart(s, r.reach, name, numbers[name], keys[name]))
	}
	for name := range d.customers {
		for _, parts := range []map[string]desired.State{before.customers[name], r.customers[name]} {
			for node := range parts {
				touched[node] = true
			}
		}
	}
	for name := range before.nodes {
		if _, ok := r.nodes[name]; !ok {
			touched[name] = true
		}
	}

	served := map[string][]string{}
	for customer, parts := range r.customers {
		for node := range parts {
			if touched[node] {
				served[node] = append(served[node], customer)
			}
		}
	}
	for name, own := range r.nodes {
		if !touched[name] {
			r.States[name] = before.States[name]
			continue
		}
		customers := served[name]
		slices.Sort(customers)
		parts := make([]desired.State, len(customers))
		for i, c := range customers {
			parts[i] = r.customers[c][name]
		}
		r.States[name] = join(own, parts)
	}
	r.Compiled = slices.Sorted(maps.Keys(touched))
	return r
}

type set map[string]bool

// join makes a node's state of its own part and its customers'. A customer's
// part knows only some of the node's circuit interfaces, so these are the
// node's own.
func join(own desired.State, parts []desired.State) desired.State {
	interfaces, links := map[string]desired.Interface{}, map[string]desired.Link{}
	for _, in := range own.Interfaces {
		interfaces[in.Name] = in
	}
	for _, l := range own.Links {
		links[l.ID] = l
	}
	s := desired.State{CharonSocket: own.CharonSocket}
	for _, p := range parts {
		for _, in := range p.Interfaces {
			if in.Role != desired.RoleCircuit {
				interfaces[in.Name] = in
			}
		}
		for _, l := range p.Links {
			links[l.ID] = l
		}
		s.Sections = append(s.Sections, p.Sections...)
		s.Identities = append(s.Identities, p.Identities...)
		if len(p.Authorities) > 0 {
			s.Authorities = p.Authorities
		}
	}
	slices.SortFunc(s.Identities, func(a, b desired.Identity) int { return cmp.Compare(a.Name, b.Name) })
	s.Interfaces = sortedValues(interfaces, func(a, b desired.Interface) int { return cmp.Compare(a.Name, b.Name) })
	s.Links = sortedValues(links, func(a, b desired.Link) int { return cmp.Compare(a.ID, b.ID) })
	return s
}

// sortedValues is nil for an empty map, as a state's lists are.
func sortedValues[V any](m map[string]V, compare func(a, b V) int) []V {
	return slices.SortedFunc(maps.Values(m), compare)
}
