package link

import (
	"errors"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/circuitseal/circuitseal/agent/drift"
	"github.com/circuitseal/circuitseal/agent/plan"
	"github.com/circuitseal/circuitseal/proto/desired"
)

// portWithLinks is a port with a link in two tags and one in one.
func portWithLinks() []plan.Interface {
	return []plan.Interface{
		{Name: "port0"},
		{Name: "cs-t+1", Parent: "port0", VLAN: 300},
		{Name: "cs-t.1", Parent: "cs-t+1", VLAN: 100, Addresses: []netip.Prefix{netip.MustParsePrefix("192.0.2.1/30")}},
		{Name: "cs-t.2", Parent: "port0", VLAN: 200, Addresses: []netip.Prefix{netip.MustParsePrefix("198.51.100.1/30")}},
	}
}

func TestDiffVLANs(t *testing.T) {
	all := map[string]vlan{"cs-t+1": {"port0", 300}, "cs-t.1": {"cs-t+1", 100}, "cs-t.2": {"port0", 200}}
	with := func(name string, v vlan) map[string]vlan {
		out := map[string]vlan{name: v}
		for n, x := range all {
			if n != name {
				out[n] = x
			}
		}
		return out
	}
	for _, tt := range []struct {
		name              string
		want              []plan.Interface
		have              map[string]vlan
		wrong, add, stale []string
	}{
		{name: "in place", want: portWithLinks(), have: all},
		{name: "new", want: portWithLinks(), add: []string{"cs-t+1", "cs-t.1", "cs-t.2"}},
		{name: "nothing wanted", have: all, stale: []string{"cs-t.2", "cs-t.1", "cs-t+1"}},
		{name: "another link", want: portWithLinks(), have: with("cs-t.9", vlan{"port0", 9}), stale: []string{"cs-t.9"}},
		{name: "another tag", want: portWithLinks(), have: with("cs-t.2", vlan{"port0", 201}), wrong: []string{"cs-t.2"}, add: []string{"cs-t.2"}},
		{name: "another port", want: portWithLinks(), have: with("cs-t.2", vlan{"port1", 200}), wrong: []string{"cs-t.2"}, add: []string{"cs-t.2"}},
		{name: "something else", want: portWithLinks(), have: with("cs-t.2", vlan{}), wrong: []string{"cs-t.2"}, add: []string{"cs-t.2"}},
		{
			name: "another outer tag takes what is on it along", want: portWithLinks(), have: with("cs-t+1", vlan{"port0", 301}),
			wrong: []string{"cs-t.1", "cs-t+1"}, add: []string{"cs-t+1", "cs-t.1"},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := diffVLANs(tt.want, tt.have)
			var add []string
			for _, i := range c.add {
				add = append(add, i.Name)
			}
			if d := cmp.Diff([][]string{tt.wrong, tt.add, tt.stale}, [][]string{c.wrong, add, c.stale}); d != "" {
				t.Errorf("wrong, added and stale devices (-want +got):\n%s", d)
			}
		})
	}
}

// requireKernelEnv turns the skip of what the lab's kernels have into a failure.
const requireKernelEnv = "CIRCUITSEAL_REQUIRE_KERNEL"

// requireVLANs skips where the kernel makes none: those of the virtual lab do.
func (l lab) requireVLANs(t *testing.T) {
	t.Helper()
	lo, err := l.m.LinkByName("port0")
	if err != nil {
		t.Fatal(err)
	}
	probe := &netlink.Vlan{LinkAttrs: netlink.LinkAttrs{Name: "probe", ParentIndex: lo.Attrs().Index}, VlanId: 1, VlanProtocol: netlink.VLAN_PROTOCOL_8021Q}
	if err := l.m.LinkAdd(probe); errors.Is(err, unix.EOPNOTSUPP) {
		if os.Getenv(requireKernelEnv) == "1" {
			t.Fatalf("%s=1, but: %v", requireKernelEnv, err)
		}
		t.Skip("this kernel knows no VLANs")
	} else if err != nil {
		t.Fatal(err)
	}
	if err := l.m.LinkDel(probe); err != nil {
		t.Fatal(err)
	}
}

func TestVLANDevices(t *testing.T) {
	l := newLab(t)
	l.wire(t, "port0")
	l.requireVLANs(t)
	ctx := t.Context()
	want := portWithLinks()
	claim := func(want []plan.Interface) {
		t.Helper()
		claimed, err := l.driver.Claim(ctx, want)
		if err != nil || len(claimed) != len(want) {
			t.Fatalf("claimed %q: %v", claimed, err)
		}
	}
	up := func(name string) bool {
		t.Helper()
		x, err := l.c.LinkByName(name)
		if err != nil {
			t.Fatal(err)
		}
		return x.Attrs().RawFlags&unix.IFF_UP != 0
	}
	index := func(name string) int {
		t.Helper()
		x, err := l.c.LinkByName(name)
		if err != nil {
			t.Fatal(err)
		}
		return x.Attrs().Index
	}
	claim(want)
	for _, i := range want {
		l.wantSysctls(t, i.Name)
		if up(i.Name) {
			t.Errorf("%s is up before Sync", i.Name)
		}
	}
	// What has no guard does not come up with the port below it.
	if err := l.driver.Sync(ctx, want[:1], nil); err != nil {
		t.Fatal(err)
	}
	if !up("port0") || up("cs-t+1") || up("cs-t.1") || up("cs-t.2") {
		t.Error("VLAN devices came up with their port")
	}
	if err := l.driver.Sync(ctx, want, nil); err != nil {
		t.Fatal(err)
	}
	l.wantPlanned(t, want, nil)
	before := index("cs-t.1")
	claim(want)
	if index("cs-t.1") != before {
		t.Error("a repeated Claim made a device anew")
	}

	// A link's tag changes, and another link goes; the third stays untouched.
	changed := portWithLinks()[:3]
	changed[2].VLAN = 101
	outer := index("cs-t+1")
	claim(changed)
	if _, err := l.c.LinkByName("cs-t.2"); !notFound(err) {
		t.Errorf("the device of a link that went: %v", err)
	}
	if up("cs-t.1") || index("cs-t+1") != outer {
		t.Error("the changed device is up, or the one below it was made anew")
	}
	if err := l.driver.Sync(ctx, changed, nil); err != nil {
		t.Fatal(err)
	}
	l.wantPlanned(t, changed, nil)

	// A device that somebody deletes is made again, with those on top of it, and
	// noted by name; one that is there is not.
	ledger := drift.New()
	l.driver.config.Drift = ledger
	for _, wantNoted := range []uint64{0, 2} {
		if wantNoted > 0 {
			if err := l.c.LinkDel(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Name: "cs-t+1", Index: outer}}); err != nil {
				t.Fatal(err)
			}
		}
		ledger.Begin(true)
		claim(changed)
		ledger.End()
		noted := slices.DeleteFunc(ledger.Drift(), func(d desired.Drift) bool { return d.What != string(drift.Interface) })
		if wantNoted > 0 && (len(noted) != 1 || noted[0].Count != wantNoted || !strings.HasPrefix(noted[0].Detail, "link add cs-t.1 ")) || wantNoted == 0 && len(noted) > 0 {
			t.Errorf("noted %+v, want %d repairs of interfaces", noted, wantNoted)
		}
	}

	// What somebody else has made of a tag is not taken away from them.
	claim(want[:1])
	other := &netlink.Vlan{LinkAttrs: netlink.LinkAttrs{Name: "other", ParentIndex: index("port0")}, VlanId: 200, VlanProtocol: netlink.VLAN_PROTOCOL_8021Q}
	if err := l.c.LinkAdd(other); err != nil {
		t.Fatal(err)
	}
	claimed, err := l.driver.Claim(ctx, want)
	if err == nil || !strings.Contains(err.Error(), "belongs to another device") || slices.Contains(claimed, "cs-t.2") || !slices.Contains(claimed, "cs-t.1") {
		t.Errorf("claimed %q with error %v, want all but cs-t.2", claimed, err)
	}
	if err := l.c.LinkDel(other); err != nil {
		t.Fatal(err)
	}
	if err := l.driver.Release(ctx); err != nil {
		t.Fatal(err)
	}
	left, err := l.c.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range left {
		if x.Type() == "vlan" {
			t.Errorf("%s is left", x.Attrs().Name)
		}
	}
	if _, err := l.m.LinkByName("port0"); err != nil {
		t.Errorf("the port did not come back: %v", err)
	}
}

func TestClaimRefusesReservedNames(t *testing.T) {
	l := newLab(t)
	if _, err := l.driver.Claim(t.Context(), named("cs-t.1")); err == nil || !strings.Contains(err.Error(), "for VLAN devices") {
		t.Errorf("got %v, want a refusal", err)
	}
}
