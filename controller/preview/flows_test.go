package preview

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/circuitseal/circuitseal/controller/model"
	"github.com/circuitseal/circuitseal/proto/desired"
)

// oracle says what becomes of one packet, by looking through the states as the
// classifier's own oracle does. It shares nothing with Flows.
func oracle(p Policy, node, lan string, src, dst netip.Addr) Outcome {
	state := p.States[node]
	var section *desired.Section
	for _, in := range state.Interfaces {
		for i, x := range state.Sections {
			if in.Name == lan && in.Role == desired.RoleLAN && x.Customer == in.Customer {
				section = &state.Sections[i]
			}
		}
	}
	if section == nil {
		return Outcome{Verdict: VerdictClear}
	}
	if nobody(src) || nobody(dst) {
		return Outcome{Verdict: VerdictBlocked}
	}
	best, here := -1, false
	for _, l := range section.Locals {
		if l.Prefix.Contains(src) && l.Prefix.Bits() > best {
			best, here = l.Prefix.Bits(), l.Interface == lan
		}
	}
	var group *desired.Group
	best = -1
	for i, g := range section.Groups {
		for _, r := range g.Remotes {
			if r.Contains(dst) && r.Bits() > best {
				best, group = r.Bits(), &section.Groups[i]
			}
		}
	}
	if !here || group == nil {
		return Outcome{Verdict: VerdictBlocked}
	}
	for _, t := range group.Tunnels {
		if reaches(p, node, t) {
			return Outcome{VerdictEncrypted, group.ID}
		}
	}
	return Outcome{VerdictUnreachable, group.ID}
}

// reaches reports whether a tunnel's both ends can take part.
func reaches(p Policy, node string, t desired.Tunnel) bool {
	peer, far := "", desired.Tunnel{}
	for other, s := range p.States {
		for _, x := range s.Sections {
			for _, g := range x.Groups {
				for _, u := range g.Tunnels {
					if other != node && u.ID == t.ID {
						peer, far = other, u
					}
				}
			}
		}
	}
	if peer == "" {
		return !t.Pending()
	}
	known := !t.Pending() || p.Expected[model.TunnelEnd{Tunnel: t.ID, Node: peer}]
	knows := !far.Pending() || p.Expected[model.TunnelEnd{Tunnel: t.ID, Node: node}]
	return known && knows && t.Local == far.Remote && t.Remote == far.Local
}

func nobody(a netip.Addr) bool {
	if desired.ProbePrefix.Contains(a) || a.IsMulticast() || a.IsLinkLocalUnicast() || a.IsLoopback() || a.IsUnspecified() || a.Is4In6() {
		return true
	}
	return a.Is4() && (a.As4()[0] == 0 || a.As4()[0] >= 224)
}

// The universe is small, so that prefixes meet, nest and repeat: 32 addresses of
// each family under one network, and what lies around it.
var networks = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/27"), netip.MustParsePrefix("fd00::/123")}

func universe() []netip.Addr {
	var all []netip.Addr
	for _, n := range networks {
		for a := n.Addr(); n.Contains(a); a = a.Next() {
			all = append(all, a)
		}
		all = append(all, n.Addr().Prev(), last(n).Next())
	}
	for _, a := range []string{"0.0.0.0", "127.0.0.1", "169.254.0.1", "223.255.255.255", "224.0.0.0", "255.255.255.255", "::", "::1", "::2", "::ffff:10.0.0.1", "fe80::1", "ff02::1", "fdc5:5ea1:7d10::1", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"} {
		all = append(all, netip.MustParseAddr(a))
	}
	return all
}

func drawPrefix(t *rapid.T) netip.Prefix {
	if rapid.IntRange(0, 19).Draw(t, "odd") == 0 {
		return netip.MustParsePrefix(rapid.SampledFrom([]string{"0.0.0.0/0", "::/0", "0.0.0.0/1", "128.0.0.0/1", "224.0.0.0/4", "255.255.255.255/32", "fdc5:5ea1:7d10::/64", "fe80::/10", "8000::/1"}).Draw(t, "odd prefix"))
	}
	n := rapid.SampledFrom(networks).Draw(t, "network")
	a := n.Addr()
	for range rapid.IntRange(0, 31).Draw(t, "host") {
		a = a.Next()
	}
	return netip.PrefixFrom(a, n.Bits()+rapid.SampledFrom([]int{0, 0, 1, 1, 2, 3, 4, 5}).Draw(t, "bits")).Masked()
}

var lans = []string{"lan0", "lan1"}

// drawPolicy draws states, valid or not.
func drawPolicy(t *rapid.T) Policy {
	p := Policy{States: map[string]desired.State{}, Expected: map[model.TunnelEnd]bool{}}
	for _, node := range []string{"a", "b"} {
		if rapid.IntRange(0, 7).Draw(t, "no node") == 0 {
			continue
		}
		var s desired.State
		for _, name := range lans {
			if c := rapid.SampledFrom([]string{"", "x", "x", "y"}).Draw(t, "owner"); c != "" {
				s.Interfaces = append(s.Interfaces, desired.Interface{Name: name, Role: desired.RoleLAN, Customer: c})
			}
		}
		for _, c := range []string{"x", "y"} {
			if rapid.IntRange(0, 3).Draw(t, "no section") == 0 {
				continue
			}
			section := desired.Section{Customer: c}
			for range rapid.IntRange(0, 4).Draw(t, "locals") {
				section.Locals = append(section.Locals, desired.LocalPrefix{Prefix: drawPrefix(t), Interface: rapid.SampledFrom(lans).Draw(t, "lan")})
			}
			for g := range rapid.IntRange(0, 3).Draw(t, "groups") {
				section.Groups = append(section.Groups, drawGroup(t, node, fmt.Sprintf("%s/g%d", c, g)))
			}
			s.Sections = append(s.Sections, section)
		}
		p.States[node] = s
	}
	return p
}

func drawGroup(t *rapid.T, node, id string) desired.Group {
	g := desired.Group{ID: id}
	for range rapid.IntRange(0, 3).Draw(t, "remotes") {
		g.Remotes = append(g.Remotes, drawPrefix(t))
	}
	for n := range rapid.IntRange(0, 2).Draw(t, "tunnels") {
		tunnel := desired.Tunnel{
			ID: fmt.Sprintf("%s/%d", id, n), WireGuard: &desired.WireGuard{},
			Local: netip.MustParseAddrPort("192.0.2.1:1"), Remote: netip.MustParseAddrPort("192.0.2.2:1"),
		}
		if node == "b" {
			tunnel.Local, tunnel.Remote = tunnel.Remote, tunnel.Local
		}
		if rapid.IntRange(0, 3).Draw(t, "key") > 0 {
			tunnel.WireGuard.PeerKey = desired.PublicKey{1}
		}
		if rapid.IntRange(0, 9).Draw(t, "elsewhere") == 0 {
			tunnel.Remote = netip.MustParseAddrPort("192.0.2.3:1")
		}
		g.Tunnels = append(g.Tunnels, tunnel)
	}
	return g
}

// otherKeys is a state in which other keys are known.
func otherKeys(t *rapid.T, s desired.State) desired.State {
	sections := slices.Clone(s.Sections)
	for i := range sections {
		sections[i].Groups = slices.Clone(sections[i].Groups)
		for j := range sections[i].Groups {
			g := &sections[i].Groups[j]
			g.Tunnels = slices.Clone(g.Tunnels)
			for k := range g.Tunnels {
				g.Tunnels[k].WireGuard = &desired.WireGuard{PeerKey: desired.PublicKey{byte(rapid.IntRange(0, 1).Draw(t, "other key"))}}
			}
		}
	}
	s.Sections = sections
	return s
}

// drawExpected draws which keys will be known.
func drawExpected(t *rapid.T, p Policy) {
	for id, ends := range p.tunnels() {
		for _, e := range ends {
			if rapid.Bool().Draw(t, "expected") {
				p.Expected[model.TunnelEnd{Tunnel: id, Node: e.node}] = true
			}
		}
	}
}

// change is a policy before and after.
type change struct{ before, after Policy }

var changes = rapid.Custom(func(t *rapid.T) change {
	c := change{drawPolicy(t), drawPolicy(t)}
	// Mostly the same, as real changes are.
	switch rapid.IntRange(0, 2).Draw(t, "near") {
	case 1:
		c.after.States["a"] = c.before.States["a"]
	case 2:
		c.after.States = map[string]desired.State{"a": c.before.States["a"], "b": otherKeys(t, c.before.States["b"])}
	}
	drawExpected(t, c.before)
	drawExpected(t, c.after)
	return c
})

// For every pair of addresses at every LAN, Flows has exactly one flow with the
// outcomes that the oracle gives where these differ, and none where they do not.
func TestFlowsAgainstOracle(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := changes.Draw(t, "change")
		if wrong := c.judge(map[both[Verdict]]int{}); wrong != "" {
			t.Fatal(wrong)
		}
		if same := Flows(c.before, c.before); len(same) != 0 {
			t.Fatalf("nothing changes, and yet %+v", same)
		}
	})
	// What is drawn goes from everything to everything: the same draws each time.
	seen := map[both[Verdict]]int{}
	for seed := range 100 {
		if wrong := changes.Example(seed).judge(seen); wrong != "" {
			t.Fatal(wrong)
		}
	}
	for _, was := range Verdicts() {
		for _, is := range Verdicts() {
			if was != is && seen[both[Verdict]{was, is}] == 0 {
				t.Errorf("no flow was %s and is %s: the test does not show them", was, is)
			}
		}
	}
}

// judge says where flows and oracle do not agree, and counts by seen what they
// agree on.
func (c change) judge(seen map[both[Verdict]]int) (wrong string) {
	flows := Flows(c.before, c.after)
	for _, node := range []string{"a", "b"} {
		for _, lan := range lans {
			for _, src := range addresses {
				for _, dst := range addresses {
					if src.Is4() != dst.Is4() {
						continue
					}
					was, is := oracle(c.before, node, lan, src, dst), oracle(c.after, node, lan, src, dst)
					var found []Flow
					for _, f := range flows {
						if f.Node == node && f.Interface == lan && f.Source.Contains(src) && f.Destination.Contains(dst) {
							found = append(found, f)
						}
					}
					switch {
					case was == is && len(found) > 0:
						return fmt.Sprintf("%s at %s: %s -> %s stays %v, and %+v says it does not", lan, node, src, dst, was, found)
					case was != is && (len(found) != 1 || found[0].Before != was || found[0].After != is):
						return fmt.Sprintf("%s at %s: %s -> %s was %v and is %v, but the flows say %+v", lan, node, src, dst, was, is, found)
					case was != is:
						seen[both[Verdict]{was.Verdict, is.Verdict}]++
					}
				}
			}
		}
	}
	return ""
}

var addresses = universe()

// The order is that of danger, and the same whatever the order of maps.
func TestFlowsAreInOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		before, after := drawPolicy(t), drawPolicy(t)
		flows := Flows(before, after)
		for i := 1; i < len(flows); i++ {
			if danger(flows[i]) < danger(flows[i-1]) {
				t.Fatalf("%+v comes after %+v", flows[i], flows[i-1])
			}
		}
		if again := Flows(before, after); fmt.Sprint(again) != fmt.Sprint(flows) {
			t.Fatalf("twice the same is not the same:\n%v\n%v", flows, again)
		}
	})
}
