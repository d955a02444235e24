package ipsec

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/circuitseal/circuitseal/agent/drift"
	"github.com/circuitseal/circuitseal/agent/instance"
	"github.com/circuitseal/circuitseal/agent/netdev"
	"github.com/circuitseal/circuitseal/agent/netns"
	"github.com/circuitseal/circuitseal/agent/plan"
)

// interfaceBase is the upper half of instance.InterfaceID.
var interfaceBase = instance.InterfaceID(0) >> 16

type deviceVerb uint8

// The verbs, in the order in which a new device gets them.
const (
	removeDevice deviceVerb = iota
	createDevice
	quieten
	setMTU
	addAddress
	removeAddress
	setUp
	addRoute
	removeRoute
)

// deviceStep is one write to one device.
type deviceStep struct {
	verb   deviceVerb
	device string
	prefix netip.Prefix
	mtu    int
}

// String is for people and logs.
func (s deviceStep) String() string {
	switch s.verb {
	case removeDevice:
		return "remove device " + s.device
	case createDevice:
		return "make device " + s.device
	case quieten:
		return "set device " + s.device + " to make no address by itself"
	case setMTU:
		return fmt.Sprintf("set MTU of device %s to %d", s.device, s.mtu)
	case addAddress:
		return fmt.Sprintf("add address %s to device %s", s.prefix, s.device)
	case removeAddress:
		return fmt.Sprintf("remove address %s from device %s", s.prefix, s.device)
	case setUp:
		return "set device " + s.device + " up"
	case addRoute:
		return fmt.Sprintf("add route to %s by device %s", s.prefix, s.device)
	case removeRoute:
		return fmt.Sprintf("remove route to %s by device %s", s.prefix, s.device)
	}
	return fmt.Sprintf("verb %d", uint8(s.verb))
}

func (v deviceVerb) kind() drift.Kind {
	switch v {
	case addAddress, removeAddress:
		return drift.IPsecAddress
	case addRoute, removeRoute:
		return drift.IPsecRoute
	case removeDevice, createDevice, quieten, setMTU, setUp:
	}
	return drift.IPsecDevice
}

// device is what there is under one of our names.
type device struct {
	kind string
	// main and circuit tell where it is.
	main, circuit bool
	index, mtu    int
	up, quiet     bool
	addresses     []netip.Prefix
	routes        []netip.Prefix
}

// diffDevices leads from have to the tunnels' devices, each of the kind. Others are
// leftovers.
func diffDevices(tunnels []plan.IPsecTunnel, kind string, have map[string]device) (steps, leftovers []deviceStep) {
	known := map[string]bool{}
	for _, t := range tunnels {
		known[t.Device] = true
		steps = append(steps, diffDevice(t, kind, have[t.Device])...)
	}
	for _, name := range slices.Sorted(maps.Keys(have)) {
		if !known[name] {
			leftovers = append(leftovers, deviceStep{verb: removeDevice, device: name})
		}
	}
	return steps, leftovers
}

func diffDevice(t plan.IPsecTunnel, kind string, have device) []deviceStep {
	var steps []deviceStep
	add := func(s deviceStep) {
		s.device = t.Device
		steps = append(steps, s)
	}
	if have.main && have.kind != kind || have.circuit && kind == kindXFRM {
		// Of another backend, or on its way to the main namespace when its maker died.
		add(deviceStep{verb: removeDevice})
		have = device{}
	}
	if !have.main {
		add(deviceStep{verb: createDevice, mtu: t.MTU})
		have = device{mtu: t.MTU}
	}
	if !have.quiet {
		add(deviceStep{verb: quieten})
	}
	if have.mtu != t.MTU {
		add(deviceStep{verb: setMTU, mtu: t.MTU})
	}
	addresses, routes := single(t.LocalProbe), single(t.RemoteProbe)
	for _, p := range missing(addresses, have.addresses) {
		add(deviceStep{verb: addAddress, prefix: p})
	}
	for _, p := range missing(have.addresses, addresses) {
		add(deviceStep{verb: removeAddress, prefix: p})
	}
	if !have.up {
		add(deviceStep{verb: setUp})
	}
	for _, p := range missing(routes, have.routes) {
		add(deviceStep{verb: addRoute, prefix: p})
	}
	for _, p := range missing(have.routes, routes) {
		add(deviceStep{verb: removeRoute, prefix: p})
	}
	return steps
}

// made are the devices that come to the main namespace by these steps.
func made(steps []deviceStep) []string {
	var devices []string
	for _, s := range steps {
		if s.verb == createDevice {
			devices = append(devices, s.device)
		}
	}
	return devices
}

// missing are those of a that b lacks.
func missing(a, b []netip.Prefix) []netip.Prefix {
	var m []netip.Prefix
	for _, p := range a {
		if !slices.Contains(b, p) {
			m = append(m, p)
		}
	}
	return m
}

// single is the prefix of one address, none of none.
func single(a netip.Addr) []netip.Prefix {
	if !a.IsValid() {
		return nil
	}
	return []netip.Prefix{netip.PrefixFrom(a, a.BitLen())}
}

// What the kernel calls XFRM interfaces, and pairs of Ethernet interfaces.
const (
	kindXFRM = "xfrm"
	kindVeth = "veth"
)

// deviceOf tells which tunnel a device of ours is for.
func deviceOf(inst instance.Instance, name string) (number uint16, ok bool) {
	rest, ok := strings.CutPrefix(name, inst.IPsecDevicePrefix())
	if !ok {
		return 0, false
	}
	n, err := strconv.ParseUint(rest, 10, 16)
	return uint16(n), err == nil && n != 0
}

// hostNetlink are the sockets that a pass needs.
type hostNetlink struct {
	main, circuit *netlink.Handle
}

func (d *Driver) openNetlink() (*hostNetlink, error) {
	main, err := d.config.Main.Netlink()
	if err != nil {
		return nil, fmt.Errorf("main namespace: %w", err)
	}
	circuit, err := d.config.Circuit.Netlink()
	if err != nil {
		main.Close()
		return nil, fmt.Errorf("circuit namespace: %w", err)
	}
	return &hostNetlink{main, circuit}, nil
}

func (h *hostNetlink) close() {
	h.main.Close()
	h.circuit.Close()
}

func (d *Driver) readDevices(h *hostNetlink) (map[string]device, error) {
	devices := map[string]device{}
	for _, n := range []struct {
		namespace netns.Namespace
		main      bool
	}{{d.config.Circuit, false}, {d.config.Main, true}} {
		err := n.namespace.Do(func() error {
			view, err := netdev.Read()
			if err != nil {
				return err
			}
			for i := range view.All() {
				if _, ours := deviceOf(d.config.Instance, i.Name); !ours {
					continue
				}
				x := devices[i.Name]
				if !n.main {
					x.circuit = true
				} else {
					x = device{
						kind: i.Kind, main: true, circuit: x.circuit, index: i.Index, mtu: i.MTU,
						up: i.Flags&unix.IFF_UP != 0, quiet: netdev.IsQuiet(view, i.Name),
					}
				}
				devices[i.Name] = x
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return devices, readNetwork(h.main, devices)
}

// readNetwork reads the addresses of our devices, and the routes that carry our
// protocol number.
func readNetwork(h *netlink.Handle, devices map[string]device) error {
	names := map[int]string{}
	for name, x := range devices {
		if x.main {
			names[x.index] = name
		}
	}
	if len(names) == 0 {
		return nil
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
		if name, ok := names[r.LinkIndex]; ok && r.Dst != nil {
			x := devices[name]
			x.routes = append(x.routes, netdev.PrefixOf(r.Dst))
			devices[name] = x
		}
	}
	return nil
}

// takeDevice writes one step. The device's interface is found by its name.
func (d *Driver) takeDevice(h *hostNetlink, x deviceStep) error {
	switch x.verb {
	case removeDevice:
		return netdev.Remove(x.device, h.main, h.circuit)
	case createDevice:
		number, _ := deviceOf(d.config.Instance, x.device)
		return d.createDevice(h, x.device, number, x.mtu)
	case quieten, setMTU, addAddress, removeAddress, setUp, addRoute, removeRoute:
	}
	l, err := h.main.LinkByName(x.device)
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
	case quieten:
		return d.config.Main.Do(func() error { return netdev.MakeQuiet(h.main, l) })
	case setMTU:
		return h.main.LinkSetMTU(l, x.mtu)
	case addAddress:
		return netdev.AddAddress(h.main, l, x.prefix)
	case removeAddress:
		return netdev.RemoveAddress(h.main, l, x.prefix)
	case setUp:
		return h.main.LinkSetUp(l)
	case addRoute:
		return h.main.RouteReplace(route)
	default:
		return netdev.Gone(h.main.RouteDel(route))
	}
}

// createDevice makes an XFRM interface in the circuit namespace, where it looks for
// SAs from then on (xi->net, xfrmi_newlink in net/xfrm/xfrm_interface_core.c), and
// moves it to the main one. The kernel cannot make it there at once: an interface
// belongs to the namespace that it is made in, unlike WireGuard's, which remembers
// who asked.
func (d *Driver) createDevice(h *hostNetlink, name string, number uint16, mtu int) error {
	if d.backend == Libipsec {
		return d.createPair(h, name, mtu)
	}
	err := h.circuit.LinkAdd(&netlink.Xfrmi{
		LinkAttrs: netlink.LinkAttrs{Name: name, MTU: mtu, ParentIndex: loopback},
		Ifid:      instance.InterfaceID(number),
	})
	if err != nil {
		return err
	}
	l, err := h.circuit.LinkByName(name)
	if err != nil {
		return err
	}
	return h.circuit.LinkSetNsFd(l, d.config.Main.FD())
}

// loopback is the index of every namespace's loopback interface (LOOPBACK_IFINDEX).
// An XFRM interface is bound to it, for none would be more than some kernels take.
const loopback = 1
