package slowpath

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/circuitseal/circuitseal/agent/instance"
	"github.com/circuitseal/circuitseal/agent/netns"
	"github.com/circuitseal/circuitseal/agent/netns/netnstest"
	"github.com/circuitseal/circuitseal/agent/plan"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// bed is a main namespace with LANs lan0 and lan1.
type bed struct {
	t      *testing.T
	main   netns.Namespace
	driver *Driver
	inst   instance.Instance
}

func newBed(t *testing.T) *bed {
	t.Helper()
	_, ns := netnstest.New(t)
	inst, err := instance.Parse(fmt.Sprintf("s%05x", os.Getpid()&0xfffff))
	must(t, err)
	b := &bed{t: t, main: ns, inst: inst}
	b.driver = New(Config{Main: ns, Instance: inst, Log: slog.New(slog.DiscardHandler)})
	t.Cleanup(func() { must(t, b.driver.Remove(context.Background())) })
	h := b.netlink(ns)
	for i := range 2 {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = fmt.Sprintf("lan%d", i)
		must(t, h.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: fmt.Sprintf("host%d", i)}))
	}
	return b
}

func (b *bed) netlink(n netns.Namespace) *netlink.Handle {
	b.t.Helper()
	h, err := n.Netlink()
	must(b.t, err)
	b.t.Cleanup(h.Close)
	return h
}

func (b *bed) address(name, a string) {
	b.t.Helper()
	h := b.netlink(b.main)
	l, err := h.LinkByName(name)
	must(b.t, err)
	addr, err := netlink.ParseAddr(a)
	must(b.t, err)
	addr.Flags = unix.IFA_F_NODAD
	must(b.t, h.AddrAdd(l, addr))
}

// sync makes want so, and fails unless a repeat would write nothing.
func (b *bed) sync(want []plan.LAN) state {
	b.t.Helper()
	must(b.t, b.driver.Sync(b.t.Context(), want))
	have := b.read(want)
	if c := diff(b.inst, want, have); len(c.list) != 0 {
		b.t.Fatalf("a repeat would write %v", c.list)
	}
	return have
}

func (b *bed) read(want []plan.LAN) state {
	b.t.Helper()
	slow, err := netns.Open(b.inst.SlowNamespace())
	must(b.t, err)
	b.t.Cleanup(func() { _ = slow.Close() })
	h, err := b.driver.open(slow)
	must(b.t, err)
	defer h.close()
	have, err := b.driver.read(h, want)
	must(b.t, err)
	return have
}

func (b *bed) device(have state, lan string) string {
	b.t.Helper()
	name, ok := b.inst.SlowDevice(have.lans[lan].index)
	if !ok {
		b.t.Fatalf("no name for the slow path of %s", lan)
	}
	return name
}

func bothLANs() []plan.LAN {
	return []plan.LAN{{Interface: "lan0", Tenant: 7, MTU: 1380}, {Interface: "lan1", Tenant: 8, MTU: 1300}}
}

func prefixes(list ...string) (all []netip.Prefix) {
	for _, s := range list {
		all = append(all, netip.MustParsePrefix(s))
	}
	return all
}

func TestSyncFollows(t *testing.T) {
	b := newBed(t)
	for _, l := range []string{"lan0", "lan1"} {
		b.address(l, "10.1.0.1/16")
		b.address(l, "fd01::1/64")
		b.address(l, "fe80::1/64")
	}
	lans := bothLANs()
	have := b.sync(lans)
	for _, l := range lans {
		name := b.device(have, l.Interface)
		e := have.slow[name]
		slices.SortFunc(e.addresses, func(a, b netip.Prefix) int { return a.Addr().Compare(b.Addr()) })
		if d := cmp.Diff(prefixes("10.1.0.1/32", "fd01::1/128"), e.addresses, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); d != "" {
			t.Errorf("addresses for %s (-want +got):\n%s", l.Interface, d)
		}
		if m := have.main[name]; e.mtu != l.MTU || m.mtu != l.MTU || !e.up || !m.up || !e.silent || !m.silent {
			t.Errorf("%s has the ends %+v and %+v", l.Interface, m, e)
		}
	}
	// Nothing but the tables of LANs is ever looked up.
	if len(have.rules) != 4 || len(have.routes) != 4 {
		t.Errorf("rules %v and routes %v, want 4 each", have.rules, have.routes)
	}

	// A LAN gets and loses an address, and another MTU.
	b.address("lan0", "192.0.2.1/24")
	lans[0].MTU = 1290
	have = b.sync(lans)
	if e := have.slow[b.device(have, "lan0")]; !slices.Contains(e.addresses, netip.MustParsePrefix("192.0.2.1/32")) || e.mtu != 1290 {
		t.Errorf("the slow path did not follow its LAN: %+v", e)
	}
	h := b.netlink(b.main)
	l, err := h.LinkByName("lan0")
	must(t, err)
	a, err := netlink.ParseAddr("10.1.0.1/16")
	must(t, err)
	must(t, h.AddrDel(l, a))
	have = b.sync(lans)
	if e := have.slow[b.device(have, "lan0")]; slices.Contains(e.addresses, netip.MustParsePrefix("10.1.0.1/32")) {
		t.Errorf("the slow path kept an address of its LAN: %+v", e)
	}

	// A LAN that goes takes its slow path along, and nothing else.
	gone, stays := b.device(have, "lan0"), b.device(have, "lan1")
	have = b.sync(lans[1:])
	if _, ok := have.main[gone]; ok || have.main[stays].index == 0 || len(have.rules) != 2 || len(have.routes) != 2 {
		t.Errorf("without lan0 there is %+v", have)
	}
	// A tenant without tunnels has none; with none at all there is no namespace.
	lans[1].MTU = 0
	must(t, b.driver.Sync(t.Context(), lans[1:]))
	if _, err := netns.Open(b.inst.SlowNamespace()); err == nil {
		t.Error("the namespace stayed")
	}
}

// Whatever is broken is made anew, and the main namespace stays as it was.
func TestRepair(t *testing.T) {
	b := newBed(t)
	b.address("lan0", "10.1.0.1/16")
	before := b.mainState()
	lans := bothLANs()
	have := b.sync(lans)
	name, other := b.device(have, "lan0"), b.device(have, "lan1")
	inSlow := func(f func(h *netlink.Handle) error) {
		t.Helper()
		slow, err := netns.Open(b.inst.SlowNamespace())
		must(t, err)
		defer func() { _ = slow.Close() }()
		must(t, f(b.netlink(slow)))
	}
	for _, test := range []struct {
		name   string
		breaks func()
	}{
		{"namespace deleted", func() { must(t, netns.Remove(b.inst.SlowNamespace())) }},
		{"pair deleted", func() { must(t, b.netlink(b.main).LinkDel(device(name, nil))) }},
		{"far end deleted", func() {
			inSlow(func(h *netlink.Handle) error {
				l, err := h.LinkByName(name)
				must(t, err)
				return h.LinkDel(l)
			})
		}},
		{"ends swapped", func() {
			inSlow(func(h *netlink.Handle) error {
				for _, step := range [][2]string{{name, "x"}, {other, name}, {"x", other}} {
					l, err := h.LinkByName(step[0])
					must(t, err)
					must(t, h.LinkSetDown(l))
					must(t, h.LinkSetName(l, step[1]))
				}
				return nil
			})
		}},
		{"ends with each other's indexes, whose peers are elsewhere", func() {
			must(t, b.netlink(b.main).LinkDel(device(name, nil)))
			next := 0
			inSlow(func(h *netlink.Handle) error {
				attrs := netlink.NewLinkAttrs()
				attrs.Name = "last"
				must(t, h.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "peer"}))
				l, err := h.LinkByName("peer")
				must(t, err)
				next = max(l.Attrs().Index, l.Attrs().ParentIndex) + 1
				return h.LinkDel(l)
			})
			// far has an end of this index; its peer, named like ours, is in near.
			far := func(index int, near netns.Namespace) (peer int) {
				t.Helper()
				_, ns := netnstest.New(t)
				attrs := netlink.NewLinkAttrs()
				attrs.Name, attrs.Index = "far", index
				must(t, b.netlink(ns).LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: name, PeerNamespace: netlink.NsFd(near.FD())}))
				l, err := b.netlink(near).LinkByName(name)
				must(t, err)
				return l.Attrs().Index
			}
			slow, err := netns.Open(b.inst.SlowNamespace())
			must(t, err)
			defer func() { _ = slow.Close() }()
			if got := far(far(next, b.main), slow); got != next {
				t.Fatalf("the slow path's end has the index %d, want %d", got, next)
			}
		}},
		{"down", func() {
			inSlow(func(h *netlink.Handle) error {
				l, err := h.LinkByName(name)
				must(t, err)
				return h.LinkSetDown(l)
			})
		}},
		{"rules gone, the kernel's back", func() {
			inSlow(func(h *netlink.Handle) error {
				rules, err := h.RuleList(netlink.FAMILY_ALL)
				must(t, err)
				for _, r := range rules {
					must(t, h.RuleDel(&r))
				}
				r := netlink.NewRule()
				r.Family, r.Priority, r.Table = netlink.FAMILY_V4, 32766, unix.RT_TABLE_MAIN
				return h.RuleAdd(r)
			})
		}},
		{"leftover of another LAN", func() {
			attrs := netlink.NewLinkAttrs()
			attrs.Name = b.inst.SlowDevicePrefix() + "zz"
			must(t, b.netlink(b.main).LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "x0"}))
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			test.breaks()
			have := b.sync(lans)
			if len(have.main) != 2 || len(have.slow) != 2 || len(have.rules) != 4 || len(have.routes) != 4 {
				t.Errorf("after the repair there is %+v", have)
			}
			for n := range have.main {
				if !have.main[n].away || !have.slow[n].away {
					t.Errorf("%s leads elsewhere: %+v and %+v", n, have.main[n], have.slow[n])
				}
			}
		})
	}
	must(t, b.driver.Remove(t.Context()))
	if d := cmp.Diff(before, b.mainState()); d != "" {
		t.Errorf("the main namespace has changed (-before +after):\n%s", d)
	}
}

// mainState is what of a namespace makes it a router.
func (b *bed) mainState() (lines []string) {
	b.t.Helper()
	must(b.t, b.main.Do(func() error {
		for _, name := range []string{"ipv4/ip_forward", "ipv4/fwmark_reflect", "ipv4/conf/all/forwarding", "ipv4/conf/default/forwarding",
			"ipv6/conf/all/forwarding", "ipv6/conf/default/forwarding", "ipv6/conf/default/disable_ipv6", "ipv6/conf/default/accept_ra"} {
			v, err := os.ReadFile("/proc/sys/net/" + name)
			if err != nil {
				return err
			}
			lines = append(lines, name+" "+strings.TrimSpace(string(v)))
		}
		return nil
	}))
	h := b.netlink(b.main)
	rules, err := h.RuleList(netlink.FAMILY_ALL)
	must(b.t, err)
	for _, r := range rules {
		lines = append(lines, r.String())
	}
	links, err := h.LinkList()
	must(b.t, err)
	for _, l := range links {
		lines = append(lines, l.Attrs().Name)
	}
	return lines
}

// onChange calls a function before a change is written.
type onChange struct {
	slog.Handler
	change func(string)
}

func (onChange) Enabled(context.Context, slog.Level) bool { return true }

func (o onChange) Handle(_ context.Context, r slog.Record) error {
	r.Attrs(func(a slog.Attr) bool {
		if a.Key == "change" {
			o.change(a.Value.String())
		}
		return true
	})
	return nil
}

// A pair that vanishes whenever it was made is no success.
func TestMadeInVain(t *testing.T) {
	b := newBed(t)
	have := b.sync(bothLANs())
	first, second := b.device(have, "lan0"), b.device(have, "lan1")
	must(t, b.driver.Remove(t.Context()))
	b.driver.config.Log = slog.New(onChange{slog.DiscardHandler, func(change string) {
		if strings.HasPrefix(change, "link add "+second) {
			must(t, b.netlink(b.main).LinkDel(device(first, nil)))
		}
	}})
	if err := b.driver.Sync(t.Context(), bothLANs()); err == nil || !strings.Contains(err.Error(), first+": made in vain") || strings.Contains(err.Error(), second) {
		t.Errorf("error %v, want one that names %s and not %s", err, first, second)
	}
	b.driver.config.Log = slog.New(slog.DiscardHandler)
	b.sync(bothLANs())
}

// Beside a rule that cannot be taken away nothing is built.
func TestRuleThatStays(t *testing.T) {
	b := newBed(t)
	have := b.sync(bothLANs())
	name := b.device(have, "lan0")
	slow, err := netns.Open(b.inst.SlowNamespace())
	must(t, err)
	defer func() { _ = slow.Close() }()
	h, err := b.driver.open(slow)
	must(t, err)
	defer h.close()
	const noFamily = 5
	families[noFamily] = 77
	err = b.driver.apply(t.Context(), h, changes{list: []change{
		{verb: removeRule, rule: rule{family: noFamily}},
		{verb: removeMain, device: name},
		{verb: addPair, device: name, mtu: 1300},
		{verb: addAddress, device: b.device(have, "lan1"), address: netip.MustParsePrefix("192.0.2.9/32")},
	}}, have)
	delete(families, noFamily)
	if err == nil || !strings.Contains(err.Error(), "rule del") {
		t.Errorf("error %v, want one that names the rule", err)
	}
	have = b.read(bothLANs())
	if _, there := have.main[name]; there || len(have.slow[b.device(have, "lan1")].addresses) > 0 {
		t.Errorf("something was built beside a rule that stayed: %+v", have)
	}
}
