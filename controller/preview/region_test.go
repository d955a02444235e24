package preview

import (
	"net/netip"
	"testing"

	"pgregory.net/rapid"
)

// A region holds exactly its spans, in as few prefixes as there can be.
func TestRegionIsExactAndShort(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.SampledFrom(networks).Draw(t, "network")
		in := map[netip.Addr]bool{}
		var rules []rule[bool]
		for a := n.Addr(); n.Contains(a); a = a.Next() {
			in[a] = rapid.Bool().Draw(t, "in")
			rules = append(rules, rule[bool]{netip.PrefixFrom(a, a.BitLen()), in[a]})
		}
		outside := rapid.Bool().Draw(t, "outside")
		var yes []span[bool]
		for _, s := range partition(n.Addr().Is4(), rules, outside) {
			if s.class {
				yes = append(yes, s)
			}
		}
		if yes == nil {
			return
		}
		r := region(yes)
		for a, want := range in {
			if r.Contains(a) != want {
				t.Fatalf("%v holds %s: %v, want %v", r, a, r.Contains(a), want)
			}
		}
		for _, a := range []netip.Addr{n.Addr().Prev(), last(n).Next(), family(n.Addr().Is4()).Addr(), last(family(n.Addr().Is4()))} {
			if r.Contains(a) != outside {
				t.Fatalf("%v holds %s: %v, want %v", r, a, r.Contains(a), outside)
			}
		}
		whole := family(n.Addr().Is4())
		value := func(a netip.Addr) bool {
			if v, ok := in[a]; ok {
				return v
			}
			return outside
		}
		want := min(fewest(whole, n, value, true), 1+fewest(whole, n, value, false))
		if got := len(r.Prefixes) + len(r.Except); got != want {
			t.Fatalf("%v has %d prefixes, want %d", r, got, want)
		}
	})
}

// fewest counts the prefixes that it takes to name what has a value: one for a
// prefix that has it everywhere, or what both halves take. Only inside a network
// values differ.
func fewest(p, network netip.Prefix, value func(netip.Addr) bool, want bool) int {
	if !p.Overlaps(network) || p.IsSingleIP() {
		if value(p.Addr()) == want {
			return 1
		}
		return 0
	}
	low := netip.PrefixFrom(p.Addr(), p.Bits()+1)
	high := netip.PrefixFrom(last(low).Next(), p.Bits()+1)
	l, h := fewest(low, network, value, want), fewest(high, network, value, want)
	if l == 1 && h == 1 && whole(low, network, value, want) && whole(high, network, value, want) {
		return 1
	}
	return l + h
}

// whole reports whether a prefix has a value everywhere.
func whole(p, network netip.Prefix, value func(netip.Addr) bool, want bool) bool {
	if p.Overlaps(network) && p.Bits() < network.Bits() {
		if value(p.Addr()) != want && !network.Contains(p.Addr()) || value(last(p)) != want && !network.Contains(last(p)) {
			return false
		}
	}
	for a := network.Addr(); network.Contains(a); a = a.Next() {
		if p.Contains(a) && value(a) != want {
			return false
		}
	}
	return p.Overlaps(network) || value(p.Addr()) == want
}
