package plan

import "slices"

// Only is the plan as far as these circuit interfaces carry it. Tunnels stay:
// one whose interface is missing has no way out, and fails over.
func (p Plan) Only(interfaces []string) Plan {
	p.Guard = p.Guard.Only(interfaces)
	has := among(p.Guard.Interfaces)
	p.Interfaces = keep(p.Interfaces, func(i Interface) bool { return has(i.Name) })
	tables := slices.Clone(p.Tables)
	for i := range tables {
		tables[i].Routes = keep(tables[i].Routes, func(r Route) bool { return has(r.Interface) })
	}
	p.Tables = tables
	return p
}

// Only is the guard as far as it is about these interfaces. A VLAN device
// without the ones below it is left out.
func (g Guard) Only(interfaces []string) Guard {
	there := among(interfaces)
	parents := make(map[string]string, len(g.VLANs))
	for _, v := range g.VLANs {
		parents[v.Interface] = v.Parent
	}
	has := func(name string) bool {
		// No tag is beyond the second.
		for range 3 {
			if !there(name) {
				return false
			}
			parent, stacked := parents[name]
			if !stacked {
				return true
			}
			name = parent
		}
		return false
	}
	g.Interfaces = keep(g.Interfaces, has)
	g.VLANs = keep(g.VLANs, func(v VLAN) bool { return has(v.Interface) })
	g.Flows = keep(g.Flows, func(f Flow) bool { return has(f.Interface) })
	g.Neighbors = keep(g.Neighbors, func(n Neighbor) bool { return has(n.Interface) })
	return g
}

// Without is the guard without flows of tunnels on these devices.
func (g Guard) Without(devices []string) Guard {
	has := among(devices)
	g.Flows = keep(g.Flows, func(f Flow) bool { return !has(f.Device) })
	return g
}

// WithDevices is the guard as far as its flows belong to tunnels on these
// devices.
func (g Guard) WithDevices(devices []string) Guard {
	has := among(devices)
	g.Flows = keep(g.Flows, func(f Flow) bool { return has(f.Device) })
	return g
}

// among tells whether a name is one of these; of both there may be hundreds.
func among(names []string) func(string) bool {
	set := make(map[string]bool, len(names))
	for _, n := range names {
		set[n] = true
	}
	return func(name string) bool { return set[name] }
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
