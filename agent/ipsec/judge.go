package ipsec

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/circuitseal/circuitseal/agent/plan"
	"github.com/circuitseal/circuitseal/proto/desired"
)

// evidence is an SA in the words of status. It has no Weakness yet.
func evidence(t plan.IPsecTunnel, backend Backend, s ikeSA) desired.SecurityAssociation {
	e := desired.SecurityAssociation{
		IKE: s.suite.String(), PPK: s.ppk, LocalID: s.localID, RemoteID: s.remoteID, IKEAge: s.age, Backend: backend.String(),
	}
	if c := s.child(); c != nil {
		esp := c.suite
		e.PFS = strings.Join(esp.exchanges, "-")
		esp.exchanges = nil
		e.ESP, e.ESN, e.UDPEncapsulated = esp.String(), esp.esn, c.encap
		e.ESPAge, e.ReceivedPackets, e.SentPackets = c.age, c.packetsIn, c.packetsOut
	}
	for _, der := range t.Policy.PeerCertificates {
		sum := sha256.Sum256(der)
		e.PeerCertificates = append(e.PeerCertificates, hex.EncodeToString(sum[:]))
	}
	return e
}

// rekeyedAfter is how much younger than its IKE SA an ESP SA is that did not come
// with it: charon tells ages in seconds.
const rekeyedAfter = 5 * time.Second

// judge says in what an SA that is up is weaker than the tunnel's policy, empty for
// nothing.
func judge(t plan.IPsecTunnel, backend Backend, s ikeSA) string {
	p := t.Policy
	c := s.child()
	if c == nil {
		return ""
	}
	switch {
	case !slices.ContainsFunc(p.IKEProposals, func(text string) bool { return parseProposal(text).ike(s.suite) }):
		return fmt.Sprintf("IKE negotiated %s, the policy has %s", s.suite, strings.Join(p.IKEProposals, ", "))
	case c.protocol != "ESP" || c.mode != "TUNNEL":
		return fmt.Sprintf("the SA is of %s in mode %s, not of ESP in mode TUNNEL", c.protocol, c.mode)
	case !slices.ContainsFunc(p.ESPProposals, func(text string) bool { return parseProposal(text).esp(c.suite, true) }):
		return fmt.Sprintf("ESP negotiated %s, the policy has %s", c.suite, strings.Join(p.ESPProposals, ", "))
	case !slices.ContainsFunc(p.ESPProposals, func(text string) bool {
		return parseProposal(text).esp(c.suite, s.age-c.age < rekeyedAfter)
	}):
		return "ESP was rekeyed without a key exchange of its own (PFS), the policy has " + strings.Join(p.ESPProposals, ", ")
	case p.PPKRequired && !s.ppk:
		return "no post-quantum pre-shared key (PPK) was mixed in, which the policy requires"
	case !sameID(s.localID, p.LocalID) || !sameID(s.remoteID, p.RemoteID):
		return fmt.Sprintf("it is between %s and %s, the policy has %s and %s", s.localID, s.remoteID, p.LocalID, p.RemoteID)
	case backend == Kernel && (c.interfaceIn != t.InterfaceID || c.interfaceOut != t.InterfaceID):
		return fmt.Sprintf("it belongs to interfaces %#x and %#x, not to %#x", c.interfaceIn, c.interfaceOut, t.InterfaceID)
	}
	return ""
}

// judgedBy is a digest of what judge compares SAs with.
func judgedBy(t plan.IPsecTunnel) string {
	p := t.Policy
	return digest(section("ike", p.IKEProposals, "esp", p.ESPProposals, "ppk_required", yes(p.PPKRequired),
		"local", p.LocalID, "remote", p.RemoteID, "interface", strconv.FormatUint(uint64(t.InterfaceID), 10)))
}

// sameID compares names as DNS does.
func sameID(a, b string) bool { return strings.EqualFold(a, b) }
