package netns

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
)

// Host is a machine of the lab, each in a namespace of its own.
type Host string

// The machines.
const (
	// HQ is a host in the LAN on premises, VNet one in the VNet.
	HQ   Host = "hq"
	VNet Host = "vnet"
	// Prem and NVA are the appliances, where agents run.
	Prem Host = "prem"
	NVA  Host = "nva"
	// Edge1 and Edge2 are Microsoft's edges; ErGw is the ExpressRoute gateway.
	Edge1 Host = "edge1"
	Edge2 Host = "edge2"
	ErGw  Host = "ergw"
	// Ctl is where the controller runs.
	Ctl Host = "ctl"
)

// Hosts are all machines.
func Hosts() []Host { return []Host{HQ, Prem, Edge1, Edge2, ErGw, NVA, VNet, Ctl} }

// Link is one of the circuit's two links.
type Link string

// The links.
const (
	Primary   Link = "primary"
	Secondary Link = "secondary"
)

// edge is the machine at Microsoft's end of a link.
func (l Link) edge() (Host, error) {
	switch l {
	case Primary:
		return Edge1, nil
	case Secondary:
		return Edge2, nil
	}
	return "", fmt.Errorf("link %q: want %s or %s", string(l), Primary, Secondary)
}

// Names of interfaces that others look at: on the edges and the gateway the
// side that faces an appliance.
const (
	// EdgeInterface faces prem, on both edges.
	EdgeInterface = "ce0"
	// GatewayInterface faces nva, on the gateway.
	GatewayInterface = "nva0"
)

// Addresses of the lab, as in deploy/samples.
var (
	ControllerAddress = netip.MustParseAddr("192.0.2.1")

	HQAddress    = netip.MustParseAddr("10.1.0.10")
	HQAddress6   = netip.MustParseAddr("fd00:c0:1::10")
	VNetAddress  = netip.MustParseAddr("10.2.0.10")
	VNetAddress6 = netip.MustParseAddr("fd00:c0:2::10")

	PremPrimary   = netip.MustParseAddr("172.16.10.1")
	EdgePrimary   = netip.MustParseAddr("172.16.10.2")
	PremSecondary = netip.MustParseAddr("172.16.10.5")
	EdgeSecondary = netip.MustParseAddr("172.16.10.6")
	Gateway       = netip.MustParseAddr("172.20.255.1")
	NVAFirst      = netip.MustParseAddr("172.20.255.4")
	NVASecond     = netip.MustParseAddr("172.20.255.5")

	// Underlay4 is outside of tunnels; Underlay6 is as in deploy/samples/ipv6, and
	// what a lab with IPv6 outside has besides.
	Underlay4 = Underlay{PremPrimary, EdgePrimary, PremSecondary, EdgeSecondary, Gateway, NVAFirst, NVASecond}
	Underlay6 = Underlay{
		PremPrimary:   netip.MustParseAddr("fd00:16::1"),
		EdgePrimary:   netip.MustParseAddr("fd00:16::2"),
		PremSecondary: netip.MustParseAddr("fd00:16::5"),
		EdgeSecondary: netip.MustParseAddr("fd00:16::6"),
		Gateway:       netip.MustParseAddr("fd00:20::1"),
		NVAFirst:      netip.MustParseAddr("fd00:20::4"),
		NVASecond:     netip.MustParseAddr("fd00:20::5"),
	}
)

// Underlay are the addresses between which tunnels run, and those of the routers
// beside them.
type Underlay struct {
	PremPrimary, EdgePrimary, PremSecondary, EdgeSecondary netip.Addr
	Gateway, NVAFirst, NVASecond                           netip.Addr
}

// wire is a veth pair.
type wire struct {
	a, b         Host
	nameA, nameB string
}

func wires() []wire {
	return []wire{
		{HQ, Prem, "eth0", "lan0"},
		{Prem, Edge1, "circ0", EdgeInterface},
		{Prem, Edge2, "circ1", EdgeInterface},
		{Edge1, ErGw, "gw0", "edge1"},
		{Edge2, ErGw, "gw0", "edge2"},
		{ErGw, NVA, GatewayInterface, "circ0"},
		{NVA, VNet, "lan0", "eth0"},
		{Ctl, Prem, "prem0", "mgmt0"},
		{Ctl, NVA, "nva0", "mgmt0"},
	}
}

// setup is one host's sysctls and lines of `ip -batch`.
type setup struct {
	forward bool
	// noIPv6 keeps a router from sending ND and MLD by itself.
	noIPv6 bool
	lines  []string
	// control are lines of a control run only, ipv6 of a lab with IPv6 outside.
	control, ipv6 []string
}

// setups is the whole of the addressing. In a real run the circuit interfaces
// of both appliances stay down and bare: the agent moves and configures them.
func setups() map[Host]setup {
	return map[Host]setup{
		HQ: {lines: []string{
			"addr add 10.1.0.10/16 dev eth0", "addr add fd00:c0:1::10/64 dev eth0 nodad", "link set eth0 up",
			"route add default via 10.1.0.1", "route add default via fd00:c0:1::1",
		}},
		VNet: {lines: []string{
			"addr add 10.2.0.10/16 dev eth0", "addr add fd00:c0:2::10/64 dev eth0 nodad", "link set eth0 up",
			"route add default via 10.2.0.1", "route add default via fd00:c0:2::1",
		}},
		Prem: {forward: true,
			lines: []string{
				"addr add 10.1.0.1/16 dev lan0", "addr add fd00:c0:1::1/64 dev lan0 nodad", "link set lan0 up",
				"addr add 192.0.2.11/24 dev mgmt0", "link set mgmt0 up",
			},
			control: []string{
				"addr add 172.16.10.1/30 dev circ0", "addr add fd00:ee:1::1/64 dev circ0 nodad", "link set circ0 up",
				"addr add 172.16.10.5/30 dev circ1", "addr add fd00:ee:2::1/64 dev circ1 nodad", "link set circ1 up",
				"route add 172.20.255.4 via 172.16.10.2", "route add 172.20.255.5 via 172.16.10.6",
				"route add 10.2.0.0/16 nexthop via 172.16.10.2 nexthop via 172.16.10.6",
				"route add fd00:c0:2::/48 nexthop via fd00:ee:1::2 nexthop via fd00:ee:2::2",
			}},
		NVA: {forward: true,
			lines: []string{
				"addr add 10.2.0.1/16 dev lan0", "addr add fd00:c0:2::1/64 dev lan0 nodad", "link set lan0 up",
				"addr add 192.0.2.12/24 dev mgmt0", "link set mgmt0 up",
			},
			control: []string{
				"addr add 172.20.255.4/28 dev circ0", "addr add 172.20.255.5/28 dev circ0",
				"addr add fd00:ee:5::4/64 dev circ0 nodad", "link set circ0 up",
				"route add 172.16.10.0/29 via 172.20.255.1",
				"route add 10.1.0.0/16 via 172.20.255.1", "route add fd00:c0:1::/48 via fd00:ee:5::1",
			}},
		Edge1: {forward: true, noIPv6: true,
			lines: []string{
				"addr add 172.16.10.2/30 dev ce0", "link set ce0 up", "addr add 198.51.100.2/30 dev gw0", "link set gw0 up",
				"route add 172.20.255.0/28 via 198.51.100.1",
			},
			control: []string{
				"addr add fd00:ee:1::2/64 dev ce0 nodad", "addr add fd00:ee:3::2/64 dev gw0 nodad",
				"route add 10.1.0.0/16 via 172.16.10.1", "route add 10.2.0.0/16 via 198.51.100.1",
				"route add fd00:c0:1::/48 via fd00:ee:1::1", "route add fd00:c0:2::/48 via fd00:ee:3::1",
			},
			ipv6: []string{
				"addr add fd00:16::2/126 dev ce0 nodad", "addr add fd00:ee:3::2/64 dev gw0 nodad", "route add fd00:20::/64 via fd00:ee:3::1",
			}},
		Edge2: {forward: true, noIPv6: true,
			lines: []string{
				"addr add 172.16.10.6/30 dev ce0", "link set ce0 up", "addr add 198.51.100.6/30 dev gw0", "link set gw0 up",
				"route add 172.20.255.0/28 via 198.51.100.5",
			},
			control: []string{
				"addr add fd00:ee:2::2/64 dev ce0 nodad", "addr add fd00:ee:4::2/64 dev gw0 nodad",
				"route add 10.1.0.0/16 via 172.16.10.5", "route add 10.2.0.0/16 via 198.51.100.5",
				"route add fd00:c0:1::/48 via fd00:ee:2::1", "route add fd00:c0:2::/48 via fd00:ee:4::1",
			},
			ipv6: []string{
				"addr add fd00:16::6/126 dev ce0 nodad", "addr add fd00:ee:4::2/64 dev gw0 nodad", "route add fd00:20::/64 via fd00:ee:4::1",
			}},
		ErGw: {forward: true, noIPv6: true,
			lines: []string{
				"addr add 198.51.100.1/30 dev edge1", "link set edge1 up", "addr add 198.51.100.5/30 dev edge2", "link set edge2 up",
				"addr add 172.20.255.1/28 dev nva0", "link set nva0 up",
				"route add 172.16.10.0/30 via 198.51.100.2", "route add 172.16.10.4/30 via 198.51.100.6",
			},
			control: []string{
				"addr add fd00:ee:3::1/64 dev edge1 nodad", "addr add fd00:ee:4::1/64 dev edge2 nodad", "addr add fd00:ee:5::1/64 dev nva0 nodad",
				"route add 10.1.0.0/16 nexthop via 198.51.100.2 nexthop via 198.51.100.6", "route add 10.2.0.0/16 via 172.20.255.4",
				"route add fd00:c0:1::/48 nexthop via fd00:ee:3::2 nexthop via fd00:ee:4::2", "route add fd00:c0:2::/48 via fd00:ee:5::4",
			},
			ipv6: []string{
				"addr add fd00:ee:3::1/64 dev edge1 nodad", "addr add fd00:ee:4::1/64 dev edge2 nodad", "addr add fd00:20::1/64 dev nva0 nodad",
				"route add fd00:16::/126 via fd00:ee:3::2", "route add fd00:16::4/126 via fd00:ee:4::2",
			}},
		Ctl: {noIPv6: true, lines: []string{
			"link add br0 type bridge", "link set prem0 master br0", "link set nva0 master br0",
			"link set prem0 up", "link set nva0 up", "addr add 192.0.2.1/24 dev br0", "link set br0 up",
		}},
	}
}

// silence keeps the provider's routers from adding ICMP errors of their own to
// the links, and what IPv6 tells other routers: what the tap counts there is then
// made by the appliances alone.
const silence = `table inet lab {
	chain output {
		type filter hook output priority 0; policy accept;
		icmp type { destination-unreachable, redirect, time-exceeded, parameter-problem } drop
		icmpv6 type { destination-unreachable, packet-too-big, time-exceeded, parameter-problem,
			mld-listener-query, mld-listener-report, mld-listener-done, mld2-listener-report, nd-router-solicit, nd-router-advert, nd-redirect } drop
	}
}
`

// build makes the wires and configures every host. The namespaces exist.
func (l *Lab) build(ctx context.Context, cfg Config) error {
	all := setups()
	var errs []error
	for h, s := range all {
		errs = append(errs, setSysctls(l.Namespace(h), s.sysctls(cfg)...), batch(ctx, l.Namespace(h), "link set lo up"))
	}
	var pairs []string
	for _, w := range wires() {
		pairs = append(pairs, fmt.Sprintf("link add %s netns %s type veth peer name %s netns %s",
			w.nameA, l.Namespace(w.a), w.nameB, l.Namespace(w.b)))
	}
	if err := errors.Join(append(errs, batch(ctx, "", pairs...))...); err != nil {
		return err
	}
	// Before an interface is up, which speaks at once.
	for _, h := range []Host{Edge1, Edge2, ErGw} {
		errs = append(errs, nft(ctx, l.Namespace(h), silence))
	}
	for h, s := range all {
		lines := s.lines
		if cfg.Control {
			lines = append(lines, s.control...)
		}
		if cfg.IPv6 {
			lines = append(lines, s.ipv6...)
		}
		errs = append(errs, batch(ctx, l.Namespace(h), lines...))
	}
	return errors.Join(errs...)
}

func (s setup) sysctls(cfg Config) [][2]string {
	values := [][2]string{
		// ICMP limits are per namespace and would hide what tests look for.
		{"ipv4/icmp_ratelimit", "0"},
		{"ipv4/conf/all/rp_filter", "0"},
		{"ipv4/conf/default/rp_filter", "0"},
		{"ipv4/fib_multipath_hash_policy", "1"},
		{"ipv6/fib_multipath_hash_policy", "1"},
		// A second of duplicate address detection per address would only slow
		// the lab down.
		{"ipv6/conf/all/accept_dad", "0"},
		{"ipv6/conf/default/accept_dad", "0"},
	}
	if s.forward {
		values = append(values, [2]string{"ipv4/ip_forward", "1"}, [2]string{"ipv6/conf/all/forwarding", "1"},
			[2]string{"ipv4/conf/all/send_redirects", "0"}, [2]string{"ipv4/conf/default/send_redirects", "0"})
	}
	if s.noIPv6 && !cfg.Control && (!cfg.IPv6 || s.ipv6 == nil) {
		values = append(values, [2]string{"ipv6/conf/all/disable_ipv6", "1"}, [2]string{"ipv6/conf/default/disable_ipv6", "1"})
	}
	return values
}
