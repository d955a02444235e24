package plan

import "slices"

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

func keep[T any](in []T, f func(T) bool) []T {
	var out []T
	for _, v := range in {
		if f(v) {
			out = append(out, v)
		}
	}
	return out
}
