package wireguard

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/circuitseal/circuitseal/agent/drift"
	"github.com/circuitseal/circuitseal/agent/instance"
	"github.com/circuitseal/circuitseal/agent/netdev"
	"github.com/circuitseal/circuitseal/proto/desired"
)

// apply takes the steps in order. After an error it leaves out the other steps
// of the same device, since each needs the one before.
func (d *Driver) apply(ctx context.Context, s *session, wanted []want, steps []step) error {
	tunnels := make(map[string]want, len(wanted))
	for _, w := range wanted {
		tunnels[w.Device] = w
	}
	var errs []error
	failed := map[string]bool{}
	for _, x := range steps {
		if err := ctx.Err(); err != nil {
			return errors.Join(append(errs, err)...)
		}
		if failed[x.device] {
			continue
		}
		w := tunnels[x.device]
		d.config.Log.Debug("WireGuard", "tunnel", w.ID, "change", x.String())
		if err := d.take(ctx, s, w, x); err != nil {
			failed[x.device] = true
			id := w.ID
			if id == "" {
				id = "(none)"
			}
			errs = append(errs, fmt.Errorf("tunnel %s: %s: %w", id, x, err))
			continue
		}
		d.config.Drift.Note(x.verb.kind(), x)
	}
	return errors.Join(errs...)
}

// kind is what a step is about, for the ledger of repairs.
func (v verb) kind() drift.Kind {
	switch v {
	case addAddress, removeAddress:
		return drift.TunnelAddress
	case addRoute, removeRoute:
		return drift.TunnelRoute
	case configure:
		return drift.TunnelSetting
	case remove, create, quieten, setMTU, setUp:
	}
	return drift.TunnelDevice
}

func (d *Driver) take(ctx context.Context, s *session, w want, x step) error {
	switch x.verb {
	case create:
		return d.create(ctx, s, w)
	case remove:
		return d.remove(s, x.device)
	case configure:
		if err := d.configure(s, w, x.setting); err != nil {
			return err
		}
		if x.setting.handshake() {
			d.expect(x.device)
		}
		return nil
	case quieten:
		l, err := s.main.LinkByName(x.device)
		if err != nil {
			return err
		}
		return d.config.Main.Do(func() error { return netdev.MakeQuiet(s.main, l) })
	case setMTU, addAddress, removeAddress, setUp, addRoute, removeRoute:
		return d.network(s, w, x)
	}
	return fmt.Errorf("unknown step %d", x.verb)
}

// network takes the steps that concern the interface in the main namespace.
func (d *Driver) network(s *session, w want, x step) error {
	l, err := s.main.LinkByName(x.device)
	if err != nil {
		return err
	}
	route := &netlink.Route{
		Family: netlink.FAMILY_V6, LinkIndex: l.Attrs().Index,
		Table: unix.RT_TABLE_MAIN, Protocol: instance.RouteProtocol,
	}
	if x.prefix.IsValid() {
		route.Dst = netdev.NetOf(x.prefix)
	}
	switch x.verb {
	case setMTU:
		if l.Type() != "wireguard" && s.process != nil {
			if _, err := s.process.ask(addRequest(w)); err != nil {
				return err
			}
		}
		return s.main.LinkSetMTU(l, x.mtu)
	case addAddress:
		return netdev.AddAddress(s.main, l, x.prefix)
	case removeAddress:
		return netdev.RemoveAddress(s.main, l, x.prefix)
	case setUp:
		return s.main.LinkSetUp(l)
	case addRoute:
		return s.main.RouteReplace(route)
	default:
		return netdev.Gone(s.main.RouteDel(route))
	}
}

func addRequest(w want) request {
	return request{Operation: opAdd, Device: w.Device, MTU: w.MTU, Port: w.Local.Port(), Mark: w.Mark}
}

// create makes the device in the main namespace with its socket in the circuit
// namespace, by the kernel when it can: that keeps for the socket where its maker
// asked from, wherever the interface is to be (wg_newlink in
// drivers/net/wireguard/device.c). To move an interface there afterwards would
// hold all network configuration up for some 20 ms (rcu_barrier in
// __dev_change_net_namespace, net/core/dev.c).
func (d *Driver) create(ctx context.Context, s *session, w want) error {
	if d.backend != UserSpace {
		err := s.circuit.LinkAdd(&netlink.Wireguard{LinkAttrs: netlink.LinkAttrs{
			Name: w.Device, MTU: w.MTU, Namespace: netlink.NsFd(d.config.Main.FD()),
		}})
		// EOPNOTSUPP: the kernel does not know this type of interface.
		if !errors.Is(err, unix.EOPNOTSUPP) || d.backend == Kernel {
			if err == nil {
				d.backend = Kernel
			}
			return err
		}
		d.config.Log.Info("the kernel has no WireGuard: tunnels are carried by a process of their own")
		d.backend = UserSpace
	}
	if _, err := os.Stat(tunPath); errors.Is(err, os.ErrNotExist) {
		return errNoTUN
	}
	if s.process == nil {
		if d.config.External {
			return fmt.Errorf("%w, and --external-wireguard says that the agent does not start it: see that its unit runs", errNotRunning)
		}
		if err := Spawn(ctx, d.config.Instance, d.config.Command, d.config.Log); err != nil {
			return err
		}
		process, err := dial(ctx, d.config.Instance)
		if err != nil {
			return err
		}
		s.process = process
	}
	tun, err := makeTUN(d.config.Main, w.Device, w.MTU)
	if err != nil {
		return err
	}
	_, err = s.process.ask(addRequest(w), tun)
	return errors.Join(err, tun.Close())
}

// remove ends a device wherever it is. Closing a TUN removes its interface; one
// whose process is gone is deleted by name.
func (d *Driver) remove(s *session, name string) error {
	var errs []error
	if s.process != nil {
		_, err := s.process.ask(request{Operation: opRemove, Device: name})
		errs = append(errs, err)
	}
	errs = append(errs, netdev.Remove(name, s.main, s.circuit))
	delete(d.young, name)
	delete(d.shared, name)
	return errors.Join(errs...)
}

// configure writes all differences of a device in one message.
func (d *Driver) configure(s *session, w want, c change) error {
	var config wgtypes.Config
	if c.key {
		pair, err := d.config.Keys.pair(w.ID)
		if err != nil {
			return err
		}
		config.PrivateKey = pair.private.wg()
	}
	if c.port != 0 {
		port := int(c.port)
		config.ListenPort = &port
	}
	if c.mark != nil {
		mark := int(*c.mark)
		config.FirewallMark = &mark
	}
	for _, k := range c.drop {
		config.Peers = append(config.Peers, wgtypes.PeerConfig{PublicKey: wgtypes.Key(k), Remove: true})
	}
	if c.set != nil {
		config.Peers = append(config.Peers, peerConfig(*c.set))
	}
	if err := d.guard(w.Device, func() error { return s.wg.ConfigureDevice(w.Device, config) }); err != nil {
		return err
	}
	if c.set != nil && c.set.fresh && c.set.shared != nil {
		d.bornWith(w.Device, c.set.shared.Key, time.Now())
	}
	return nil
}

func peerConfig(p peerChange) wgtypes.PeerConfig {
	c := wgtypes.PeerConfig{
		PublicKey:         wgtypes.Key(p.key),
		UpdateOnly:        !p.fresh,
		ReplaceAllowedIPs: p.replace,
	}
	if p.endpoint.IsValid() {
		c.Endpoint = net.UDPAddrFromAddrPort(p.endpoint)
	}
	if p.shared != nil {
		k := wgtypes.Key(p.shared.Key)
		c.PresharedKey = &k
	}
	for _, a := range p.allowed {
		c.AllowedIPs = append(c.AllowedIPs, *netdev.NetOf(a))
	}
	if p.timing {
		k := time.Duration(keepalive)
		c.PersistentKeepaliveInterval = &k
	}
	return c
}

// restart makes the peer anew, which begins a handshake at once.
func restart(w want) change {
	return change{drop: []desired.PublicKey{w.PeerKey}, set: freshPeer(w)}
}
