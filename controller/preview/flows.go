package preview

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
)

// Flow is packets that come in at one LAN, from a region to a region of the
// same family, and what becomes of them before and after.
type Flow struct {
	Node, Interface string
	// Customer owns the LAN, after the change where it is judged then.
	Customer            string
	Before, After       Outcome
	Source, Destination Region
	// Why says, of packets that become unreachable, what their connection lacks.
	Why string
}

// Flows are all pairs of addresses at all LANs whose outcome is another one
// under another policy, each in exactly one flow: the most dangerous first, and
// of these first what was encrypted. It takes time near-linear in the number of
// prefixes.
func Flows(before, after Policy) []Flow {
	was, is := before.lans(), after.lans()
	places := maps.Clone(was)
	maps.Copy(places, is)
	var flows []Flow
	for at := range places {
		old, now := was[at], is[at]
		if old.same(now) {
			continue
		}
		customer := ""
		switch {
		case now != nil:
			customer = now.section.Customer
		case old != nil:
			customer = old.section.Customer
		}
		for _, four := range []bool{true, false} {
			for _, f := range compare(old, now, four) {
				f.Node, f.Interface, f.Customer = at.node, at.lan, customer
				flows = append(flows, f)
			}
		}
	}
	slices.SortFunc(flows, func(a, b Flow) int {
		return cmp.Or(cmp.Compare(danger(a), danger(b)), -cmp.Compare(a.Before.Verdict, b.Before.Verdict),
			cmp.Compare(a.Node, b.Node), cmp.Compare(a.Interface, b.Interface),
			cmp.Compare(a.Before.Connection, b.Before.Connection), cmp.Compare(a.After.Connection, b.After.Connection),
			comparePrefixes(a.Source.Prefixes, b.Source.Prefixes), comparePrefixes(a.Destination.Prefixes, b.Destination.Prefixes))
	})
	return flows
}

// moves reports whether only the connection is another one.
func (f Flow) moves() bool { return f.Before.Verdict == f.After.Verdict }

// danger ranks flows: by what becomes of them, and last those that move.
func danger(f Flow) int {
	if f.moves() {
		return int(VerdictEncrypted) + 1
	}
	return int(f.After.Verdict)
}

func comparePrefixes(a, b []netip.Prefix) int { return slices.CompareFunc(a, b, netip.Prefix.Compare) }

// both is a class before and after.
type both[C comparable] struct{ was, is C }

func pair[C comparable](was, is C) both[C] { return both[C]{was, is} }

// compare finds what changes for the packets of one family at one LAN. All
// packets with one class of source and one of destination, before and after,
// share their fate, and there are few classes, however many prefixes.
func compare(old, now *lan, four bool) []Flow {
	from := overlay(old.sources(four), now.sources(four), pair[bool])
	to := overlay(old.destinations(four), now.destinations(four), pair[string])
	sources, fromOf := classes(from)
	destinations, toOf := classes(to)
	changes := map[both[Outcome]][]cell{}
	for i, s := range sources {
		for j, d := range destinations {
			if o := pair(old.judge(s.was, d.was), now.judge(s.is, d.is)); o.was != o.is {
				changes[o] = append(changes[o], cell{i, j})
			}
		}
	}
	var flows []Flow
	for o, cells := range changes {
		for _, r := range rectangles(cells) {
			f := Flow{
				Before: o.was, After: o.is,
				Source: region(pick(fromOf, r.rows)), Destination: region(pick(toOf, r.columns)),
			}
			if o.is.Verdict == VerdictUnreachable {
				f.Why = now.lacking[o.is.Connection]
			}
			flows = append(flows, f)
		}
	}
	return flows
}

// classes are the classes of spans, and the spans of each.
func classes[C comparable](spans []span[C]) (all []C, of [][]span[C]) {
	seen := map[C]int{}
	for _, s := range spans {
		i, ok := seen[s.class]
		if !ok {
			i = len(all)
			seen[s.class] = i
			all, of = append(all, s.class), append(of, nil)
		}
		of[i] = append(of[i], s)
	}
	return all, of
}

// pick is the spans of some classes, in order.
func pick[C comparable](of [][]span[C], classes []int) []span[C] {
	var spans []span[C]
	for _, c := range classes {
		spans = append(spans, of[c]...)
	}
	slices.SortFunc(spans, func(a, b span[C]) int { return a.first.Compare(b.first) })
	return spans
}

// cell is a class of sources and one of destinations.
type cell struct{ row, column int }

// rectangle is every cell of some rows and some columns.
type rectangle struct{ rows, columns []int }

// rectangles puts cells together, each into one rectangle: rows with the same
// columns, or columns with the same rows, whichever makes fewer.
func rectangles(cells []cell) []rectangle {
	byRow := merge(cells)
	turned := make([]cell, len(cells))
	for i, c := range cells {
		turned[i] = cell{c.column, c.row}
	}
	byColumn := merge(turned)
	if len(byRow) <= len(byColumn) {
		return byRow
	}
	for i, r := range byColumn {
		byColumn[i] = rectangle{r.columns, r.rows}
	}
	return byColumn
}

func merge(cells []cell) []rectangle {
	columns := map[int][]int{}
	for _, c := range cells {
		columns[c.row] = append(columns[c.row], c.column)
	}
	var all []rectangle
	for _, row := range slices.Sorted(maps.Keys(columns)) {
		slices.Sort(columns[row])
		i := slices.IndexFunc(all, func(r rectangle) bool { return slices.Equal(r.columns, columns[row]) })
		if i < 0 {
			all = append(all, rectangle{columns: columns[row]})
			i = len(all) - 1
		}
		all[i].rows = append(all[i].rows, row)
	}
	return all
}
