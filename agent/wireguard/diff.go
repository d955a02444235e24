package wireguard

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/circuitseal/circuitseal/proto/desired"
)

type verb uint8

// The verbs, in the order in which a new device gets them: it has its key,
// mark and peer before it is up, so that no packet leaves without them.
const (
	remove verb = iota
	create
	configure
	quieten
	setMTU
	addAddress
	removeAddress
	setUp
	addRoute
	removeRoute
)

// step is one write to one device.
type step struct {
	verb    verb
	device  string
	prefix  netip.Prefix
	mtu     int
	setting change
}

// change is what of the protocol's settings differs. It names keys by their
// public half only.
type change struct {
	key  bool // the private key is another
	port uint16
	mark *uint32
	// drop are peers to remove; a peer that must begin anew is in drop and set.
	drop []desired.PublicKey
	set  *peerChange
}

type peerChange struct {
	key      desired.PublicKey
	fresh    bool // the peer does not exist yet
	endpoint netip.AddrPort
	allowed  []netip.Prefix
	replace  bool // allowed is all, not additions
	timing   bool
	// shared is the pre-shared key to set; nil leaves it.
	shared *desired.PresharedKey
}

func (c change) empty() bool {
	return !c.key && c.port == 0 && c.mark == nil && len(c.drop) == 0 && c.set == nil
}

// handshake reports whether the change leaves a peer without a session. A new
// endpoint does not: the session goes on there.
func (c change) handshake() bool { return c.key || c.set != nil && c.set.fresh }

// diff leads from have to want. Devices that go are leftovers, for later, when
// nobody sends into them any more, except those that hold a port that is
// wanted.
func diff(wanted []want, have map[string]device) (steps, leftovers []step) {
	ports := map[uint16]string{}
	known := map[string]bool{}
	for _, w := range wanted {
		ports[w.Local.Port()] = w.Device
		known[w.Device] = true
	}
	for _, name := range slices.Sorted(maps.Keys(have)) {
		if known[name] {
			continue
		}
		s := step{verb: remove, device: name}
		if _, clash := ports[have[name].config.port]; clash {
			steps = append(steps, s)
		} else {
			leftovers = append(leftovers, s)
		}
	}
	for _, w := range wanted {
		steps = append(steps, diffDevice(w, have[w.Device])...)
	}
	return steps, leftovers
}

// made are the devices that come to the main namespace by these steps.
func made(steps []step) []string {
	var devices []string
	for _, s := range steps {
		if s.verb == create {
			devices = append(devices, s.device)
		}
	}
	return devices
}

func diffDevice(w want, have device) []step {
	if w.public.IsZero() && have.place == nowhere {
		return nil
	}
	var steps []step
	add := func(s step) {
		s.device = w.Device
		steps = append(steps, s)
	}
	other := !have.config.public.IsZero() && !w.public.IsZero() && have.config.public != w.public
	switch {
	case have.place == nowhere && have.hosted, have.place == inCircuit, have.backend == UserSpace && !have.hosted, other:
		// Its interface was deleted, or somebody moved it; its process is gone and left it behind; or it
		// was another tunnel's, whose packets may still be on their way into it.
		add(step{verb: remove})
		have = device{}
		add(step{verb: create, mtu: w.MTU})
	case have.place == nowhere:
		add(step{verb: create, mtu: w.MTU})
	}
	if have.place == nowhere {
		// It is made with its MTU.
		have.mtu, have.innerMTU = w.MTU, w.MTU
	}
	if c := diffSettings(w, have.config); !c.empty() {
		add(step{verb: configure, setting: c})
	}
	if !have.quiet {
		add(step{verb: quieten})
	}
	if have.mtu != w.MTU || have.backend == UserSpace && have.innerMTU != w.MTU {
		add(step{verb: setMTU, mtu: w.MTU})
	}
	addresses := []netip.Prefix{single(w.LocalProbe)}
	for _, p := range missing(addresses, have.addresses) {
		add(step{verb: addAddress, prefix: p})
	}
	for _, p := range missing(have.addresses, addresses) {
		add(step{verb: removeAddress, prefix: p})
	}
	if !have.up {
		add(step{verb: setUp})
	}
	routes := []netip.Prefix{single(w.RemoteProbe)}
	for _, p := range missing(routes, have.routes) {
		add(step{verb: addRoute, prefix: p})
	}
	for _, p := range missing(have.routes, routes) {
		add(step{verb: removeRoute, prefix: p})
	}
	return steps
}

func diffSettings(w want, have settings) change {
	var c change
	c.key = !w.public.IsZero() && w.public != have.public
	if w.Local.Port() != have.port {
		c.port = w.Local.Port()
	}
	if w.Mark != have.mark {
		c.mark = &w.Mark
	}
	allowed := sorted(w.AllowedIPs)
	found := false
	for _, p := range have.peers {
		if p.key != w.PeerKey || p.shared != nil && w.shared == nil {
			c.drop = append(c.drop, p.key)
			continue
		}
		found = true
		x := peerChange{key: p.key, timing: p.keepalive != keepalive}
		if w.shared != nil && (p.shared == nil || !p.shared.Equal(w.shared.Key)) {
			x.shared = w.shared
		}
		if p.endpoint != w.Peer {
			x.endpoint = w.Peer
		}
		if !slices.Equal(p.allowed, allowed) {
			// Replacing drops packets for a moment; adding does not.
			x.allowed = missing(allowed, p.allowed)
			if len(missing(p.allowed, allowed)) > 0 {
				x.allowed, x.replace = allowed, true
			}
		}
		if x.timing || x.endpoint.IsValid() || len(x.allowed) > 0 || x.replace || x.shared != nil {
			c.set = &x
		}
	}
	if !found {
		c.set = freshPeer(w)
	}
	return c
}

func freshPeer(w want) *peerChange {
	return &peerChange{key: w.PeerKey, fresh: true, endpoint: w.Peer, allowed: sorted(w.AllowedIPs), replace: true, timing: true, shared: w.shared}
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

// single is the prefix of one address.
func single(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// String is for people and logs.
func (s step) String() string {
	switch s.verb {
	case remove:
		return "remove device " + s.device
	case create:
		return "make device " + s.device
	case configure:
		return "configure device " + s.device + ": " + s.setting.String()
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

// String names what changes.
func (c change) String() string {
	var parts []string
	if c.key {
		parts = append(parts, "private key")
	}
	if c.port != 0 {
		parts = append(parts, fmt.Sprintf("port %d", c.port))
	}
	if c.mark != nil {
		parts = append(parts, fmt.Sprintf("mark %#x", *c.mark))
	}
	for _, k := range c.drop {
		parts = append(parts, "no peer "+k.String())
	}
	if s := c.set; s != nil {
		p := "peer " + s.key.String()
		if s.endpoint.IsValid() {
			p += " at " + s.endpoint.String()
		}
		if len(s.allowed) > 0 || s.replace {
			p += fmt.Sprintf(" with %v", s.allowed)
			if !s.replace {
				p += " in addition"
			}
		}
		if s.shared != nil {
			p += " sharing " + s.shared.String()
		}
		parts = append(parts, p)
	}
	return strings.Join(parts, ", ")
}
