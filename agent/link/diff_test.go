package link

import (
	"math"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/circuitseal/circuitseal/agent/instance"
	"github.com/circuitseal/circuitseal/agent/plan"
)

func wanted() ([]plan.Interface, []plan.Table) {
	return []plan.Interface{{Name: "circ0", Addresses: []netip.Prefix{netip.MustParsePrefix("192.0.2.1/30")}}},
		[]plan.Table{{
			Number: instance.Table(7), Mark: instance.Mark(7),
			Routes: []plan.Route{{
				Destination: netip.MustParsePrefix("198.51.100.9/32"), NextHop: netip.MustParseAddr("192.0.2.2"),
				Interface: "circ0", Source: netip.MustParseAddr("192.0.2.1"),
			}},
			Control: []plan.Pair{{Local: netip.MustParseAddr("192.0.2.1"), Remote: netip.MustParseAddr("198.51.100.9")}},
		}}
}

func inPlace() state {
	return state{
		interfaces: map[string]iface{
			"lo":    {index: 1, up: true},
			"circ0": {index: 2, up: true, physical: true, addresses: []address{{prefix: netip.MustParsePrefix("192.0.2.1/30")}}},
		},
		routes: []route{
			{table: instance.Table(7), destination: netip.MustParsePrefix("0.0.0.0/0"), metric: math.MaxUint32, unreachable: true},
			{
				table: instance.Table(7), destination: netip.MustParsePrefix("198.51.100.9/32"),
				nextHop: netip.MustParseAddr("192.0.2.2"), device: "circ0", source: netip.MustParseAddr("192.0.2.1"),
			},
			{table: instance.Table(0), destination: netip.MustParsePrefix("0.0.0.0/0"), metric: math.MaxUint32, unreachable: true},
		},
		// In the kernel's order.
		rules: []rule{
			{priority: rulePriority, mark: instance.Mark(7), mask: math.MaxUint32, table: instance.Table(7)},
			{
				priority: rulePriority, mark: instance.ControlMark, mask: math.MaxUint32, table: instance.Table(7),
				source: netip.MustParsePrefix("192.0.2.1/32"), destination: netip.MustParsePrefix("198.51.100.9/32"),
			},
			{priority: lastRulePriority, mark: instance.ControlMark, mask: math.MaxUint32, table: instance.Table(0)},
		},
	}
}

func TestDiff(t *testing.T) {
	const (
		peer        = "198.51.100.9/32 via 192.0.2.2 dev circ0 table 0x43530007 src 192.0.2.1"
		unreachable = "unreachable 0.0.0.0/0 table 0x43530007 metric 4294967295"
		lookup      = "fwmark 0x43530007/0xffffffff lookup 0x43530007 priority 17235"
		control     = "from 192.0.2.1/32 to 198.51.100.9/32 fwmark 0x43530000/0xffffffff lookup 0x43530007 priority 17235"
		nowhere     = "unreachable 0.0.0.0/0 table 0x43530000 metric 4294967295"
		last        = "fwmark 0x43530000/0xffffffff lookup 0x43530000 priority 17236"
	)
	for _, tt := range []struct {
		name string
		have func(*state)
		none bool // want nothing
		want []string
	}{
		{name: "in place", have: func(*state) {}},
		{
			name: "new",
			have: func(s *state) {
				*s = state{interfaces: map[string]iface{"circ0": {index: 2, physical: true}}}
			},
			want: []string{
				"address add 192.0.2.1/30 dev circ0", "link set circ0 up",
				"route replace " + nowhere, "route replace " + unreachable, "route replace " + peer,
				"rule add " + last, "rule add " + control, "rule add " + lookup,
			},
		},
		{
			name: "all goes, the rule before the end of its table",
			have: func(*state) {}, none: true,
			want: []string{
				"route del " + peer, "rule del " + lookup, "rule del " + control, "rule del " + last,
				"route del " + unreachable, "route del " + nowhere, "link set circ0 down",
			},
		},
		{
			name: "control packets between other ends",
			have: func(s *state) { s.rules[1].destination = netip.MustParsePrefix("198.51.100.8/32") },
			want: []string{"rule add " + control, "rule del " + strings.ReplaceAll(control, "100.9", "100.8")},
		},
		{
			name: "control packets of no pair are looked up in the main table",
			have: func(s *state) { s.routes, s.rules = s.routes[:2], s.rules[:2] },
			want: []string{"route replace " + nowhere, "rule add " + last},
		},
		{
			name: "interface missing",
			have: func(s *state) {
				delete(s.interfaces, "circ0")
				s.routes = append(s.routes[:1], s.routes[2])
			},
			want: []string{
				`problem: circuit interface "circ0" is not in the circuit namespace`,
				`problem: route to 198.51.100.9/32: circuit interface "circ0" is not in the circuit namespace`,
			},
		},
		{
			name: "foreign address goes after the planned one came",
			have: func(s *state) {
				i := s.interfaces["circ0"]
				i.addresses = []address{{prefix: netip.MustParsePrefix("192.0.2.1/24")}}
				s.interfaces["circ0"] = i
			},
			want: []string{"address add 192.0.2.1/30 dev circ0", "address del 192.0.2.1/24 dev circ0"},
		},
		{
			name: "point-to-point address is foreign",
			have: func(s *state) {
				i := s.interfaces["circ0"]
				i.addresses = append(i.addresses, address{netip.MustParsePrefix("192.0.2.1/30"), netip.MustParsePrefix("192.0.2.9/32")})
				s.interfaces["circ0"] = i
			},
			want: []string{"address del 192.0.2.1/30 dev circ0"},
		},
		{
			name: "changed route is replaced",
			have: func(s *state) { s.routes[1].nextHop = netip.MustParseAddr("192.0.2.3") },
			want: []string{"route replace " + peer},
		},
		{
			name: "reachable default becomes unreachable",
			have: func(s *state) {
				s.routes[0] = route{table: instance.Table(7), destination: s.routes[0].destination, metric: math.MaxUint32, device: "circ0"}
			},
			want: []string{"route replace " + unreachable},
		},
		{
			name: "stale route and rule",
			have: func(s *state) {
				s.routes = append(s.routes, route{table: 9, destination: netip.MustParsePrefix("203.0.113.0/24"), device: "circ0"})
				s.rules = append(s.rules, rule{priority: 5, mark: 1, mask: 1, table: 9}, s.rules[0])
			},
			want: []string{
				"route del 203.0.113.0/24 dev circ0 table 0x9",
				"rule del fwmark 0x1/0x1 lookup 0x9 priority 5", "rule del " + lookup,
			},
		},
		{
			name: "unplanned interface is set down, the parent of a planned VLAN is not",
			have: func(s *state) {
				i := s.interfaces["circ0"]
				i.lower = 3
				s.interfaces["circ0"] = i
				s.interfaces["port"] = iface{index: 3, up: true, physical: true}
				s.interfaces["other"] = iface{index: 4, up: true, physical: true}
			},
			want: []string{"link set other down"},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			have := inPlace()
			tt.have(&have)
			ifaces, tables := wanted()
			if tt.none {
				ifaces, tables = nil, nil
			}
			changes := diff(ifaces, tables, have)
			var got []string
			for line := range strings.Lines(changes.String()) {
				got = append(got, strings.TrimSuffix(line, "\n"))
			}
			if d := cmp.Diff(tt.want, got); d != "" {
				t.Errorf("changes (-want +got):\n%s", d)
			}
			if changes.Empty() != (len(tt.want) == 0) {
				t.Errorf("Empty = %t", changes.Empty())
			}
		})
	}
}

func TestRelevant(t *testing.T) {
	ours := []byte{28, 0, 0, 0, 24, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, instance.RouteProtocol, 0, 0, 0, 0, 0, 0}
	other := append([]byte(nil), ours...)
	other[21] = 186
	link := append([]byte(nil), other...)
	link[4] = 16
	of := func(kind byte) []byte { return append([]byte{28, 0, 0, 0, kind}, other[5:]...) }
	for _, tt := range []struct {
		name string
		b    []byte
		want bool
	}{
		{"nothing", nil, false},
		{"our route", ours, true},
		{"another daemon's route", other, false},
		{"another's, then ours", append(append([]byte(nil), other...), ours...), true},
		{"link", link, true},
		{"qdisc gone", of(unix.RTM_DELQDISC), true},
		{"new filter", of(unix.RTM_NEWTFILTER), true},
		{"class", of(unix.RTM_NEWTCLASS), false},
		{"action", of(unix.RTM_DELACTION), false},
		{"cut", ours[:20], true},
		{"length beyond the end", append([]byte{255, 255, 0, 0}, other[4:]...), true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := relevant(tt.b, ownRoute); got != tt.want {
				t.Errorf("relevant = %t, want %t", got, tt.want)
			}
		})
	}
}

func FuzzRelevant(f *testing.F) {
	f.Add([]byte{28, 0, 0, 0, 24, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, instance.RouteProtocol, 0, 0, 0, 0, 0, 0})
	f.Fuzz(func(_ *testing.T, b []byte) { relevant(b, ownRoute) })
}

func TestValidName(t *testing.T) {
	for name, want := range map[string]bool{
		"eth0": true, "eth0.100": true, "enp1s0f1np1": true, "a": true,
		"": false, ".": false, "..": false, "lo": false, "all": false, "default": false,
		"../x": false, "a/b": false, "a b": false, "a\x00": false, "a:1": false, "sixteencharacter": false,
	} {
		if got := validName(name); got != want {
			t.Errorf("validName(%q) = %t, want %t", name, got, want)
		}
	}
}

// A pair of addresses belongs to one link: which way a control packet goes is
// never a matter of order.
func TestControlPairsOfTwoTables(t *testing.T) {
	ifaces, tables := wanted()
	other := plan.Table{Number: instance.Table(8), Mark: instance.Mark(8), Control: tables[0].Control}
	c := diff(ifaces, append(tables, tables[0], other), inPlace())
	if len(c.problems) != 1 || !strings.Contains(c.problems[0], "tables 0x43530007 and 0x43530008 both want them") {
		t.Errorf("problems %q", c.problems)
	}
	for _, x := range c.list {
		if x.verb == addRule && x.rule.mark == instance.ControlMark {
			t.Errorf("%s", x)
		}
	}
}
