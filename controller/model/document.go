// Package model holds the operators' words as values: the documents that say
// what a provider's customers, circuits, sites, nodes and connections are, and
// what makes a set of them valid. It knows no wire format, no disk and no
// compiled state.
package model

import (
	"net/netip"
)

// APIVersion is the only version of documents so far.
const APIVersion = "circuitseal.io/v1"

// Kind names a type of document.
type Kind string

// The kinds. Customer, Node and Exemption belong to the provider and have no
// customer; all others belong to exactly one.
const (
	KindCustomer         Kind = "Customer"
	KindCircuit          Kind = "Circuit"
	KindSite             Kind = "Site"
	KindNode             Kind = "Node"
	KindEndpoint         Kind = "Endpoint"
	KindEncryptionPolicy Kind = "EncryptionPolicy"
	KindConnection       Kind = "Connection"
	KindSecurityRuleSet  Kind = "SecurityRuleSet"
	KindAppliance        Kind = "Appliance"
	KindServiceChain     Kind = "ServiceChain"
	KindExemption        Kind = "Exemption"
	KindCryptoProfile    Kind = "CryptoProfile"
)

// Key identifies a document.
type Key struct {
	Kind Kind
	// Customer is empty for kinds that belong to the provider.
	Customer string
	Name     string
}

// String is Kind/customer/name, or Kind/name where there is no customer. It is
// safe to show: parts that are no valid names are shortened and escaped.
func (k Key) String() string {
	if k.Customer == "" {
		return Shorten(string(k.Kind)) + "/" + Shorten(k.Name)
	}
	return Shorten(string(k.Kind)) + "/" + Shorten(k.Customer) + "/" + Shorten(k.Name)
}

// Document is one document. Spec is a pointer to the kind's spec type.
type Document struct {
	Key  Key
	Spec Spec
	// Revision is the store's revision of the last change; 0 before it is stored.
	Revision uint64
	// Base is the revision that its writer has seen, 0 where the writer does not
	// say: a change of a document that is at another revision is then refused.
	Base uint64
}

// Spec is a pointer to the spec type of one of Kinds.
type Spec interface{ kind() Kind }

// CustomerSpec is a tenant.
type CustomerSpec struct {
	// DisplayName is for people, at most 128 bytes.
	DisplayName string `json:"displayName,omitempty"`
	// Model is connect-through (the provider looks after the on-premises side) or
	// connect-to (the customer does); it decides who may change what.
	Model Model `json:"model"`
}

// Model is who looks after the on-premises side.
type Model string

// The models of the design's word list.
const (
	ConnectThrough Model = "connect-through"
	ConnectTo      Model = "connect-to"
)

// CircuitSpec is an ExpressRoute circuit: always two links.
type CircuitSpec struct {
	// Peering is the routing domain; only private circuits carry tunnels.
	Peering Peering `json:"peering"`
	// BandwidthMbps is 50 to 100,000.
	BandwidthMbps int `json:"bandwidthMbps"`
	// Links are the two of the circuit; every circuit has both.
	Links Links `json:"links"`
	// Enforcement is enforce (the default), or observe: count what would be
	// dropped and let it pass, before a circuit that is in use is closed. Refused
	// as yet is observe: agents would enforce.
	Enforcement Enforcement `json:"enforcement,omitempty"`
}

// Enforcement is what the guard of a circuit does.
type Enforcement string

// What the guard does.
const (
	EnforcementEnforce Enforcement = "enforce"
	EnforcementObserve Enforcement = "observe"
)

// Peering is a routing domain of a circuit.
type Peering string

// The peerings. Azure has retired public peering: documents may not create it.
const (
	PeeringPrivate   Peering = "private"
	PeeringMicrosoft Peering = "microsoft"
	PeeringPublic    Peering = "public"
)

// Links are the two links of a circuit.
type Links struct {
	// Primary is the link to the first edge router.
	Primary LinkSpec `json:"primary"`
	// Secondary is the link to the second.
	Secondary LinkSpec `json:"secondary"`
}

// LinkSpec is one link between the customer's edge and Microsoft's.
type LinkSpec struct {
	// VLAN is the 802.1Q tag on the provider's port, 1 to 4094, which Azure calls
	// the peering's VLAN ID or C-tag; 0 for a port that is handed over untagged.
	VLAN int `json:"vlan,omitempty"`
	// OuterVLAN is the tag in front of VLAN (QinQ), 1 to 4094, which Azure calls the
	// circuit's S-tag; 0 for none. Its ethertype is 0x8100, as Azure wants it.
	OuterVLAN int `json:"outerVlan,omitempty"`
	// Subnet is a /30, or a /126 of IPv6: its first address is the customer side's, the
	// second Microsoft's.
	Subnet netip.Prefix `json:"subnet"`
}

// LinkName is primary or secondary.
type LinkName string

// The links of a circuit.
const (
	Primary   LinkName = "primary"
	Secondary LinkName = "secondary"
)

// SiteSpec is a place and the prefixes that it protects.
type SiteSpec struct {
	// Type is on-premises or azure-vnet.
	Type SiteType `json:"type"`
	// Prefixes must not overlap with any other site of the customer.
	Prefixes []netip.Prefix `json:"prefixes"`
	// SecurityRules are the customer's rule sets that hold for the site. Refused as
	// yet: agents cannot enforce rules.
	SecurityRules *SiteRules `json:"securityRules,omitempty"`
}

// SiteRules are rule sets by direction as seen from the site.
// Rules of several sets are tried in the order of the sets.
type SiteRules struct {
	// Inbound are names of rule sets with direction inbound.
	Inbound []string `json:"inbound,omitempty"`
	// Outbound are names of rule sets with direction outbound.
	Outbound []string `json:"outbound,omitempty"`
}

// SiteType is the kind of place.
type SiteType string

// The site types.
const (
	SiteOnPremises SiteType = "on-premises"
	SiteAzureVNet  SiteType = "azure-vnet"
)

// NodeSpec is a host with our agent.
type NodeSpec struct {
	// Owner is "provider", or the name of a customer.
	Owner string `json:"owner"`
	// Interfaces are those that the agent looks after or has to know.
	Interfaces []InterfaceSpec `json:"interfaces"`
	// Exemptions are what may cross the node's circuit interfaces in clear. Refused
	// as yet: agents let nothing of it pass.
	Exemptions []string `json:"exemptions,omitempty"`
	// OnDuplicateIdentity is what happens when two hosts show the node's
	// identity at once; empty is alarm.
	OnDuplicateIdentity DuplicateAction `json:"onDuplicateIdentity,omitempty"`
	// CharonSocket is the VICI socket of a strongSwan that runs already, in the
	// node's circuit namespace. Left out, the agent runs one of its own.
	CharonSocket string `json:"charonSocket,omitempty"`
}

// DuplicateAction is what happens when two hosts show one identity at once. The
// one that came first keeps its session in any case, if it is alive.
type DuplicateAction string

// The actions.
const (
	// DuplicateAlarm refuses the second and raises an alarm.
	DuplicateAlarm DuplicateAction = "alarm"
	// DuplicateQuarantine revokes the identity, so that neither has it.
	DuplicateQuarantine DuplicateAction = "quarantine"
)

// OwnerProvider is the owner of nodes that may serve several customers.
const OwnerProvider = "provider"

// InterfaceSpec is one of a node's interfaces.
type InterfaceSpec struct {
	// Name is the interface's on the host, such as eth1.
	Name string `json:"name"`
	// Role is circuit, lan or mgmt.
	Role InterfaceRole `json:"role"`
	// Customer owns a LAN interface. It is inferred on customers' own nodes.
	Customer string `json:"customer,omitempty"`
	// Link says which link of a circuit ends here, untagged: on-premises circuit
	// interfaces. Address and next hop then come from the link's subnet.
	Link *LinkRef `json:"link,omitempty"`
	// Links are those that end here by their VLANs, of one circuit or several. Each
	// has an address and a next hop of its own from its subnet.
	Links []LinkRef `json:"links,omitempty"`
	// Addresses, with their subnet's length, are for circuit interfaces without a
	// link, such as an Azure NVA's, which reach both links through a router.
	Addresses []netip.Prefix `json:"addresses,omitempty"`
	// Gateway is that router.
	Gateway netip.Addr `json:"gateway,omitzero"`
}

// InterfaceRole is what an interface is for.
type InterfaceRole string

// The roles.
const (
	RoleCircuit    InterfaceRole = "circuit"
	RoleLAN        InterfaceRole = "lan"
	RoleManagement InterfaceRole = "mgmt"
)

// LinkRef names one link of a circuit of a customer.
type LinkRef struct {
	// Customer owns the circuit.
	Customer string `json:"customer"`
	// Circuit is the circuit's name.
	Circuit string `json:"circuit"`
	// Link is primary or secondary.
	Link LinkName `json:"link"`
}

// EndpointSpec is a customer's tunnel end at a site.
type EndpointSpec struct {
	// Site is the customer's site that the endpoint serves.
	Site string `json:"site"`
	// Node carries the endpoint (a managed endpoint); either this or external.
	Node string `json:"node,omitempty"`
	// External is the endpoint's gateway where no agent of ours runs; connections
	// to it take protocol ipsec.
	External *ExternalSpec `json:"external,omitempty"`
	// Underlay are the outer addresses of the endpoint's tunnels.
	Underlay []UnderlaySpec `json:"underlay"`
}

// UnderlaySpec is an outer address of an endpoint.
type UnderlaySpec struct {
	// Address is one of the node's circuit interfaces, or of the gateway.
	Address netip.Addr `json:"address"`
	// Circuit, with link, binds the address to one link: it is connected, or
	// announced only there. Unset for addresses that reach both links.
	Circuit string `json:"circuit,omitempty"`
	// Link is primary or secondary.
	Link LinkName `json:"link,omitempty"`
	// TranslatedTo is the address as the far end sees it, where something between
	// the two translates addresses one to one.
	TranslatedTo netip.Addr `json:"translatedTo,omitzero"`
}

// EncryptionPolicySpec says how a connection is encrypted.
type EncryptionPolicySpec struct {
	// Protocol is wireguard or ipsec.
	Protocol Protocol `json:"protocol"`
	// PathMTU is the largest outer packet in bytes, 1280 to 9000. The default
	// of 1400 is what ExpressRoute's gateway passes unfragmented.
	PathMTU int `json:"pathMTU,omitempty"`
	// MaxOfflineAge is how long nodes carry the connection without word from the
	// controller, 1h to 3650d. Left out, it is for ever.
	MaxOfflineAge Duration `json:"maxOfflineAge,omitempty"`
	// OfflineAction is what they do then; needed with maxOfflineAge.
	OfflineAction OfflineAction `json:"offlineAction,omitempty"`
	// PSKRotation is how often the pre-shared keys of WireGuard tunnels change, and
	// those that IPsec mixes in (RFC 8784), 5m to 24h; 1h when left out.
	PSKRotation Duration `json:"pskRotation,omitempty"`
	// CryptoProfile is what IKEv2 and ESP may negotiate: a built-in profile
	// (sealctl profiles lists them) or a CryptoProfile of the customer; cnsa1 when
	// left out, and azure-vpngw for Azure VPN Gateways, whose ipsecPolicy takes the place
	// of its suites. The default is for IPsec alone. WireGuard has one suite only, and is
	// refused where the profile forbids it.
	CryptoProfile string `json:"cryptoProfile,omitempty"`
	// Lifetimes is when the keys of IPsec tunnels are replaced.
	Lifetimes *LifetimesSpec `json:"lifetimes,omitempty"`
	// PostQuantum is required, or preferred, which lets gateways without our agent
	// off. WireGuard's pre-shared keys are enough; IPsec mixes some in (RFC 8784),
	// unless each of the profile's proposals has ML-KEM.
	PostQuantum PostQuantum `json:"postQuantum,omitempty"`
	// UDPEncapsulation is auto, ESP in UDP where a NAT is found, or always, where a
	// load balancer lies between; auto when left out. It is for IPsec.
	UDPEncapsulation UDPEncapsulation `json:"udpEncapsulation,omitempty"`
}

// OfflineAction is what nodes do when they have not heard of the controller for
// longer than MaxOfflineAge.
type OfflineAction string

// The actions: go on and report a problem, or close the tunnels until the
// controller is heard of.
const (
	OfflineContinue OfflineAction = "continue"
	OfflineClose    OfflineAction = "close"
)

// UDPEncapsulation is when ESP is in UDP (RFC 3948).
type UDPEncapsulation string

// When.
const (
	UDPAuto   UDPEncapsulation = "auto"
	UDPAlways UDPEncapsulation = "always"
)

// DefaultPSKRotation is how often pre-shared keys change where the policy says
// nothing.
const DefaultPSKRotation Duration = "1h"

// DefaultPathMTU is what ExpressRoute's gateway passes unfragmented.
const DefaultPathMTU = 1400

// Protocol is a tunnel protocol.
type Protocol string

// The protocols.
const (
	ProtocolWireGuard Protocol = "wireguard"
	ProtocolIPsec     Protocol = "ipsec"
)

// ConnectionSpec is two sites of one customer that must be encrypted.
type ConnectionSpec struct {
	// Endpoints are two endpoints of the connection's customer, at different sites.
	Endpoints []string `json:"endpoints"`
	// Circuits carry the connection; each adds a tunnel per link.
	Circuits []string `json:"circuits"`
	// EncryptionPolicy says how.
	EncryptionPolicy string `json:"encryptionPolicy"`
}

func (*CustomerSpec) kind() Kind         { return KindCustomer }
func (*CircuitSpec) kind() Kind          { return KindCircuit }
func (*SiteSpec) kind() Kind             { return KindSite }
func (*NodeSpec) kind() Kind             { return KindNode }
func (*EndpointSpec) kind() Kind         { return KindEndpoint }
func (*EncryptionPolicySpec) kind() Kind { return KindEncryptionPolicy }
func (*ConnectionSpec) kind() Kind       { return KindConnection }
func (*SecurityRuleSetSpec) kind() Kind  { return KindSecurityRuleSet }
func (*ApplianceSpec) kind() Kind        { return KindAppliance }
func (*ServiceChainSpec) kind() Kind     { return KindServiceChain }
func (*ExemptionSpec) kind() Kind        { return KindExemption }
func (*CryptoProfileSpec) kind() Kind    { return KindCryptoProfile }
