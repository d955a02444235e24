// Package link keeps the circuit interfaces of an instance in its circuit
// namespace, and there their VLAN devices, addresses, policy rules and routing
// tables. It knows netlink and the sysctls of a network interface. It knows
// nothing of tunnels, of packet filters or of what the addresses are for, and it
// leaves everything in the main namespace alone except the interfaces that it
// takes and gives back.
package link

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/circuitseal/circuitseal/agent/drift"
	"github.com/circuitseal/circuitseal/agent/instance"
	"github.com/circuitseal/circuitseal/agent/netdev"
	"github.com/circuitseal/circuitseal/agent/netns"
	"github.com/circuitseal/circuitseal/agent/plan"
)

// Config is what a Driver needs.
type Config struct {
	// Main is where the host's interfaces are found, Circuit where circuit
	// interfaces live. The driver does not close them.
	Main, Circuit netns.Namespace
	Instance      instance.Instance
	// Name is kept leading to Circuit, which is what people and a restarted agent
	// find it by; empty for a namespace without a name.
	Name string
	// Drift takes note of what was changed; nil is nobody.
	Drift *drift.Ledger
	Log   *slog.Logger
}

// Driver claims circuit interfaces and configures the circuit namespace. Its
// methods may be called at any time, by one goroutine at a time.
type Driver struct {
	config Config
}

// New makes a Driver; it touches nothing.
func New(config Config) *Driver { return &Driver{config: config} }

// linkName is what Linux takes for an interface name (dev_valid_name in
// net/core/dev.c), without the names that the sysctl tree uses otherwise.
var linkName = regexp.MustCompile(`^[^/:\s\x00]{1,15}$`)

func validName(name string) bool {
	switch name {
	case ".", "..", "lo", "all", "default":
		return false
	}
	return linkName.MatchString(name)
}

// Claim moves each circuit interface that it finds in the main namespace to
// the circuit namespace, and leaves it down there until Sync. Before it can
// ever be up it is told to be silent: no IPv6 unless it has such an address, no router advertisements, no
// forwarding, ARP for its own addresses only. An interface that is already
// there keeps its state. VLAN devices it makes there, down and silent too, and
// removes those that are not wanted. Errors are joined, one for each interface,
// and one interface does not stop the next: claimed are those that are silent
// there, nil only when nobody could look.
func (d *Driver) Claim(ctx context.Context, interfaces []plan.Interface) (claimed []string, err error) {
	if err := d.config.Circuit.Do(d.silenceNamespace); err != nil {
		return nil, fmt.Errorf("prepare circuit namespace: %w", err)
	}
	errs := []error{d.keepName()}
	h, err := d.open()
	if err != nil {
		return nil, errors.Join(append(errs, err)...)
	}
	defer h.close()
	links, err := netns.Dump(h.circuit.LinkList)
	if err != nil {
		return nil, errors.Join(append(errs, fmt.Errorf("list interfaces of the circuit namespace: %w", err))...)
	}
	there := namesOf(links)
	var here []plan.Interface
	for _, i := range interfaces {
		if err := ctx.Err(); err != nil {
			return nil, errors.Join(append(errs, err)...)
		}
		if i.Parent != "" {
			continue
		}
		if err := d.claim(h, there, i.Name); err != nil {
			errs = append(errs, err)
			continue
		}
		here = append(here, i)
	}
	claimed, err = d.silence(here)
	errs = append(errs, err)
	if claimed == nil {
		return nil, errors.Join(errs...)
	}
	// What was just taken has nothing on top of it: see standsAlone.
	made, err := d.vlans(h.circuit, links, interfaces, claimed)
	return append(claimed, made...), errors.Join(append(errs, err)...)
}

// namesOf has those of all interfaces, not alternative ones.
func namesOf(links []netlink.Link) map[string]bool {
	out := make(map[string]bool, len(links))
	for _, l := range links {
		out[l.Attrs().Name] = true
	}
	return out
}

// claim has an interface in the circuit namespace, not silent yet. inCircuit
// are those that are there.
func (d *Driver) claim(h handles, inCircuit map[string]bool, name string) error {
	if !validName(name) {
		return fmt.Errorf("circuit interface %.64q: want the name of a network interface, 1 to 15 characters", name)
	}
	if err := reservedName(d.config.Instance, name); err != nil {
		return err
	}
	if inCircuit[name] {
		return nil
	}
	if there, err := h.circuit.LinkByName(name); err == nil {
		if err := ownName(there, name); err != nil {
			return err
		}
		return nil
	} else if !notFound(err) {
		return fmt.Errorf("look for circuit interface %q in the circuit namespace: %w", name, err)
	}
	found, err := h.main.LinkByName(name)
	if notFound(err) {
		return missing(h.main, name)
	} else if err != nil {
		return fmt.Errorf("look for circuit interface %q: %w", name, err)
	}
	if err := ownName(found, name); err != nil {
		return err
	}
	links, err := netns.Dump(h.main.LinkList)
	if err != nil {
		return fmt.Errorf("look for what hangs on circuit interface %q: %w", name, err)
	}
	if err := standsAlone(found, links); err != nil {
		return err
	}
	if err := h.main.LinkSetDown(found); err != nil {
		return fmt.Errorf("set circuit interface %q down: %w", name, err)
	}
	if err := h.main.LinkSetNsFd(found, d.config.Circuit.FD()); err != nil {
		return fmt.Errorf("move circuit interface %q to the circuit namespace: %w", name, err)
	}
	d.config.Log.Info("circuit interface moved to the circuit namespace", "interface", name)
	d.config.Drift.Note(drift.Interface, drift.Text("link set "+name+" netns "+d.config.Name))
	return nil
}

// keepName has the namespace found again by who starts later: a name that was
// taken away leaves whoever has the namespace open with it, and nobody else.
func (d *Driver) keepName() error {
	if d.config.Name == "" {
		return nil
	}
	again, err := netns.Keep(d.config.Name, d.config.Circuit)
	if err != nil {
		return fmt.Errorf("keep the circuit namespace's name: %w", err)
	}
	if again {
		d.config.Log.Warn("the circuit namespace had lost its name", "namespace", d.config.Name)
		d.config.Drift.Note(drift.Namespace, drift.Text("netns attach "+d.config.Name))
	}
	return nil
}

// ownName refuses an alternative name, by which netlink finds an interface too:
// nothing else here knows it.
func ownName(l netlink.Link, name string) error {
	if own := l.Attrs().Name; own != name {
		return fmt.Errorf("circuit interface %q: that is another name of %q; write this one in the node's document", name, own)
	}
	return nil
}

// standsAlone refuses an interface that does not go to the circuit namespace
// whole. A VLAN or macvlan device moves without the one below it, and stays
// when that one moves; either way frames would pass between the circuit and the
// main namespace. A member of a bridge or bond would silently be taken out of it.
func standsAlone(l netlink.Link, all []netlink.Link) error {
	a := l.Attrs()
	for _, other := range all {
		o := other.Attrs()
		switch {
		case o.Index == a.MasterIndex:
			return fmt.Errorf("circuit interface %q belongs to %q: take it out of that, or name another interface in the node's document", a.Name, o.Name)
		case o.Index == a.ParentIndex && stacked(l):
			return fmt.Errorf("circuit interface %q is a device on top of %q, which would stay outside the guard: "+
				"have the circuit handed over on an interface of its own", a.Name, o.Name)
		case o.ParentIndex == a.Index && stacked(other):
			return fmt.Errorf("circuit interface %q has the device %q on top of it, which would pass the guard by: delete that", a.Name, o.Name)
		}
	}
	return nil
}

// stacked reports whether a device's parent is the device below it in its own
// namespace; that of a veth is its peer.
func stacked(l netlink.Link) bool { return l.Type() != "veth" && l.Attrs().NetNsID < 0 }

// silence has interfaces of the circuit namespace silent, all on one thread, since
// entering the namespace for each costs more than the rest. silent are those that
// it had, nil only when it could not enter.
func (d *Driver) silence(interfaces []plan.Interface) (silent []string, err error) {
	silent = []string{}
	var errs []error
	err = d.config.Circuit.Do(func() error {
		view, err := netdev.Read()
		if err != nil {
			return err
		}
		for _, i := range interfaces {
			name := i.Name
			err := view.Ensure(name, quietFor(i), d.noted(name))
			if !view.Has(name) {
				err = errors.New("it has gone")
			}
			if err != nil {
				errs = append(errs, fmt.Errorf("prepare circuit interface %q: %w", name, err))
				continue
			}
			silent = append(silent, name)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return silent, errors.Join(errs...)
}

// missing names what there is, because the cause is nearly always a name that
// differs by a digit.
func missing(main *netlink.Handle, name string) error {
	links, err := netns.Dump(main.LinkList)
	if err != nil {
		return fmt.Errorf("circuit interface %q does not exist on this host, and the others cannot be listed: %w", name, err)
	}
	var here []string
	for _, l := range links {
		if n := l.Attrs().Name; n != "lo" {
			here = append(here, n)
		}
	}
	list := "none but lo"
	if len(here) > 0 {
		list = strings.Join(here, ", ")
	}
	return fmt.Errorf("circuit interface %q does not exist on this host: "+
		"correct its name in the node's document or make the interface; interfaces here: %s", name, list)
}

// Release gives every circuit interface back to the main namespace, down and
// without addresses, and removes the driver's VLAN devices, rules and routes.
// Tunnel devices and loopback stay.
func (d *Driver) Release(ctx context.Context) error {
	h, err := d.open()
	if err != nil {
		return err
	}
	defer h.close()
	errs := []error{d.Sync(ctx, nil, nil), d.removeVLANs(h.circuit)}
	links, err := netns.Dump(h.circuit.LinkList)
	if err != nil {
		return errors.Join(append(errs, fmt.Errorf("list interfaces of the circuit namespace: %w", err))...)
	}
	for _, l := range links {
		name := l.Attrs().Name
		if !d.physical(l) {
			continue
		}
		if err := h.circuit.LinkSetDown(l); err != nil {
			errs = append(errs, fmt.Errorf("set circuit interface %q down: %w", name, err))
			continue
		}
		err := h.circuit.LinkSetNsFd(l, d.config.Main.FD())
		if errors.Is(err, unix.EINVAL) {
			// One that the kernel makes in every namespace, such as sit0: it was
			// never claimed, and cannot leave.
			continue
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("give circuit interface %q back: %w", name, err))
			continue
		}
		d.config.Log.Info("circuit interface given back to the main namespace", "interface", name)
	}
	return errors.Join(errs...)
}

// physical tells an interface that was claimed from loopback, from devices that a
// tunnel driver is about to move out, and from libipsec's TUN, which leads to charon
// and nowhere else.
func (d *Driver) physical(l netlink.Link) bool {
	a := l.Attrs()
	return a.RawFlags&unix.IFF_LOOPBACK == 0 && !d.config.Instance.IsTunnelDevice(a.Name) &&
		(a.Name != instance.LibipsecTUN || l.Type() != "tuntap")
}

type handles struct{ main, circuit *netlink.Handle }

func (d *Driver) open() (handles, error) {
	main, err := d.config.Main.Netlink()
	if err != nil {
		return handles{}, fmt.Errorf("main namespace: %w", err)
	}
	circuit, err := d.config.Circuit.Netlink()
	if err != nil {
		main.Close()
		return handles{}, fmt.Errorf("circuit namespace: %w", err)
	}
	return handles{main: main, circuit: circuit}, nil
}

func (h handles) close() {
	h.main.Close()
	h.circuit.Close()
}

func notFound(err error) bool {
	_, none := errors.AsType[netlink.LinkNotFoundError](err)
	return none || errors.Is(err, unix.ENODEV)
}
