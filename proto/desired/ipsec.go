package desired

import (
	"fmt"
	"net/netip"
	"time"
)

// Protocol is what a tunnel encrypts with. The zero value is none.
type Protocol uint8

// The protocols.
const (
	ProtocolWireGuard Protocol = iota + 1
	ProtocolIPsec
)

// String is the word that documents use.
func (p Protocol) String() string {
	switch p {
	case ProtocolWireGuard:
		return "wireguard"
	case ProtocolIPsec:
		return "ipsec"
	}
	return fmt.Sprintf("protocol %d", uint8(p))
}

// MarshalText is String, so that JSON shows the word.
func (p Protocol) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText reads what MarshalText wrote.
func (p *Protocol) UnmarshalText(b []byte) error {
	for q := ProtocolWireGuard; q <= ProtocolIPsec; q++ {
		if string(b) == q.String() {
			*p = q
			return nil
		}
	}
	return fmt.Errorf("protocol %.64q is unknown to this version", b)
}

// Authentication is how the ends of an IKE SA prove who they are. The zero
// value is invalid.
type Authentication uint8

// The ways.
const (
	AuthenticationCertificate Authentication = iota + 1
	AuthenticationPSK
)

// String is the word that documents use.
func (a Authentication) String() string {
	switch a {
	case AuthenticationCertificate:
		return "certificate"
	case AuthenticationPSK:
		return "psk"
	}
	return fmt.Sprintf("authentication %d", uint8(a))
}

// Identity is a name that a node proves by a certificate of its own in IKE.
type Identity struct {
	// Name is a DNS name.
	Name string
	// Certificates are one or two; the first is the one to use, once it is there.
	Certificates []IdentityCertificate
}

// IdentityCertificate is a certificate over a key that the node makes.
type IdentityCertificate struct {
	// Generation names the key: unique to the identity, never 0.
	Generation uint64
	// Certificate is DER; empty until the node has reported the key and the
	// controller has issued it.
	Certificate []byte
}

// IPsecPolicy is what IKEv2 (RFC 7296) and ESP (RFC 4303) may negotiate for a
// group, and with whom.
type IPsecPolicy struct {
	// Profile is the name of the crypto profile, for people.
	Profile string
	// LocalID and RemoteID are identities in IKE: DNS names, or addresses. Empty,
	// with a gateway without our agent only, is the address of each tunnel's own end;
	// For fills it in.
	LocalID, RemoteID string
	Authentication    Authentication
	// PeerCertificates are the only ones that the peer may show, DER, at most
	// two; none while there is none, and with a pre-shared key.
	PeerCertificates [][]byte
	// PeerAuthorities issued them, DER; empty for State.Authorities.
	PeerAuthorities [][]byte
	// IKEProposals and ESPProposals are in strongSwan's keywords, the best first.
	IKEProposals, ESPProposals []string
	// PPKRequired: the tunnel's pre-shared key is mixed in (RFC 8784), or there is
	// no tunnel.
	PPKRequired bool
	// IKELifetime and ESPLifetime are after how long keys are replaced.
	IKELifetime, ESPLifetime time.Duration
	// ESPBytes and ESPPackets are after how many; 0 for the agent's bounds.
	ESPBytes, ESPPackets uint64
	// DPDDelay is how often a silent peer is asked whether it is there.
	DPDDelay time.Duration
	// UDPEncapsulation: ESP is always in UDP (RFC 3948); else where a NAT is found.
	UDPEncapsulation bool
	// External: the far end has no agent of ours.
	External bool
	// LocalSelectors and RemoteSelectors are a policy-based gateway's traffic
	// selectors (RFC 7296, section 2.9); empty for everything.
	LocalSelectors, RemoteSelectors []netip.Prefix
}

// For is the policy as one tunnel of the group has it: with its own addresses where
// its ends are known by these.
func (p IPsecPolicy) For(t Tunnel) IPsecPolicy {
	if p.LocalID == "" {
		p.LocalID = t.Local.Addr().String()
	}
	if p.RemoteID == "" {
		p.RemoteID = t.Remote.Addr().String()
	}
	return p
}

// IPsec is what an IPsec tunnel needs beside its group's policy.
type IPsec struct {
	// PresharedKeys are at most two: the one to use, and what the peer may still
	// use. They are mixed in as PPK beside certificates, and else are what the ends
	// prove to be by.
	PresharedKeys []PresharedKey
}

// Format prints the generations for every verb: fmt does not ask what is behind
// a pointer whose verb is wrong.
func (i IPsec) Format(f fmt.State, _ rune) {
	_, _ = fmt.Fprintf(f, "preshared keys %v", i.PresharedKeys)
}

// CharonStatus is what strongSwan's daemon says of itself.
type CharonStatus struct {
	Version string `json:"version,omitempty"`
	// Backend is who encrypts: kernel, or libipsec, which is for tests only.
	Backend string `json:"backend,omitempty"`
	// Algorithms are the keywords of proposals that it can negotiate, sorted; esn
	// and ppk are among them where it can do these.
	Algorithms []string `json:"algorithms,omitempty"`
	// Problem is a sentence, empty when all is well.
	Problem string `json:"problem,omitempty"`
}

// The backends of CharonStatus and, with "ipsec-" before them, of TunnelStatus.
const (
	BackendKernel   = "kernel"
	BackendLibipsec = "libipsec"
)

// IdentityKey is the public half of a key that a node made for an identity.
type IdentityKey struct {
	Name       string `json:"name"`
	Generation uint64 `json:"generation"`
	// PublicKey is a SubjectPublicKeyInfo, DER.
	PublicKey []byte `json:"-"`
}

// SecurityAssociation is an ESP SA and the IKE SA that it belongs to, as they
// were negotiated.
type SecurityAssociation struct {
	// IKE and ESP are proposals in strongSwan's keywords.
	IKE string `json:"ike"`
	ESP string `json:"esp"`
	// PFS is the key exchange of the last rekeying; empty for a first ESP SA, whose
	// keys come from the IKE SA's (RFC 7296, section 1.2).
	PFS             string `json:"pfs,omitempty"`
	ESN             bool   `json:"esn"`
	PPK             bool   `json:"ppk"`
	UDPEncapsulated bool   `json:"udpEncapsulated"`
	LocalID         string `json:"localId"`
	RemoteID        string `json:"remoteId"`
	// PeerCertificates are the SHA-256 of those of which the peer has shown one, in
	// hexadecimal; none with a pre-shared key, and of an SA that was made while others
	// were trusted than now.
	PeerCertificates []string      `json:"peerCertificates,omitempty"`
	IKEAge           time.Duration `json:"ikeAgeNanoseconds"`
	ESPAge           time.Duration `json:"espAgeNanoseconds"`
	ReceivedPackets  uint64        `json:"receivedPackets"`
	SentPackets      uint64        `json:"sentPackets"`
	// Backend is who encrypts.
	Backend string `json:"backend"`
	// Weakness says in what it is weaker than its profile; empty when it is not.
	Weakness string `json:"weakness,omitempty"`
}

// IPsecWaits says in words what a tunnel of the group still waits for before it
// can be made by IPsec, empty for nothing. identities are those of the group's
// state.
func (g Group) IPsecWaits(t Tunnel, identities []Identity) string {
	switch {
	case g.IPsec == nil || t.IPsec == nil:
		return "waits for the group's IPsec policy"
	case (g.IPsec.Authentication == AuthenticationPSK || g.IPsec.PPKRequired) && len(t.IPsec.PresharedKeys) == 0:
		return "waits for a pre-shared key"
	case g.IPsec.Authentication == AuthenticationPSK:
		return ""
	case len(g.IPsec.PeerCertificates) == 0 && !g.IPsec.External:
		return "waits for the peer's certificate"
	}
	for _, i := range identities {
		if i.Name == g.IPsec.LocalID && len(i.Certificates) > 0 && len(i.Certificates[0].Certificate) > 0 {
			return ""
		}
	}
	return "waits for a certificate of " + g.IPsec.LocalID
}

// IPsecProbe is a tunnel's probe address (ProbeAddresses) by IPsec: by WireGuard it
// has another, since both may stand side by side on one host.
func IPsecProbe(a netip.Addr) netip.Addr {
	b := a.As16()
	b[14] = 1
	return netip.AddrFrom16(b)
}
