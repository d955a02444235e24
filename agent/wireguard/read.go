package wireguard

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/circuitseal/circuitseal/agent/instance"
	"github.com/circuitseal/circuitseal/agent/netdev"
	"github.com/circuitseal/circuitseal/agent/netns"
)

// watchdog bounds a call of wgctrl, which has no deadlines: a device answers
// within microseconds unless its process hangs.
const watchdog = 3 * time.Second

// session is what one pass needs open.
type session struct {
	main, circuit *netlink.Handle
	wg            *wgctrl.Client
	process       *client // nil when no WireGuard process runs
}

func (d *Driver) open(ctx context.Context) (s *session, err error) {
	s = &session{}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	if s.main, err = d.config.Main.Netlink(); err != nil {
		return nil, fmt.Errorf("main namespace: %w", err)
	}
	if s.circuit, err = d.config.Circuit.Netlink(); err != nil {
		return nil, fmt.Errorf("circuit namespace: %w", err)
	}
	if s.wg, err = d.newClient(); err != nil {
		return nil, err
	}
	s.process, err = dial(ctx, d.config.Instance)
	if errors.Is(err, errNotRunning) {
		s.process, err = nil, nil
	}
	if err == nil && s.process != nil && s.process.hello.Protocol != protocolVersion {
		err = fmt.Errorf("the WireGuard process (pid %d) speaks protocol %d, this agent %d: end it to have another started; its tunnels stop meanwhile",
			s.process.hello.PID, s.process.hello.Protocol, protocolVersion)
	}
	return s, err
}

func (s *session) close() {
	if s.main != nil {
		s.main.Close()
	}
	if s.circuit != nil {
		s.circuit.Close()
	}
	if s.wg != nil {
		_ = s.wg.Close()
	}
	if s.process != nil {
		_ = s.process.Close()
	}
}

// list is what the WireGuard process has, nothing when there is none.
func (s *session) list() (map[string]hostedDevice, error) {
	told := map[string]hostedDevice{}
	if s.process == nil {
		return told, nil
	}
	r, err := s.process.ask(request{Operation: opList})
	if err != nil {
		return nil, err
	}
	for _, h := range r.Devices {
		told[h.Name] = h
	}
	return told, nil
}

// inventory is all that there is under the instance's names.
type inventory struct {
	devices    map[string]device
	peers      map[string]wgtypes.Peer
	handshakes map[string]time.Time
	// problems are devices that exist and cannot be read.
	problems map[string]error
	// told is what the WireGuard process says of its devices.
	told map[string]hostedDevice
}

func (d *Driver) read(s *session) (inventory, error) {
	have := inventory{
		devices: map[string]device{}, peers: map[string]wgtypes.Peer{},
		handshakes: map[string]time.Time{}, problems: map[string]error{},
	}
	told, err := s.list()
	if err != nil {
		return inventory{}, err
	}
	have.told = told
	for name, h := range told {
		have.devices[name] = device{backend: UserSpace, hosted: true, innerMTU: h.MTU}
	}
	if err := d.readLinks(d.config.Circuit, inCircuit, have.devices); err != nil {
		return inventory{}, err
	}
	if err := d.readLinks(d.config.Main, inMain, have.devices); err != nil {
		return inventory{}, err
	}
	if err := readNetwork(s.main, have.devices); err != nil {
		return inventory{}, err
	}
	for name := range have.devices {
		d.readSettings(s, name, &have)
	}
	return have, nil
}

func (d *Driver) readLinks(n netns.Namespace, where place, devices map[string]device) error {
	return n.Do(func() error {
		view, err := netdev.Read()
		if err != nil {
			return err
		}
		for i := range view.All() {
			if !deviceOf(d.config.Instance, i.Name) {
				continue
			}
			x := devices[i.Name]
			x.place, x.index, x.mtu, x.up = where, i.Index, i.MTU, i.Flags&unix.IFF_UP != 0
			x.quiet = where == inMain && netdev.IsQuiet(view, i.Name)
			x.backend = UserSpace
			if i.Kind == "wireguard" {
				x.backend = Kernel
			}
			devices[i.Name] = x
		}
		return nil
	})
}

// readNetwork reads the addresses of our devices, and the routes that carry our
// protocol number.
func readNetwork(h *netlink.Handle, devices map[string]device) error {
	names := map[int]string{}
	for name, x := range devices {
		if x.place == inMain {
			names[x.index] = name
		}
	}
	addresses, err := netns.Dump(func() ([]netlink.Addr, error) { return h.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range addresses {
		if name, ok := names[a.LinkIndex]; ok {
			x := devices[name]
			x.addresses = append(x.addresses, netdev.PrefixOf(a.IPNet))
			devices[name] = x
		}
	}
	routes, err := netns.Dump(func() ([]netlink.Route, error) {
		return h.RouteListFiltered(netlink.FAMILY_V6, &netlink.Route{Protocol: instance.RouteProtocol, Table: unix.RT_TABLE_MAIN},
			netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return fmt.Errorf("list routes: %w", err)
	}
	for _, r := range routes {
		name, ok := names[r.LinkIndex]
		if ok && r.Protocol == instance.RouteProtocol && r.Table == unix.RT_TABLE_MAIN && r.Dst != nil {
			x := devices[name]
			x.routes = append(x.routes, netdev.PrefixOf(r.Dst))
			devices[name] = x
		}
	}
	return nil
}

// readSettings leaves those of a device unset that is about to be made anew.
func (d *Driver) readSettings(s *session, name string, have *inventory) {
	x := have.devices[name]
	if x.place == nowhere || x.backend == Kernel && x.place != inMain || x.backend == UserSpace && !x.hosted {
		return
	}
	w, err := d.readDevice(s, name, have.told[name])
	if err != nil {
		have.problems[name] = fmt.Errorf("read device %s: %w", name, err)
		return
	}
	x.config = settingsFrom(w)
	have.devices[name] = x
	if t, ok := d.tunnels[name]; ok || len(w.Peers) == 1 {
		for _, p := range w.Peers {
			if len(w.Peers) == 1 || p.PublicKey == wgtypes.Key(t.PeerKey) {
				have.peers[name] = p
				have.handshakes[name] = p.LastHandshakeTime
				d.observe(name, p, time.Now())
			}
		}
	}
}

// readDevice takes what the WireGuard process told with its list, all devices in
// one answer; the kernel, and a process of an older build, are asked for each.
func (d *Driver) readDevice(s *session, name string, told hostedDevice) (w *wgtypes.Device, err error) {
	if told.Settings != "" {
		return parseSettings(told)
	}
	err = d.guard(name, func() (err error) {
		w, err = s.wg.Device(name)
		return err
	})
	return w, err
}

// guard calls f, which must only set what its caller reads after success, and
// gives up after watchdog. Until that call comes back, others of the device
// fail at once, so that a process that hangs does not pile up goroutines.
func (d *Driver) guard(name string, f func() error) error {
	if done, ok := d.stuck[name]; ok {
		select {
		case <-done:
			delete(d.stuck, name)
		default:
			return errors.New("it still does not answer")
		}
	}
	done := make(chan struct{})
	var err error
	go func() {
		defer close(done)
		err = f()
	}()
	select {
	case <-done:
		return err
	case <-time.After(watchdog):
		d.stuck[name] = done
		return fmt.Errorf("it does not answer within %s", watchdog)
	}
}
