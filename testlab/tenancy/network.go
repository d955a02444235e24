package tenancy

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/circuitseal/circuitseal/testlab/netns"
)

// The machines beside those of every lab. Provider is the network between the
// two nodes, which routes all circuits; Rest is where the LANs end of customers
// that are not sampled.
const (
	Premises netns.Host = "mprem"
	Azure    netns.Host = "mnva"
	provider netns.Host = "misp"
	rest     netns.Host = "mrest"
)

// HQ is a sampled customer's host on premises.
func (c Customer) HQ() netns.Host { return netns.Host(fmt.Sprintf("hq%03d", int(c))) }

// VNet is a sampled customer's host in Azure.
func (c Customer) VNet() netns.Host { return netns.Host(fmt.Sprintf("vn%03d", int(c))) }

// network makes machines, wires and addresses. Circuit interfaces stay down: the
// agent takes them.
func (t *Tenants) network(ctx context.Context) error {
	lab := t.Rig.Lab
	for h, node := range map[netns.Host]string{Premises: premisesNode, Azure: azureNode, provider: "", rest: ""} {
		if err := lab.AddHost(ctx, h, node != ""); err != nil {
			return err
		}
		if node != "" {
			t.Rig.AddNode(h, node)
		}
	}
	for _, c := range t.Sample {
		if err := errors.Join(lab.AddHost(ctx, c.HQ(), false), lab.AddHost(ctx, c.VNet(), false)); err != nil {
			return err
		}
	}
	wires := []netns.Wire{
		{A: Premises, NameA: "mgmt0", B: netns.Ctl, NameB: "mprem0"}, {A: Azure, NameA: "mgmt0", B: netns.Ctl, NameB: "mnva0"},
		{A: Azure, NameA: "circ0", B: provider, NameB: "nva0"},
	}
	// A router that sends frames by itself would only be in the way.
	lines := map[netns.Host][]string{
		Premises:  {"link set mgmt0 up", "addr add 192.0.2.41/24 dev mgmt0"},
		Azure:     {"link set mgmt0 up", "addr add 192.0.2.42/24 dev mgmt0"},
		netns.Ctl: {"link set mprem0 up master br0", "link set mnva0 up master br0"},
		provider:  {"link set nva0 up", "addr add " + nvaGateway + "/28 dev nva0"},
	}
	add := func(h netns.Host, line ...string) { lines[h] = append(lines[h], line...) }
	sampled := map[Customer]bool{}
	for _, c := range t.Sample {
		sampled[c] = true
	}
	for _, c := range t.All {
		p, s, l := c.interfaces()
		wires = append(wires, netns.Wire{A: Premises, NameA: p, B: provider, NameB: p}, netns.Wire{A: Premises, NameA: s, B: provider, NameB: s})
		for which, name := range []string{p, s} {
			_, _, theirs := c.link(which)
			add(provider, "link set "+name+" up", fmt.Sprintf("addr add %s/30 dev %s", theirs, name))
		}
		add(Premises, "link set "+l+" up", "addr add "+premisesRouter+"/9 dev "+l)
		add(Azure, "link set "+l+" up", "addr add "+azureRouter+"/9 dev "+l)
		if !sampled[c] {
			wires = append(wires, netns.Wire{A: Premises, NameA: l, B: rest, NameB: "a" + l}, netns.Wire{A: Azure, NameA: l, B: rest, NameB: "b" + l})
			add(rest, "link set a"+l+" up", "link set b"+l+" up")
			continue
		}
		wires = append(wires, netns.Wire{A: Premises, NameA: l, B: c.HQ(), NameB: "eth0"}, netns.Wire{A: Azure, NameA: l, B: c.VNet(), NameB: "eth0"})
		add(Azure, "addr add "+extraRouter+"/10 dev "+l)
		add(c.HQ(), "link set eth0 up", "addr add "+premisesHost+"/9 dev eth0", "route add default via "+premisesRouter)
		add(c.VNet(), "link set eth0 up", "addr add "+azureHost+"/9 dev eth0", "route add default via "+azureRouter)
		for i := range extras {
			add(c.VNet(), "addr add "+extraHost(i).String()+"/32 dev eth0")
		}
	}
	for _, h := range []netns.Host{provider, rest} {
		if _, err := t.on(ctx, h, "sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.disable_ipv6=1", "net.ipv6.conf.default.disable_ipv6=1"); err != nil {
			return err
		}
	}
	if err := lab.Wires(ctx, wires); err != nil {
		return err
	}
	for h, l := range lines {
		if err := lab.IP(ctx, h, l...); err != nil {
			return err
		}
	}
	for _, c := range t.Sample {
		err := errors.Join(t.Rig.Serve(c.HQ(), netip.MustParseAddr(premisesHost), netip.Addr{}),
			t.Rig.Serve(c.VNet(), netip.MustParseAddr(azureHost), netip.Addr{}))
		if err != nil {
			return err
		}
	}
	return nil
}

// extras is how many prefixes can be added to a site in Azure, each with a host.
const extras = 64

func extraHost(i int) netip.Addr { return netip.AddrFrom4([4]byte{100, 64, byte(i), 10}) }

func extraPrefix(i int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{100, 64, byte(i), 0}), 24)
}

func (t *Tenants) on(ctx context.Context, h netns.Host, program string, args ...string) (string, error) {
	out, err := t.Rig.Lab.Run(ctx, h, netns.Spec{Path: program, Args: args})
	return out.Stdout, err
}
