package preview

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"

	"github.com/circuitseal/circuitseal/proto/desired"
)

// Node is a node whose state is not what it was.
type Node struct {
	Name   string
	Action Action
	// Objects are sorted as in a state.
	Objects []Object
}

// Object is a part of a node's state that operators have a word for.
type Object struct {
	// Kind is interface, link, customer, connection or tunnel, or node for what
	// is of none of these.
	Kind   string
	Name   string
	Action Action
	// What says in a few words what that means on the wire.
	What string
	// Fields are what is another one: of what is created or deleted, all.
	Fields []Field
}

// kinds are the words for what a state is made of.
var kinds = map[reflect.Type]string{
	reflect.TypeFor[desired.Interface](): "interface",
	reflect.TypeFor[desired.Link]():      "link",
	reflect.TypeFor[desired.Section]():   "customer",
	reflect.TypeFor[desired.Group]():     "connection",
	reflect.TypeFor[desired.Tunnel]():    "tunnel",
}

// Nodes compares the states of all nodes, by name.
func Nodes(before, after map[string]desired.State) []Node {
	names := maps.Clone(before)
	maps.Copy(names, after)
	var changes []Node
	for _, name := range slices.Sorted(maps.Keys(names)) {
		old, had := before[name]
		now, has := after[name]
		n := Node{Name: name, Action: Changed, Objects: objects(old, now)}
		switch {
		case !had:
			n.Action = Created
		case !has:
			n.Action = Deleted
		case n.Objects == nil:
			continue
		}
		changes = append(changes, n)
	}
	return changes
}

// objects compares two states.
func objects(old, now desired.State) []Object {
	var c objectsOf
	// What a state says beside its lists.
	d := stateFields()
	d.compare("", reflect.ValueOf(old), reflect.ValueOf(now))
	if d.found != nil {
		c.found = append(c.found, Object{Kind: "node", Action: Changed, What: "changed", Fields: d.found})
	}
	c.within(reflect.ValueOf(old), reflect.ValueOf(now))
	return c.found
}

// stateFields compares what is no object of its own.
func stateFields() fields {
	return fields{
		join: func(path string, f reflect.StructField) string {
			return strings.TrimPrefix(path+" "+words(f.Name), " ")
		},
		apart: func(t reflect.Type) bool { return kinds[t] != "" },
	}
}

type objectsOf struct{ found []Object }

// within compares the objects in lists of two structs of one type.
func (c *objectsOf) within(a, b reflect.Value) {
	for f, x := range a.Fields() {
		if f.Type.Kind() == reflect.Slice && kinds[f.Type.Elem()] != "" {
			c.list(f.Type.Elem(), x, b.FieldByIndex(f.Index), b)
		}
	}
}

// list compares the objects of two lists; in is what the second one is a list of.
func (c *objectsOf) list(t reflect.Type, a, b, in reflect.Value) {
	old, now := elements(a), elements(b)
	names := slices.Concat(old.keys, now.keys)
	slices.Sort(names)
	for _, name := range slices.Compact(names) {
		o := Object{Kind: kinds[t], Name: name, Action: Changed}
		was, is := reflect.Zero(t), reflect.Zero(t)
		i, had := old.at[name]
		j, has := now.at[name]
		if had {
			was = a.Index(i)
		}
		if has {
			is = b.Index(j)
		}
		switch {
		case !had:
			o.Action = Created
		case !has:
			o.Action = Deleted
		}
		d := stateFields()
		for f, x := range was.Fields() {
			y := is.FieldByIndex(f.Index)
			if f.Type == addrPort && (portless(was) || portless(is)) {
				x, y = address(x), address(y)
			}
			// The first field is the name.
			if f.Index[0] > 0 {
				d.compare(words(f.Name), x, y)
			}
		}
		if o.Fields = d.found; o.Action != Changed || o.Fields != nil {
			o.What = what(o, was, is, in)
			c.found = append(c.found, o)
		}
		c.within(was, is)
	}
}

// what says what a change means, the most telling first; in is what the object is
// in.
func what(o Object, was, is, in reflect.Value) string {
	if o.Kind == kinds[reflect.TypeFor[desired.Interface]()] {
		return whatInterface(o.Action, was, is)
	}
	if g, ok := reflect.TypeAssert[desired.Group](is); ok && o.Action == Created && g.IPsec != nil {
		return "added, " + suites(*g.IPsec)
	}
	if o.Kind != kinds[reflect.TypeFor[desired.Tunnel]()] {
		return map[Action]string{Created: "added", Changed: "changed", Deleted: "removed"}[o.Action]
	}
	switch o.Action {
	case Created:
		t, _ := reflect.TypeAssert[desired.Tunnel](is)
		g, _ := reflect.TypeAssert[desired.Group](in)
		s := "made, " + way(t, g) + " over link " + t.Link
		switch {
		case t.IPsec != nil:
			s += ", once both ends have certificates or a key"
		case t.Pending():
			s += ", once its peer has reported a key"
		}
		return s
	case Deleted:
		return "ended"
	case Changed:
	}
	old, _ := reflect.TypeAssert[desired.Tunnel](was)
	now, _ := reflect.TypeAssert[desired.Tunnel](is)
	var words []string
	if old.Number != now.Number {
		words = append(words, "made anew")
	}
	ports := !portless(was) && !portless(is)
	moved := func(a, b netip.AddrPort) bool { return a.Addr() != b.Addr() || ports && a.Port() != b.Port() }
	if old.Link != now.Link || moved(old.Local, now.Local) || moved(old.Remote, now.Remote) {
		words = append(words, "moved")
	}
	switch {
	case (old.WireGuard == nil) != (now.WireGuard == nil), (old.IPsec == nil) != (now.IPsec == nil):
		words = append(words, "changes its protocol")
	case slices.ContainsFunc(o.Fields, func(f Field) bool {
		return (strings.HasPrefix(f.Path, "WireGuard") || strings.HasPrefix(f.Path, "IPsec")) && strings.Contains(f.Path, "key")
	}):
		words = append(words, "re-keyed")
	}
	return cmp.Or(strings.Join(words, ", "), "changed")
}

// suites are what the tunnels of a connection may negotiate, and how their ends know
// each other.
func suites(p desired.IPsecPolicy) string {
	first := func(list []string) string {
		if len(list) > 1 {
			return list[0] + fmt.Sprintf(" and %d more", len(list)-1)
		}
		return strings.Join(list, "")
	}
	by := p.Authentication.String()
	if p.PPKRequired {
		by += " and PPK"
	}
	return "IKE " + first(p.IKEProposals) + ", ESP " + first(p.ESPProposals) + ", by " + by
}

var addrPort = reflect.TypeFor[netip.AddrPort]()

// portless is true of a tunnel that has IPsec only: the ports of its ends are
// WireGuard's, which its policy may have some day, and no packet has them.
func portless(tunnel reflect.Value) bool {
	t, ok := reflect.TypeAssert[desired.Tunnel](tunnel)
	return ok && t.IPsec != nil && t.WireGuard == nil
}

// address is a netip.AddrPort without the port.
func address(v reflect.Value) reflect.Value {
	a, _ := reflect.TypeAssert[netip.AddrPort](v)
	return reflect.ValueOf(a.Addr())
}

// way says between which addresses a tunnel of a group is, and as what its packets go
// where the ports do not.
func way(t desired.Tunnel, g desired.Group) string {
	if t.IPsec == nil || t.WireGuard != nil {
		return t.Local.String() + " -> " + t.Remote.String()
	}
	between := t.Local.Addr().String() + " -> " + t.Remote.Addr().String()
	if g.IPsec != nil && g.IPsec.UDPEncapsulation {
		return between + " by IPsec (ESP in UDP 4500, IKE in UDP 500 and 4500)"
	}
	return between + " by IPsec (ESP: IP protocol 50, behind a NAT UDP 4500; IKE: UDP 500 and 4500)"
}

func whatInterface(action Action, was, is reflect.Value) string {
	v := is
	if action == Deleted {
		v = was
	}
	in, _ := reflect.TypeAssert[desired.Interface](v)
	switch {
	case action == Changed:
		return "changed"
	case in.Role == desired.RoleCircuit && action == Created:
		return "guarded: only tunnels pass"
	case in.Role == desired.RoleCircuit:
		return "released: nothing guards it any more"
	case action == Created:
		return "judged: only what policy names passes"
	}
	return "not judged any more: the host's own routes decide"
}
