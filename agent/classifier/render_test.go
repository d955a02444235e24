package classifier

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/google/go-cmp/cmp"

	"github.com/circuitseal/circuitseal/agent/instance"
	"github.com/circuitseal/circuitseal/agent/plan"
)

const (
	testInstanceName = instance.Instance("t")
	testPrefix       = "cs-t-"
)

func testPlan() plan.Classifier {
	member := func(number uint16, device string, mtu int) plan.Member {
		return plan.Member{
			Tunnel: "tunnel-" + device, Number: number, Device: device, MTU: mtu,
			LocalProbe:  netip.AddrFrom16([16]byte{0xfd, 0xc5, 0x5e, 0xa1, 0x7d, 0x10, 13: byte(number), 15: 1}),
			RemoteProbe: netip.AddrFrom16([16]byte{0xfd, 0xc5, 0x5e, 0xa1, 0x7d, 0x10, 13: byte(number), 15: 2}),
		}
	}
	pfx := netip.MustParsePrefix
	return plan.Classifier{
		LANs: []plan.LAN{{Interface: "lan7a", Tenant: 7}, {Interface: "lan7b", Tenant: 7}, {Interface: "lan8", Tenant: 8}},
		Locals: []plan.Local{
			{Tenant: 7, Prefix: pfx("10.1.0.0/16"), Interface: "lan7a"},
			{Tenant: 7, Prefix: pfx("10.1.128.0/17"), Interface: "lan7b"},
			{Tenant: 7, Prefix: pfx("fd01::/32"), Interface: "lan7a"},
			{Tenant: 7, Prefix: pfx("fd01:0:8000::/33"), Interface: "lan7b"},
			{Tenant: 8, Prefix: pfx("10.1.0.0/16"), Interface: "lan8"},
			{Tenant: 8, Prefix: pfx("fd01::/32"), Interface: "lan8"},
		},
		Remotes: []plan.Remote{
			{Tenant: 7, Prefix: pfx("10.2.0.0/16"), Group: 1},
			{Tenant: 7, Prefix: pfx("10.2.3.0/24"), Group: 2},
			{Tenant: 7, Prefix: pfx("10.2.3.4/32"), Group: 1},
			{Tenant: 7, Prefix: pfx("fd02::/32"), Group: 1},
			{Tenant: 7, Prefix: pfx("fd02:0:3::/48"), Group: 2},
			{Tenant: 8, Prefix: pfx("10.2.0.0/16"), Group: 3},
			{Tenant: 8, Prefix: pfx("0.0.0.0/0"), Group: 4},
			{Tenant: 8, Prefix: pfx("::/0"), Group: 4},
		},
		Groups: []plan.Group{
			{ID: "contoso/a", Number: 1, Tenant: 7, Members: []plan.Member{member(1, testPrefix+"1", 1420), member(2, testPrefix+"2", 1400), member(3, testPrefix+"3", 1280)}},
			{ID: "contoso/b", Number: 2, Tenant: 7, Members: []plan.Member{member(4, testPrefix+"4", 1420), member(5, testPrefix+"5", 1420)}},
			{ID: "fabrikam/a", Number: 3, Tenant: 8, Members: []plan.Member{member(6, testPrefix+"6", 1420)}},
			{ID: "fabrikam/b", Number: 4, Tenant: 8, Members: []plan.Member{member(7, testPrefix+"7", 1420), member(8, testPrefix+"8", 1420)}},
		},
	}
}

func testFacts() facts {
	f := facts{
		"lan7a": {index: 11, ethernet: true, header: true, addresses: []netip.Addr{netip.MustParseAddr("10.1.0.1"), netip.MustParseAddr("fe80::1")}},
		"lan7b": {index: 12, ethernet: true, header: true},
		"lan8":  {index: 13, ethernet: true, header: true, addresses: []netip.Addr{netip.MustParseAddr("10.1.0.1")}},
		"eth0":  {index: 2, ethernet: true, header: true},
		"tun0":  {index: 3},
	}
	for lan, slow := range map[string]uint32{"lan7a": 31, "lan8": 33} {
		d := f[lan]
		d.slow = slow
		f[lan] = d
	}
	for i := range uint32(8) {
		f[testPrefix+string(rune('1'+i))] = device{index: 21 + i, header: i == 7}
	}
	return f
}

func TestRenderGolden(t *testing.T) {
	s, err := render(testInstanceName, testPlan(), testFacts())
	if err != nil {
		t.Fatal(err)
	}
	s.adopt(newState())
	got := diff(s, newState()).String()
	path := filepath.Join("testdata", "render.golden")
	if os.Getenv("UPDATE") == "1" {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), got); d != "" {
		t.Errorf("content of the maps (-want +got); UPDATE=1 rewrites it:\n%s", d)
	}
}

func TestRenderRefuses(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(*plan.Classifier)
		want   string
	}{
		{"missing LAN", func(c *plan.Classifier) { c.LANs[2].Interface = "lan9" }, "LAN interface lan9: there is no such interface"},
		{"LAN without Ethernet", func(c *plan.Classifier) { c.LANs[2].Interface = "tun0" }, "LAN interface tun0: it is not an Ethernet interface"},
		{"LAN of tenant 0", func(c *plan.Classifier) { c.LANs[2].Tenant = 0 }, "tenant 0 is no tenant"},
		{"slow path's device as LAN", func(c *plan.Classifier) { c.LANs[2].Interface = "cs-t_1" }, "names that begin with cs-t-, cs-t~ or cs-t_ are the agent's own"},
		{"tunnel device as LAN", func(c *plan.Classifier) { c.LANs[2].Interface = testPrefix + "6" }, "names that begin with cs-t-, cs-t~ or cs-t_ are the agent's own devices"},
		{"foreign device as member", func(c *plan.Classifier) { c.Groups[2].Members[0].Device = "eth0" }, "eth0 is no tunnel device of this instance"},
		{"LAN as member", func(c *plan.Classifier) { c.Groups[2].Members[0].Device = "lan8" }, "lan8 is no tunnel device of this instance"},
		{"device not there", func(c *plan.Classifier) { c.Groups[2].Members[0].Device = testPrefix + "99" }, "device cs-t-99 is not there yet"},
		{"device of two groups", func(c *plan.Classifier) { c.Groups[2].Members[0].Device = testPrefix + "1" }, "device cs-t-1 belongs to another tunnel or LAN"},
		{"MTU 0", func(c *plan.Classifier) { c.Groups[2].Members[0].MTU = 0 }, "MTU 0 is not positive"},
		{"too many members", func(c *plan.Classifier) { c.Groups[2].Members = make([]plan.Member, 33) }, "33 members, at most 32"},
		{"group twice", func(c *plan.Classifier) { c.Groups[2].Number = 1 }, "number 1 is taken"},
		{"group 0", func(c *plan.Classifier) { c.Groups[2].Number = 0 }, "must not be 0"},
		{"group beyond marks", func(c *plan.Classifier) { c.Groups[2].Number = 65536 }, "number 65536 is greater than 65535"},
		{"host bits", func(c *plan.Classifier) { c.Locals[5].Prefix = netip.MustParsePrefix("10.1.2.3/16") }, "without host bits"},
		{"mapped prefix", func(c *plan.Classifier) { c.Remotes[5].Prefix = netip.MustParsePrefix("::ffff:10.0.0.0/104") }, "want an IPv4 or IPv6 prefix"},
		{"prefix of another tenant's LAN", func(c *plan.Classifier) { c.Locals[5].Interface = "lan7a" }, "LAN interface lan7a belongs to tenant 7"},
		{"prefix of another tenant's group", func(c *plan.Classifier) { c.Remotes[5].Group = 1 }, "the tenant has no group 1"},
		{"prefix in two groups", func(c *plan.Classifier) { c.Remotes[6].Prefix = c.Remotes[5].Prefix }, "twice with different meanings"},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := testPlan()
			test.change(&c)
			s, err := render(testInstanceName, c, testFacts())
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v, want one with %q", err, test.want)
			}
			if len(s.ports) < 9 {
				t.Errorf("%d ports, want those of all other interfaces", len(s.ports))
			}
			for _, g := range s.groups {
				for _, m := range g.Members {
					if m.Ifindex != 0 && (m.Ifindex < 21 || m.Ifindex > 28) {
						t.Errorf("a member redirects to interface %d", m.Ifindex)
					}
				}
			}
		})
	}
}

// A slow path is in use while what comes back from it is judged.
func TestRenderSlowPaths(t *testing.T) {
	s, err := render(testInstanceName, testPlan(), testFacts())
	if err != nil {
		t.Fatal(err)
	}
	s.withholdSlow(map[uint32]bool{33: true})
	for ifindex, want := range map[uint32]uint32{11: 31, 12: 0, 13: 0, 31: 11, 33: 13} {
		if got := s.ports[ifindex].Partner; got != want {
			t.Errorf("interface %d has the partner %d, want %d", ifindex, got, want)
		}
	}
	for slow, tenant := range map[uint32]uint32{31: 7, 33: 8} {
		if p := s.ports[slow]; p.Kind != bpfPortKindPORT_SLOW || p.Tenant != tenant {
			t.Errorf("slow path %d is %s", slow, valueText(p))
		}
	}
}

// One tenant has the node's stack for itself, several share it.
func TestRenderSharesTheNode(t *testing.T) {
	for _, test := range []struct {
		name string
		lans int
		want uint32
	}{{"two LANs of one tenant", 2, 0}, {"LANs of two tenants", 3, 1}} {
		t.Run(test.name, func(t *testing.T) {
			c := testPlan()
			s, _ := render(testInstanceName, plan.Classifier{LANs: c.LANs[:test.lans]}, testFacts())
			for _, p := range s.ports {
				if p.Kind == bpfPortKindPORT_LAN && p.Shared != test.want {
					t.Errorf("shared is %d, want %d", p.Shared, test.want)
				}
			}
		})
	}
}

// The places of members stay when a device is missing, so that the bits of the
// alive mask keep their meaning.
func TestRenderKeepsPlaces(t *testing.T) {
	f := testFacts()
	delete(f, testPrefix+"1")
	s, _ := render(testInstanceName, testPlan(), f)
	want := bpfGroup{Tenant: 7, Count: 3}
	want.Members[0] = bpfMember{Number: 1, Mtu: 1420}
	want.Members[1] = bpfMember{Ifindex: 22, Number: 2, Mtu: 1400}
	want.Members[2] = bpfMember{Ifindex: 23, Number: 3, Mtu: 1280}
	if d := cmp.Diff(want, s.groups[1]); d != "" {
		t.Errorf("group 1 (-want +got):\n%s", d)
	}
}

func TestAdoptAlive(t *testing.T) {
	group := func(alive uint32, numbers ...uint32) bpfGroup {
		g := bpfGroup{Tenant: 7, Alive: alive, Count: uint32(len(numbers))}
		for i, n := range numbers {
			g.Members[i].Number = n
		}
		return g
	}
	for _, test := range []struct {
		name      string
		was, want bpfGroup
	}{
		{"same", group(0b101, 1, 2, 3), group(0b101, 1, 2, 3)},
		{"all stays all", group(0, 1, 2), group(0, 1, 2, 3)},
		{"new member is not alive", group(0b11, 1, 2), group(0b011, 1, 2, 3)},
		{"new member before the others", group(0b11, 5, 6), group(0b110, 2, 5, 6)},
		{"lost member", group(0b110, 1, 2, 3), group(0b11, 2, 3)},
		{"only dead ones left", group(0b001, 1, 2), group(0, 2)},
	} {
		t.Run(test.name, func(t *testing.T) {
			want := newState()
			bare := test.want
			bare.Alive = 0
			want.groups[9] = bare
			have := newState()
			have.groups[9] = test.was
			want.adopt(have)
			if d := cmp.Diff(test.want, want.groups[9]); d != "" {
				t.Errorf("group (-want +got):\n%s", d)
			}
		})
	}
}

func TestAdoptSlots(t *testing.T) {
	port := func(tenant, slot uint32) bpfPort {
		return bpfPort{Kind: bpfPortKindPORT_LAN, Tenant: tenant, Slot: slot}
	}
	have := newState()
	have.ports = map[uint32]bpfPort{4: port(1, 1), 5: port(1, 2), 6: port(1, 3)}
	want := newState()
	want.ports = map[uint32]bpfPort{4: port(1, 0), 6: port(2, 0), 7: port(1, 0)}
	fresh := want.adopt(have)
	if d := cmp.Diff(map[uint32]bpfPort{4: port(1, 1), 6: port(2, 4), 7: port(1, 5)}, want.ports); d != "" {
		t.Errorf("ports (-want +got):\n%s", d)
	}
	if d := cmp.Diff([]uint32{6, 7}, fresh); d != "" {
		t.Errorf("fresh ports (-want +got):\n%s", d)
	}
}

func TestDiff(t *testing.T) {
	full, err := render(testInstanceName, testPlan(), testFacts())
	if err != nil {
		t.Fatal(err)
	}
	full.adopt(newState())
	if got := diff(full, full).String(); got != "" {
		t.Errorf("a repeat changes:\n%s", got)
	}
	p := testPlan()
	p.Remotes[1].Group = 1
	p.Locals = p.Locals[:5]
	changed, err := render(testInstanceName, p, testFacts())
	if err != nil {
		t.Fatal(err)
	}
	changed.adopt(full)
	want := "- local tenant 8 fd01::/32\n+ remote tenant 7 10.2.3.0/24 group 1\n"
	if d := cmp.Diff(want, diff(changed, full).String()); d != "" {
		t.Errorf("changes (-want +got):\n%s", d)
	}
}

func TestDiffAttachments(t *testing.T) {
	at := func(program string, i uint32) attachment { return attachment{program, i} }
	ports := map[uint32]bpfPort{
		1: {Kind: bpfPortKindPORT_LAN}, 2: {Kind: bpfPortKindPORT_LAN}, 3: {Kind: bpfPortKindPORT_TUNNEL},
	}
	have := map[attachment]ebpf.ProgramID{
		at(bpfProgCsLanIn, 1):     10,
		at(bpfProgCsLanIn, 2):     9,
		at(bpfProgCsTunnelOut, 4): 12,
	}
	code := map[string]ebpf.ProgramID{bpfProgCsLanIn: 10, bpfProgCsTunnelIn: 11, bpfProgCsTunnelOut: 12}
	got := diffAttachments(wantAttachments(ports), have, code)
	want := attachments{
		attach:  []attachment{at(bpfProgCsTunnelOut, 3), at(bpfProgCsTunnelIn, 3)},
		replace: []attachment{at(bpfProgCsLanIn, 2)},
		detach:  []attachment{at(bpfProgCsTunnelOut, 4)},
	}
	if d := cmp.Diff(want, got, cmp.AllowUnexported(attachments{}, attachment{})); d != "" {
		t.Errorf("attachments (-want +got):\n%s", d)
	}
}

// A plan that does not fit is refused whole: an empty state would take away
// what every tenant has. LANs count with their slow paths.
func TestRenderRefusesWhatDoesNotFit(t *testing.T) {
	plain := func(lans, slow int) (c plan.Classifier, f facts) {
		f = facts{}
		for i := range lans {
			name := fmt.Sprintf("lan%d", i)
			c.LANs = append(c.LANs, plan.LAN{Interface: name, Tenant: uint32(i + 1)})
			d := device{index: uint32(2*i + 10), ethernet: true, header: true}
			if i < slow {
				d.slow = d.index + 1
			}
			f[name] = d
		}
		return c, f
	}
	for _, test := range []struct{ lans, slow int }{{maxPorts, 0}, {maxPorts / 2, maxPorts / 2}, {maxPorts - 10, 10}} {
		c, f := plain(test.lans, test.slow)
		s, err := render(testInstanceName, c, f)
		if err != nil || len(s.ports) != maxPorts {
			t.Errorf("%d LANs, %d with slow paths: %d ports with error %v, want %d", test.lans, test.slow, len(s.ports), err, maxPorts)
		}
		c, f = plain(test.lans+1, test.slow)
		if s, err = render(testInstanceName, c, f); !errors.Is(err, errTooMany) || len(s.ports) > 0 {
			t.Errorf("%d LANs, %d with slow paths: %d ports with error %v, want %v", test.lans+1, test.slow, len(s.ports), err, errTooMany)
		} else if want := fmt.Sprintf("classify %d LAN interfaces and 0 tunnels", test.lans+1); !strings.Contains(err.Error(), want) {
			t.Errorf("error %q lacks %q", err, want)
		}
	}
}

// The maps have room for all ports and as many others, with a slot each.
func TestMapsHoldAllPortsTwice(t *testing.T) {
	spec, err := loadBpf()
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]uint32{bpfMapPorts: 2 * maxPorts, bpfMapCounters: 2*maxPorts + 1} {
		if got := spec.Maps[name].MaxEntries; got != want {
			t.Errorf("map %s has room for %d entries, want %d", name, got, want)
		}
	}
	have := newState()
	for i := range uint32(maxPorts) {
		have.ports[i+1] = bpfPort{Ifindex: i + 1, Slot: i + 1}
	}
	want := newState()
	for i := range uint32(maxPorts) {
		want.ports[i+10_000] = bpfPort{Ifindex: i + 10_000}
	}
	want.adopt(have)
	for _, p := range want.ports {
		if p.Slot <= maxPorts || p.Slot > 2*maxPorts {
			t.Errorf("interface %d counts in slot %d, want one from %d to %d", p.Ifindex, p.Slot, maxPorts+1, 2*maxPorts)
		}
	}
}
