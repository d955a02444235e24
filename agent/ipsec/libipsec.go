package ipsec

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"

	"github.com/circuitseal/circuitseal/agent/bpffs"
	"github.com/circuitseal/circuitseal/agent/drift"
	"github.com/circuitseal/circuitseal/agent/instance"
	"github.com/circuitseal/circuitseal/agent/netdev"
	"github.com/circuitseal/circuitseal/agent/tchook"
)

// libipsec has one TUN for all SAs, in charon's namespace, and wants it there. A pair
// of interfaces leads from the main namespace, where its end is the tunnel's device,
// to the circuit one, where programs join it to the TUN: nothing is forwarded, and
// the stack there neither gets nor sends a packet by either. Since all packets of
// the TUN take the SA made last, one tunnel is all that it can carry apart.

const (
	// tunName is libipsec's (kernel_libipsec_router.c).
	tunName = instance.LibipsecTUN
	// passing is on a packet between the two programs. No link has the number.
	passing uint32 = instance.ControlMark | 0xfffe
)

// The hardware addresses of a pair: locally administered, and the same on every
// host, since nobody else is on it.
var (
	mainMAC = net.HardwareAddr{0x02, 'C', 'S', 0, 0, 1}
	pairMAC = net.HardwareAddr{0x02, 'C', 'S', 0, 0, 2}
)

// only leaves libipsec one tunnel, the one of the smallest number, so that both ends
// have the same; others say why they are not made.
func (d *Driver) only() {
	if d.backend != Libipsec || d.unlimited {
		return
	}
	first := ""
	for _, t := range d.sortedTunnels() {
		switch {
		case t.problem != "":
		case first == "":
			first = t.ID
		default:
			t.problem = fmt.Sprintf("this kernel has no ESP, and libipsec, which stands in for it, can carry one tunnel only, which is %s: run a kernel with CONFIG_INET_ESP and CONFIG_XFRM_INTERFACE", first)
		}
	}
}

// createPair makes the way from the main namespace. Its end in the circuit one stays
// down until the programs are there.
func (d *Driver) createPair(h *hostNetlink, name string, mtu int) error {
	err := h.main.LinkAdd(&netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: name, MTU: mtu, HardwareAddr: mainMAC}, PeerName: name,
		PeerHardwareAddr: pairMAC, PeerNamespace: netlink.NsFd(d.config.Circuit.FD()),
	})
	if err != nil {
		return err
	}
	l, err := h.main.LinkByName(name)
	if err != nil {
		return err
	}
	// There is nobody to answer who asks for a neighbour.
	return h.main.LinkSetARPOff(l)
}

func (d *Driver) pins() string { return filepath.Join(d.config.Instance.BPFDir(), "ipsec") }

// joint is a program on a hook.
type joint struct {
	at    tchook.Hook
	label string
	// target is where the program sends packets, 0 for one that lets them out.
	target int
}

// joints are what joins the two interfaces, the checks of what goes out before what
// sends it there. The label of each tells to where.
func joints(pair, tun int) []joint {
	return []joint{
		{tchook.Hook{Ifindex: pair, Direction: tchook.Egress}, "pair_out", 0},
		{tchook.Hook{Ifindex: tun, Direction: tchook.Egress}, "tun_out", 0},
		{tchook.Hook{Ifindex: pair, Direction: tchook.Ingress}, "pair_in_" + letters(tun), tun},
		{tchook.Hook{Ifindex: tun, Direction: tchook.Ingress}, "tun_in_" + letters(pair), pair},
	}
}

// letters writes a number as labels have it, which know no digits.
func letters(n int) string {
	return strings.Map(func(r rune) rune { return 'a' + r - '0' }, strconv.Itoa(n))
}

// join joins the pair of the tunnel that libipsec carries to the TUN of the charon
// that runs. It is called before charon is told of any tunnel.
func (d *Driver) join() error {
	if d.backend != Libipsec || d.unlimited {
		return nil
	}
	name := ""
	for _, t := range d.sortedTunnels() {
		if t.problem == "" {
			name = t.Device
		}
	}
	h, err := d.config.Circuit.Netlink()
	if err != nil {
		return err
	}
	defer h.Close()
	if err := bpffs.Ensure(d.config.Instance.BPFDir()); err != nil {
		return err
	}
	if err := os.MkdirAll(d.pins(), 0o700); err != nil {
		return fmt.Errorf("make directory for pins: %w", err)
	}
	hooks, err := d.hooks()
	if err != nil {
		return err
	}
	defer hooks.Close()
	if name == "" {
		return hooks.DetachAll()
	}
	pair, err := h.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find the pair of device %s: %w", name, err)
	}
	tun, err := h.LinkByName(tunName)
	if err != nil {
		return fmt.Errorf("find libipsec's interface %s: %w", tunName, err)
	}
	if err := d.attach(hooks, joints(pair.Attrs().Index, tun.Attrs().Index)); err != nil {
		return err
	}
	err = d.config.Circuit.Do(func() error {
		view, err := netdev.Read()
		if err != nil {
			return err
		}
		var errs []error
		for _, l := range []netlink.Link{pair, tun} {
			if !netdev.IsQuiet(view, l.Attrs().Name) {
				errs = append(errs, netdev.MakeQuiet(h, l))
			}
		}
		return errors.Join(errs...)
	})
	if err != nil {
		return err
	}
	if pair.Attrs().MTU != tun.Attrs().MTU {
		if err := h.LinkSetMTU(tun, pair.Attrs().MTU); err != nil {
			return fmt.Errorf("set the MTU of %s: %w", tunName, err)
		}
	}
	if pair.Attrs().Flags&net.FlagUp == 0 {
		if err := h.LinkSetUp(pair); err != nil {
			return fmt.Errorf("set the pair of device %s up: %w", name, err)
		}
	}
	return nil
}

func (d *Driver) hooks() (*tchook.Hooks, error) {
	way, err := tchook.Probe()
	if err != nil {
		return nil, err
	}
	return tchook.Open(tchook.Config{Way: way, Namespace: d.config.Circuit, Pins: d.pins(), Owner: d.config.Instance.Filters("ipsec")})
}

// attach brings the programs to where they are not, and away from elsewhere.
func (d *Driver) attach(hooks *tchook.Hooks, want []joint) error {
	own, err := hooks.Own()
	if err != nil {
		return err
	}
	have := map[joint]bool{}
	var errs []error
	for _, a := range own {
		found := false
		for _, j := range want {
			if a.Here && a.First && a.Hook == j.at && a.Label == j.label {
				have[j], found = true, true
			}
		}
		if !found {
			errs = append(errs, hooks.Detach(a))
		}
	}
	for _, j := range want {
		if !have[j] {
			errs = append(errs, d.attachOne(hooks, j))
		}
	}
	return errors.Join(errs...)
}

func (d *Driver) attachOne(hooks *tchook.Hooks, j joint) error {
	spec, err := loadJoin()
	if err != nil {
		return fmt.Errorf("read the programs that join libipsec: %w", err)
	}
	for name, value := range map[string]any{
		"target": uint32(j.target), "main_mac": [6]byte(mainMAC), "pair_mac": [6]byte(pairMAC), "passing": passing,
	} {
		if err := spec.Variables[name].Set(value); err != nil {
			return fmt.Errorf("set %s: %w", name, err)
		}
	}
	var o joinObjects
	if err := spec.LoadAndAssign(&o, nil); err != nil {
		return fmt.Errorf("load the programs that join libipsec: %w", err)
	}
	defer func() { _ = o.Close() }()
	var p *ebpf.Program
	switch {
	case j.target == 0:
		p = o.CsOut
	case j.label[0] == 'p':
		p = o.CsPairIn
	default:
		p = o.CsTunIn
	}
	if err := hooks.Attach(j.at, j.label, p); err != nil {
		return err
	}
	d.config.Drift.Note(drift.IPsecDevice, drift.Text("join libipsec: attach "+j.label))
	return nil
}

// part ends what join has attached. A bpffs that nobody has mounted has none.
func (d *Driver) part() error {
	mounted, err := bpffs.Mounted(d.config.Instance.BPFDir())
	if err != nil || !mounted {
		return err
	}
	hooks, err := d.hooks()
	if err != nil {
		return err
	}
	defer hooks.Close()
	return hooks.DetachAll()
}
