// Package wireguard keeps the WireGuard devices of an instance: made in the
// circuit namespace, where their UDP sockets stay, and moved to the main one,
// where inner packets are. It configures the kernel's devices and those of a
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
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.zx2c4.com/wireguard/wgctrl"

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
	// Command starts the WireGuard process; nil is as in Spawn.
	Command []string
	Log     *slog.Logger
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
	// backend is Config.Backend, once it is known what the kernel can do.
	backend Backend
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
		stuck:   map[string]<-chan struct{}{},
	}
}

// Close gives up what the driver holds. Devices, the WireGuard process and
// their traffic go on; Remove ends them.
func (d *Driver) Close() error { return nil }

// Sync makes exactly these tunnels: devices of the instance that are not among
// them go. It writes only differences, so that a repeat touches nothing and a
// running session survives it; it goes on after an error, and joins the errors,
// each with its tunnel. A tunnel whose key Keys does not have is an error.
func (d *Driver) Sync(ctx context.Context, tunnels []plan.Tunnel) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	s, err := d.open(ctx)
	if err != nil {
		return err
	}
	defer s.close()
	var errs []error
	wanted := make([]want, 0, len(tunnels))
	byDevice := make(map[string]plan.Tunnel, len(tunnels))
	unsure := map[string]bool{}
	for _, t := range tunnels {
		byDevice[t.Device] = t
		if !deviceOf(d.config.Instance, t.Device) {
			errs = append(errs, fmt.Errorf("tunnel %s: device %.32q is not one of instance %s", t.ID, t.Device, d.config.Instance))
			continue
		}
		pair, err := d.config.Keys.pair(t.ID)
		if err != nil {
			errs = append(errs, fmt.Errorf("key of tunnel %s: %w", t.ID, err))
			unsure[t.Device] = true
			continue
		}
		wanted = append(wanted, want{Tunnel: t, public: pair.public})
	}
	have, err := d.read(s)
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	for name, problem := range have.problems {
		if t, ok := byDevice[name]; ok {
			errs = append(errs, fmt.Errorf("tunnel %s: %w", t.ID, problem))
			unsure[name] = true
		}
	}
	// What is not known exactly is left as it is, neither changed nor removed.
	for name := range unsure {
		delete(have.devices, name)
		wanted = slices.DeleteFunc(wanted, func(w want) bool { return w.Device == name })
	}
	errs = append(errs, d.apply(ctx, s, wanted, diff(wanted, have.devices)))
	d.adopt(byDevice, have)
	return errors.Join(errs...)
}

// Missing are the devices of these tunnels that are not in the main namespace:
// new ones, and those that went with the WireGuard process.
func (d *Driver) Missing(tunnels []plan.Tunnel) ([]string, error) {
	h, err := d.config.Main.Netlink()
	if err != nil {
		return nil, fmt.Errorf("look for tunnel devices: %w", err)
	}
	defer h.Close()
	var missing []string
	for _, t := range tunnels {
		switch _, err := h.LinkByName(t.Device); {
		case err == nil:
		case errors.As(err, new(netlink.LinkNotFoundError)):
			missing = append(missing, t.Device)
		default:
			return nil, fmt.Errorf("look for tunnel device %s: %w", t.Device, err)
		}
	}
	return missing, nil
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
}

// TunnelState is what a device has, not what it was asked for.
type TunnelState struct {
	ID, Device string
	Backend    Backend
	// LastHandshake is zero when there was none since the device was made.
	LastHandshake time.Time
	// ReceivedBytes and SentBytes are outer bytes since the device was made.
	ReceivedBytes, SentBytes uint64
	// Endpoint is where the peer is, as the device sees it; Roamed tells that
	// this is not where the plan has it.
	Endpoint netip.AddrPort
	Roamed   bool
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
	errs := []error{d.Sync(ctx, nil)}
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
