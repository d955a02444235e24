package plan

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestPrefixesFrom(t *testing.T) {
	p := netip.MustParsePrefix
	base := func() Plan {
		return Plan{
			Tunnels: []Tunnel{
				{ID: "a", Device: "cs1", AllowedIPs: []netip.Prefix{p("10.0.0.0/9")}},
				{ID: "b", Device: "cs2", AllowedIPs: []netip.Prefix{p("10.0.0.0/9")}},
			},
			Guard: Guard{Interfaces: []string{"circ0"}},
			Classifier: Classifier{
				LANs:    []LAN{{Interface: "lan0", Tenant: 1}, {Interface: "lan1", Tenant: 2}},
				Locals:  []Local{{1, p("10.1.0.0/16"), "lan0"}, {2, p("10.1.0.0/16"), "lan1"}},
				Remotes: []Remote{{1, p("10.2.0.0/16"), 1}, {2, p("10.2.0.0/16"), 2}},
			},
		}
	}
	if d, ok := base().PrefixesFrom(base()); !ok || !cmp.Equal(d, Prefixes{}) {
		t.Errorf("the same plan: %+v, %t", d, ok)
	}
	next := base()
	next.Tunnels[1].AllowedIPs = append(next.Tunnels[1].AllowedIPs, p("10.9.0.0/16"))
	next.Classifier.Remotes = append(next.Classifier.Remotes, Remote{2, p("10.9.0.0/16"), 2})
	next.Classifier.Locals = next.Classifier.Locals[:1]
	d, ok := next.PrefixesFrom(base())
	want := Prefixes{
		Tunnels: next.Tunnels[1:],
		Coming:  Classifier{Remotes: []Remote{{2, p("10.9.0.0/16"), 2}}},
		Going:   Classifier{Locals: []Local{{2, p("10.1.0.0/16"), "lan1"}}},
	}
	if diff := cmp.Diff(want, d, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
		cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); !ok || diff != "" {
		t.Errorf("ok %t (-want +got):\n%s", ok, diff)
	}
	for name, change := range map[string]func(*Plan){
		"another interface":        func(p *Plan) { p.Guard.Interfaces[0] = "circ1" },
		"another flow":             func(p *Plan) { p.Guard.Flows = []Flow{{Interface: "circ0"}} },
		"one tunnel less":          func(p *Plan) { p.Tunnels = p.Tunnels[:1] },
		"another key":              func(p *Plan) { p.Tunnels[0].PeerKey[0] = 1 },
		"another MTU":              func(p *Plan) { p.Classifier.LANs[0].MTU = 1300 },
		"a group":                  func(p *Plan) { p.Classifier.Groups = []Group{{Number: 1}} },
		"a remote's other group":   func(p *Plan) { p.Classifier.Remotes[0].Group = 3 },
		"a local's other LAN":      func(p *Plan) { p.Classifier.Locals[0].Interface = "lan1" },
		"a tunnel that is to come": func(p *Plan) { p.Pending = []Pending{{ID: "c"}} },
	} {
		next := base()
		change(&next)
		if d, ok := next.PrefixesFrom(base()); ok {
			t.Errorf("%s: taken for prefixes only: %+v", name, d)
		}
	}
}
