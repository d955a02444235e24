package model

import "net/netip"

// ApplianceSpec is a firewall or another appliance that traffic is steered
// through. It must not translate addresses: both directions of a flow are known
// by them. It is kept and checked, and no traffic is steered through it as yet: no
// rules can be in force until agents can enforce them.
type ApplianceSpec struct {
	// Node is where the appliance is attached.
	Node string `json:"node"`
	// NextHop is the appliance as a router on a LAN interface; either this or
	// interfacePair.
	NextHop *NextHopSpec `json:"nextHop,omitempty"`
	// InterfacePair is the appliance between two interfaces.
	InterfacePair *InterfacePairSpec `json:"interfacePair,omitempty"`
	// HealthCheck says how the node finds out whether the appliance works.
	HealthCheck HealthCheckSpec `json:"healthCheck"`
}

// NextHopSpec is a neighbour on a LAN interface.
type NextHopSpec struct {
	// Interface is a LAN interface of the customer on the node.
	Interface string `json:"interface"`
	// Address is the appliance's.
	Address netip.Addr `json:"address"`
}

// InterfacePairSpec is what lies between two LAN interfaces of the customer.
type InterfacePairSpec struct {
	// Inside is where packets from the customer's hosts enter the appliance.
	Inside string `json:"inside"`
	// Outside is where they leave it.
	Outside string `json:"outside"`
}

// HealthCheckSpec is a check that the agent makes.
type HealthCheckSpec struct {
	// Protocol is icmp, tcp or http.
	Protocol HealthProtocol `json:"protocol"`
	// Port is for tcp and http.
	Port int `json:"port,omitempty"`
	// Path is for http, such as /healthz; a status of 200 to 299 is healthy.
	Path string `json:"path,omitempty"`
	// Interval is 100ms to 60s; 1s when left out. Three checks that fail in a row
	// make an appliance unhealthy.
	Interval Duration `json:"interval,omitempty"`
}

// HealthProtocol is how an appliance is asked.
type HealthProtocol string

// The protocols of health checks.
const (
	HealthICMP HealthProtocol = "icmp"
	HealthTCP  HealthProtocol = "tcp"
	HealthHTTP HealthProtocol = "http"
)

// DefaultHealthInterval is the interval of health checks that say none.
const DefaultHealthInterval Duration = "1s"

// ServiceChainSpec is the appliances that traffic passes, one hop after the
// other. It is kept and checked, and no traffic is steered through it as yet: no
// rules can be in force until agents can enforce them.
type ServiceChainSpec struct {
	// Position is before-tunnel (on the side where packets come from the LAN) or
	// after-tunnel (on the side where they leave the tunnel).
	Position ChainPosition `json:"position"`
	// Hops are passed in this order, and in the other one on the way back.
	Hops []ChainHop `json:"hops"`
	// WhenNoneHealthy is drop (the default) or bypass: what becomes of traffic
	// while a hop has no healthy appliance. bypass lets it pass uninspected; it is
	// encrypted all the same.
	WhenNoneHealthy NoneHealthy `json:"whenNoneHealthy,omitempty"`
}

// ChainHop is one step of a chain.
type ChainHop struct {
	// Appliances share the flows of this hop.
	Appliances []string `json:"appliances"`
}

// ChainPosition is on which side of a tunnel a chain lies.
type ChainPosition string

// The positions.
const (
	BeforeTunnel ChainPosition = "before-tunnel"
	AfterTunnel  ChainPosition = "after-tunnel"
)

// NoneHealthy is what a chain does without healthy appliances.
type NoneHealthy string

// What a chain does without healthy appliances.
const (
	NoneHealthyDrop   NoneHealthy = "drop"
	NoneHealthyBypass NoneHealthy = "bypass"
)

// ExemptionSpec is traffic of a node's own sockets that may cross a circuit in
// clear. It belongs to the provider, is counted apart and named in the evidence.
// A customer's packet is never among it. It is kept and checked, and lets nothing
// pass as yet: no Node may name it until agents know exemptions.
type ExemptionSpec struct {
	// Type is management, dhcp or azure-168.63.129.16.
	Type ExemptionType `json:"type"`
	// Reason is why, for those who read the evidence.
	Reason string `json:"reason"`
	// Host is the one address at the other end; for management, where it is
	// required, and for dhcp, where it is the server's.
	Host netip.Addr `json:"host,omitzero"`
	// Protocol is tcp or udp; for management only.
	Protocol ExemptionProtocol `json:"protocol,omitempty"`
	// HostPort is a port of the host that the node calls; either this or nodePort,
	// for management only.
	HostPort int `json:"hostPort,omitempty"`
	// NodePort is a port of the node that the host calls.
	NodePort int `json:"nodePort,omitempty"`
}

// ExemptionType is a kind of exempt traffic.
type ExemptionType string

// The types. Those of DHCP and of Azure's platform address say addresses and
// ports by themselves.
const (
	ExemptManagement ExemptionType = "management"
	ExemptDHCP       ExemptionType = "dhcp"
	ExemptAzure      ExemptionType = "azure-168.63.129.16"
)

// ExemptionProtocol is what a management exemption speaks.
type ExemptionProtocol string

// The protocols with ports.
const (
	ExemptTCP ExemptionProtocol = "tcp"
	ExemptUDP ExemptionProtocol = "udp"
)
