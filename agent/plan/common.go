package plan

import (
	"reflect"
	"slices"
)

// Common is what old and next have in common for the parts whose removal comes
// first: a flow that goes is closed, and a member that goes gets no more
// packets, before the tunnel beneath them is taken away. Bringing about Common
// opens nothing that old did not have.
func Common(old, next Plan) Plan {
	out := next
	out.Guard.Flows = both(old.Guard.Flows, next.Guard.Flows)
	out.Guard.Neighbors = both(old.Guard.Neighbors, next.Guard.Neighbors)
	out.Guard.Interfaces = both(old.Guard.Interfaces, next.Guard.Interfaces)

	out.Classifier.LANs = both(old.Classifier.LANs, next.Classifier.LANs)
	out.Classifier.Locals = both(old.Classifier.Locals, next.Classifier.Locals)
	out.Classifier.Remotes = both(old.Classifier.Remotes, next.Classifier.Remotes)
	out.Classifier.Groups = nil
	for _, g := range next.Classifier.Groups {
		i := slices.IndexFunc(old.Classifier.Groups, func(o Group) bool { return o.ID == g.ID && o.Number == g.Number && o.Tenant == g.Tenant })
		if i < 0 {
			continue
		}
		was := old.Classifier.Groups[i].Members
		// A member that stays keeps its checks, whatever else changes about it.
		g.Members = keep(g.Members, func(m Member) bool {
			return slices.ContainsFunc(was, func(o Member) bool {
				return o.Tunnel == m.Tunnel && o.Number == m.Number && o.Device == m.Device
			})
		})
		out.Classifier.Groups = append(out.Classifier.Groups, g)
	}
	return out
}

// Only is the plan as far as these circuit interfaces carry it. Tunnels stay:
// one whose interface is missing has no way out, and fails over.
func (p Plan) Only(interfaces []string) Plan {
	has := func(name string) bool { return slices.Contains(interfaces, name) }
	p.Interfaces = keep(p.Interfaces, func(i Interface) bool { return has(i.Name) })
	tables := slices.Clone(p.Tables)
	for i := range tables {
		tables[i].Routes = keep(tables[i].Routes, func(r Route) bool { return has(r.Interface) })
	}
	p.Tables = tables
	p.Guard.Interfaces = keep(p.Guard.Interfaces, has)
	p.Guard.Flows = keep(p.Guard.Flows, func(f Flow) bool { return has(f.Interface) })
	p.Guard.Neighbors = keep(p.Guard.Neighbors, func(n Neighbor) bool { return has(n.Interface) })
	return p
}

// Without is the guard without flows of tunnels on these devices.
func (g Guard) Without(devices []string) Guard {
	g.Flows = keep(g.Flows, func(f Flow) bool { return !slices.Contains(devices, f.Device) })
	return g
}

// WithDevices is the guard as far as its flows belong to tunnels on these
// devices.
func (g Guard) WithDevices(devices []string) Guard {
	g.Flows = keep(g.Flows, func(f Flow) bool { return slices.Contains(devices, f.Device) })
	return g
}

// Equal reports whether two plans say the same.
func (p Plan) Equal(q Plan) bool { return reflect.DeepEqual(p, q) }

func both[T comparable](old, next []T) []T {
	had := make(map[T]bool, len(old))
	for _, v := range old {
		had[v] = true
	}
	return keep(next, func(v T) bool { return had[v] })
}

func keep[T any](in []T, f func(T) bool) []T {
	var out []T
	for _, v := range in {
		if f(v) {
			out = append(out, v)
		}
	}
	return out
}
