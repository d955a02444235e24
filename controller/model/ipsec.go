package model

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/circuitseal/circuitseal/controller/profile"
)

// IdentityDomain ends the names that endpoints on our nodes have in IKE. Nobody
// resolves them: .internal is for private use (ICANN's resolution 2024.07.29.06).
const IdentityDomain = "circuitseal.internal"

// IdentityName is what an endpoint on one of our nodes is in IKE: the DNS name in
// its certificates.
func IdentityName(customer, endpoint string) string {
	return endpoint + "." + customer + "." + IdentityDomain
}

// MaxCommonName is how long a name may be to be a certificate's common name, too
// (ub-common-name in RFC 5280, appendix A.1).
const MaxCommonName = 64

// EndpointOfIdentity is the endpoint of an IdentityName.
func EndpointOfIdentity(name string) (Key, bool) {
	labels, ok := strings.CutSuffix(name, "."+IdentityDomain)
	endpoint, customer, two := strings.Cut(labels, ".")
	if !ok || !two || strings.Contains(customer, ".") {
		return Key{}, false
	}
	return Key{Kind: KindEndpoint, Customer: customer, Name: endpoint}, true
}

// Profile is the document's own list of algorithms.
func (s *CryptoProfileSpec) Profile(name string) profile.Profile {
	own := profile.Source{Text: "the customer's own choice, within this project's floor"}
	p := profile.Profile{
		Name: name, Summary: "a customer's own", Source: own,
		Certificates: certificateFloor,
		NoWireGuard:  "WireGuard has one suite only, which no profile of a customer's own can name",
		FIPS:         profile.FIPSModules,
	}
	for _, i := range s.IKE {
		p.IKE = append(p.IKE, profile.Choice{Source: own, Proposal: profile.Proposal{
			Encryption: i.Encryption, Integrity: i.Integrity, PRF: i.PRF,
			KeyExchange: i.KeyExchange, AdditionalKeyExchange: i.AdditionalKeyExchange,
		}})
	}
	for _, e := range s.ESP {
		p.ESP = append(p.ESP, profile.Choice{Source: own, Proposal: profile.Proposal{
			Encryption: e.Encryption, Integrity: e.Integrity,
			KeyExchange: e.KeyExchange, AdditionalKeyExchange: e.AdditionalKeyExchange, ESN: e.ESN != ESNOff,
		}})
	}
	return p
}

// certificateFloor is what every certificate has to have at least.
var certificateFloor = profile.Certificates{
	Curves: []string{"P-256", "P-384", "P-521"}, RSA: 2048,
	Source: profile.Source{Text: "this project's floor; RFC 8247, section 3.2.1: RSA below 2048 bits SHOULD NOT be used", Recalled: true},
}

// ProfileNamed is a built-in profile, or one of a customer's.
func ProfileNamed(docs map[Key]Document, customer, name string) (profile.Profile, bool) {
	if p, ok := profile.BuiltIn(name); ok {
		return p, true
	}
	if s, ok := Lookup[*CryptoProfileSpec](docs, Key{Kind: KindCryptoProfile, Customer: customer, Name: name}); ok {
		return s.Profile(name), true
	}
	return profile.Profile{}, false
}

// ProfileOf is what IKEv2 and ESP may negotiate under a customer's policy, with
// defaults applied; gateway is the far end without our agent, or nil. It is false
// where the policy names a profile that does not exist.
func ProfileOf(docs map[Key]Document, customer string, s *EncryptionPolicySpec, gateway *ExternalSpec) (profile.Profile, bool) {
	name := s.CryptoProfile
	azure := gateway != nil && gateway.Type == GatewayAzure
	switch {
	case name == "" && azure:
		name = profile.Azure
	case name == "":
		name = profile.Default
	}
	p, ok := ProfileNamed(docs, customer, name)
	if !ok || !azure {
		return p, ok
	}
	// An Azure gateway has exactly one policy for a connection.
	a := gateway.Azure()
	at, _ := profile.BuiltIn(profile.Azure)
	p.IKE, p.ESP = []profile.Choice{a.ike(at.Source)}, []profile.Choice{a.esp(at.Source)}
	p.MaxIKE = shorter(p.MaxIKE, at.MaxIKE)
	p.MaxESP = shorter(p.MaxESP, time.Duration(a.SALifeTimeSeconds)*time.Second)
	return p, true
}

// shorter is the shorter of two bounds, of which 0 is none.
func shorter(a, b time.Duration) time.Duration {
	switch {
	case a == 0:
		return b
	case b == 0:
		return a
	}
	return min(a, b)
}

// Azure is the custom policy of an Azure VPN Gateway: the document's, or the
// strongest that it takes. Without a custom one such a gateway proposes groups that
// the floor forbids.
func (e *ExternalSpec) Azure() AzureIPsecPolicy {
	if e.IPsecPolicy != nil {
		return *e.IPsecPolicy
	}
	return AzureIPsecPolicy{
		IKEEncryption: "GCMAES256", IKEIntegrity: "SHA384", DHGroup: "ECP384",
		IPsecEncryption: "GCMAES256", IPsecIntegrity: "GCMAES256", PFSGroup: "ECP384",
		SALifeTimeSeconds: 27_000, SADataSizeKilobytes: 102_400_000,
	}
}

// Selectors is TrafficSelectors with the default applied.
func (e *ExternalSpec) Selectors() TrafficSelectors {
	switch {
	case e.TrafficSelectors != "":
		return e.TrafficSelectors
	case e.Type == GatewayAzure:
		return RouteBased
	}
	return PolicyBased
}

// DPDDelay is how often a silent peer is asked whether it is there: often enough
// for three questions within a gateway's timeout, and at least every ten seconds.
func (e *ExternalSpec) DPDDelay() time.Duration {
	const usual = 10 * time.Second
	if e == nil {
		return usual
	}
	if d, ok := e.DPDTimeout.Parse(); ok {
		return max(time.Second, min(usual, d/3))
	}
	return usual
}

// Bytes is after how many an ESP SA is replaced: what a policy says, or a little
// before an Azure gateway would do so itself; 0 where nobody says.
func (e *ExternalSpec) Bytes(policy uint64) uint64 {
	if e.Type != GatewayAzure {
		return policy
	}
	most := uint64(e.Azure().SADataSizeKilobytes) * 1024 / 10 * 9
	if policy == 0 {
		return most
	}
	return min(policy, most)
}

// LifetimesUnder are the lifetimes of a policy, with the defaults of its
// profile applied; 0 bytes or packets where nobody says.
func (s *EncryptionPolicySpec) LifetimesUnder(p profile.Profile) (ike, esp time.Duration, bytes, packets uint64) {
	ike, esp = p.LifetimeIKE(), p.LifetimeESP()
	if l := s.Lifetimes; l != nil {
		if d, ok := l.IKE.Parse(); ok {
			ike = d
		}
		if d, ok := l.Time.Parse(); ok {
			esp = d
		}
		bytes, packets = uint64(max(0, l.Bytes)), uint64(max(0, l.Packets))
	}
	// A gateway's bound may be shorter than what the policy says for all.
	if p.MaxIKE != 0 {
		ike = min(ike, p.MaxIKE)
	}
	if p.MaxESP != 0 {
		esp = min(esp, p.MaxESP)
	}
	return ike, esp, bytes, packets
}

// PPK says whether pre-shared keys are mixed into the IKE SAs of a policy (RFC
// 8784), so that there is no tunnel without. One cannot be given to a gateway without
// our agent. What is merely preferred is required of our own nodes: all of them can,
// and what is optional an attacker can strip.
func (s *EncryptionPolicySpec) PPK(p profile.Profile, external bool) bool {
	return !external && s.Protocol == ProtocolIPsec && (p.PPK || s.PostQuantum != "" && !p.PostQuantum())
}

// ESPInnerMTU is the largest inner packet in bytes that IPsec sends in an outer one
// of OuterMTU. It counts the UDP header that ESP has behind a NAT: nobody knows
// beforehand whether there is one.
func (s *EncryptionPolicySpec) ESPInnerMTU(p profile.Profile, six bool) int {
	return profile.InnerMTU(p.ESP, s.OuterMTU(), true, six)
}

// maxPEM is the longest text with certificates in bytes.
const maxPEM = 64 << 10

// ParseCertificates reads certificates as PEM (RFC 7468), and nothing else: a
// private key in a document would be a mistake.
func ParseCertificates(text string) ([]*x509.Certificate, error) {
	if len(text) > maxPEM {
		return nil, fmt.Errorf("has %d bytes, at most %d are read", len(text), maxPEM)
	}
	var all []*x509.Certificate
	for rest := []byte(text); len(strings.TrimSpace(string(rest))) > 0; {
		block, after := pem.Decode(rest)
		switch {
		case block == nil:
			return nil, errors.New("is no PEM")
		case strings.Contains(block.Type, "PRIVATE KEY"):
			return nil, errors.New("has a private key, which belongs in no document: it has to be taken for known by now")
		case block.Type != "CERTIFICATE":
			return nil, fmt.Errorf("has a %s, which is no certificate", quoted(block.Type))
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("has a certificate that cannot be read: %w", err)
		}
		if slices.ContainsFunc(all, c.Equal) {
			return nil, fmt.Errorf("has the certificate of %s twice", quoted(c.Subject.String()))
		}
		all, rest = append(all, c), after
	}
	return all, nil
}

// DER are the encoded forms of certificates in a text that Validate has passed.
func DER(text string) [][]byte {
	all, err := ParseCertificates(text)
	if err != nil {
		return nil
	}
	var der [][]byte
	for _, c := range all {
		der = append(der, c.Raw)
	}
	return der
}

// oneAddress is the address that all of a list are; not valid where they differ.
func oneAddress(all []netip.Addr) netip.Addr {
	if len(all) == 0 || slices.ContainsFunc(all, func(a netip.Addr) bool { return a != all[0] }) {
		return netip.Addr{}
	}
	return all[0]
}

// Names in IKE of both ends of a connection, seen from one. An end on our node has
// its certificate's name; against a gateway that takes a pre-shared key, and a
// gateway that has no identity, an address: empty where tunnels have different
// ones, for each tunnel's own.
func Names(customer string, tunnels []Tunnel, end int, gateway *ExternalSpec) (local, remote string) {
	var mine, theirs []netip.Addr
	for _, t := range tunnels {
		mine, theirs = append(mine, t.Ends[end].Seen()), append(theirs, t.Ends[1-end].Seen())
	}
	local = IdentityName(customer, tunnels[0].Ends[end].Endpoint)
	if gateway == nil {
		return local, IdentityName(customer, tunnels[0].Ends[1-end].Endpoint)
	}
	if gateway.Authentication == AuthPSK {
		local = addressName(oneAddress(mine))
	}
	if remote = gateway.Identity; remote == "" {
		remote = addressName(oneAddress(theirs))
	}
	return local, remote
}

func addressName(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}
