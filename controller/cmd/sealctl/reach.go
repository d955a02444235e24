package main

import v1 "github.com/circuitseal/circuitseal/proto/circuitseal/v1"

// reach are the nodes that documents concern, by name. As the controller
// compiles them, a customer's documents concern every node that carries
// something of the customer, and one of the provider's those that name it.
func reach(all []*v1.Document, changed []key) map[string]bool {
	about, customers := map[key]bool{}, map[string]bool{}
	for _, k := range changed {
		about[k] = true
		switch {
		case k.customer != "":
			customers[k.customer] = true
		case k.kind == "Customer":
			customers[k.name] = true
		}
	}
	nodes := map[string]bool{}
	for _, d := range all {
		if d.GetKind() == "Node" && about[keyOf(d)] {
			nodes[d.GetName()] = true
		}
	}
	for _, r := range references(all) {
		from, to := keyOf(r.from), r.to
		switch {
		case from.kind == "Node" && (about[to] || customers[to.customer] || to.kind == "Customer" && customers[to.name]):
			nodes[from.name] = true
		case to.kind == "Node" && customers[from.customer]:
			nodes[to.name] = true
		}
	}
	return nodes
}
