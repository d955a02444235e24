package model

import "github.com/circuitseal/circuitseal/controller/profile"

// CryptoProfileSpec is a customer's own list of what IKEv2 and ESP may
// negotiate, the best first; an EncryptionPolicy puts it in force. Algorithms
// have the names of strongSwan's proposals.
type CryptoProfileSpec struct {
	// IKE are proposals for IKE SAs.
	IKE []IKEProposal `json:"ike"`
	// ESP are proposals for ESP SAs.
	ESP []ESPProposal `json:"esp"`
}

// IKEProposal is what an IKE SA may use (RFC 7296, section 3.3).
type IKEProposal struct {
	// Encryption is such as aes256gcm16.
	Encryption string `json:"encryption"`
	// Integrity is such as sha384; not beside an encryption that authenticates.
	Integrity string `json:"integrity,omitempty"`
	// PRF is such as prfsha384.
	PRF string `json:"prf"`
	// KeyExchange is such as ecp384.
	KeyExchange string `json:"keyExchange"`
	// AdditionalKeyExchange is a second one beside it (RFC 9370), such as
	// mlkem768.
	AdditionalKeyExchange string `json:"additionalKeyExchange,omitempty"`
}

// ESPProposal is what an ESP SA may use.
type ESPProposal struct {
	// Encryption is such as aes256gcm16.
	Encryption string `json:"encryption"`
	// Integrity is such as sha384; not beside an encryption that authenticates.
	Integrity string `json:"integrity,omitempty"`
	// KeyExchange gives perfect forward secrecy at rekeying, such as ecp384.
	KeyExchange string `json:"keyExchange"`
	// AdditionalKeyExchange is a second one beside it (RFC 9370).
	AdditionalKeyExchange string `json:"additionalKeyExchange,omitempty"`
	// ESN says whether sequence numbers have 64 bits (RFC 4303, section 2.2.1):
	// required or off; required when left out. Who can take both writes two
	// proposals.
	ESN ESN `json:"esn,omitempty"`
}

// ESN is whether an ESP SA has extended sequence numbers.
type ESN string

// Whether.
const (
	ESNRequired ESN = "required"
	ESNOff      ESN = "off"
)

// BuiltInProfiles are the names of the crypto profiles that need no document.
func BuiltInProfiles() []string { return profile.Names() }

// LifetimesSpec is when keys are replaced, whichever comes first.
type LifetimesSpec struct {
	// IKE is how long an IKE SA lives, 10m to 1d. It may be shorter than time: ESP SAs
	// go on under the IKE SA that replaces theirs.
	IKE Duration `json:"ike,omitempty"`
	// Time is how long an ESP SA lives, 5m to 1d.
	Time Duration `json:"time,omitempty"`
	// Bytes is how much an ESP SA carries, 1,048,576 to 70,368,744,177,664.
	Bytes int `json:"bytes,omitempty"`
	// Packets is how many packets an ESP SA carries, 100,000 to 4,294,967,295.
	Packets int `json:"packets,omitempty"`
}

// PostQuantum is what a policy wants against a later quantum attacker.
type PostQuantum string

// The requirements.
const (
	// PostQuantumRequired: no tunnel without it.
	PostQuantumRequired PostQuantum = "required"
	// PostQuantumPreferred: no tunnel between our nodes without it; gateways without
	// our agent are let off.
	PostQuantumPreferred PostQuantum = "preferred"
)

// ExternalSpec is an IKEv2 gateway without our agent. Its addresses are the
// endpoint's underlay.
type ExternalSpec struct {
	// Type is ikev2 for any gateway, or azure-vpn-gateway.
	Type GatewayType `json:"type"`
	// Authentication is psk or certificate.
	Authentication GatewayAuthentication `json:"authentication"`
	// Identity is the gateway's in IKE: a DNS name or an address, exactly as it
	// sends it; required with certificate. Left out, it is the address of each
	// tunnel's far end.
	Identity string `json:"identity,omitempty"`
	// Authorities are the certificates of those who issue the gateway's, as PEM;
	// required with certificate.
	Authorities string `json:"authorities,omitempty"`
	// Certificates are the only ones that the gateway may show, as PEM: one, or two
	// while it changes from one to the other. Left out, any by its authorities with
	// its identity will do.
	Certificates string `json:"certificates,omitempty"`
	// TrafficSelectors are route-based (everything, and routes decide) or
	// policy-based (the prefixes of both sites). Left out, they are route-based for Azure
	// VPN Gateways, and policy-based for other ones.
	TrafficSelectors TrafficSelectors `json:"trafficSelectors,omitempty"`
	// DPDTimeout is after how long without an answer the gateway is dead, 9s to
	// 1h; 45s when left out.
	DPDTimeout Duration `json:"dpdTimeout,omitempty"`
	// IPsecPolicy is a custom policy of an Azure VPN Gateway, in its own words.
	IPsecPolicy *AzureIPsecPolicy `json:"ipsecPolicy,omitempty"`
}

// TrafficSelectors are what a gateway negotiates (RFC 7296, section 2.9).
type TrafficSelectors string

// What.
const (
	RouteBased  TrafficSelectors = "route-based"
	PolicyBased TrafficSelectors = "policy-based"
)

// GatewayType is a kind of external gateway.
type GatewayType string

// The types of external gateways.
const (
	GatewayIKEv2 GatewayType = "ikev2"
	GatewayAzure GatewayType = "azure-vpn-gateway"
)

// GatewayAuthentication is how the ends know each other.
type GatewayAuthentication string

// The ways.
const (
	AuthPSK         GatewayAuthentication = "psk"
	AuthCertificate GatewayAuthentication = "certificate"
)

// AzureIPsecPolicy is Azure's IpsecPolicy with its names and values.
type AzureIPsecPolicy struct {
	// IKEEncryption is GCMAES256, GCMAES128, AES256, AES192 or AES128.
	IKEEncryption string `json:"ikeEncryption"`
	// IKEIntegrity is SHA384 or SHA256.
	IKEIntegrity string `json:"ikeIntegrity"`
	// DHGroup is ECP384, ECP256 or DHGroup14 (DHGroup2048 is the same).
	DHGroup string `json:"dhGroup"`
	// IPsecEncryption is GCMAES256, GCMAES192, GCMAES128, AES256, AES192 or AES128.
	IPsecEncryption string `json:"ipsecEncryption"`
	// IPsecIntegrity is the same as ipsecEncryption for GCM, else SHA256.
	IPsecIntegrity string `json:"ipsecIntegrity"`
	// PFSGroup is ECP384, ECP256 or PFS2048.
	PFSGroup string `json:"pfsGroup"`
	// SALifeTimeSeconds is 300 to 172799.
	SALifeTimeSeconds int `json:"saLifeTimeSeconds"`
	// SADataSizeKilobytes is 1024 to 2147483647.
	SADataSizeKilobytes int `json:"saDataSizeKilobytes"`
}
