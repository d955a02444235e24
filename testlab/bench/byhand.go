package bench

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/circuitseal/circuitseal/testlab/netns"
	"github.com/circuitseal/circuitseal/testlab/rig"
)

const (
	port = 51820
)

// side is one end of the tunnel by hand.
type side struct {
	host          netns.Host
	device        string
	remote        netip.Addr
	far           string
	circuit       []string
	key, otherKey wgtypes.Key
}

// circuits are the circuit interfaces of the primary link as an administrator
// would configure them.
var circuits = map[netns.Host][]string{
	netns.Prem: {"addr add 172.16.10.1/30 dev circ0", "link set circ0 up", "route add 172.20.255.4 via 172.16.10.2"},
	netns.NVA:  {"addr add 172.20.255.4/28 dev circ0", "link set circ0 up", "route add 172.16.10.0/30 via 172.20.255.1"},
}

// byHand configures WireGuard in a lab as an administrator would: circuit
// interfaces in the main namespace, kernel routes and forwarding, the MSS
// clamped. One tunnel, over the primary link.
func byHand(ctx context.Context, r *rig.Rig, c Config) error {
	keys := [2]wgtypes.Key{}
	for i := range keys {
		k, err := wgtypes.GeneratePrivateKey()
		if err != nil {
			return fmt.Errorf("make a key: %w", err)
		}
		keys[i] = k
	}
	sides := []side{
		{host: netns.Prem, device: "wg" + r.Lab.ID() + "p", remote: netns.NVAFirst, far: "10.2.0.0/16",
			circuit: circuits[netns.Prem], key: keys[0], otherKey: keys[1].PublicKey()},
		{host: netns.NVA, device: "wg" + r.Lab.ID() + "n", remote: netns.PremPrimary, far: "10.1.0.0/16",
			circuit: circuits[netns.NVA], key: keys[1], otherKey: keys[0].PublicKey()},
	}
	var errs []error
	for _, s := range sides {
		if err := s.up(ctx, r, c); err != nil {
			errs = append(errs, fmt.Errorf("set up WireGuard by hand on %s: %w", s.host, err))
		}
	}
	return errors.Join(errs...)
}

const clamp = `table inet byhand {
	chain forward {
		type filter hook forward priority 0; policy accept;
		tcp flags syn tcp option maxseg size set rt mtu
	}
}
`

func (s side) up(ctx context.Context, r *rig.Rig, c Config) error {
	if err := r.Lab.IP(ctx, s.host, s.circuit...); err != nil {
		return err
	}
	if err := r.Lab.NFT(ctx, s.host, clamp); err != nil {
		return err
	}
	make := s.serve
	if c.KernelWireGuard {
		make = s.inKernel
	}
	if err := make(ctx, r, c); err != nil {
		return err
	}
	return r.Lab.IP(ctx, s.host, "link set "+s.device+" up", "route add "+s.far+" dev "+s.device)
}

func (s side) inKernel(ctx context.Context, r *rig.Rig, c Config) error {
	if err := r.Lab.IP(ctx, s.host, fmt.Sprintf("link add %s mtu %d type wireguard", s.device, c.InnerMTU)); err != nil {
		return err
	}
	return r.Lab.Do(s.host, s.configure)
}

func (s side) serve(ctx context.Context, r *rig.Rig, c Config) error {
	socket := "/var/run/wireguard/" + s.device + ".sock"
	if err := r.Lab.Adopt(socket); err != nil {
		return err
	}
	p, err := r.Lab.Start(s.host, netns.Spec{Name: "byhand-" + string(s.host), Path: c.Self, Args: []string{"wireguard", s.device}})
	if err != nil {
		return err
	}
	if err := awaitSocket(ctx, p, socket); err != nil {
		return err
	}
	if err := s.configure(); err != nil {
		return err
	}
	// As many packets may wait as in the product's TUN: that is not compared.
	return r.Lab.IP(ctx, s.host, "link set "+s.device+" txqueuelen 2048")
}

func awaitSocket(ctx context.Context, p *netns.Process, path string) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	for {
		if _, err := os.Stat(path); err == nil {
			return nil
		}
		select {
		case <-p.Done():
			return fmt.Errorf("it has ended; see %s", p.LogPath())
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w", path, ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// configure speaks to the control socket, which is a file and needs no namespace,
// or to the kernel in the namespace that it is called in.
func (s side) configure() error {
	c, err := wgctrl.New()
	if err != nil {
		return fmt.Errorf("open wgctrl: %w", err)
	}
	defer func() { _ = c.Close() }()
	far, err := netip.ParsePrefix(s.far)
	if err != nil {
		return err
	}
	listen := port
	err = c.ConfigureDevice(s.device, wgtypes.Config{
		PrivateKey: &s.key, ListenPort: &listen, ReplacePeers: true,
		Peers: []wgtypes.PeerConfig{{
			PublicKey:         s.otherKey,
			Endpoint:          net.UDPAddrFromAddrPort(netip.AddrPortFrom(s.remote, port)),
			ReplaceAllowedIPs: true,
			AllowedIPs:        []net.IPNet{{IP: far.Addr().AsSlice(), Mask: net.CIDRMask(far.Bits(), far.Addr().BitLen())}},
		}},
	})
	if err != nil {
		return fmt.Errorf("configure %s: %w", s.device, err)
	}
	return nil
}
