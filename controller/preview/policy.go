package preview

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/circuitseal/circuitseal/controller/model"
	"github.com/circuitseal/circuitseal/proto/desired"
)

// Verdict is what becomes of a packet that comes from a LAN.
type Verdict uint8

// The verdicts, the most dangerous first. The zero value is none.
const (
	// VerdictClear: nothing of circuitseal judges the LAN, so the packet goes
	// where the host's own routes lead, unencrypted. A guarded circuit interface
	// is no such way.
	VerdictClear Verdict = iota + 1
	// VerdictBlocked: dropped, since its source is not behind that LAN, or no
	// connection leads to its destination.
	VerdictBlocked
	// VerdictUnreachable: it belongs to a connection of which no tunnel can
	// carry it, and is dropped.
	VerdictUnreachable
	// VerdictEncrypted: it leaves through a tunnel of a connection.
	VerdictEncrypted
)

// String is the word that operators read.
func (v Verdict) String() string {
	switch v {
	case VerdictClear:
		return "clear"
	case VerdictBlocked:
		return "blocked"
	case VerdictUnreachable:
		return "unreachable"
	case VerdictEncrypted:
		return "encrypted"
	}
	return "none"
}

// Verdicts are all verdicts, the most dangerous first.
func Verdicts() []Verdict {
	return []Verdict{VerdictClear, VerdictBlocked, VerdictUnreachable, VerdictEncrypted}
}

// Outcome is a verdict with the connection that it is about.
type Outcome struct {
	Verdict Verdict
	// Connection is customer/connection where the packet belongs to one.
	Connection string
}

// Policy is what nodes are to do: their compiled states.
type Policy struct {
	States map[string]desired.State
	// Expected are ends of tunnels whose keys are not known yet, and will be as
	// soon as their nodes have these states.
	Expected map[model.TunnelEnd]bool
	// Seen has the addresses of ends by which their far ends know them, where these
	// are other ones: see model.UnderlaySpec.TranslatedTo.
	Seen map[model.TunnelEnd]netip.Addr
}

// end is one end of a tunnel.
type end struct {
	node       string
	tunnel     desired.Tunnel
	group      desired.Group
	identities []desired.Identity
}

// waits says what the end still needs before it carries packets by one protocol at
// least, "" for nothing.
func (e end) waits(far string) string {
	if w := e.tunnel.WireGuard; w != nil && !w.Pending() {
		return ""
	}
	if e.tunnel.IPsec != nil {
		if waits := e.group.IPsecWaits(e.tunnel, e.identities); waits == "" || e.tunnel.WireGuard == nil {
			return strings.Replace(waits, "waits", e.node+" waits", 1)
		}
	}
	return "no key of " + cmp.Or(far, "its far end") + " is known"
}

// tunnels are a policy's tunnels by their ID, each with all its ends.
func (p Policy) tunnels() map[string][]end {
	all := map[string][]end{}
	for _, node := range slices.Sorted(maps.Keys(p.States)) {
		for _, x := range p.States[node].Sections {
			for _, g := range x.Groups {
				for _, t := range g.Tunnels {
					all[t.ID] = append(all[t.ID], end{node, t, g, p.States[node].Identities})
				}
			}
		}
	}
	return all
}

// lacking says of every tunnel why it cannot carry packets, "" where it can: each
// end that is a node's has the other's key, or will have it, and both mean each
// other. The other end of a tunnel may be no node of ours; then this one decides.
func (p Policy) lacking() map[string]string {
	lacking := map[string]string{}
	for id, ends := range p.tunnels() {
		why := ""
		for i, e := range ends {
			far := model.TunnelEnd{Tunnel: id}
			if len(ends) == 2 {
				other := ends[1-i]
				far.Node = other.node
				if p.seen(e) != other.tunnel.Remote {
					why = "the ends of its tunnels do not name each other"
				}
			}
			expected := p.Expected[far]
			if e.tunnel.IPsec != nil && len(ends) == 1 {
				// A gateway's keys are its own business.
				expected = p.Expected[model.TunnelEnd{Tunnel: id, Node: e.node}]
			}
			if waits := e.waits(far.Node); waits != "" && !expected {
				why = waits
			}
		}
		lacking[id] = why
	}
	return lacking
}

// seen is an end as its far end knows it.
func (p Policy) seen(e end) netip.AddrPort {
	if a, ok := p.Seen[model.TunnelEnd{Tunnel: e.tunnel.ID, Node: e.node}]; ok {
		return netip.AddrPortFrom(a, e.tunnel.Local.Port())
	}
	return e.tunnel.Local
}

// lan is what a node's state says of one of its LANs; nil where it says nothing.
type lan struct {
	name    string
	section desired.Section
	// lacking says why no tunnel of a group can carry packets, "" where one can.
	lacking map[string]string
}

// same reports whether two policies surely judge the LAN's packets alike.
func (l *lan) same(m *lan) bool {
	return l != nil && m != nil && slices.Equal(l.section.Locals, m.section.Locals) && maps.Equal(l.lacking, m.lacking) &&
		slices.EqualFunc(l.section.Groups, m.section.Groups, func(a, b desired.Group) bool {
			return a.ID == b.ID && slices.Equal(a.Remotes, b.Remotes)
		})
}

// place is where packets come in.
type place struct{ node, lan string }

// lans are all LANs that are judged.
func (p Policy) lans() map[place]*lan {
	lacking := p.lacking()
	all := map[place]*lan{}
	for node, s := range p.States {
		for _, in := range s.Interfaces {
			i := slices.IndexFunc(s.Sections, func(x desired.Section) bool { return x.Customer == in.Customer })
			if in.Role != desired.RoleLAN || i < 0 {
				continue
			}
			l := &lan{name: in.Name, section: s.Sections[i], lacking: map[string]string{}}
			for _, g := range l.section.Groups {
				l.lacking[g.ID] = lackingAll(g, lacking)
			}
			all[place{node, in.Name}] = l
		}
	}
	return all
}

// lackingAll says why no tunnel of a group can carry packets, "" where one can.
func lackingAll(g desired.Group, lacking map[string]string) string {
	why := "it has no tunnel"
	for i, t := range g.Tunnels {
		switch l := lacking[t.ID]; {
		case l == "":
			return ""
		case i == 0:
			why = l
		}
	}
	return why
}

// reserved are addresses that no packet may have that is forwarded: see "nobody"
// in the classifier. The agents' own probes have theirs inside tunnels only.
var reserved = []rule[bool]{
	{netip.MustParsePrefix("0.0.0.0/8"), true},
	{netip.MustParsePrefix("127.0.0.0/8"), true},
	{netip.MustParsePrefix("169.254.0.0/16"), true},
	{netip.MustParsePrefix("224.0.0.0/3"), true},
	{netip.MustParsePrefix("::/127"), true},
	{netip.MustParsePrefix("::ffff:0:0/96"), true},
	{netip.MustParsePrefix("fe80::/10"), true},
	{netip.MustParsePrefix("ff00::/8"), true},
	{desired.ProbePrefix, true},
}

// sources cuts a family by whether a packet from there may come from the LAN.
func (l *lan) sources(four bool) []span[bool] {
	var rules []rule[bool]
	if l != nil {
		for _, x := range l.section.Locals {
			rules = append(rules, rule[bool]{x.Prefix, x.Interface == l.name})
		}
	}
	return overlay(partition(four, rules, false), partition(four, reserved, false),
		func(here, never bool) bool { return here && !never })
}

// destinations cuts a family by the connection that packets there belong to, ""
// for none.
func (l *lan) destinations(four bool) []span[string] {
	var rules []rule[string]
	if l != nil {
		for _, g := range l.section.Groups {
			for _, r := range g.Remotes {
				rules = append(rules, rule[string]{r, g.ID})
			}
		}
	}
	return overlay(partition(four, rules, ""), partition(four, reserved, false), func(group string, never bool) string {
		if never {
			return ""
		}
		return group
	})
}

// judge says what becomes of packets from a class of sources to one of
// destinations.
func (l *lan) judge(source bool, group string) Outcome {
	switch {
	case l == nil:
		return Outcome{Verdict: VerdictClear}
	case !source, group == "":
		return Outcome{Verdict: VerdictBlocked}
	case l.lacking[group] != "":
		return Outcome{VerdictUnreachable, group}
	}
	return Outcome{VerdictEncrypted, group}
}
