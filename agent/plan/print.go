package plan

import (
	"fmt"
	"strings"
)

// String is the plan for people: what `circuitseal-agent plan` prints and what
// golden tests compare. Order and indentation are stable.
func (p Plan) String() string {
	var b strings.Builder
	section := func(title string, n int) {
		if n > 0 {
			fmt.Fprintf(&b, "%s\n", title)
		}
	}
	line := func(format string, a ...any) { fmt.Fprintf(&b, "  "+format+"\n", a...) }

	section("circuit interfaces (in the circuit namespace)", len(p.Interfaces))
	for _, i := range p.Interfaces {
		if i.Parent != "" {
			line("%s is VLAN %d of %s %v", i.Name, i.VLAN, i.Parent, i.Addresses)
			continue
		}
		line("%s %v", i.Name, i.Addresses)
	}
	section("routing tables (in the circuit namespace, each ends in unreachable)", len(p.Tables))
	for _, t := range p.Tables {
		line("%#x for mark %#x", t.Number, t.Mark)
		for _, r := range t.Routes {
			line("  %s via %s dev %s src %s", r.Destination, r.NextHop, r.Interface, r.Source)
		}
		for _, c := range t.Control {
			line("  control packets from %s to %s", c.Local, c.Remote)
		}
	}
	section("tunnels", len(p.Tunnels))
	for _, t := range p.Tunnels {
		line("%s: %s, %s -> %s, mark %#x, mtu %d", t.ID, t.Device, t.Local, t.Peer, t.Mark, t.MTU)
		line("  allowed %v", t.AllowedIPs)
		line("  pre-shared keys %v", t.PresharedKeys)
		line("  probe %s -> %s", t.LocalProbe, t.RemoteProbe)
	}
	section("IPsec tunnels", len(p.IPsec.Tunnels))
	for _, t := range p.IPsec.Tunnels {
		role := "answers"
		if t.Initiates {
			role = "initiates"
		}
		line("%s: %s, %s -> %s, mark %#x, interface id %#x, mtu %d, %s", t.ID, t.Device, t.Local, t.Remote, t.Mark, t.InterfaceID, t.MTU, role)
		line("  %s as %s with %s by %s", t.Policy.Profile, t.Policy.LocalID, t.Policy.RemoteID, t.Policy.Authentication)
		line("  ike %v, esp %v", t.Policy.IKEProposals, t.Policy.ESPProposals)
		line("  pre-shared keys %v", t.PresharedKeys)
		if t.LocalProbe.IsValid() {
			line("  probe %s -> %s", t.LocalProbe, t.RemoteProbe)
		}
	}
	section("pending tunnels", len(p.Pending))
	for _, t := range p.Pending {
		line("%s by %s: %s", t.ID, t.Protocol, t.Reason)
	}
	section("guard: nothing but these passes the circuit interfaces", len(p.Guard.Interfaces))
	for _, i := range p.Guard.Interfaces {
		line("%s", i)
	}
	for _, n := range p.Guard.Neighbors {
		by := "ARP"
		if n.Local.Is6() {
			by = "ND"
		}
		line("%s %s %s <-> %s", n.Interface, by, n.Local, n.Remote)
	}
	for _, f := range p.Guard.Flows {
		line("%s", f)
	}
	c := p.Classifier
	section("classifier", len(c.LANs)+len(c.Locals)+len(c.Remotes)+len(c.Groups))
	for _, l := range c.LANs {
		line("%s is tenant %d, mtu %d", l.Interface, l.Tenant, l.MTU)
	}
	for _, l := range c.Locals {
		line("tenant %d: %s is local, behind %s", l.Tenant, l.Prefix, l.Interface)
	}
	for _, r := range c.Remotes {
		line("tenant %d: %s is encrypted into group %d", r.Tenant, r.Prefix, r.Group)
	}
	for _, g := range c.Groups {
		line("group %d (%s, tenant %d)", g.Number, g.ID, g.Tenant)
		for _, m := range g.Members {
			text := fmt.Sprintf("  %s by %s", m.Tunnel, m.Device)
			if m.Retiring {
				text += ", while nothing else is alive"
			}
			line("%s", text)
		}
	}
	return b.String()
}
