package desired

import (
	"bytes"
	"crypto/x509"
	"fmt"
	"net/netip"
	"strings"
	"time"
)

// Limits of IPsec in a state.
const (
	maxIdentities  = 4_096
	maxAuthorities = 8
	maxProposals   = 16
	maxProposal    = 128
	// maxSelectors is what a traffic selector payload holds (RFC 7296, section
	// 3.13: its count has one byte).
	maxSelectors = 255
	// maxName is of a DNS name (RFC 1035, section 2.3.4).
	maxName = 253
	// MinLifetime and MaxLifetime bound when keys are replaced.
	MinLifetime = 30 * time.Second
	MaxLifetime = 24 * time.Hour
)

func (v *validator) identities(s State) {
	v.most("identities", len(s.Identities), maxIdentities)
	v.certificates("authorities", s.Authorities, maxAuthorities)
	v.check(s.CharonSocket == "" || strings.HasPrefix(s.CharonSocket, "/") && !strings.Contains(s.CharonSocket, ".."), "charon_socket", s.CharonSocket, "is no absolute path")
	names := map[string]bool{}
	for i, x := range s.Identities {
		at := fmt.Sprintf("identities[%d]", i)
		v.check(validDNSName(x.Name) && !names[x.Name], at+".name", x.Name, "must be a DNS name and unique")
		names[x.Name] = true
		v.check(len(x.Certificates) == 1 || len(x.Certificates) == 2, at+".certificates", len(x.Certificates), "are not one or two")
		for j, c := range x.Certificates {
			at := fmt.Sprintf("%s.certificates[%d]", at, j)
			v.check(c.Generation != 0 && (j == 0 || x.Certificates[0].Generation != c.Generation), at+".generation", c.Generation, "must not be 0 and stand once")
			if len(c.Certificate) > 0 {
				v.certificate(at+".certificate", c.Certificate)
			}
		}
	}
}

func (v *validator) certificates(at string, list [][]byte, most int) {
	v.most(at, len(list), most)
	for i, der := range list {
		v.certificate(fmt.Sprintf("%s[%d]", at, i), der)
		for _, other := range list[:i] {
			v.check(!bytes.Equal(der, other), fmt.Sprintf("%s[%d]", at, i), "", "stands twice")
		}
	}
}

func (v *validator) certificate(at string, der []byte) {
	_, err := x509.ParseCertificate(der)
	v.check(err == nil, at, len(der), fmt.Sprintf("bytes are no certificate: %v", err))
}

// policy wants all that decides what may be negotiated to be there: charon has
// defaults of its own for what is left out.
func (v *validator) policy(at string, g Group) {
	p := g.IPsec
	ipsec, both := false, len(g.Tunnels) > 0
	for _, t := range g.Tunnels {
		ipsec = ipsec || t.IPsec != nil
		both = both && t.IPsec != nil && t.WireGuard != nil
	}
	v.check(ipsec == (p != nil), at, p != nil, "must be there when tunnels have ipsec, and only then")
	v.check(g.Retiring <= ProtocolIPsec && (g.Retiring != 0) == both, at, g.Retiring, "is retiring, which one of two protocols of every tunnel must be")
	if p == nil {
		return
	}
	v.check(p.Authentication == AuthenticationCertificate || p.Authentication == AuthenticationPSK, at+".authentication", p.Authentication, "is unknown to this version")
	// A gateway is known by the address of each tunnel's end where it has no name,
	// and knows us by ours with a pre-shared key.
	ours := p.LocalID == "" && p.External && p.Authentication == AuthenticationPSK
	theirs := p.RemoteID == "" && p.External
	v.check(ours || validIdentity(p.LocalID), at+".local_id", p.LocalID, "is neither a DNS name nor an address")
	v.check(theirs || validIdentity(p.RemoteID) && p.RemoteID != p.LocalID, at+".remote_id", p.RemoteID, "is neither a DNS name nor an address, or the local one")
	v.certificates(at+".peer_certificates", p.PeerCertificates, 2)
	v.certificates(at+".peer_authorities", p.PeerAuthorities, maxAuthorities)
	v.check(p.Authentication != AuthenticationPSK || len(p.PeerCertificates) == 0, at+".peer_certificates", len(p.PeerCertificates), "stand beside a pre-shared key")
	v.check(p.Authentication != AuthenticationPSK || !p.PPKRequired, at+".ppk_required", p.PPKRequired, "needs certificates: the tunnel's pre-shared key is what proves identities")
	v.proposals(at+".ike_proposals", p.IKEProposals)
	v.proposals(at+".esp_proposals", p.ESPProposals)
	v.check(p.IKELifetime >= MinLifetime && p.IKELifetime <= MaxLifetime, at+".ike_lifetime", p.IKELifetime, fmt.Sprintf("is not between %s and %s", MinLifetime, MaxLifetime))
	v.check(p.ESPLifetime >= MinLifetime && p.ESPLifetime <= MaxLifetime, at+".esp_lifetime", p.ESPLifetime, fmt.Sprintf("is not between %s and %s", MinLifetime, MaxLifetime))
	v.check(p.DPDDelay >= time.Second && p.DPDDelay <= time.Hour, at+".dpd_delay", p.DPDDelay, "is not between 1s and 1h")
	v.check((len(p.LocalSelectors) == 0) == (len(p.RemoteSelectors) == 0), at+".local_selectors", len(p.LocalSelectors), "and the remote ones must both be there, or none")
	for name, list := range map[string][]netip.Prefix{"local_selectors": p.LocalSelectors, "remote_selectors": p.RemoteSelectors} {
		v.most(at+"."+name, len(list), maxSelectors)
		for i, s := range list {
			v.protected(fmt.Sprintf("%s.%s[%d]", at, name, i), s)
		}
	}
}

// proposals have what strongSwan's keywords are made of and nothing else: they go
// into a message for charon.
func (v *validator) proposals(at string, list []string) {
	v.check(len(list) > 0 && len(list) <= maxProposals, at, len(list), fmt.Sprintf("is not between 1 and %d", maxProposals))
	for i, s := range list {
		ok := s != "" && len(s) <= maxProposal && !strings.ContainsFunc(s, func(r rune) bool {
			return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' && r != '_'
		})
		v.check(ok, fmt.Sprintf("%s[%d]", at, i), s, "is no proposal")
	}
}

func validIdentity(s string) bool {
	if a, err := netip.ParseAddr(s); err == nil {
		return a.Zone() == ""
	}
	return validDNSName(s)
}

// validDNSName takes no pattern and no root (RFC 1123, section 2.1).
func validDNSName(s string) bool {
	if len(s) > maxName {
		return false
	}
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' ||
			strings.ContainsFunc(label, func(r rune) bool {
				return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-'
			}) {
			return false
		}
	}
	return true
}
