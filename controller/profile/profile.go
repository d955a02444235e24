// Package profile says what IKEv2 and ESP may negotiate: the built-in crypto
// profiles, each choice with where it comes from, proposals in strongSwan's
// keywords, and what ESP leaves of an outer packet. It knows algorithms by name. It
// refuses to know documents, nodes and what an installed strongSwan can do, and
// it claims no conformity: see Profile.FIPS and Choice.Recalled.
package profile

import (
	"crypto/ecdsa"
	"crypto/rsa"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Profile is what IKEv2 and ESP may negotiate. It is a value: nobody changes one
// after it was made.
type Profile struct {
	Name string
	// Summary says for whom it is, in a sentence.
	Summary string
	// Source is where the profile as a whole comes from.
	Source Source
	// IKE and ESP are proposals, the best first.
	IKE, ESP []Choice
	// MaxIKE and MaxESP are the longest that an IKE and an ESP SA may live; 0 for
	// no bound of the profile's own. Lifetimes has where they come from.
	MaxIKE, MaxESP time.Duration
	Lifetimes      Source
	// Certificates are the keys that certificates may have.
	Certificates Certificates
	// WireGuard says why WireGuard may stand in for IPsec, with a pre-shared key;
	// NoWireGuard why not. One of the two is set.
	WireGuard, NoWireGuard string
	// PPK wants a post-quantum pre-shared key in every IKE SA (RFC 8784).
	PPK bool
	// FIPS says what a build in FIPS mode would need. It is no claim.
	FIPS string
}

// Source is where something comes from.
type Source struct {
	Text string
	// Recalled is set where that was not compared with the text itself: it has to be
	// before anybody claims to conform.
	Recalled bool
}

// String marks what is only recalled.
func (s Source) String() string {
	if s.Recalled {
		return s.Text + " (recalled, not compared with the text)"
	}
	return s.Text
}

// Choice is a proposal and why it is there.
type Choice struct {
	Proposal
	Source Source
}

// Proposal is one combination of algorithms, in strongSwan's keywords.
type Proposal struct {
	Encryption string
	// Integrity is empty where the encryption authenticates by itself.
	Integrity string
	// PRF is empty for ESP.
	PRF         string
	KeyExchange string
	// AdditionalKeyExchange is a second one (RFC 9370); empty for none.
	AdditionalKeyExchange string
	// ESN is of ESP: extended sequence numbers (RFC 4303, section 2.2.1), and
	// nothing else. Without it there are none.
	ESN bool
}

// String is what strongSwan takes in a list of proposals.
func (p Proposal) String() string { return strings.Join(p.Keywords(), "-") }

// Keywords are the parts of String.
func (p Proposal) Keywords() []string {
	words := []string{p.Encryption, p.Integrity, p.PRF, p.KeyExchange}
	if p.AdditionalKeyExchange != "" {
		words = append(words, "ke1_"+p.AdditionalKeyExchange)
	}
	if p.ESN {
		words = append(words, "esn")
	}
	return slices.DeleteFunc(words, func(w string) bool { return w == "" })
}

// Algorithms are what a charon has to know for the proposal: as Keywords, with the
// names of additional key exchanges.
func (p Proposal) Algorithms() []string {
	words := p.Keywords()
	for i, w := range words {
		words[i] = strings.TrimPrefix(w, "ke1_")
	}
	return words
}

// Strings are proposals as strongSwan takes them.
func Strings(choices []Choice) []string {
	out := make([]string, len(choices))
	for i, c := range choices {
		out[i] = c.String()
	}
	return out
}

// PostQuantum reports whether everything that may be negotiated has a key
// exchange that is to stand against quantum attackers.
func (p Profile) PostQuantum() bool {
	with := func(c Choice) bool { return strings.HasPrefix(c.AdditionalKeyExchange, "mlkem") }
	return !slices.ContainsFunc(p.IKE, func(c Choice) bool { return !with(c) }) &&
		!slices.ContainsFunc(p.ESP, func(c Choice) bool { return !with(c) })
}

// Lifetimes that hold where neither a policy nor its profile wants less.
const (
	DefaultIKE = 4 * time.Hour
	DefaultESP = time.Hour
)

// LifetimeIKE is how long an IKE SA lives where a policy says nothing.
func (p Profile) LifetimeIKE() time.Duration { return within(DefaultIKE, p.MaxIKE) }

// LifetimeESP is how long an ESP SA lives where a policy says nothing.
func (p Profile) LifetimeESP() time.Duration { return within(DefaultESP, p.MaxESP) }

func within(d, most time.Duration) time.Duration {
	if most != 0 {
		return min(d, most)
	}
	return d
}

// Certificates says which keys certificates may have.
type Certificates struct {
	// Curves of ECDSA, as crypto/elliptic names them.
	Curves []string
	// RSA is the fewest bits; 0 for no RSA.
	RSA    int
	Source Source
}

// Refuses says why a certificate's public key is not one of these, in words that
// follow it; empty where it is.
func (c Certificates) Refuses(key any) string {
	switch k := key.(type) {
	case *ecdsa.PublicKey:
		if name := k.Curve.Params().Name; !slices.Contains(c.Curves, name) {
			return "has a key on curve " + name
		}
		return ""
	case *rsa.PublicKey:
		switch n := k.N.BitLen(); {
		case c.RSA == 0:
			return "has an RSA key"
		case n < c.RSA:
			return fmt.Sprintf("has an RSA key of %d bits", n)
		}
		return ""
	}
	return fmt.Sprintf("has a key of type %T", key)
}

// String is for people.
func (c Certificates) String() string {
	words := []string{}
	for _, n := range c.Curves {
		words = append(words, "ECDSA "+n)
	}
	if c.RSA > 0 {
		words = append(words, fmt.Sprintf("RSA from %d bits on", c.RSA))
	}
	return strings.Join(words, ", ")
}
