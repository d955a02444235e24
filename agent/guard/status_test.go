package guard

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/circuitseal/circuitseal/agent/netns"
	"github.com/circuitseal/circuitseal/agent/netns/netnstest"
	"github.com/circuitseal/circuitseal/agent/plan"
	"github.com/circuitseal/circuitseal/agent/tchook"
)

// nft changes the ruleset of the circuit namespace from outside.
func (l *lab) nft(args ...string) {
	l.t.Helper()
	path, err := exec.LookPath("nft")
	if err != nil {
		l.t.Fatal("there is no nft; `make deps` installs it")
	}
	for i, a := range args {
		args[i] = strings.ReplaceAll(a, "TABLE", l.instance.NFTable())
	}
	l.must(l.circuit.Do(func() error {
		out, err := exec.CommandContext(l.t.Context(), path, args...).CombinedOutput()
		if err != nil {
			err = errors.Join(err, errors.New(string(out)))
		}
		return err
	}))
}

func (l *lab) sysctl(name, value string) {
	l.t.Helper()
	l.must(l.circuit.Do(func() error { return os.WriteFile(filepath.Join("/proc/sys/net", name), []byte(value), 0) }))
}

// foreign attaches a program that passes everything, ahead of ours.
func (l *lab) foreign(h hook) {
	l.t.Helper()
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, License: "MIT", Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()}})
	l.must(err)
	defer func() { _ = p.Close() }()
	dir := filepath.Join(l.instance.BPFDir(), "foreign")
	l.must(os.MkdirAll(dir, 0o700))
	tc, err := tchook.Open(tchook.Config{Way: way, Namespace: l.circuit, Pins: dir, Owner: "foreign"})
	l.must(err)
	l.t.Cleanup(tc.Close)
	l.must(tc.Attach(h.at(l.index(l.circuit, "circ0")), "foreign", p))
}

// Whatever happens to a layer, Status says so of that layer and no other, and
// Sync heals what is the guard's to heal.
func TestStatusNoticesAndSyncHeals(t *testing.T) {
	tests := []struct {
		name                 string
		mishap               func(*lab)
		namespace, ebpf, nft bool
		// beyond tells that another driver's to heal.
		beyond bool
	}{
		{"nothing", func(*lab) {}, true, true, true, false},
		{"programs detached", (*lab).detach, true, false, true, false},
		// Filters hold their programs without it.
		{"bpffs unmounted", func(l *lab) { l.must(unix.Unmount(l.instance.BPFDir(), unix.MNT_DETACH)) }, true, way == tchook.Clsact, true, false},
		{"program ahead of egress", func(l *lab) { l.foreign(hooks[0]) }, true, false, true, false},
		{"program ahead of ingress", func(l *lab) { l.foreign(hooks[1]) }, true, false, true, false},
		{"ruleset flushed", func(l *lab) { l.nft("flush", "ruleset") }, true, true, false, false},
		{"arp table deleted", func(l *lab) { l.nft("delete", "table", "arp", "TABLE") }, true, true, false, false},
		{"chain flushed", func(l *lab) { l.nft("flush", "chain", "inet", "TABLE", "input") }, true, true, false, false},
		{"rule added", func(l *lab) { l.nft("insert", "rule", "inet", "TABLE", "output", "accept") }, true, true, false, false},
		{"policy changed", func(l *lab) { l.nft("chain inet TABLE forward { policy accept; }") }, true, true, false, false},
		{"table dormant", func(l *lab) { l.nft("add table inet TABLE { flags dormant; }") }, true, true, false, false},
		{"forwarding", func(l *lab) { l.sysctl("ipv4/conf/circ0/forwarding", "1") }, false, true, true, true},
		{"forwarding IPv6", func(l *lab) { l.sysctl("ipv6/conf/all/forwarding", "1") }, false, true, true, true},
		{"another interface up", func(l *lab) {
			l.link("lan0", "lan1")
			h := l.handle(l.circuit)
			i, err := h.LinkByName("lan0")
			l.must(err)
			l.must(h.LinkSetUp(i))
		}, false, true, true, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l := newLab(t)
			g := l.guard()
			// The second finds that nothing is to be done, and is believed until something
			// changes.
			l.must(g.Sync(t.Context(), onePlan("circ0")))
			l.must(g.Sync(t.Context(), onePlan("circ0")))
			if g.settled.at.IsZero() {
				t.Error("nftables are not known to be what they are to be")
			}
			requireAlive(t, g, true, true, true)
			tt.mishap(l)
			requireAlive(t, g, tt.namespace, tt.ebpf, tt.nft)
			if err := g.Sync(t.Context(), onePlan("circ0")); err != nil {
				t.Fatal(err)
			}
			if !tt.beyond {
				requireAlive(t, g, true, true, true)
			}
			// A process that has synced nothing sees the same.
			requireAlive(t, l.guard(), tt.namespace, true, true)
		})
	}
}

// An XDP program runs before ours, and is not the guard's to remove.
func TestStatusNoticesXDP(t *testing.T) {
	l := newLab(t)
	g := l.guard()
	l.must(g.Sync(t.Context(), onePlan("circ0")))
	const pass = 2
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.XDP, License: "MIT", Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, pass), asm.Return()}})
	l.must(err)
	defer func() { _ = p.Close() }()
	h := l.handle(l.circuit)
	c, err := h.LinkByName("circ0")
	l.must(err)
	attach := func(fd, mode int) {
		t.Helper()
		l.must(l.circuit.Do(func() error { return netlink.LinkSetXdpFdWithFlags(c, fd, mode) }))
	}
	// By the interface's driver, and by the kernel for any.
	for _, mode := range []int{unix.XDP_FLAGS_DRV_MODE, unix.XDP_FLAGS_SKB_MODE} {
		attach(p.FD(), mode)
		requireAlive(t, g, true, false, true)
		requireAlive(t, l.guard(), true, false, true)
		l.must(g.Sync(t.Context(), onePlan("circ0")))
		requireAlive(t, g, true, false, true)
		const none = -1
		attach(none, mode)
		requireAlive(t, g, true, true, true)
	}
}

func TestStatusOfAnInterfaceThatIsGone(t *testing.T) {
	l := newLab(t)
	g := l.guard()
	l.arm(g, "circ0")
	h := l.handle(l.circuit)
	c, err := h.LinkByName("circ0")
	l.must(err)
	l.must(h.LinkDel(c))
	requireAlive(t, g, false, false, true)
}

func TestRepeatedSyncChangesNothing(t *testing.T) {
	l := newLab(t)
	var log bytes.Buffer
	g, err := New(Config{Instance: l.instance, Namespace: l.circuit, Hooks: way, Log: slog.New(slog.NewTextHandler(&log, nil))})
	l.must(err)
	defer func() { l.must(g.Close()) }()
	l.must(g.Sync(t.Context(), onePlan("circ0")))
	if log.Len() == 0 {
		t.Error("the first Sync logs nothing")
	}
	log.Reset()
	l.armFor(g, onePlan("circ0"))
	l.must(g.Sync(t.Context(), onePlan("circ0")))
	if log.Len() > 0 {
		t.Errorf("the second Sync changes something:\n%s", &log)
	}
}

// What somebody adds to a set is taken out again, and what is taken out put back, though
// all was well a moment before; and another plan is not taken for the one that was read.
func TestSettledGuardNoticesElements(t *testing.T) {
	l := newLab(t)
	g := l.guard()
	sync := func(p plan.Guard) {
		t.Helper()
		l.must(g.Sync(t.Context(), p))
		l.must(g.Sync(t.Context(), p))
	}
	elements := func() (n int) {
		t.Helper()
		conn, err := g.nftConn()
		l.must(err)
		have, err := g.readNFT(conn, nftables.TableFamilyARP, true)
		l.must(err)
		for _, e := range have.elements {
			n += len(e)
		}
		return n
	}
	sync(onePlan("circ0"))
	whole := elements()
	if whole == 0 {
		t.Fatal("the ARP table has no elements")
	}
	for name, change := range map[string]func(){
		"emptied": func() { l.nft("flush", "set", "arp", "TABLE", "neighbors_out") },
		"gone":    func() { l.nft("flush", "set", "arp", "TABLE", "neighbors_in") },
	} {
		change()
		if elements() >= whole {
			t.Fatalf("%s: nothing was changed", name)
		}
		sync(onePlan("circ0"))
		if n := elements(); n != whole {
			t.Errorf("%s: it has %d elements, want %d", name, n, whole)
		}
	}
	p := onePlan("circ0")
	p.Neighbors = nil
	sync(p)
	if n := elements(); n != 0 {
		t.Errorf("without neighbours it has %d elements", n)
	}
}

// Arm opens nothing, closes nothing that is wanted, and closes the rest.
func TestArm(t *testing.T) {
	l := newLab(t)
	g := l.guard()
	l.arm(g, "circ0")
	open := func() int {
		t.Helper()
		have, err := readMaps(g.objects)
		l.must(err)
		conn, err := g.nftConn()
		l.must(err)
		n := len(have.flows) + len(have.neighbors)
		for _, table := range renderNFT(policy{}) {
			have, err := g.readNFT(conn, table.family, true)
			l.must(err)
			for _, s := range have.elements {
				n += len(s)
			}
		}
		return n
	}
	if n := open(); n != 0 {
		t.Errorf("%d things open after Arm", n)
	}
	l.armFor(g, onePlan("circ0"))
	if n := open(); n != 0 {
		t.Errorf("%d things open after Arm for a plan that opens some", n)
	}
	l.must(g.Sync(t.Context(), onePlan("circ0")))
	want := open()
	more := onePlan("circ0")
	extra := more.Flows[0]
	extra.Local = netip.AddrPortFrom(localAddr, 1)
	more.Flows = append(more.Flows, extra)
	l.armFor(g, more)
	if got := open(); got != want || want != 8 {
		t.Errorf("%d things open after Arm for what is open and more, want %d", got, want)
	}
	// By a new process, too: what is open is read, not remembered.
	g = l.guard()
	l.armFor(g, onePlan("circ0").Without([]string{""}))
	if got := open(); got != 5 {
		t.Errorf("%d things open after Arm without the flow, want the neighbour's 5", got)
	}
	l.arm(g, "circ0")
	if got := open(); got != 0 {
		t.Errorf("%d things open after Arm for nothing", got)
	}
}

// The nftables layer closes, and is made again, also where the other cannot be
// had at all.
func TestNFTablesWithoutPrograms(t *testing.T) {
	l := newLab(t)
	g := l.guard()
	l.must(g.Sync(t.Context(), onePlan("circ0")))
	l.must(os.Remove(filepath.Join(g.pins, programMapFlows)))
	wrong, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	l.must(err)
	defer func() { _ = wrong.Close() }()
	l.must(wrong.Pin(filepath.Join(g.pins, programMapFlows)))
	elements := func() (n int) {
		t.Helper()
		conn, err := g.nftConn()
		l.must(err)
		for _, table := range renderNFT(policy{}) {
			have, err := g.readNFT(conn, table.family, true)
			l.must(err)
			if !have.exists {
				t.Errorf("there is no table of %s", familyName(table.family))
			}
			for _, s := range have.elements {
				n += len(s)
			}
		}
		return n
	}
	if elements() == 0 {
		t.Fatal("nothing is open")
	}
	if armed, err := g.Arm(t.Context(), plan.Guard{Interfaces: []string{"circ0"}}); err == nil || armed != nil {
		t.Errorf("armed %q with error %v, want none and an error", armed, err)
	}
	if n := elements(); n != 0 {
		t.Errorf("%d elements are open in nftables", n)
	}
	l.nft("flush", "ruleset")
	if _, err := g.Arm(t.Context(), plan.Guard{Interfaces: []string{"circ0"}}); err == nil {
		t.Error("no error")
	}
	elements()
}

// A pin that cannot be read, or is none, is in nobody's way.
func TestForeignPin(t *testing.T) {
	if way != tchook.TCX {
		t.Skip("filters are not pinned")
	}
	l := newLab(t)
	g := l.guard()
	l.must(g.Sync(t.Context(), onePlan("circ0")))
	l.must(g.objects.Counters.Pin(filepath.Join(g.pins, "egress-0-0")))
	defer func() { l.must(os.Remove(filepath.Join(g.pins, "egress-0-0"))) }()
	armed, err := g.Arm(t.Context(), onePlan("circ0"))
	if err == nil || !slices.Equal(armed, []string{"circ0"}) {
		t.Errorf("armed %q with error %v, want circ0 and an error that names the pin", armed, err)
	}
}

func TestSyncWithAnInterfaceMissing(t *testing.T) {
	l := newLab(t)
	g := l.guard()
	want := onePlan("circ0")
	want.Interfaces = append(want.Interfaces, "circ1")
	want.Flows = append(want.Flows, plan.Flow{Interface: "circ1", Mark: mark + 1, Protocol: protocolUDP, Local: tunnelLocal, Remote: tunnelRemote})
	err := g.Sync(t.Context(), want)
	if err == nil || !strings.Contains(err.Error(), "guard interface circ1: find it in the circuit namespace") {
		t.Errorf("error %v, want one that names circ1", err)
	}
	have, err := readMaps(g.objects)
	l.must(err)
	if len(have.flows) != 1 {
		t.Errorf("%d flows, want that of circ0", len(have.flows))
	}
}

// What left the plan stays guarded, without flows, until it is gone; with tcx
// also what slips out of the namespace, where the programs are all that guards
// it. Filters do not go along.
func TestInterfaceLeavesThePlan(t *testing.T) {
	l := newLab(t)
	l.link("circ1", "peer1")
	g := l.guard()
	l.must(g.Sync(t.Context(), twoLinks()))
	l.must(g.Sync(t.Context(), onePlan("circ0")))
	if n := l.own(); n != 4 {
		t.Errorf("%d programs attached while circ1 is there, want 4", n)
	}
	_, home := netnstest.New(t)
	h := l.handle(l.circuit)
	c, err := h.LinkByName("circ1")
	l.must(err)
	l.must(h.LinkSetNsFd(c, home.FD()))
	l.must(g.Sync(t.Context(), onePlan("circ0")))
	left, on := 4, 1
	if way == tchook.Clsact {
		left, on = 2, 0
	}
	if _, _, err := g.Status(t.Context()); err == nil == (way == tchook.TCX) || err != nil && !strings.Contains(err.Error(), "stays closed by its guard") {
		t.Errorf("circ1 left the namespace: status with error %v", err)
	}
	if n := l.own(); n != left {
		t.Errorf("%d programs attached after circ1 left, want %d", n, left)
	}
	l.attached(home, l.index(home, "circ1"), on)
	h = l.handle(home)
	c, err = h.LinkByName("circ1")
	l.must(err)
	l.must(h.LinkDel(c))
	l.must(g.Sync(t.Context(), onePlan("circ0")))
	if n := l.own(); n != 2 {
		t.Errorf("%d programs attached after circ1 was deleted, want 2", n)
	}
	l.attached(l.circuit, l.index(l.circuit, "circ0"), 1)
}

// attached wants a number of programs on each hook, ours or not.
func (l *lab) attached(n netns.Namespace, ifindex, want int) {
	l.t.Helper()
	tc, err := tchook.Open(tchook.Config{Way: way, Namespace: n, Pins: l.instance.BPFDir(), Owner: "nobody"})
	l.must(err)
	defer tc.Close()
	for _, h := range hooks {
		have, err := tc.Chain(h.at(ifindex))
		l.must(err)
		if len(have) != want {
			l.t.Errorf("%d programs at %s, want %d", len(have), h.label, want)
		}
	}
}

// An interface that takes a former one's index inherits nothing of it.
func TestIndexIsReused(t *testing.T) {
	l := newLab(t)
	g := l.guard()
	l.must(g.Sync(t.Context(), onePlan("circ0")))
	h := l.handle(l.circuit)
	c, err := h.LinkByName("circ0")
	l.must(err)
	l.must(h.LinkDel(c))
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.Index = "circ9", c.Attrs().Index
	l.must(h.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "peer9", PeerNamespace: netlink.NsFd(l.peer.FD())}))
	l.arm(g, "circ9")
	have, err := readMaps(g.objects)
	l.must(err)
	if n := len(have.flows) + len(have.neighbors); n != 0 {
		t.Errorf("%d things open on an interface that has the index of another", n)
	}
	l.must(g.Sync(t.Context(), onePlan("circ9")))
	requireAlive(t, g, true, true, true)
}

func TestRemove(t *testing.T) {
	l := newLab(t)
	g := l.guard()
	l.must(g.Sync(t.Context(), onePlan("circ0")))
	for range 2 {
		l.must(g.Remove(t.Context()))
	}
	l.attached(l.circuit, l.index(l.circuit, "circ0"), 0)
	if dirs, err := layouts(g.bpffs); err != nil || len(dirs) > 0 {
		t.Errorf("pins %v with error %v stay", dirs, err)
	}
	l.must(g.Sync(t.Context(), onePlan("circ0")))
	requireAlive(t, g, true, true, true)
}

// A guard of another layout goes once this one stands.
func TestOtherLayoutIsReplaced(t *testing.T) {
	l := newLab(t)
	g := l.guard()
	l.must(g.Sync(t.Context(), onePlan("circ0")))
	l.must(os.Rename(g.pins, filepath.Join(g.bpffs, "guard-v0")))
	l.must(g.Close())
	g = l.guard()
	l.must(g.Sync(t.Context(), onePlan("circ0")))
	requireAlive(t, g, true, true, true)
	l.attached(l.circuit, l.index(l.circuit, "circ0"), 1)
}

func TestRefusals(t *testing.T) {
	l := newLab(t)
	g := l.guard()
	l.must(l.circuit.Do(func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "tun0"
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer h.Close()
		return h.LinkAdd(&netlink.Tuntap{LinkAttrs: attrs, Mode: netlink.TUNTAP_MODE_TUN})
	}))
	if armed, err := g.Arm(t.Context(), plan.Guard{Interfaces: []string{"tun0"}}); err == nil || len(armed) != 0 || !strings.Contains(err.Error(), "want Ethernet") {
		t.Errorf("a TUN device: error %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := g.Sync(ctx, onePlan("circ0")); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: error %v", err)
	}
	if _, err := New(Config{Instance: "x", Log: slog.New(slog.DiscardHandler)}); err == nil {
		t.Error("no namespace: no error")
	}
}
