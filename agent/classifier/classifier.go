// Package classifier is the fast path between LANs and tunnels: eBPF programs
// on the interfaces of the main namespace and the maps that steer them. It
// knows tenants, prefixes, groups and the interfaces named in a plan, checks
// every source and destination against them, and drops and counts whatever
// they do not name. It refuses to know circuits, keys and policy, and to
// redirect to any interface that is neither a LAN of the plan nor a device of its
// own instance, a tunnel's or a LAN's slow path's. What it sets up is pinned and works on without
// the process.
package classifier

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"

	"github.com/circuitseal/circuitseal/agent/drift"
	"github.com/circuitseal/circuitseal/agent/instance"
	"github.com/circuitseal/circuitseal/agent/netns"
	"github.com/circuitseal/circuitseal/agent/plan"
	"github.com/circuitseal/circuitseal/agent/tchook"
	"github.com/circuitseal/circuitseal/proto/desired"
)

// layout names the directory of pins. It changes whenever a map's key, value
// or meaning changes, so that an agent never adopts what it would misread.
const (
	layoutPrefix = "classifier-v"
	layout       = layoutPrefix + "3"
)

// Config is what New needs.
type Config struct {
	Instance instance.Instance
	// Hooks is how the programs are attached.
	Hooks tchook.Way
	// Drift takes note of what was changed; nil is nobody.
	Drift *drift.Ledger
	Log   *slog.Logger
}

// Classifier drives the programs and maps of one instance. Its methods may be
// called at the same time. SetAlive waits for none of them, but for the moment
// in which Sync reads and writes the groups.
type Classifier struct {
	config    Config
	directory string
	markBase  uint32
	log       *slog.Logger

	// pass is held by whatever takes its time; mu, taken after it, by whatever
	// reads groups in order to write them, and by close, so that objects stay
	// while either is held.
	pass    sync.Mutex
	mu      sync.Mutex
	home    netns.Namespace
	netlink *netlink.Handle
	hooks   *tchook.Hooks
	objects bpfObjects
	removed bool
	// swept tells that nothing is left of another way of attaching.
	swept bool
}

// New loads the programs and adopts the maps that an earlier process of the
// same instance pinned, or makes them. It mounts the instance's bpffs if that
// is not mounted. Interfaces are those of the calling thread's namespace. New
// attaches nothing: forwarding stays as it is until Sync.
func New(c Config) (*Classifier, error) {
	d := &Classifier{
		config:    c,
		directory: pinDirectory(c.Instance),
		markBase:  c.Instance.InnerMark(),
		log:       c.Log,
	}
	if err := d.open(); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

func (c *Classifier) open() (err error) {
	if err := c.makeDirectory(); err != nil {
		return err
	}
	if c.home, err = netns.Current(); err != nil {
		return err
	}
	if c.netlink, err = c.home.Netlink(); err != nil {
		return err
	}
	if c.hooks, err = tchook.Open(hooksConfig(c.config, c.home)); err != nil {
		return err
	}
	return c.load()
}

func (c *Classifier) load() error {
	spec, err := loadBpf()
	if err != nil {
		return fmt.Errorf("read the classifier's programs: %w", err)
	}
	address := desired.ProbePrefix.Addr().As16()
	if err := spec.Variables[bpfVarProbePrefix].Set([6]byte(address[:6])); err != nil {
		return fmt.Errorf("set the probe prefix: %w", err)
	}
	if err := spec.Variables[bpfVarMarkBase].Set(c.markBase); err != nil {
		return fmt.Errorf("set the mark: %w", err)
	}
	err = spec.LoadAndAssign(&c.objects, &ebpf.CollectionOptions{
		Maps: ebpf.MapOptions{PinPath: c.directory},
	})
	if errors.Is(err, ebpf.ErrMapIncompatible) {
		return fmt.Errorf("adopt maps in %s: another version of the agent made them with the same layout name: %w", c.directory, err)
	}
	if err != nil {
		return fmt.Errorf("load the classifier's programs: %w", err)
	}
	return nil
}

// maxGroup is the greatest number of a group: it is the lower half of a mark.
const maxGroup = 1<<16 - 1

// Sync makes the kernel have exactly what want says. It returns what could not
// be done, each error naming its interface, prefix or group; all else is done
// nevertheless. Members whose device is missing or not yet checked by its
// programs are left out until the next Sync. Which members of a group are
// alive is kept, by member number; new members begin as not alive unless the
// group uses all. On LANs the kernel's own ARP and neighbour discovery are held
// to what a LAN host may ask; see sysctl.go.
//
// checked are the tunnel devices whose packets the programs judge, both ways:
// only these may get packets from outside. It is nil when that could not be
// found out, and everything is as it was then.
func (c *Classifier) Sync(ctx context.Context, want plan.Classifier) (checked []string, err error) {
	c.pass.Lock()
	defer c.pass.Unlock()
	if err := c.usable(); err != nil {
		return nil, err
	}
	// The kernel's settings are those of the thread's namespace.
	err = c.home.Do(func() (err error) {
		checked, err = c.sync(ctx, want)
		return err
	})
	return checked, err
}

// Close gives the process's handles up. Programs, maps and links stay in the
// kernel and go on forwarding.
func (c *Classifier) Close() error {
	c.pass.Lock()
	defer c.pass.Unlock()
	return c.close(false)
}

func (c *Classifier) close(removed bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.removed = c.removed || removed
	var errs []error
	if c.netlink != nil {
		c.netlink.Close()
		c.netlink = nil
	}
	if c.hooks != nil {
		c.hooks.Close()
		c.hooks = nil
	}
	if c.objects.CsLanIn != nil {
		errs = append(errs, c.objects.Close())
		c.objects = bpfObjects{}
	}
	errs = append(errs, c.home.Close())
	c.home = netns.Namespace{}
	return errors.Join(errs...)
}

// Remove detaches every program and deletes every pin of the instance, then
// closes c. Forwarding between LANs and tunnels ends.
func (c *Classifier) Remove(ctx context.Context) error {
	c.pass.Lock()
	defer c.pass.Unlock()
	if err := c.usable(); err != nil {
		return err
	}
	err := c.remove(ctx)
	return errors.Join(err, c.close(err == nil))
}

// Detach takes the programs of an instance off the interfaces of the calling
// thread's namespace, for whom New fails. Pinned maps stay.
func Detach(c Config) error {
	home, err := netns.Current()
	if err != nil {
		return err
	}
	defer func() { _ = home.Close() }()
	hooks, err := tchook.Open(hooksConfig(c, home))
	if err != nil {
		return err
	}
	defer hooks.Close()
	return hooks.DetachAll()
}

func hooksConfig(c Config, home netns.Namespace) tchook.Config {
	return tchook.Config{Way: c.Hooks, Namespace: home, Pins: pinDirectory(c.Instance), Owner: c.Instance.Filters("classifier"), HurryFile: c.Instance.HurryFile()}
}

func pinDirectory(i instance.Instance) string { return filepath.Join(i.BPFDir(), layout) }

// usable is called with pass or mu held.
func (c *Classifier) usable() error {
	switch {
	case c.removed:
		return errors.New("use the classifier: it has been removed")
	case c.objects.CsLanIn == nil:
		return errors.New("use the classifier: it has been closed")
	}
	return nil
}
