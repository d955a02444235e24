package compile

import (
	"github.com/circuitseal/circuitseal/controller/model"
	"github.com/circuitseal/circuitseal/controller/profile"
	"github.com/circuitseal/circuitseal/proto/desired"
)

// carriage is how a connection's tunnels carry packets, seen from one end: by one
// protocol, or by two while one takes over from the other.
type carriage struct {
	policy *model.EncryptionPolicySpec
	// wireguard tells that tunnels have it; ipsec is nil where they do not.
	wireguard bool
	ipsec     *ipsec
	retiring  desired.Protocol
}

// ipsec is what one end of a connection negotiates.
type ipsec struct {
	spec    *model.EncryptionPolicySpec
	profile profile.Profile
	policy  desired.IPsecPolicy
	// shared tells that tunnels have their pre-shared keys.
	shared bool
}

// carried finds out how a connection is carried, seen from one end. It is false
// where nobody could tell what IPsec may negotiate.
func (c *compiler) carried(k model.Key, tunnels []model.Tunnel, end int) (carriage, bool) {
	want, retiring, ok := c.snapshot.Protocols(k)
	if !ok {
		return carriage{}, false
	}
	carried := carriage{policy: want}
	for _, spec := range []*model.EncryptionPolicySpec{want, retiring} {
		switch {
		case spec == nil:
		case spec.Protocol == model.ProtocolWireGuard:
			// A gateway knows nothing of it, whatever there was before.
			carried.wireguard = !tunnels[0].Ends[1-end].External()
		case spec.Protocol == model.ProtocolIPsec:
			made, ok := c.ipsec(k.Customer, tunnels, end, spec)
			if !ok {
				// What goes may be gone already with the profile that it was of.
				if spec == want {
					return carriage{}, false
				}
				continue
			}
			carried.ipsec = made
		}
	}
	if retiring != nil && carried.wireguard && carried.ipsec != nil {
		carried.retiring = desired.ProtocolWireGuard
		if retiring.Protocol == model.ProtocolIPsec {
			carried.retiring = desired.ProtocolIPsec
		}
	}
	return carried, true
}

// ipsec makes the policy of one end, and gives its node the identity that it needs.
func (c *compiler) ipsec(customer string, tunnels []model.Tunnel, end int, spec *model.EncryptionPolicySpec) (*ipsec, bool) {
	docs := c.snapshot.Documents
	near, far := tunnels[0].Ends[end], tunnels[0].Ends[1-end]
	gateway := c.gateway(customer, far)
	if gateway == nil && far.External() {
		return nil, false
	}
	p, ok := model.ProfileOf(docs, customer, spec, gateway)
	if !ok {
		return nil, false
	}
	made := &ipsec{spec: spec, profile: p}
	ppk := spec.PPK(p, gateway != nil)
	made.shared = ppk
	policy := desired.IPsecPolicy{
		Profile: p.Name, Authentication: desired.AuthenticationCertificate,
		IKEProposals: profile.Strings(p.IKE), ESPProposals: profile.Strings(p.ESP),
		PPKRequired: ppk, DPDDelay: gateway.DPDDelay(),
		UDPEncapsulation: spec.UDPEncapsulation == model.UDPAlways, External: gateway != nil,
	}
	policy.LocalID, policy.RemoteID = model.Names(customer, tunnels, end, gateway)
	policy.IKELifetime, policy.ESPLifetime, policy.ESPBytes, policy.ESPPackets = spec.LifetimesUnder(p)
	switch {
	case gateway == nil:
		if theirs, ok := c.snapshot.Identity(policy.RemoteID); ok && theirs.Node == far.Node {
			policy.PeerCertificates = theirs.Pins()
		}
	case gateway.Authentication == model.AuthPSK:
		policy.Authentication, made.shared = desired.AuthenticationPSK, true
	default:
		policy.PeerCertificates, policy.PeerAuthorities = model.DER(gateway.Certificates), model.DER(gateway.Authorities)
	}
	if gateway != nil {
		policy.ESPBytes = gateway.Bytes(policy.ESPBytes)
		if gateway.Selectors() == model.PolicyBased {
			policy.LocalSelectors, policy.RemoteSelectors = c.prefixes(customer, near.Endpoint), c.prefixes(customer, far.Endpoint)
		}
	}
	made.policy = policy
	if policy.Authentication == desired.AuthenticationCertificate {
		c.identity(near, policy.LocalID)
	}
	return made, true
}

// gateway is the far end without our agent; nil where one is there.
func (c *compiler) gateway(customer string, far model.End) *model.ExternalSpec {
	s, ok := model.Lookup[*model.EndpointSpec](c.snapshot.Documents, model.Key{Kind: model.KindEndpoint, Customer: customer, Name: far.Endpoint})
	if !ok || !far.External() {
		return nil
	}
	return s.External
}

// identity gives an end's node what it proves to be the end by, once somebody has
// begun to make it.
func (c *compiler) identity(e model.End, name string) {
	b := c.builders[e.Node]
	own, ok := c.snapshot.Identity(name)
	if b == nil || !ok || own.Node != e.Node {
		return
	}
	i := desired.Identity{Name: name}
	for _, g := range own.Certificates {
		i.Certificates = append(i.Certificates, desired.IdentityCertificate{Generation: g.Generation, Certificate: g.Certificate})
	}
	b.identities[i.Name] = i
}

// mtu is the largest inner packet that every protocol of the connection carries.
func (c carriage) mtu(six bool) uint16 {
	least := 0
	if c.wireguard {
		least = c.policy.InnerMTU(six)
	}
	if c.ipsec != nil {
		if n := c.ipsec.spec.ESPInnerMTU(c.ipsec.profile, six); least == 0 || n < least {
			least = n
		}
	}
	return uint16(least)
}

// shared are what an IPsec tunnel mixes in or proves itself by.
func (c *compiler) shared(tunnel string, i *ipsec) *desired.IPsec {
	made := &desired.IPsec{}
	if i.shared {
		made.PresharedKeys = c.snapshot.PresharedKeys[tunnel].Desired()
	}
	return made
}
