package tenancy

import (
	"fmt"
	"net/netip"
	"strings"
)

// Customer is one of many, counted from 1. All have the same prefixes, hosts and
// interface addresses on their LANs; only circuits differ, since the provider
// numbers these.
type Customer int

// Name is the customer's.
func (c Customer) Name() string { return fmt.Sprintf("c%03d", int(c)) }

// Every customer's prefixes, and what stands in them.
const (
	premisesPrefix = "10.0.0.0/9"
	azurePrefix    = "10.128.0.0/9"
	premisesHost   = "10.0.0.10"
	azureHost      = "10.128.0.10"
	premisesRouter = "10.0.0.1"
	azureRouter    = "10.128.0.1"
	// extraRouter is in the network from which prefixes are added.
	extraRouter = "100.64.0.1"
)

// Addresses of the NVA's one circuit interface, which all customers share; ports
// tell their tunnels apart.
const (
	nvaFirst   = "172.20.255.4"
	nvaSecond  = "172.20.255.5"
	nvaGateway = "172.20.255.1"
)

// link is the subnet of the customer's primary (0) or secondary (1) link, and the
// two addresses in it.
func (c Customer) link(which int) (subnet netip.Prefix, ours, theirs netip.Addr) {
	n := (int(c)-1)*8 + which*4
	base := netip.AddrFrom4([4]byte{172, 17, byte(n >> 8), byte(n)})
	return netip.PrefixFrom(base, 30), base.Next(), base.Next().Next()
}

// interfaces are the names on the node on premises; on the NVA the LAN has the
// same.
func (c Customer) interfaces() (primary, secondary, lan string) {
	return fmt.Sprintf("p%03d", int(c)), fmt.Sprintf("s%03d", int(c)), fmt.Sprintf("l%03d", int(c))
}

const (
	premisesNode = "prem-all"
	azureNode    = "nva-all"
)

// providers are the documents that are there before anybody's traffic is:
// customers, circuits, and the two nodes.
func providers(all []Customer) string {
	var b strings.Builder
	document := func(kind, metadata, spec string) {
		_, _ = fmt.Fprintf(&b, "apiVersion: circuitseal.io/v1\nkind: %s\nmetadata: {%s}\nspec: %s\n---\n", kind, metadata, spec)
	}
	var prem, nva strings.Builder
	for _, c := range all {
		document("Customer", "name: "+c.Name(), "{displayName: "+c.Name()+", model: connect-through}")
		first, _, _ := c.link(0)
		second, _, _ := c.link(1)
		document("Circuit", "customer: "+c.Name()+", name: er",
			fmt.Sprintf("{peering: private, bandwidthMbps: 50, links: {primary: {subnet: %s}, secondary: {subnet: %s}}}", first, second))
		p, s, l := c.interfaces()
		for name, link := range map[string]string{p: "primary", s: "secondary"} {
			_, _ = fmt.Fprintf(&prem, "    - {name: %s, role: circuit, link: {customer: %s, circuit: er, link: %s}}\n", name, c.Name(), link)
		}
		_, _ = fmt.Fprintf(&prem, "    - {name: %s, role: lan, customer: %s}\n", l, c.Name())
		_, _ = fmt.Fprintf(&nva, "    - {name: %s, role: lan, customer: %s}\n", l, c.Name())
	}
	const management = "    - {name: mgmt0, role: mgmt}\n"
	document("Node", "name: "+premisesNode, "\n  owner: provider\n  interfaces:\n"+prem.String()+management)
	document("Node", "name: "+azureNode, "\n  owner: provider\n  interfaces:\n"+nva.String()+management+
		fmt.Sprintf("    - {name: circ0, role: circuit, addresses: [%s/28, %s/28], gateway: %s}\n", nvaFirst, nvaSecond, nvaGateway))
	return strings.TrimSuffix(b.String(), "---\n")
}

// policy are the documents of a customer's own.
func policy(c Customer) string {
	_, first, _ := c.link(0)
	_, second, _ := c.link(1)
	return strings.NewReplacer("CUSTOMER", c.Name(), "FIRST", first.String(), "SECOND", second.String()).Replace(`apiVersion: circuitseal.io/v1
kind: Site
metadata: {customer: CUSTOMER, name: hq}
spec: {type: on-premises, prefixes: [` + premisesPrefix + `]}
---
` + azureSite(c) + `---
apiVersion: circuitseal.io/v1
kind: Endpoint
metadata: {customer: CUSTOMER, name: hq}
spec:
  site: hq
  node: ` + premisesNode + `
  underlay: [{address: FIRST, circuit: er, link: primary}, {address: SECOND, circuit: er, link: secondary}]
---
apiVersion: circuitseal.io/v1
kind: Endpoint
metadata: {customer: CUSTOMER, name: vnet}
spec: {site: vnet, node: ` + azureNode + `, underlay: [{address: ` + nvaFirst + `}, {address: ` + nvaSecond + `}]}
---
apiVersion: circuitseal.io/v1
kind: EncryptionPolicy
metadata: {customer: CUSTOMER, name: standard}
spec: {protocol: wireguard}
---
apiVersion: circuitseal.io/v1
kind: Connection
metadata: {customer: CUSTOMER, name: hq-vnet}
spec: {endpoints: [hq, vnet], circuits: [er], encryptionPolicy: standard}
`)
}

// azureSite is the customer's site in Azure, with more prefixes if any.
func azureSite(c Customer, more ...string) string {
	return fmt.Sprintf("apiVersion: circuitseal.io/v1\nkind: Site\nmetadata: {customer: %s, name: vnet}\nspec: {type: azure-vnet, prefixes: [%s]}\n",
		c.Name(), strings.Join(append([]string{azurePrefix}, more...), ", "))
}
