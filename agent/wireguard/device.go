package wireguard

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/circuitseal/circuitseal/agent/netdev"
	"github.com/circuitseal/circuitseal/agent/plan"
	"github.com/circuitseal/circuitseal/proto/desired"
)

// keepalive makes both ends begin a handshake as soon as they are configured,
// and keeps a session fresh for the first packet when no agent probes.
const keepalive = 25 * time.Second

// Backend is what carries a device.
type Backend uint8

// The backends. The zero value lets the kernel have devices if it can.
const (
	Automatic Backend = iota
	Kernel
	UserSpace
)

// String is the word that status output uses.
func (b Backend) String() string {
	switch b {
	case Kernel:
		return "wireguard-kernel"
	case UserSpace:
		return "wireguard-userspace"
	case Automatic:
	}
	return "automatic"
}

// want is a planned tunnel and the public half of this end's key.
type want struct {
	plan.Tunnel
	public desired.PublicKey
	// shared is the pre-shared key that the peer is to have now. It is a pointer
	// because fmt prints what unexported fields hold.
	shared *desired.PresharedKey
}

// place is where a device's network interface is.
type place uint8

const (
	nowhere place = iota
	inCircuit
	inMain
)

// device is what there is under one of our names.
type device struct {
	backend Backend
	// hosted is set when the WireGuard process has the device; innerMTU is the
	// MTU that it knows.
	hosted   bool
	innerMTU int

	place     place
	index     int
	mtu       int
	up        bool
	quiet     bool // no link-local address, IPv6 enabled
	addresses []netip.Prefix
	routes    []netip.Prefix
	config    settings
}

// settings are those of the WireGuard protocol.
type settings struct {
	public desired.PublicKey
	port   uint16
	mark   uint32
	peers  []peer
}

type peer struct {
	key       desired.PublicKey
	endpoint  netip.AddrPort
	allowed   []netip.Prefix
	keepalive time.Duration
	// shared is nil for none.
	shared *desired.Secret
}

// noKey is the public half of the zero private key.
var noKey = wgtypes.Key{}.PublicKey()

// settingsFrom takes what matters from wgctrl; the private key stays behind.
func settingsFrom(d *wgtypes.Device) settings {
	s := settings{
		public: desired.PublicKey(d.PublicKey),
		port:   uint16(d.ListenPort),
		mark:   uint32(d.FirewallMark),
	}
	// Of no private key wgctrl computes a public half all the same.
	if d.PrivateKey == (wgtypes.Key{}) && d.PublicKey == noKey {
		s.public = desired.PublicKey{}
	}
	for _, p := range d.Peers {
		x := peer{
			key:       desired.PublicKey(p.PublicKey),
			endpoint:  endpointOf(p),
			keepalive: p.PersistentKeepaliveInterval,
		}
		if k := desired.Secret(p.PresharedKey); !k.IsZero() {
			x.shared = &k
		}
		for _, n := range p.AllowedIPs {
			x.allowed = append(x.allowed, netdev.PrefixOf(&n))
		}
		x.allowed = sorted(x.allowed)
		s.peers = append(s.peers, x)
	}
	return s
}

func endpointOf(p wgtypes.Peer) netip.AddrPort {
	if p.Endpoint == nil {
		return netip.AddrPort{}
	}
	e := p.Endpoint.AddrPort()
	return netip.AddrPortFrom(e.Addr().Unmap(), e.Port())
}

// sorted is a copy in a fixed order, masked and without duplicates.
func sorted(prefixes []netip.Prefix) []netip.Prefix {
	all := make([]netip.Prefix, len(prefixes))
	for i, p := range prefixes {
		all[i] = p.Masked()
	}
	slices.SortFunc(all, func(a, b netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
	return slices.Compact(all)
}
