package model

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"github.com/circuitseal/circuitseal/controller/profile"
)

// mostLifetime is the longest that any SA may have.
const (
	mostLifetime     = 24 * time.Hour
	mostLifetimeText = "1d"
)

// ipsec checks the fields of a policy that say how IKEv2 and ESP are used, and
// whether the protocol may stand beside its profile.
func (c *checker) ipsec(k Key, s *EncryptionPolicySpec) {
	if s.PostQuantum != "" {
		enum(c, k, "spec.postQuantum", s.PostQuantum, PostQuantumRequired, PostQuantumPreferred)
	}
	if s.UDPEncapsulation != "" {
		enum(c, k, "spec.udpEncapsulation", s.UDPEncapsulation, UDPAuto, UDPAlways)
	}
	if l := s.Lifetimes; l != nil {
		c.duration(k, "spec.lifetimes.ike", l.IKE, "10m", mostLifetimeText)
		c.duration(k, "spec.lifetimes.time", l.Time, "5m", mostLifetimeText)
		if l.Bytes != 0 {
			c.between(k, "spec.lifetimes.bytes", l.Bytes, 1<<20, 1<<46, " bytes")
		}
		if l.Packets != 0 {
			c.between(k, "spec.lifetimes.packets", l.Packets, 100_000, 1<<32-1, " packets")
		}
	}
	p, known := ProfileOf(c.docs, k.Customer, s, nil)
	switch {
	case s.Protocol == ProtocolWireGuard:
		c.besideWireGuard(k, s, p, known)
	case s.Protocol != ProtocolIPsec || !known:
	default:
		c.lifetimes(k, s, p)
		c.innerMTU(k, s, p)
	}
}

// besideWireGuard refuses what a WireGuard tunnel would ignore or must not be.
func (c *checker) besideWireGuard(k Key, s *EncryptionPolicySpec, p profile.Profile, known bool) {
	const ipsec = "protocol: ipsec, or leave it out"
	if s.CryptoProfile != "" && known && p.NoWireGuard != "" {
		c.add(k, "spec.cryptoProfile", s.CryptoProfile, "forbids protocol wireguard: "+p.NoWireGuard, "protocol: ipsec, or cryptoProfile: pq-hybrid-commercial")
	}
	if s.Lifetimes != nil {
		c.add(k, "spec.lifetimes", "", "are for IPsec: WireGuard has its own, which cannot be changed", ipsec)
	}
	if s.UDPEncapsulation != "" {
		c.add(k, "spec.udpEncapsulation", string(s.UDPEncapsulation), "is for IPsec: WireGuard is always in UDP", ipsec)
	}
}

// lifetimes reports what is longer than the profile allows. An IKE SA may be replaced
// more often than its ESP SAs: agents rekey it, and its successor inherits them (RFC
// 7296, section 2.8).
func (c *checker) lifetimes(k Key, s *EncryptionPolicySpec, p profile.Profile) {
	if s.Lifetimes == nil {
		return
	}
	for _, l := range []struct {
		field string
		have  Duration
		most  time.Duration
	}{{"ike", s.Lifetimes.IKE, p.MaxIKE}, {"time", s.Lifetimes.Time, p.MaxESP}} {
		if d, ok := l.have.Parse(); ok && l.most != 0 && d > l.most && d <= mostLifetime {
			c.add(k, "spec.lifetimes."+l.field, string(l.have), fmt.Sprintf("is longer than the %s that profile %s allows (%s)", l.most, quoted(p.Name), p.Lifetimes),
				"at most "+l.most.String())
		}
	}
}

// innerMTU reports a path that leaves too little for IPv6 inside a tunnel over
// IPv4; a connection's own check knows its outer addresses.
func (c *checker) innerMTU(k Key, s *EncryptionPolicySpec, p profile.Profile) {
	inside := s.ESPInnerMTU(p, false)
	if inside >= MinPathMTU || s.PathMTU != 0 && (s.PathMTU < MinPathMTU || s.PathMTU > MaxPathMTU) || !c.sound(p) {
		return
	}
	c.add(k, "spec.pathMTU", strconv.Itoa(s.OuterMTU()),
		fmt.Sprintf("leaves %d bytes for packets inside ESP by profile %s; IPv6, and with it the tunnel's probe, needs %d (RFC 8200, section 5)", inside, quoted(p.Name), MinPathMTU),
		fmt.Sprintf("%d or more", pathFor(p, false)))
}

// pathFor is the smallest outer packet in bytes that leaves enough inside.
func pathFor(p profile.Profile, six bool) int {
	outer := MinPathMTU
	for profile.InnerMTU(p.ESP, outer, true, six) < MinPathMTU && outer < MaxPathMTU {
		outer++
	}
	return outer
}

// sound reports whether all algorithms of a profile exist: where one does not, that
// is what is wrong.
func (c *checker) sound(p profile.Profile) bool {
	return profile.InnerMTU(p.ESP, MaxPathMTU, true, true) > 0
}

// external checks a gateway without our agent.
func (c *checker) external(k Key, s *EndpointSpec) {
	const field = "spec.external"
	e := s.External
	if s.Node != "" {
		c.add(k, "spec.node", s.Node, "stands beside external: an endpoint is on a node of ours, or is a gateway without our agent", "one of the two")
	}
	enum(c, k, field+".type", e.Type, GatewayIKEv2, GatewayAzure)
	enum(c, k, field+".authentication", e.Authentication, AuthPSK, AuthCertificate)
	c.duration(k, field+".dpdTimeout", e.DPDTimeout, "9s", "1h")
	switch {
	case e.Identity == "" && e.Authentication == AuthCertificate:
		c.add(k, field+".identity", "", "is required by authentication certificate: any certificate of the same authority would do otherwise", "the gateway's DNS name or address, exactly as it sends it")
	case e.Identity != "" && !validIdentity(e.Identity):
		c.add(k, field+".identity", e.Identity, "is neither a DNS name nor an address", "such as gw.example.net, without patterns")
	}
	if e.TrafficSelectors != "" {
		enum(c, k, field+".trafficSelectors", e.TrafficSelectors, RouteBased, PolicyBased)
	}
	c.gatewayCertificates(k, e)
	if e.IPsecPolicy != nil {
		if e.Type == GatewayIKEv2 {
			c.add(k, field+".ipsecPolicy", "", "is Azure's; other gateways take the proposals of the policy's crypto profile", "type: azure-vpn-gateway, or leave it out")
		}
		c.azurePolicy(k, field+".ipsecPolicy", e.IPsecPolicy)
	}
}

// The most certificates that a state carries for a gateway; see proto/desired.
const (
	maxAuthorities = 8
	maxPinned      = 2
)

// gatewayCertificates checks what a gateway may prove itself by.
func (c *checker) gatewayCertificates(k Key, e *ExternalSpec) {
	const field = "spec.external"
	lists := []struct {
		name, text string
		most       int
	}{{"authorities", e.Authorities, maxAuthorities}, {"certificates", e.Certificates, maxPinned}}
	if e.Authentication == AuthCertificate && e.Authorities == "" {
		c.add(k, field+".authorities", "", "is required by authentication certificate: nobody would say whose certificates are good", "the certificates of the gateway's issuers, as PEM")
	}
	for _, l := range lists {
		if l.text == "" {
			continue
		}
		at := field + "." + l.name
		if e.Authentication == AuthPSK {
			c.add(k, at, "", "stands beside authentication psk, which shows none", "authentication: certificate, or leave it out")
		}
		certs, err := ParseCertificates(l.text)
		switch {
		case err != nil:
			// Never what stands there: it may be a private key.
			c.add(k, at, "", err.Error(), "certificates as PEM, from -----BEGIN CERTIFICATE----- to -----END CERTIFICATE-----")
			continue
		case len(certs) > l.most:
			c.add(k, at, strconv.Itoa(len(certs)), fmt.Sprintf("are more than the %d that a gateway can have", l.most), fmt.Sprintf("at most %d", l.most))
		}
		for _, x := range certs {
			if why := certificateFloor.Refuses(x.PublicKey); why != "" {
				c.add(k, at, x.Subject.String(), why, certificateFloor.String())
			}
			if l.name == "authorities" && !x.IsCA {
				c.add(k, at, x.Subject.String(), "is no authority's certificate", "a certificate with CA:TRUE; the gateway's own go into spec.external.certificates")
			}
		}
	}
}

// gateway is the external endpoint among a connection's, if any.
func gateway(ends []*EndpointSpec) *ExternalSpec {
	for _, e := range ends {
		if e.External != nil {
			return e.External
		}
	}
	return nil
}

// encrypted checks that a connection's two endpoints can do what its policy says.
func (c *checker) encrypted(k Key, s *ConnectionSpec, ends []*EndpointSpec) {
	if ends[0].External != nil && ends[1].External != nil {
		c.add(k, at("spec.endpoints", 1), s.Endpoints[1], "is a gateway without our agent as the other one is: nobody here would make their tunnels", "an endpoint on one of our nodes")
		return
	}
	policy, ok := Lookup[*EncryptionPolicySpec](c.docs, Key{Kind: KindEncryptionPolicy, Customer: k.Customer, Name: s.EncryptionPolicy})
	if !ok {
		return
	}
	e := gateway(ends)
	if policy.Protocol != ProtocolIPsec {
		if e != nil && policy.Protocol == ProtocolWireGuard {
			c.add(k, "spec.encryptionPolicy", s.EncryptionPolicy, "has protocol wireguard, and one endpoint is a gateway without our agent, which knows IKEv2 only", "a policy with protocol: ipsec")
		}
		return
	}
	p, ok := ProfileOf(c.docs, k.Customer, policy, e)
	if !ok || !c.sound(p) {
		return
	}
	if e != nil {
		c.gatewayUnder(k, s, policy, p, e)
	}
	tunnels, _ := Tunnels(c.docs, k)
	if e != nil && e.Authentication == AuthPSK {
		c.ownAddress(k, tunnels)
	}
	for _, t := range tunnels {
		six := t.Ends[0].Address.Is6()
		if inside := policy.ESPInnerMTU(p, six); inside < MinPathMTU {
			c.add(k, "spec.encryptionPolicy", s.EncryptionPolicy,
				fmt.Sprintf("leaves %d bytes for packets inside tunnel %s; IPv6, and with it the tunnel's probe, needs %d (RFC 8200, section 5)", inside, Shorten(t.ID), MinPathMTU),
				fmt.Sprintf("a policy with a pathMTU of %d or more", pathFor(p, six)))
			break
		}
	}
	if e == nil || e.Selectors() != PolicyBased {
		return
	}
	for _, x := range ends {
		if n := c.prefixes(k.Customer, x.Site); n > maxSelectors {
			c.add(k, "spec.endpoints", x.Site, fmt.Sprintf("has %d prefixes, and a policy-based gateway takes %d (RFC 7296, section 3.13)", n, maxSelectors),
				"trafficSelectors: route-based at the gateway's endpoint, or fewer prefixes")
		}
	}
}

// ownAddress reports tunnels by which a gateway would know our end by an address
// that it never sees.
func (c *checker) ownAddress(k Key, tunnels []Tunnel) {
	for end := range 2 {
		var seen []netip.Addr
		translated := false
		for _, t := range tunnels {
			if e := t.Ends[end]; !e.External() {
				seen = append(seen, e.Seen())
				translated = translated || e.Translated.IsValid()
			}
		}
		if translated && !oneAddress(seen).IsValid() {
			c.add(k, "spec.endpoints", tunnels[0].Ends[end].Endpoint, "has addresses that are translated to different ones: with authentication psk the gateway knows it by one address",
				"authentication: certificate at the gateway, or one address that all are translated to")
		}
	}
}

// maxSelectors is what a traffic selector payload holds (RFC 7296, section 3.13).
const maxSelectors = 255

// gatewayUnder checks that a gateway without our agent can follow a policy.
func (c *checker) gatewayUnder(k Key, s *ConnectionSpec, policy *EncryptionPolicySpec, p profile.Profile, e *ExternalSpec) {
	const field = "spec.encryptionPolicy"
	switch {
	case p.PPK:
		c.add(k, field, s.EncryptionPolicy, "has profile "+quoted(p.Name)+", which wants a post-quantum pre-shared key that changes (RFC 8784): a gateway without our agent cannot be given one", "a policy with another profile")
	case policy.PostQuantum == PostQuantumRequired && !p.PostQuantum():
		c.add(k, field, s.EncryptionPolicy, "has postQuantum: required, for which a gateway without our agent cannot be given a key", "postQuantum: preferred, or a policy with a profile whose proposals all have ML-KEM")
	}
	if named, ok := ProfileNamed(c.docs, k.Customer, policy.CryptoProfile); ok && e.Type == GatewayAzure && policy.CryptoProfile != profile.Azure {
		c.azureWithin(k, s, named, p)
	}
	if e.Type == GatewayAzure && e.Authentication == AuthCertificate {
		c.commonName(k, s)
	}
	if e.Authentication == AuthCertificate {
		certs, err := ParseCertificates(e.Certificates)
		if err != nil {
			return
		}
		for _, x := range certs {
			if why := p.Certificates.Refuses(x.PublicKey); why != "" {
				c.add(k, field, s.EncryptionPolicy, "has profile "+quoted(p.Name)+", and the gateway's certificate "+quoted(x.Subject.String())+" "+why, p.Certificates.String())
			}
		}
	}
}

// commonName reports an endpoint of ours whose name is too long for the common name of
// its certificate, the only name in it by which Azure knows who comes.
func (c *checker) commonName(k Key, s *ConnectionSpec) {
	for i, name := range s.Endpoints {
		e, ok := Lookup[*EndpointSpec](c.docs, Key{Kind: KindEndpoint, Customer: k.Customer, Name: name})
		if id := IdentityName(k.Customer, name); ok && e.External == nil && len(id) > MaxCommonName {
			c.add(k, at("spec.endpoints", i), name, fmt.Sprintf("has %q in its certificate, %d characters: Azure knows it by the certificate's common name, which has %d at most (RFC 5280, appendix A.1)", id, len(id), MaxCommonName),
				"an endpoint with a shorter name, or authentication: psk at the gateway")
		}
	}
}

// azureWithin reports an Azure gateway whose only suite is none of the profile that
// the policy names. Extended sequence numbers do not count: Azure has none.
func (c *checker) azureWithin(k Key, s *ConnectionSpec, named, azure profile.Profile) {
	for _, l := range []struct {
		what  string
		list  []profile.Choice
		azure profile.Proposal
		can   []azureSuite
	}{
		{"IKE", named.IKE, azure.IKE[0].Proposal, azureIKESuites()},
		{"ESP", named.ESP, azure.ESP[0].Proposal, azureESPSuites()},
	} {
		within := func(want profile.Proposal) bool {
			return slices.ContainsFunc(l.list, func(x profile.Choice) bool {
				x.ESN = false
				return x.Proposal == want
			})
		}
		if within(l.azure) {
			continue
		}
		own := "cryptoProfile: " + profile.Azure + " in a policy of the gateway's own"
		hint := own + ": an Azure VPN Gateway knows nothing of " + quoted(named.Name) + " for " + l.what
		if fit := slices.DeleteFunc(l.can, func(x azureSuite) bool { return !within(x.Proposal) }); len(fit) > 0 {
			more := ""
			if len(fit) > 1 {
				more = "another that both know, or "
			}
			hint = "at the gateway's endpoint " + fit[0].words + ", or " + more + own
		}
		c.add(k, "spec.encryptionPolicy", s.EncryptionPolicy,
			"has profile "+quoted(named.Name)+", in which "+l.azure.String()+" is not, the only "+l.what+" proposal of the Azure VPN Gateway", hint)
	}
}
