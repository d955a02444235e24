package model

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// What a chain can have.
const (
	maxHops           = 8
	maxHopAppliances  = 32
	maxReason         = 256
	maxHealthPath     = 1024
	maxNodeExemptions = 64
)

func (c *checker) appliance(k Key, s *ApplianceSpec) {
	node := c.usable(s.Node)
	if node != nil && c.foreign(node, k.Customer) {
		c.add(k, "spec.node", s.Node, "belongs to another customer; only the provider's nodes serve several", "a node that the provider or "+quoted(k.Customer)+" owns")
		node = nil
	}
	switch {
	case s.NextHop != nil && s.InterfacePair != nil:
		c.add(k, "spec.interfacePair", "", "stands beside nextHop: an appliance is a router on one interface, or lies between two", "one of the two")
	case s.NextHop == nil && s.InterfacePair == nil:
		c.add(k, "spec.nextHop", "", "is required, unless there is an interfacePair", "such as {interface: lan0, address: 10.1.0.10}")
	}
	if h := s.NextHop; h != nil {
		c.applianceInterface(k, "spec.nextHop.interface", h.Interface, node)
		c.address(k, "spec.nextHop.address", h.Address)
	}
	if p := s.InterfacePair; p != nil {
		c.applianceInterface(k, "spec.interfacePair.inside", p.Inside, node)
		c.applianceInterface(k, "spec.interfacePair.outside", p.Outside, node)
		if p.Inside == p.Outside && p.Inside != "" {
			c.add(k, "spec.interfacePair.outside", p.Outside, "is the same interface as inside", "two interfaces, or nextHop")
		}
	}
	c.healthCheck(k, s.HealthCheck)
}

// applianceInterface checks that an interface is a LAN of the customer.
func (c *checker) applianceInterface(k Key, field, name string, node *NodeSpec) {
	if p, hint := validInterfaceName(name); p != "" {
		c.add(k, field, name, p, hint)
		return
	}
	if node == nil {
		return
	}
	i := slices.IndexFunc(node.Interfaces, func(in InterfaceSpec) bool { return in.Name == name })
	// What other customers have on the node is not told.
	if i < 0 || node.Interfaces[i].Role != RoleLAN || node.LANCustomer(node.Interfaces[i]) != k.Customer {
		c.add(k, field, name, "is no LAN interface of this customer on the node", "the name of one")
	}
}

func (c *checker) healthCheck(k Key, h HealthCheckSpec) {
	const field = "spec.healthCheck"
	c.duration(k, field+".interval", h.Interval, "100ms", "60s")
	if !enum(c, k, field+".protocol", h.Protocol, HealthICMP, HealthTCP, HealthHTTP) {
		return
	}
	switch {
	case h.Protocol == HealthICMP && h.Port != 0:
		c.add(k, field+".port", strconv.Itoa(h.Port), "is for tcp and http only", "leave it out")
	case h.Protocol != HealthICMP && h.Port == 0:
		c.add(k, field+".port", "", "is required by protocol "+string(h.Protocol), "1 to 65535")
	case h.Protocol != HealthICMP:
		c.between(k, field+".port", h.Port, 1, 65535, "")
	}
	switch {
	case h.Protocol != HealthHTTP && h.Path != "":
		c.add(k, field+".path", h.Path, "is for http only", "leave it out")
	case h.Protocol == HealthHTTP && !strings.HasPrefix(h.Path, "/"):
		c.add(k, field+".path", h.Path, "is no path of HTTP", "such as /healthz")
	case len(h.Path) > maxHealthPath || strings.ContainsFunc(h.Path, func(r rune) bool { return r <= ' ' || r >= 0x7f }):
		c.add(k, field+".path", h.Path, fmt.Sprintf("is longer than %d bytes, or has characters other than printable ASCII", maxHealthPath), "such as /healthz")
	}
}

func (c *checker) chain(k Key, s *ServiceChainSpec) {
	enum(c, k, "spec.position", s.Position, BeforeTunnel, AfterTunnel)
	if s.WhenNoneHealthy != "" {
		enum(c, k, "spec.whenNoneHealthy", s.WhenNoneHealthy, NoneHealthyDrop, NoneHealthyBypass)
	}
	const list = "spec.hops"
	switch n := len(s.Hops); {
	case n == 0:
		c.add(k, list, "", "is required: a chain without hops leads through nothing", "such as [{appliances: [fw-1, fw-2]}]")
	case n > maxHops:
		c.add(k, list, strconv.Itoa(n), fmt.Sprintf("has more than the %d hops that a chain can have", maxHops), "fewer hops")
		return
	}
	first := map[string]string{}
	node := ""
	for i, hop := range s.Hops {
		field := at(list, i) + ".appliances"
		switch n := len(hop.Appliances); {
		case n == 0:
			c.add(k, field, "", "is required: nothing could be passed here", "at least one appliance")
		case n > maxHopAppliances:
			c.add(k, field, strconv.Itoa(n), fmt.Sprintf("has more than the %d appliances that a hop can have", maxHopAppliances), "fewer appliances")
			return
		}
		for j, name := range hop.Appliances {
			here := at(field, j)
			if where, taken := first[name]; taken {
				c.add(k, here, name, "stands in "+where+" as well: a flow would pass it twice", "each appliance once")
				continue
			}
			first[name] = here
			a, ok := Lookup[*ApplianceSpec](c.docs, Key{Kind: KindAppliance, Customer: k.Customer, Name: name})
			switch {
			case !ok || a.Node == "":
			case node == "":
				node = a.Node
			case a.Node != node:
				c.add(k, here, name, "is attached to node "+quoted(a.Node)+", others of the chain to "+quoted(node)+": a chain lies at one node", "appliances of one node")
			}
		}
	}
}

func (c *checker) exemption(k Key, s *ExemptionSpec) {
	if s.Reason == "" {
		c.add(k, "spec.reason", "", "is required: the evidence names every exemption", "why this may cross a circuit in clear")
	} else {
		c.text(k, "spec.reason", s.Reason, maxReason)
	}
	if !enum(c, k, "spec.type", s.Type, ExemptManagement, ExemptDHCP, ExemptAzure) {
		return
	}
	if s.Type != ExemptManagement {
		only := "the type says it by itself; it is for management only"
		if s.Protocol != "" {
			c.add(k, "spec.protocol", string(s.Protocol), only, "leave it out")
		}
		if s.HostPort != 0 {
			c.add(k, "spec.hostPort", strconv.Itoa(s.HostPort), only, "leave it out")
		}
		if s.NodePort != 0 {
			c.add(k, "spec.nodePort", strconv.Itoa(s.NodePort), only, "leave it out")
		}
		if s.Type == ExemptAzure && s.Host.IsValid() {
			c.add(k, "spec.host", s.Host.String(), "the type says it by itself: 168.63.129.16", "leave it out")
		}
		if s.Type == ExemptDHCP && s.Host.IsValid() {
			c.address(k, "spec.host", s.Host)
		}
		return
	}
	c.address(k, "spec.host", s.Host)
	enum(c, k, "spec.protocol", s.Protocol, ExemptTCP, ExemptUDP)
	switch {
	case s.HostPort == 0 && s.NodePort == 0:
		c.add(k, "spec.hostPort", "", "is required, unless there is a nodePort: an exemption is for one port", "1 to 65535")
	case s.HostPort != 0 && s.NodePort != 0:
		c.add(k, "spec.nodePort", strconv.Itoa(s.NodePort), "stands beside hostPort: either the node calls the host, or the host calls the node", "two exemptions")
	case s.HostPort != 0:
		c.between(k, "spec.hostPort", s.HostPort, 1, 65535, "")
	default:
		c.between(k, "spec.nodePort", s.NodePort, 1, 65535, "")
	}
}

// nodeExemptions checks what a node puts in force.
func (c *checker) nodeExemptions(k Key, names []string) {
	const list = "spec.exemptions"
	c.notYet(k, list, len(names) > 0, "agents of this version cannot let exempt traffic pass yet: the guard drops it")
	if n := len(names); n > maxNodeExemptions {
		c.add(k, list, strconv.Itoa(n), fmt.Sprintf("has more than the %d exemptions that a node can have", maxNodeExemptions), "fewer exemptions")
		return
	}
	for i, name := range names {
		if first := slices.Index(names, name); first < i && name != "" {
			c.add(k, at(list, i), name, "stands in "+at(list, first)+" as well", "each exemption once")
		}
	}
}
