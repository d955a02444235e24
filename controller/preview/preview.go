// Package preview says what a change of documents would do before it is made:
// to documents, to what nodes have, and to the packets of customers, which it
// finds by comparing what is compiled before and after. It is pure. It knows the
// model, what it compiles to and what agents make of that; it refuses to know
// who asks, wires, stores, and whether a change is valid.
package preview

import (
	"maps"
	"net/netip"

	"github.com/circuitseal/circuitseal/controller/compile"
	"github.com/circuitseal/circuitseal/controller/model"
	"github.com/circuitseal/circuitseal/proto/desired"
)

// Report is everything that a change does.
type Report struct {
	// Documents are those that are created, changed or deleted.
	Documents []Document
	// Nodes are those whose state is another one.
	Nodes []Node
	// Flows are those whose outcome is another one, the most dangerous first.
	Flows []Flow
	// FlowsLeftOut is how many are not listed, where lists are bounded.
	FlowsLeftOut int
	// Become counts all flows by what becomes of them; those that only move from
	// one connection to another are Moved.
	Become map[Verdict]int
	Moved  int
}

// Compare says what is different at after, both with numbers, and why that
// matters. Neither is changed.
func Compare(before, after *model.Snapshot) Report {
	old := compile.Next(nil, before)
	now := compile.Next(old, after)
	r := Report{
		Documents: Documents(before.Documents, after.Documents),
		Nodes:     Nodes(some(old.States, now.Compiled), some(now.States, now.Compiled)),
		Flows: Flows(Policy{States: old.States, Seen: translated(before.Documents)}, Policy{
			States: now.States, Expected: expected(old.States, now.States, after.Enrolments), Seen: translated(after.Documents),
		}),
		Become: map[Verdict]int{},
	}
	for _, f := range r.Flows {
		if f.moves() {
			r.Moved++
		} else {
			r.Become[f.After.Verdict]++
		}
	}
	return r
}

// Empty reports whether nothing is different.
func (r Report) Empty() bool { return len(r.Documents)+len(r.Nodes)+len(r.Flows)+r.FlowsLeftOut == 0 }

// Bounded is the report with lists of at most so many flows and prefixes of these,
// and of so many changes of one field. The most dangerous flows stay.
func (r Report) Bounded(flows, list, changes int) Report {
	if n := len(r.Flows) - flows; n > 0 {
		r.Flows, r.FlowsLeftOut = r.Flows[:flows], r.FlowsLeftOut+n
	}
	short := make([]Flow, len(r.Flows))
	for i, f := range r.Flows {
		f.Source, f.Destination = f.Source.bounded(list), f.Destination.bounded(list)
		short[i] = f
	}
	r.Flows = short
	docs := make([]Document, len(r.Documents))
	for i, d := range r.Documents {
		d.Fields = boundedFields(d.Fields, changes)
		docs[i] = d
	}
	r.Documents = docs
	nodes := make([]Node, len(r.Nodes))
	for i, n := range r.Nodes {
		objects := make([]Object, len(n.Objects))
		for j, o := range n.Objects {
			o.Fields = boundedFields(o.Fields, changes)
			objects[j] = o
		}
		n.Objects = objects
		nodes[i] = n
	}
	r.Nodes = nodes
	return r
}

func boundedFields(all []Field, list int) []Field {
	short := make([]Field, len(all))
	for i, f := range all {
		short[i] = f.bounded(list)
	}
	return short
}

// some are the states of some nodes.
func some(states map[string]desired.State, names []string) map[string]desired.State {
	few := make(map[string]desired.State, len(names))
	for _, n := range names {
		if s, ok := states[n]; ok {
			few[n] = s
		}
	}
	return few
}

// translated are the ends whose addresses their far ends see as other ones.
func translated(docs map[model.Key]model.Document) map[model.TunnelEnd]netip.Addr {
	seen := map[model.TunnelEnd]netip.Addr{}
	for k := range docs {
		if k.Kind != model.KindConnection {
			continue
		}
		tunnels, _ := model.Tunnels(docs, k)
		for _, t := range tunnels {
			for _, e := range t.Ends {
				if e.Translated.IsValid() {
					seen[model.TunnelEnd{Tunnel: t.ID, Node: e.Node}] = e.Translated
				}
			}
		}
	}
	return seen
}

// expected are the ends of tunnels that their nodes get to know by the change:
// a node that is enrolled makes its key and reports it at once. An end that was
// there before, and has no key yet, may be waited for for ever.
func expected(old, now map[string]desired.State, enrolled map[string]model.Enrolment) map[model.TunnelEnd]bool {
	before := map[model.TunnelEnd]bool{}
	for end := range ends(old) {
		before[end] = true
	}
	fresh := maps.Collect(ends(now))
	maps.DeleteFunc(fresh, func(e model.TunnelEnd, _ bool) bool {
		_, ok := enrolled[e.Node]
		return !ok || before[e]
	})
	return fresh
}

// ends are the ends of all tunnels that states name.
func ends(states map[string]desired.State) func(yield func(model.TunnelEnd, bool) bool) {
	return func(yield func(model.TunnelEnd, bool) bool) {
		for node, s := range states {
			for _, x := range s.Sections {
				for _, g := range x.Groups {
					for _, t := range g.Tunnels {
						if !yield(model.TunnelEnd{Tunnel: t.ID, Node: node}, true) {
							return
						}
					}
				}
			}
		}
	}
}
