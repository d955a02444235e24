package preview

import (
	"cmp"
	"net/netip"
	"slices"
)

// Region is a set of addresses of one family: all of Prefixes, less Except. A
// region says itself with as few prefixes as it can: everything but one network
// is 0.0.0.0/0 without that one. Both are sorted.
type Region struct {
	Prefixes, Except []netip.Prefix
	// LeftOut is how many prefixes are not listed, where lists are bounded.
	LeftOut int
}

// Contains reports whether an address is in a region that leaves nothing out.
func (r Region) Contains(a netip.Addr) bool {
	in := func(p netip.Prefix) bool { return p.Contains(a) }
	return slices.ContainsFunc(r.Prefixes, in) && !slices.ContainsFunc(r.Except, in)
}

// bounded lists at most so many prefixes.
func (r Region) bounded(most int) Region {
	if n := len(r.Prefixes) - most; n > 0 {
		r.Prefixes, r.LeftOut = r.Prefixes[:most], r.LeftOut+n
	}
	if n := len(r.Except) - most; n > 0 {
		r.Except, r.LeftOut = r.Except[:most], r.LeftOut+n
	}
	return r
}

// span is a run of addresses, first to last, that are all of one class.
type span[C comparable] struct {
	first, last netip.Addr
	class       C
}

// rule gives the addresses of a prefix a class, unless a longer prefix does.
type rule[C comparable] struct {
	prefix netip.Prefix
	class  C
}

// family is all addresses of IPv4 or of IPv6.
func family(four bool) netip.Prefix {
	if four {
		return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	}
	return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
}

// partition cuts a family into spans by the longest prefix, with other where
// there is none. Of two rules with one prefix the first counts; rules of the
// other family are left out. Spans are in order, without a gap, and two
// neighbours have different classes.
func partition[C comparable](four bool, rules []rule[C], other C) []span[C] {
	var mine []rule[C]
	for _, r := range rules {
		if r.prefix.IsValid() && r.prefix.Addr().Is4() == four {
			mine = append(mine, rule[C]{r.prefix.Masked(), r.class})
		}
	}
	slices.SortStableFunc(mine, func(a, b rule[C]) int {
		return cmp.Or(a.prefix.Addr().Compare(b.prefix.Addr()), cmp.Compare(a.prefix.Bits(), b.prefix.Bits()))
	})
	mine = slices.CompactFunc(mine, func(a, b rule[C]) bool { return a.prefix == b.prefix })

	all := family(four)
	var starts []span[C]
	start := func(at netip.Addr, class C) {
		if n := len(starts); n > 0 && starts[n-1].first == at {
			starts = starts[:n-1]
		}
		if n := len(starts); n > 0 && starts[n-1].class == class {
			return
		}
		starts = append(starts, span[C]{first: at, class: class})
	}
	// open are the prefixes around the present place, the longest last.
	open := []rule[C]{{all, other}}
	leave := func(until netip.Addr) {
		for len(open) > 1 {
			end := last(open[len(open)-1].prefix)
			if until.IsValid() && !end.Less(until) {
				return
			}
			open = open[:len(open)-1]
			if next := end.Next(); next.IsValid() {
				start(next, open[len(open)-1].class)
			}
		}
	}
	start(all.Addr(), other)
	for _, r := range mine {
		leave(r.prefix.Addr())
		start(r.prefix.Addr(), r.class)
		open = append(open, r)
	}
	leave(netip.Addr{})
	return closed(starts, last(all))
}

// closed ends each span where the next one starts.
func closed[C comparable](starts []span[C], end netip.Addr) []span[C] {
	for i := range starts {
		starts[i].last = end
		if i+1 < len(starts) {
			starts[i].last = starts[i+1].first.Prev()
		}
	}
	return starts
}

// overlay cuts a family by two partitions of it at once.
func overlay[A, B, C comparable](a []span[A], b []span[B], join func(A, B) C) []span[C] {
	var starts []span[C]
	for i, j := 0, 0; i < len(a) && j < len(b); {
		first := a[i].first
		if first.Less(b[j].first) {
			first = b[j].first
		}
		if class := join(a[i].class, b[j].class); len(starts) == 0 || starts[len(starts)-1].class != class {
			starts = append(starts, span[C]{first: first, class: class})
		}
		switch a[i].last.Compare(b[j].last) {
		case -1:
			i++
		case 1:
			j++
		default:
			i, j = i+1, j+1
		}
	}
	return closed(starts, a[len(a)-1].last)
}

// region says which addresses some spans of one family hold. They are in order.
func region[C comparable](spans []span[C]) Region {
	all := family(spans[0].first.Is4())
	var yes, no []netip.Prefix
	next, done := all.Addr(), false
	for i := 0; i < len(spans); i++ {
		first, end := spans[i].first, spans[i].last
		for i+1 < len(spans) && end.Next() == spans[i+1].first {
			i++
			end = spans[i].last
		}
		yes = appendRange(yes, first, end)
		if next.Less(first) {
			no = appendRange(no, next, first.Prev())
		}
		next, done = end.Next(), end == last(all)
	}
	if !done {
		no = appendRange(no, next, last(all))
	}
	if len(yes) <= 1+len(no) {
		return Region{Prefixes: yes}
	}
	return Region{Prefixes: []netip.Prefix{all}, Except: no}
}

// appendRange appends the fewest prefixes that make up a run of addresses.
func appendRange(prefixes []netip.Prefix, first, end netip.Addr) []netip.Prefix {
	for {
		bits := first.BitLen()
		for bits > 0 {
			wider := netip.PrefixFrom(first, bits-1)
			if wider.Masked().Addr() != first || end.Less(last(wider)) {
				break
			}
			bits--
		}
		p := netip.PrefixFrom(first, bits)
		prefixes = append(prefixes, p)
		l := last(p)
		if !l.Less(end) {
			return prefixes
		}
		first = l.Next()
	}
}

// last is the last address of a prefix.
func last(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}
