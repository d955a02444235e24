package link

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/circuitseal/circuitseal/agent/drift"
	"github.com/circuitseal/circuitseal/agent/instance"
	"github.com/circuitseal/circuitseal/agent/netdev"
	"github.com/circuitseal/circuitseal/agent/netns"
	"github.com/circuitseal/circuitseal/agent/netns/netnstest"
)

// Everything that the driver keeps is repaired and noted by what it is; with
// nothing to repair nothing is noted.
func TestRepairsAreNoted(t *testing.T) {
	l := newLab(t)
	ledger := drift.New()
	l.driver.config.Drift = ledger
	l.driver.config.Name = netnstest.Name()
	t.Cleanup(func() {
		if err := netns.Remove(l.driver.config.Name); err != nil {
			t.Error(err)
		}
	})
	l.wire(t, "circ0")
	ifaces, tables := wanted()
	pass := func() {
		t.Helper()
		ledger.Begin(true)
		defer ledger.End()
		if _, err := l.driver.Claim(t.Context(), ifaces); err != nil {
			t.Fatal(err)
		}
		if err := l.driver.Sync(t.Context(), ifaces, tables); err != nil {
			t.Fatal(err)
		}
	}
	counts := func() map[string]uint64 {
		out := map[string]uint64{}
		for _, d := range ledger.Drift() {
			out[d.What] = d.Count
		}
		return out
	}
	pass()
	before := counts()
	pass()
	if after := counts(); len(after) != len(before) || after["link/route"] != before["link/route"] {
		t.Errorf("a pass without anything to do was counted: %v, then %v", before, after)
	}
	circ0, err := l.c.LinkByName("circ0")
	if err != nil {
		t.Fatal(err)
	}
	bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}}
	for _, tt := range []struct {
		name string
		what drift.Kind
		do   func() error
	}{
		{"route", drift.Route, func() error {
			routes, err := l.c.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Table: int(tables[0].Number)}, netlink.RT_FILTER_TABLE)
			if err != nil || len(routes) == 0 {
				return err
			}
			return l.c.RouteDel(&routes[0])
		}},
		{"rule", drift.Rule, func() error {
			return l.c.RuleDel(ruleTo(rule{priority: rulePriority, mark: tables[0].Mark, mask: 1<<32 - 1, table: tables[0].Number}))
		}},
		{"last rule", drift.Rule, func() error {
			return l.c.RuleDel(ruleTo(rule{priority: lastRulePriority, mark: instance.ControlMark, mask: 1<<32 - 1, table: instance.Table(0)}))
		}},
		{"address", drift.Address, func() error { return l.c.AddrDel(circ0, &netlink.Addr{IPNet: netdev.NetOf(ifaces[0].Addresses[0])}) }},
		{"down", drift.Interface, func() error { return l.c.LinkSetDown(circ0) }},
		{"master", drift.Interface, func() error {
			if err := l.c.LinkAdd(bridge); err != nil {
				return err
			}
			return l.c.LinkSetMaster(circ0, bridge)
		}},
		{"elsewhere", drift.Interface, func() error { return l.c.LinkSetNsFd(circ0, l.main.FD()) }},
		{"sysctl", drift.Sysctl, func() error {
			return l.circuit.Do(func() error {
				return os.WriteFile("/proc/sys/net/ipv4/conf/circ0/forwarding", []byte("1"), 0)
			})
		}},
		{"name", drift.Namespace, func() error { return netns.Remove(l.driver.config.Name) }},
		{"another's namespace by the name", drift.Namespace, func() error {
			other, _, err := netns.Ensure(l.driver.config.Name)
			if err != nil {
				return err
			}
			return other.Close()
		}},
	} {
		if tt.name == "another's namespace by the name" {
			if err := netns.Remove(l.driver.config.Name); err != nil {
				t.Fatal(err)
			}
		}
		before := counts()[string(tt.what)]
		if err := tt.do(); err != nil {
			t.Fatalf("%s: %v", tt.name, err)
		}
		pass()
		if after := counts()[string(tt.what)]; after <= before {
			t.Errorf("%s: %s was counted %d times, then %d", tt.name, tt.what, before, after)
		}
		l.wantPlanned(t, ifaces, tables)
	}
	there, err := netns.Open(l.driver.config.Name)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = there.Close() }()
	if same, err := there.Same(l.circuit); err != nil || !same {
		t.Errorf("the name leads to another namespace: %v", err)
	}
}

// A process that changes the circuit namespace is named while it runs, and its
// route's protocol with it; the driver itself is nobody.
func TestWitness(t *testing.T) {
	l := newLab(t)
	ledger := drift.New()
	l.driver.config.Drift = ledger
	ctx, cancel := context.WithCancel(t.Context())
	changes, err := l.driver.Watch(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		cancel()
		for range changes {
		}
	}()
	l.wire(t, "circ0")
	ifaces, tables := wanted()
	repair := func() {
		t.Helper()
		ledger.Begin(true)
		defer ledger.End()
		if _, err := l.driver.Claim(ctx, ifaces); err != nil {
			t.Fatal(err)
		}
		if err := l.driver.Sync(ctx, ifaces, tables); err != nil {
			t.Fatal(err)
		}
	}
	repair()
	r := tables[0].Routes[0]
	// A batch that goes on is a process that is still there to be named.
	ip := exec.CommandContext(ctx, "ip", "-batch", "-")
	in, err := ip.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := l.circuit.Do(ip.Start); err != nil {
		t.Fatal(err)
	}
	line := "route replace " + r.Destination.String() + " via " + r.NextHop.String() + " table " + strconv.FormatUint(uint64(tables[0].Number), 10) + " proto bird\n"
	for deadline := time.Now().Add(time.Minute); ; {
		if _, err := in.Write([]byte(line)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Millisecond)
		repair()
		says := `seen at it: "ip" (pid ` + strconv.Itoa(ip.Process.Pid) + `), which puts a route of protocol bird in its place`
		if slices.ContainsFunc(ledger.Conflicts(), func(s string) bool { return strings.Contains(s, says) }) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("conflicts %q, want one that says %q", ledger.Conflicts(), says)
		}
	}
	if err := in.Close(); err != nil {
		t.Error(err)
	}
	if err := ip.Wait(); err != nil {
		t.Error(err)
	}
	if me := filepath.Base(os.Args[0]); strings.Contains(strings.Join(ledger.Conflicts(), "\n"), me[:min(len(me), 15)]) {
		t.Errorf("the driver saw itself: %q", ledger.Conflicts())
	}
}

// In the main namespace only routes of ours tell of anybody.
func TestWitnessInMain(t *testing.T) {
	route := []byte{28, 0, 0, 0, 25, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 10, 0, 0, 0, 0, instance.RouteProtocol, 0, 0, 0, 0, 0, 0}
	other := slices.Clone(route)
	other[21] = 12
	for _, tt := range []struct {
		name string
		b    []byte
		seen bool
	}{{"our route", route, true}, {"bird's route", other, false}, {"cut", route[:18], false}} {
		d := New(Config{Drift: drift.New()})
		for range 9 {
			d.config.Drift.Begin(true)
			d.config.Drift.Note(drift.TunnelRoute, drift.Text("add route"))
			d.config.Drift.End()
		}
		d.witnessMain(tt.b)
		if c := d.config.Drift.Conflicts(); strings.Contains(c[0], "(pid 1)") != tt.seen {
			t.Errorf("%s: %q", tt.name, c)
		}
	}
}

func FuzzWitness(f *testing.F) {
	f.Add([]byte{28, 0, 0, 0, 24, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 2, 0, 0, 0, 0, 12, 0, 0, 0, 0, 0, 0})
	d := New(Config{Drift: drift.New()})
	f.Fuzz(func(_ *testing.T, b []byte) {
		d.witness(b)
		d.witnessMain(b)
	})
}
