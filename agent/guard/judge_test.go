package guard

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/circuitseal/circuitseal/agent/plan"
)

func TestJudge(t *testing.T) {
	seen := make(map[Reason]bool)
	for _, tt := range frameCases() {
		t.Run(tt.name, func(t *testing.T) {
			pass, got := Judge(ipsecPlan("circ0"), Frame{tt.dir, "circ0", tt.mark, tt.tag, tt.data})
			if diff := cmp.Diff(tt.want.String(), got.String()); diff != "" {
				t.Errorf("reason (-want +got):\n%s", diff)
			}
			if want := tt.want == ReasonFlow || tt.want == ReasonNeighbor; pass != want {
				t.Errorf("pass = %t, want %t", pass, want)
			}
			seen[got] = true
		})
	}
	for _, tt := range taggedCases() {
		_, got := Judge(portPlan(), Frame{tt.dir, port, tt.mark, tt.tag, tt.data})
		seen[got] = true
	}
	for r := range Reason(reasons) {
		if !seen[r] {
			t.Errorf("no case is judged %s", r)
		}
	}
}

func TestJudgeOfAnotherInterfaceOrPlan(t *testing.T) {
	good := frameCases()[slices.IndexFunc(frameCases(), func(c frameCase) bool { return c.name == "tunnel out" })]
	frame := Frame{good.dir, "circ0", good.mark, 0, good.data}
	if _, why := Judge(onePlan("circ1"), frame); why != ReasonNoFlow {
		t.Errorf("the same tuple on another interface: %s, want %s", why, ReasonNoFlow)
	}
	if pass, _ := Judge(plan.Guard{}, frame); pass {
		t.Error("the empty plan lets a frame pass")
	}
}

func TestReasonsAreNamedOnceAndFit(t *testing.T) {
	names := make(map[string]bool)
	for r := range Reason(reasons) {
		name := r.String()
		if names[name] || strings.Contains(name, " ") {
			t.Errorf("reason %d has the name %q, want one of its own", r, name)
		}
		names[name] = true
	}
	if room := len(programCounts{}.Packets) / 2; reasons > room {
		t.Errorf("%d reasons, and room for %d", reasons, room)
	}
	if !strings.HasPrefix(Reason(reasons).String(), "reason ") {
		t.Errorf("%s is a reason beyond the last", Reason(reasons))
	}
}

func TestCompileKeepsWhatIsSound(t *testing.T) {
	good := onePlan("circ0").Flows[0]
	flow := func(f func(*plan.Flow)) plan.Guard {
		g := onePlan("circ0")
		g.Interfaces = append(g.Interfaces, "circ1")
		bad := good
		bad.Local = netip.AddrPortFrom(localAddr, 1)
		f(&bad)
		g.Flows = append(g.Flows, bad)
		return g
	}
	neighbor := func(local, remote string) plan.Guard {
		g := onePlan("circ0")
		g.Neighbors = append(g.Neighbors, plan.Neighbor{Interface: "circ0", Local: netip.MustParseAddr(local), Remote: netip.MustParseAddr(remote)})
		return g
	}
	tests := []struct {
		name string
		plan plan.Guard
		want string
	}{
		{"sound", onePlan("circ0"), ""},
		{"neighbour of another family", neighbor("fd00::1", "10.9.0.2"), "want two unicast addresses of one family"},
		{"link-local neighbour", neighbor("fe80::1", "fe80::2"), "none that is link-local"},
		{"IPv4 written as IPv6", neighbor("::ffff:10.9.0.1", "::ffff:10.9.0.2"), "none that is link-local"},
		{"interface not of the guard", flow(func(f *plan.Flow) { f.Interface = "eth0" }), "not one of the guard's"},
		{"TCP", flow(func(f *plan.Flow) { f.Protocol = 6 }), "want UDP (17) or ESP (50)"},
		{"another family", flow(func(f *plan.Flow) { f.Remote = netip.MustParseAddrPort("[fd00::1]:1") }), "want unicast addresses of one family"},
		{"multicast", flow(func(f *plan.Flow) { f.Remote = netip.MustParseAddrPort("224.0.0.1:1") }), "want unicast"},
		{"no address", flow(func(f *plan.Flow) { f.Remote = netip.AddrPort{} }), "want unicast"},
		{"port 0", flow(func(f *plan.Flow) { f.Remote = netip.AddrPortFrom(peerAddr, 0) }), "ports other than 0"},
		{"no mark", flow(func(f *plan.Flow) { f.Mark = 0 }), "mark 0"},
		{"two marks", flow(func(f *plan.Flow) { *f = good; f.Mark++ }), "want the same of all tunnels"},
		{"control packets beside the link's only", flow(func(f *plan.Flow) { *f = good; f.Control = true }), "want the same of all tunnels"},
		{"ESP with a port", flow(func(f *plan.Flow) { f.Protocol, f.Remote = protocolESP, netip.AddrPortFrom(peerAddr, 0) }), "ESP has no ports"},
		{"ESP of charon", flow(func(f *plan.Flow) { *f = ipsecFlows("circ0", mark, localAddr, peerAddr)[2]; f.Control = true }), "no control packet"},
		{"own neighbour", neighbor("10.9.0.1", "10.9.0.1"), "want two unicast"},
		{"broadcast neighbour", neighbor("10.9.0.1", "255.255.255.255"), "want two unicast"},
		{"loopback", plan.Guard{Interfaces: []string{"lo"}}, "want a circuit interface's name"},
		{"path", plan.Guard{Interfaces: []string{"../x"}}, "want a circuit interface's name"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p, err := compile(tt.plan)
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("error %v, want %q", err, tt.want)
			}
			if len(tt.plan.Flows) > 0 && (len(p.flows) != 1 || len(p.neighbors) != 2) {
				t.Errorf("%d flows and %d neighbours, want the sound one of each, and its announcement", len(p.flows), len(p.neighbors))
			}
		})
	}
}

// A /30 may be one of link-local addresses, which Azure's circuits have, too.
func TestUsable(t *testing.T) {
	for text, want := range map[string]bool{
		"10.9.0.1": true, "169.254.0.1": true, "fd00::1": true, "2001:db8::1": true,
		"fe80::1": false, "::ffff:10.9.0.1": false, "255.255.255.255": false, "0.0.0.0": false, "::": false, "::1": false, "ff02::1": false, "fd00::1%eth0": false,
	} {
		if got := usable(netip.MustParseAddr(text)); got != want {
			t.Errorf("%s is usable %t, want %t", text, got, want)
		}
	}
}

// Tunnels between the same ends share what belongs to all of them, and so do
// links on several interfaces the mark of control packets.
func TestCompileSharedFlows(t *testing.T) {
	g := ipsecPlan("circ0")
	g.Interfaces = append(g.Interfaces, "circ1")
	for range 2 {
		g.Flows = append(g.Flows, ipsecFlows("circ0", mark, localAddr, peerAddr)...)
		g.Flows = append(g.Flows, ipsecFlows("circ1", mark+1, otherAddr, peerAddr)...)
	}
	p, err := compile(g)
	if err != nil || len(p.flows) != 11 {
		t.Errorf("%d flows and error %v, want 11", len(p.flows), err)
	}
	g.Flows = append(g.Flows, ipsecFlows("circ0", mark+2, localAddr, peerAddr)...)
	if p, err = compile(g); err == nil || len(p.flows) != 11 {
		t.Errorf("with another link between the same ends on the same interface: %d flows and error %v, want 11 and an error", len(p.flows), err)
	}
	for key, got := range p.flows {
		if slices.Contains(got[:], mark+2) {
			t.Errorf("%v has the marks %#x, which the other link has", key, got)
		}
	}
}

func TestCompileBounds(t *testing.T) {
	g := plan.Guard{Interfaces: []string{"circ0"}}
	for i := range maxFlows + 1 {
		f := onePlan("circ0").Flows[0]
		f.Local = netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}), 51820)
		g.Flows = append(g.Flows, f)
	}
	p, err := compile(g)
	if err == nil || len(p.flows) != maxFlows {
		t.Errorf("%d flows with error %v, want %d and an error", len(p.flows), err, maxFlows)
	}
}
