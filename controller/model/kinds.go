package model

import (
	"net/netip"
	"time"
)

// Kinds are all kinds, in the order in which documents are best read.
func Kinds() []Kind {
	return []Kind{
		KindCustomer, KindCircuit, KindSite, KindNode, KindEndpoint, KindEncryptionPolicy, KindConnection,
		KindSecurityRuleSet, KindAppliance, KindServiceChain, KindExemption, KindCryptoProfile,
	}
}

// HasCustomer reports whether documents of the kind belong to a customer.
// Customer, Node and Exemption belong to the provider.
func (k Kind) HasCustomer() bool { return k != KindCustomer && k != KindNode && k != KindExemption }

// NewSpec returns an empty spec of a kind, or nil for a kind that does not
// exist.
func NewSpec(k Kind) Spec {
	switch k {
	case KindCustomer:
		return &CustomerSpec{}
	case KindCircuit:
		return &CircuitSpec{}
	case KindSite:
		return &SiteSpec{}
	case KindNode:
		return &NodeSpec{}
	case KindEndpoint:
		return &EndpointSpec{}
	case KindEncryptionPolicy:
		return &EncryptionPolicySpec{}
	case KindConnection:
		return &ConnectionSpec{}
	case KindSecurityRuleSet:
		return &SecurityRuleSetSpec{}
	case KindAppliance:
		return &ApplianceSpec{}
	case KindServiceChain:
		return &ServiceChainSpec{}
	case KindExemption:
		return &ExemptionSpec{}
	case KindCryptoProfile:
		return &CryptoProfileSpec{}
	}
	return nil
}

// KindOf is the kind whose spec s is, or "" for nil.
func KindOf(s Spec) Kind {
	if s == nil {
		return ""
	}
	return s.kind()
}

// Lookup finds the spec of a document: Lookup[*SiteSpec](docs, key). It is
// false where there is no such document or its spec is of another kind.
func Lookup[P interface {
	*S
	Spec
}, S any](docs map[Key]Document, key Key) (P, bool) {
	p, ok := docs[key].Spec.(P)
	return p, ok && p != nil
}

// LinkID names a link across customers: customer/circuit/link.
func LinkID(customer, circuit string, link LinkName) string {
	return customer + "/" + circuit + "/" + string(link)
}

// GroupID names a connection's tunnels across customers: customer/connection.
func GroupID(customer, connection string) string { return customer + "/" + connection }

// TunnelID names a tunnel across customers: customer/connection/circuit/link.
func TunnelID(customer, connection, circuit string, link LinkName) string {
	return customer + "/" + connection + "/" + circuit + "/" + string(link)
}

// LinkNames are the links of every circuit, in the order in which unbound
// underlay addresses are given to them.
func LinkNames() []LinkName { return []LinkName{Primary, Secondary} }

// Link is one of the two links, false for any other name.
func (l Links) Link(name LinkName) (LinkSpec, bool) {
	switch name {
	case Primary:
		return l.Primary, true
	case Secondary:
		return l.Secondary, true
	}
	return LinkSpec{}, false
}

// FirstTag is the tag that comes first on the wire, by which a port tells its
// links apart; 0 for a link that is handed over untagged.
func (l LinkSpec) FirstTag() int {
	if l.OuterVLAN != 0 {
		return l.OuterVLAN
	}
	return l.VLAN
}

// CustomerAddress is the customer side's address: the first of the subnet that
// a host may have. It is invalid where the subnet is.
func (l LinkSpec) CustomerAddress() netip.Addr { return l.host(1) }

// MicrosoftAddress is the address of Microsoft's edge: the second.
func (l LinkSpec) MicrosoftAddress() netip.Addr { return l.host(2) }

func (l LinkSpec) host(n int) netip.Addr {
	if !l.Subnet.IsValid() {
		return netip.Addr{}
	}
	a := l.Subnet.Masked().Addr()
	for range n {
		a = a.Next()
	}
	return a
}

// LANCustomer is the customer whose packets a LAN interface of the node
// carries: the one that it names, else the customer that owns the node, else "".
func (s *NodeSpec) LANCustomer(in InterfaceSpec) string {
	if in.Role != RoleLAN {
		return ""
	}
	if in.Customer == "" && s.Owner != OwnerProvider {
		return s.Owner
	}
	return in.Customer
}

// LAN finds the LAN interface of a customer; count says how many there are.
func (s *NodeSpec) LAN(customer string) (name string, count int) {
	for _, in := range s.Interfaces {
		if in.Role == RoleLAN && s.LANCustomer(in) == customer {
			if count == 0 {
				name = in.Name
			}
			count++
		}
	}
	return name, count
}

// The bounds of EncryptionPolicySpec.PathMTU in bytes. IPv6 guarantees 1280
// (RFC 8200, section 5); 9000 is what jumbo frames carry.
const (
	MinPathMTU = 1280
	MaxPathMTU = 9000
)

// wireGuardOverhead is what WireGuard adds: an IPv4 header of 20 bytes or, with
// six, an IPv6 header of 40, UDP of 8, WireGuard's own of 16 and an authentication
// tag of 16.
func wireGuardOverhead(six bool) int {
	if six {
		return 80
	}
	return 60
}

// OuterMTU is the largest outer packet in bytes, with the default applied.
func (s *EncryptionPolicySpec) OuterMTU() int {
	if s.PathMTU == 0 {
		return DefaultPathMTU
	}
	return s.PathMTU
}

// RotatesPSK is how often the pre-shared keys of the tunnels change, with the
// default applied; the default, too, for what Validate refuses.
func (s *EncryptionPolicySpec) RotatesPSK() time.Duration {
	if d, ok := s.PSKRotation.Parse(); ok {
		return d
	}
	d, _ := DefaultPSKRotation.Parse()
	return d
}

// InnerMTU is the largest inner packet in bytes that WireGuard sends in an outer
// packet of OuterMTU, over IPv4 or, with six, over IPv6. WireGuard pads inner packets to a multiple of
// 16, so the room left by the headers is rounded down to one: 1400 leaves 1340,
// and a packet of 1329 to 1340 bytes would be padded to 1344; hence 1328.
func (s *EncryptionPolicySpec) InnerMTU(six bool) int {
	return (s.OuterMTU() - wireGuardOverhead(six)) &^ 15
}

// The bounds of EncryptionPolicySpec.MaxOfflineAge. Less would take an upgrade
// of the controller for its end.
const (
	minOfflineAge Duration = "1h"
	maxOfflineAge Duration = "3650d"
)

// Offline is MaxOfflineAge as a time, 0 where there is no limit.
func (s *EncryptionPolicySpec) Offline() time.Duration {
	age, _ := s.MaxOfflineAge.Parse()
	return age
}
