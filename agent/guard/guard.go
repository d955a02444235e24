// Package guard keeps circuit interfaces closed to all but the outer packets
// of configured tunnels, and ARP and ND with the link's neighbour. It renders one
// plan.Guard into two layers that fail apart from each other: eBPF programs at
// the head of both hooks of an interface, which outlive the agent, and nftables
// in the circuit namespace, bound to interface names so that they
// outlive interfaces. Out, a packet needs the mark of an encryptor and the
// exact tuple; in, the tuple. Nothing is ever redirected.
//
// It knows the circuit namespace, and refuses to know what a tunnel is: it
// makes no interfaces, addresses or routes and never opens anything by itself.
package guard

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"

	"github.com/circuitseal/circuitseal/agent/bpffs"
	"github.com/circuitseal/circuitseal/agent/drift"
	"github.com/circuitseal/circuitseal/agent/instance"
	"github.com/circuitseal/circuitseal/agent/netdev"
	"github.com/circuitseal/circuitseal/agent/netns"
	"github.com/circuitseal/circuitseal/agent/plan"
	"github.com/circuitseal/circuitseal/agent/tchook"
)

// Config is what New needs.
type Config struct {
	// Instance names the bpffs and the nftables tables.
	Instance instance.Instance
	// Namespace is the circuit namespace. It stays the caller's, who closes it
	// after the Guard.
	Namespace netns.Namespace
	// Hooks is how the programs are attached.
	Hooks tchook.Way
	// Drift takes note of what was changed; nil is nobody.
	Drift *drift.Ledger
	Log   *slog.Logger
}

// Guard drives both layers of one instance. Its methods may be called from
// several goroutines; each holds the others up while it talks to the kernel.
type Guard struct {
	namespace netns.Namespace
	drift     *drift.Ledger
	log       *slog.Logger
	way       tchook.Way
	bpffs     string
	pins      string
	filters   string
	hurryFile string
	table     string

	mu sync.Mutex
	// objects is nil until Arm or Sync.
	objects *programObjects
	// ids are those of its programs, which the kernel tells slowly.
	ids map[tchook.Direction]ebpf.ProgramID
	// interfaces are those of the last Arm or Sync.
	interfaces []string
	// vlans are the VLAN devices among them.
	vlans map[string]plan.VLAN
	// strayed are interfaces that have left the namespace with their programs.
	strayed []int
	// swept tells that nothing is left of another way of attaching.
	swept   bool
	asker   asker
	settled settled
}

// New makes a Guard and touches nothing.
func New(cfg Config) (*Guard, error) {
	switch {
	case cfg.Instance == "":
		return nil, errors.New("make guard: no instance")
	case cfg.Namespace.FD() < 0:
		return nil, errors.New("make guard: no circuit namespace")
	case cfg.Hooks == 0:
		return nil, errors.New("make guard: no way to attach programs")
	case cfg.Log == nil:
		return nil, errors.New("make guard: no logger")
	}
	return &Guard{
		namespace: cfg.Namespace,
		drift:     cfg.Drift,
		log:       cfg.Log,
		way:       cfg.Hooks,
		bpffs:     cfg.Instance.BPFDir(),
		pins:      filepath.Join(cfg.Instance.BPFDir(), layout),
		filters:   cfg.Instance.Filters("guard"),
		hurryFile: cfg.Instance.HurryFile(),
		table:     cfg.Instance.NFTable(),
	}, nil
}

// Close releases this process's handles. What is in the kernel stays and goes
// on guarding.
func (g *Guard) Close() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.asker.close()
	return g.unload()
}

func (g *Guard) unload() error {
	if g.objects == nil {
		return nil
	}
	err := g.objects.Close()
	g.objects = nil
	if err != nil {
		return fmt.Errorf("close guard programs: %w", err)
	}
	return nil
}

// Arm makes sure that both layers are there on want's interfaces, which are in
// the circuit namespace, up or down, and closes what is open and not in want.
// It opens nothing; what is open and in want stays so. It mounts the bpffs when
// there is none. An interface that cannot be guarded does not stop the others:
// armed are those around which both layers are, nil when it could not be made
// sure that what is not in want is closed.
func (g *Guard) Arm(ctx context.Context, want plan.Guard) (armed []string, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	index, closed, err := g.bring(ctx, want, false)
	if !closed {
		return nil, err
	}
	armed = slices.AppendSeq([]string{}, maps.Keys(index))
	slices.Sort(armed)
	return armed, err
}

// Sync brings both layers to want, whole: it does what Arm does and then opens
// what want has. A repeat changes nothing. Additions come
// before removals, so that a tunnel that stays is never blocked, and no moment
// is open wider than what was there and want together. A frame passes only
// when both layers let it, so what is refused by one, or belongs to an
// interface that cannot be armed, stays closed. Interfaces that left want stay
// guarded, without flows, as long as they are in the circuit namespace.
func (g *Guard) Sync(ctx context.Context, want plan.Guard) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	index, closed, err := g.bring(ctx, want, true)
	if !closed || len(index) != len(g.interfaces) {
		return err
	}
	return errors.Join(err, g.cleanUp())
}

// bring arms want's interfaces, and brings both layers to want or, unless open
// is set, to what they have in common with it. index has the interfaces that are
// armed; closed tells that nothing is open that is not in want.
func (g *Guard) bring(ctx context.Context, want plan.Guard, open bool) (index map[string]int, closed bool, err error) {
	p, err := compile(want)
	errs := []error{err}
	g.interfaces, g.vlans = p.interfaces, p.vlans
	index, err = g.arm(ctx, p.interfaces)
	errs = append(errs, err)
	if err := ctx.Err(); err != nil {
		return nil, false, errors.Join(append(errs, err)...)
	}
	if index == nil {
		// The other layer closes without this one.
		return nil, false, errors.Join(append(errs, g.syncNFT(p, false))...)
	}
	if len(index) != len(p.interfaces) {
		// Without what depends on those that have no programs. All that is wrong
		// with the rest has been said.
		p, _ = compile(want.Only(slices.Collect(maps.Keys(index))))
	}
	errNFT := g.syncNFT(p, open)
	errMaps := g.syncMaps(renderMaps(p, index), open && errNFT == nil)
	return index, errNFT == nil && errMaps == nil, errors.Join(append(errs, errNFT, errMaps)...)
}

// syncMaps only closes unless open is set.
func (g *Guard) syncMaps(want mapState, open bool) error {
	have, err := readMaps(g.objects)
	if err != nil {
		return err
	}
	d := diffMaps(want, have)
	if !open {
		d = d.closing()
	}
	if d.empty() {
		return nil
	}
	g.log.Info("change guard maps", "set_flows", len(d.setFlows), "add_neighbors", len(d.addNeighbors),
		"drop_flows", len(d.dropFlows), "drop_neighbors", len(d.dropNeighbors))
	if err := d.apply(g.objects); err != nil {
		return err
	}
	for _, line := range d.lines() {
		g.drift.Note(drift.GuardMap, line)
	}
	return nil
}

// arm brings the programs to the interfaces and returns the index of each one
// that has them; nil when there are no programs.
func (g *Guard) arm(ctx context.Context, interfaces []string) (map[string]int, error) {
	if err := bpffs.Ensure(g.bpffs); err != nil {
		return nil, err
	}
	if !g.loaded() {
		if err := g.load(); err != nil {
			return nil, err
		}
	}
	handle, err := g.namespace.Netlink()
	if err != nil {
		return nil, fmt.Errorf("look into the circuit namespace: %w", err)
	}
	defer handle.Close()
	before := g.objects
	index, err := g.armEach(ctx, handle, interfaces)
	if g.objects != before {
		// One interface needed new copies; the others get them too.
		index, err = g.armEach(ctx, handle, interfaces)
	}
	return index, err
}

func (g *Guard) armEach(ctx context.Context, handle *netlink.Handle, interfaces []string) (index map[string]int, err error) {
	index = make(map[string]int, len(interfaces))
	tc, err := g.openHooks()
	if err != nil {
		return nil, err
	}
	defer tc.Close()
	// A pin that cannot be read is in nobody's way: the interface that it guards
	// gets another.
	own, err := tc.Own()
	errs := []error{err}
	there, err := g.list()
	if err != nil {
		return nil, errors.Join(append(errs, err)...)
	}
	mine := attachments(own).byIndex()
	done := tc.Many(len(hooks)*len(interfaces) - len(own))
	defer func() { err = errors.Join(err, done()) }()
	for _, name := range interfaces {
		if err := ctx.Err(); err != nil {
			return index, errors.Join(append(errs, err)...)
		}
		i, err := ethernetIndex(handle, there, name)
		if err == nil {
			err = g.secure(tc, i, mine[i])
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("guard interface %s: %w", name, err))
			continue
		}
		index[name] = i
	}
	return index, errors.Join(errs...)
}

// ethernetIndex finds an interface by its name, not by an alternative one,
// which nftables would not know. there are all interfaces by their own names;
// only who is not among them is asked for alone.
func ethernetIndex(handle *netlink.Handle, there netdev.View, name string) (int, error) {
	if i, ok := there.Named(name); ok && i.Ethernet {
		return i.Index, nil
	}
	l, err := handle.LinkByName(name)
	if err != nil {
		return 0, fmt.Errorf("find it in the circuit namespace: %w", err)
	}
	a := l.Attrs()
	if a.Name != name {
		return 0, fmt.Errorf("it is another name of %s, want the interface's own", a.Name)
	}
	if a.EncapType != "ether" {
		return 0, fmt.Errorf("it is of type %s, want Ethernet", a.EncapType)
	}
	return a.Index, nil
}

// cleanUp takes away what guards nothing any more.
func (g *Guard) cleanUp() error {
	there, err := g.list()
	if err != nil {
		return err
	}
	return errors.Join(g.sweep(), g.dropCounters(there))
}

// list has all interfaces of the circuit namespace.
func (g *Guard) list() (v netdev.View, err error) {
	err = g.namespace.Do(func() error {
		v, err = netdev.Read()
		return err
	})
	if err != nil {
		return v, fmt.Errorf("look into the circuit namespace: %w", err)
	}
	return v, nil
}

// Remove takes both layers away, of every layout, and with them the protection
// of the interfaces: for uninstalling, and for a lab that goes. The bpffs stays
// mounted.
func (g *Guard) Remove(ctx context.Context) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	g.asker.close()
	errs := []error{g.unload(), g.removeNFT()}
	g.interfaces, g.vlans = nil, nil
	tc, err := g.openHooks()
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	defer tc.Close()
	errs = append(errs, tc.DetachAll())
	mounted, err := bpffs.Mounted(g.bpffs)
	errs = append(errs, err)
	if mounted {
		dirs, err := layouts(g.bpffs)
		errs = append(errs, err)
		for _, dir := range dirs {
			errs = append(errs, removeLayout(tc, dir))
		}
	}
	return errors.Join(errs...)
}
