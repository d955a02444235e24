// Package wireguard keeps the WireGuard devices of an instance: in the main
// namespace, where inner packets are, with their UDP sockets in the circuit
// namespace. It configures the kernel's devices and those of a
// process of its own, which outlives the agent, by the same code, keeps this
// node's private keys, and says what the devices negotiated and counted. It
// does not know which packets enter a tunnel, nor whether it is of use: that
// is for the classifier and for liveness.
package wireguard

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl"

	"github.com/circuitseal/circuitseal/agent/drift"
	"github.com/circuitseal/circuitseal/agent/instance"
	"github.com/circuitseal/circuitseal/agent/netns"
	"github.com/circuitseal/circuitseal/agent/plan"
)

// Config is what a Driver needs.
type Config struct {
	// Main gets the devices, Circuit has their sockets. The driver does not
	// close them. Circuit must be the one that Instance names, since the
	// WireGuard process opens it by name.
	Main, Circuit netns.Namespace
	Instance      instance.Instance
	// Keys has a key for each tunnel before Sync names it.
	Keys *Keys
	// Backend carries new devices; those that are there stay as they are.
	Backend Backend
	// Command starts the WireGuard process; nil is as in Spawn. With External it
	// is never started here: a service manager does, and starts it again.
	Command  []string
	External bool
	// Drift takes note of what was changed; nil is nobody.
	Drift *drift.Ledger
	Log   *slog.Logger
}

// Driver makes the devices of an instance what the plan says. Its methods may
// be called by several goroutines.
type Driver struct {
	config Config

	mu      sync.Mutex
	tunnels map[string]plan.Tunnel // by device, of the last Sync
	young   map[string]*youth
	// born wakes Run when a tunnel is young.
	born   chan struct{}
	synced bool
	// leftovers are what Sweep has to do.
	leftovers []step
	// backend is Config.Backend, once it is known what the kernel can do.
	backend Backend
	// shared is what was seen of pre-shared keys, by device.
	shared map[string]*sharing
	// revived is when a device's peer may be made anew next; see sessionless.
	revived map[string]time.Time
	// stuck are devices with a call that has not come back.
	stuck map[string]<-chan struct{}
}

// New makes a Driver; it touches nothing.
func New(config Config) *Driver {
	return &Driver{
		config:  config,
		backend: config.Backend,
		tunnels: map[string]plan.Tunnel{},
		young:   map[string]*youth{},
		born:    make(chan struct{}, 1),
		shared:  map[string]*sharing{},
		revived: map[string]time.Time{},
		stuck:   map[string]<-chan struct{}{},
	}
}

// Sync makes these tunnels. It writes only differences, so that a repeat
// touches nothing and a running session survives it; it goes on after an error,
// and joins the errors, each with its tunnel. Before it makes any device it
// calls closing, once, with all that it is going to make, since nobody judges
// their packets yet; an error of closing stops these. Devices of the instance
// that are not wanted stay for Sweep, unless they hold a port that is wanted.
//
// Of a tunnel whose key Keys does not have, a device that is there gets
// everything but the key; that is an error all the same.
func (d *Driver) Sync(ctx context.Context, tunnels []plan.Tunnel, closing func(devices []string) error) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.leftovers = nil
	s, err := d.open(ctx)
	if err != nil {
		return err
	}
	defer s.close()
	var errs []error
	wanted := make([]want, 0, len(tunnels))
	byDevice := make(map[string]plan.Tunnel, len(tunnels))
	for _, t := range tunnels {
		byDevice[t.Device] = t
		if !deviceOf(d.config.Instance, t.Device) {
			errs = append(errs, fmt.Errorf("tunnel %s: device %.32q is not one of instance %s", t.ID, t.Device, d.config.Instance))
			continue
		}
		pair, err := d.config.Keys.pair(t.ID)
		if err != nil {
			errs = append(errs, fmt.Errorf("key of tunnel %s: %w", t.ID, err))
		}
		wanted = append(wanted, want{Tunnel: t, public: pair.public})
	}
	have, err := d.read(s)
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	// A device that cannot be read is not changed; it goes when it is not wanted.
	for _, name := range slices.Sorted(maps.Keys(have.problems)) {
		t, ok := byDevice[name]
		if !ok {
			continue
		}
		errs = append(errs, fmt.Errorf("tunnel %s: %w", t.ID, have.problems[name]))
		delete(have.devices, name)
		wanted = slices.DeleteFunc(wanted, func(w want) bool { return w.Device == name })
	}
	now := time.Now()
	for i, w := range wanted {
		wanted[i].shared = d.pick(w.Tunnel, now)
	}
	steps, leftovers := diff(wanted, have.devices)
	if devices := made(steps); len(devices) > 0 {
		if err := closing(devices); err != nil {
			errs = append(errs, fmt.Errorf("make devices %s: %w", strings.Join(devices, ", "), err))
			steps = slices.DeleteFunc(steps, func(x step) bool { return slices.Contains(devices, x.device) })
		}
	}
	errs = append(errs, d.apply(ctx, s, wanted, steps))
	d.adopt(byDevice, have)
	d.leftovers = leftovers
	return errors.Join(errs...)
}

// Sweep removes the devices of the instance that the last Sync found and did
// not want. Without any it touches nothing.
func (d *Driver) Sweep(ctx context.Context) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.leftovers) == 0 {
		return nil
	}
	s, err := d.open(ctx)
	if err != nil {
		return err
	}
	defer s.close()
	err = d.apply(ctx, s, nil, d.leftovers)
	d.leftovers = nil
	return err
}

// adopt remembers the plan, and at the first Sync counts devices without a
// handshake as young: a predecessor may have ended before they had one.
func (d *Driver) adopt(tunnels map[string]plan.Tunnel, have inventory) {
	d.tunnels = tunnels
	if !d.synced {
		for name := range have.devices {
			if _, ok := tunnels[name]; ok && have.handshakes[name].IsZero() {
				d.expect(name)
			}
		}
		d.synced = true
	}
	for name := range d.young {
		if _, ok := tunnels[name]; !ok {
			delete(d.young, name)
		}
	}
	maps.DeleteFunc(d.shared, func(name string, _ *sharing) bool { _, ok := tunnels[name]; return !ok })
}

// TunnelState is what a device has, not what it was asked for.
type TunnelState struct {
	ID, Device string
	Backend    Backend
	// LastHandshake is zero when there was none since the peer was made.
	LastHandshake time.Time
	// ReceivedBytes and SentBytes are outer bytes since the peer was made.
	ReceivedBytes, SentBytes uint64
	// Endpoint is where the peer is, as the device sees it; Roamed tells that
	// this is not where the plan has it.
	Endpoint netip.AddrPort
	Roamed   bool
	// PresharedHeld are the generations that the driver has for the tunnel and
	// can fall back to; PresharedUsed is that of the last handshake, 0 while
	// that is not known.
	PresharedHeld []uint64
	PresharedUsed uint64
	// Problem is a sentence, empty when nothing is wrong.
	Problem string
}

// Status reads every tunnel of the last Sync, sorted by ID. A device that
// cannot be read has a Problem; an error means that nothing could be read.
func (d *Driver) Status(ctx context.Context) ([]TunnelState, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	s, err := d.open(ctx)
	if err != nil {
		return nil, err
	}
	defer s.close()
	have, err := d.read(s)
	if err != nil {
		return nil, err
	}
	states := make([]TunnelState, 0, len(d.tunnels))
	for name, t := range d.tunnels {
		state := TunnelState{ID: t.ID, Device: name}
		x, ok := have.devices[name]
		switch problem := have.problems[name]; {
		case problem != nil:
			state.Problem = problem.Error()
		case !ok:
			state.Problem = "the device does not exist"
		}
		state.Backend = x.backend
		if p, ok := have.peers[name]; ok {
			state.PresharedHeld, state.PresharedUsed = d.generations(t)
			state.LastHandshake = p.LastHandshakeTime
			state.ReceivedBytes = uint64(p.ReceiveBytes)
			state.SentBytes = uint64(p.TransmitBytes)
			state.Endpoint = endpointOf(p)
			if state.Roamed = state.Endpoint.IsValid() && state.Endpoint != t.Peer; state.Roamed {
				state.Problem = fmt.Sprintf("the peer sends from %s, the plan has it at %s", state.Endpoint, t.Peer)
			}
		}
		states = append(states, state)
	}
	slices.SortFunc(states, func(a, b TunnelState) int { return cmp.Compare(a.ID, b.ID) })
	return states, nil
}

// Process is what the WireGuard process says of itself; running is false when
// there is none, which is right without user-space devices.
func (d *Driver) Process(ctx context.Context) (p Process, running bool, err error) {
	c, err := dial(ctx, d.config.Instance)
	if errors.Is(err, errNotRunning) {
		return Process{}, false, nil
	}
	if err != nil {
		return Process{}, false, err
	}
	return c.hello, true, c.Close()
}

// Remove removes every device of the instance and ends its WireGuard process.
func (d *Driver) Remove(ctx context.Context) error {
	errs := []error{d.Sync(ctx, nil, nil), d.Sweep(ctx)}
	c, err := dial(ctx, d.config.Instance)
	if errors.Is(err, errNotRunning) {
		return errors.Join(errs...)
	}
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	_, err = c.ask(request{Operation: opShutdown})
	errs = append(errs, err, c.Close())
	for ctx.Err() == nil {
		c, err := dial(ctx, d.config.Instance)
		if err != nil {
			return errors.Join(errs...)
		}
		errs = append(errs, c.Close())
		select {
		case <-ctx.Done():
		case <-time.After(5 * time.Millisecond):
		}
	}
	return errors.Join(append(errs, ctx.Err())...)
}

// newClient opens wgctrl in the main namespace: kernel devices are found by the
// namespace of its netlink socket, user-space ones by their files.
func (d *Driver) newClient() (wg *wgctrl.Client, err error) {
	err = d.config.Main.Do(func() error {
		wg, err = wgctrl.New()
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open WireGuard control: %w", err)
	}
	return wg, nil
}
