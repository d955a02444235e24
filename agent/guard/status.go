package guard

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/cilium/ebpf"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/circuitseal/circuitseal/agent/netdev"
	"github.com/circuitseal/circuitseal/agent/tchook"
	"github.com/circuitseal/circuitseal/proto/desired"
)

// The layers, as desired.GuardStatus names them.
const (
	LayerNamespace = "namespace"
	LayerEBPF      = "ebpf"
	LayerNFTables  = "nftables"
)

// Status reads from the kernel, for each interface of the last Arm or Sync and
// each layer, whether it stands; for a process that called neither, for each
// interface that has programs of ours. A layer that cannot be examined counts as
// not alive, and the error says why.
//
//   - namespace: the interface is there, nothing forwards, and nothing is up
//     but circuit interfaces and loopback;
//   - ebpf: both programs are first on their hooks, attached to stay, and no XDP
//     program runs before them;
//   - nftables: every chain has its hook, policy and rules.
//
// Counters are guard_DIRECTION_REASON for each interface, from the eBPF layer,
// and guard_nftables_FAMILY_CHAIN_dropped. They survive the agent. Those of VLAN
// devices, of which there may be hundreds, are left out while they are 0, and so is
// what came from interfaces without an entry, which has no name.
func (g *Guard) Status(ctx context.Context) ([]desired.GuardStatus, []desired.Counter, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return nil, nil, err
	}
	var errs []error
	note := func(err error) bool {
		errs = append(errs, err)
		return err == nil
	}
	there, err := g.list()
	if !note(err) {
		return nil, nil, err
	}
	for _, ifindex := range g.strayed {
		note(fmt.Errorf("interface with index %d has left the plan or the circuit namespace and stays closed by its guard: "+
			"name it in the node's document again, or delete it", ifindex))
	}
	list, err := g.own()
	note(err)
	own := list.byIndex()

	names := slices.Clone(g.interfaces)
	standing := make(map[string]bool)
	for i := range there.All() {
		ok, some := g.programsStand(i, own[i.Index])
		standing[i.Name] = ok
		if g.interfaces == nil && some {
			names = append(names, i.Name)
		}
	}
	slices.Sort(names)

	var enclosed bool
	note(g.namespace.Do(func() (err error) {
		enclosed, err = namespaceStands(there, names)
		return err
	}))
	intact, counters, err := g.nftStatus()
	note(err)

	var out []desired.GuardStatus
	for _, name := range names {
		out = append(out,
			desired.GuardStatus{Interface: name, Layer: LayerNamespace, Alive: there.Has(name) && enclosed},
			desired.GuardStatus{Interface: name, Layer: LayerEBPF, Alive: standing[name]},
			desired.GuardStatus{Interface: name, Layer: LayerNFTables, Alive: intact},
		)
	}
	counts, err := g.counters(names, there)
	note(err)
	return out, append(counts, counters...), errors.Join(errs...)
}

func (g *Guard) own() (attachments, error) {
	tc, err := g.openHooks()
	if err != nil {
		return nil, err
	}
	defer tc.Close()
	return tc.Own()
}

// programsStand reports whether the eBPF layer is alive on an interface of the
// namespace, and whether any of our programs is on it.
func (g *Guard) programsStand(i netdev.Interface, own attachments) (alive, some bool) {
	alive = !i.XDP
	for _, h := range hooks {
		mine := own.on(h, i.Index)
		some = some || len(mine) > 0
		first := slices.IndexFunc(mine, func(a tchook.Attachment) bool { return a.First })
		if first < 0 {
			alive = false
			continue
		}
		if g.objects == nil {
			continue
		}
		alive = alive && mine[first].Program == g.ids[h.direction]
	}
	return alive, some
}

// forwarding is off in a circuit namespace; the first two also for "all".
var forwarding = []netdev.Setting{
	{Family: netdev.IPv4, Name: "forwarding"},
	{Family: netdev.IPv6, Name: "forwarding"},
	{Family: netdev.IPv6, Name: "force_forwarding"},
}

// namespaceStands reports whether the circuit namespace, in which the caller is, encloses the
// circuit interfaces, whose names are sorted. Tunnel devices that some kernels make in every namespace
// (sit0, tunl0) are down and reach nothing.
func namespaceStands(there netdev.View, circuit []string) (bool, error) {
	for i := range there.All() {
		if _, found := slices.BinarySearch(circuit, i.Name); !found && i.Name != "lo" && i.Flags&unix.IFF_UP != 0 {
			return false, nil
		}
	}
	for _, name := range circuit {
		for _, s := range forwarding {
			// A kernel that does not tell has not that setting.
			if v, ok := there.Get(name, s.Family, s.Name); ok && v != s.Value {
				return false, nil
			}
		}
	}
	for _, s := range forwarding[:2] {
		if v, ok, err := netdev.Of("all", s); err != nil || ok && v != s.Value {
			return false, err
		}
	}
	return true, nil
}

// nftStatus reports whether both tables are whole, and what they dropped.
func (g *Guard) nftStatus() (bool, []desired.Counter, error) {
	conn, err := g.nftConn()
	if err != nil {
		return false, nil, err
	}
	intact := true
	var counters []desired.Counter
	for _, want := range renderNFT(policy{}) {
		have, err := g.readNFT(conn, want.family, false)
		if err != nil {
			return false, counters, err
		}
		// Neither has elements here, so this compares the rest.
		intact = intact && diffNFT(want, have).empty()
		for _, c := range want.chains {
			rules := have.rules[c.name]
			if len(rules) == 0 || len(rules[len(rules)-1].Exprs) == 0 {
				continue
			}
			if n, ok := rules[len(rules)-1].Exprs[0].(*expr.Counter); ok {
				counters = append(counters, desired.Counter{
					Name:    fmt.Sprintf("guard_nftables_%s_%s_dropped", familyName(want.family), c.name),
					Packets: n.Packets,
				})
			}
		}
	}
	return intact, counters, nil
}

// counters reads the eBPF layer's counts from the pinned map, so that they are
// there for a process that has loaded nothing.
func (g *Guard) counters(names []string, there netdev.View) ([]desired.Counter, error) {
	path := filepath.Join(g.pins, programMapCounters)
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	m, err := ebpf.LoadPinnedMap(path, &ebpf.LoadPinOptions{ReadOnly: true})
	if err != nil {
		return nil, fmt.Errorf("open guard counters: %w", err)
	}
	defer func() { _ = m.Close() }()
	var out []desired.Counter
	for _, name := range append([]string{""}, names...) {
		var ifindex uint32
		if name != "" {
			i, ok := there.Named(name)
			if !ok {
				continue
			}
			ifindex = uint32(i.Index)
		}
		var values []programCounts
		if err := m.Lookup(ifindex, &values); errors.Is(err, ebpf.ErrKeyNotExist) {
			continue
		} else if err != nil {
			return out, fmt.Errorf("read guard counters of interface %d: %w", ifindex, err)
		}
		_, stacked := g.vlans[name]
		out = append(out, sum(name, values, name != "" && !stacked)...)
	}
	return out, nil
}

// sum adds up the CPUs. What is 0 is left out unless zeros are asked for.
func sum(name string, values []programCounts, zeros bool) []desired.Counter {
	var out []desired.Counter
	for _, d := range []Direction{Out, In} {
		for r := range Reason(reasons) {
			var n uint64
			for _, v := range values {
				n += v.Packets[int(d)*len(v.Packets)/2+int(r)]
			}
			if zeros || n > 0 {
				out = append(out, desired.Counter{Name: "guard_" + d.String() + "_" + r.String(), Interface: name, Packets: n})
			}
		}
	}
	return out
}

// dropCounters forgets the counts of interfaces that are gone.
func (g *Guard) dropCounters(there netdev.View) error {
	indexes := make(map[uint32]bool, there.Len())
	for i := range there.All() {
		indexes[uint32(i.Index)] = true
	}
	var gone []uint32
	var ifindex uint32
	var values []programCounts
	it := g.objects.Counters.Iterate()
	for it.Next(&ifindex, &values) {
		if ifindex != 0 && !indexes[ifindex] {
			gone = append(gone, ifindex)
		}
	}
	errs := []error{it.Err()}
	for _, i := range gone {
		if err := g.objects.Counters.Delete(i); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			errs = append(errs, fmt.Errorf("drop counters of interface %s: %w", strconv.Itoa(int(i)), err))
		}
	}
	return errors.Join(errs...)
}
