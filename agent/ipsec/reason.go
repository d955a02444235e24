package ipsec

import (
	"strings"

	"github.com/strongswan/govici/vici"
)

// charon's answer to an initiation that nobody waits for says nothing of what
// became of it, nor do its events: the reason is in its log, which it tells to who
// subscribes, with the name of the connection.

// reasons are what of the log is why an SA was not made, in the order in which one
// is preferred to others of the same attempt: what this end found out says more
// than that the other one refused.
var reasons = []struct {
	contains []string
	sentence string
}{
	{[]string{"PPK required but no PPK found"}, "this node does not have the post-quantum pre-shared key (PPK) that is asked for"},
	{[]string{"PPK required but peer does not support PPK"}, "the far end does not do post-quantum pre-shared keys (RFC 8784), which the policy requires"},
	{[]string{"PPK required but no PPK_IDENTITY received"}, "the far end mixes in no post-quantum pre-shared key (PPK), which the policy requires"},
	{[]string{"received PPK_ID"}, "the far end's post-quantum pre-shared key (PPK) is of another tunnel"},
	{[]string{"MAC mismatched"}, "the pre-shared keys of the two ends differ"},
	{[]string{"no shared key found for"}, "there is no pre-shared key for the far end's identity"},
	{[]string{"certificate invalid (valid from"}, "the far end's certificate is not valid now: it has expired, or the clocks differ"},
	{[]string{"no trusted", "public key found for"}, "the far end shows no certificate that is pinned for it"},
	{[]string{"no issuer certificate found for"}, "the far end's certificate is from an authority that the policy does not name"},
	{[]string{"constraint check failed"}, "the far end is not who the policy names, or shows a certificate that is not pinned for it"},
	{[]string{"signature validation failed"}, unproven},
	{[]string{"no private key found for"}, "this node's private key does not fit its certificate"},
	{[]string{"received proposals unacceptable"}, "the far end proposes nothing that the policy allows"},
	{[]string{"received NO_PROPOSAL_CHOSEN"}, "the far end takes none of the proposals (NO_PROPOSAL_CHOSEN): its policy is another, or not applied yet"},
	{[]string{"received AUTHENTICATION_FAILED"}, "the far end does not accept who this node is (AUTHENTICATION_FAILED): identities, certificates, or pre-shared keys (PPK) differ"},
	{[]string{"received TS_UNACCEPTABLE"}, "the far end does not take the traffic selectors (TS_UNACCEPTABLE)"},
	{[]string{"received INVALID_SYNTAX"}, "the far end does not understand (INVALID_SYNTAX)"},
	{[]string{"unable to install"}, "the SA cannot be installed in the kernel: see charon's log"},
	{[]string{"peer not responding"}, "the far end does not answer"},
	{[]string{"giving up after"}, "the far end does not answer"},
	{[]string{"error writing to socket"}, "this node cannot send to the far end: see its link"},
}

// What is signed depends on the PPK (RFC 8784, section 3): of a signature that does not
// fit nobody can say whether that or the key is another.
const (
	unproven       = "the far end cannot prove that it has the key of its certificate"
	unprovenOrPPKs = unproven + ", or the pre-shared keys (PPK) of the two ends differ"
)

// noise is one line of charon's log.
type noise struct {
	connection string
	ike        uint64
	text       string
}

func parseNoise(m *vici.Message) (noise, bool) {
	f := &fields{m: m}
	n := noise{f.text("ikesa-name"), f.number("ikesa-uniqueid", 10, 32), f.text("msg")}
	return n, len(f.errs) == 0 && n.connection != "" && n.text != ""
}

// reason is the rank of what a line says, the lower the better, and the sentence. ppk
// tells that a PPK is mixed in.
func (n noise) reason(ppk bool) (rank int, sentence string) {
next:
	for i, r := range reasons {
		for _, c := range r.contains {
			if !strings.Contains(n.text, c) {
				continue next
			}
		}
		if ppk && r.sentence == unproven {
			return i, unprovenOrPPKs
		}
		return i, r.sentence
	}
	return len(reasons), ""
}

// generation is that of a PPK which the line says was used: the answering end learns
// it from nowhere else.
func (n noise) generation() (g string, ok bool) {
	rest, ok := strings.CutPrefix(n.text, "using PPK for PPK_ID '")
	if !ok {
		return "", false
	}
	g, _, ok = strings.Cut(rest, ".")
	return g, ok
}
