package model

import (
	"slices"
	"time"
)

// IdentityPhase is how far the renewal of an identity's certificate is.
type IdentityPhase string

// The phases. In each the first of IdentityCertificates.Certificates is the one that
// the owner is to use, once it is there; peers take all that are there.
const (
	// IdentitySteady: there is one.
	IdentitySteady IdentityPhase = "steady"
	// IdentityPrepare: the next one stands second, and has a certificate as soon as
	// the owner has made its key.
	IdentityPrepare IdentityPhase = "prepare"
	// IdentityActivate: the next one stands first, the one before it second.
	IdentityActivate IdentityPhase = "activate"
)

// IdentityCertificates are those of an endpoint in IKE; they are no secrets.
type IdentityCertificates struct {
	Phase IdentityPhase `json:"phase"`
	// Node made the keys, and Enrolment is its identity of then: another node, or
	// one that was enrolled anew, has none of them.
	Node      string      `json:"node"`
	Enrolment Fingerprint `json:"enrolment"`
	// Certificates are one in IdentitySteady, else two.
	Certificates []IdentityGeneration `json:"certificates"`
	// Revision is the store's at which this was written, 0 while it was not.
	Revision uint64 `json:"-"`
}

// IdentityGeneration is one certificate, over a key of that generation.
type IdentityGeneration struct {
	Generation uint64 `json:"generation"`
	// Certificate is DER; empty until it was issued. What follows is of it.
	Certificate []byte `json:"certificate,omitempty"`
	// Key is of the public half.
	Key     Fingerprint `json:"key,omitempty"`
	Serial  string      `json:"serial,omitempty"`
	Issued  time.Time   `json:"issued,omitzero"`
	Expires time.Time   `json:"expires,omitzero"`
}

// Pins are the certificates that peers may be shown, in the order of generations:
// which one is in use changes nothing for them.
func (c IdentityCertificates) Pins() [][]byte {
	sorted := slices.Clone(c.Certificates)
	slices.SortFunc(sorted, func(a, b IdentityGeneration) int { return int(int64(a.Generation) - int64(b.Generation)) })
	var pins [][]byte
	for _, g := range sorted {
		if len(g.Certificate) > 0 {
			pins = append(pins, g.Certificate)
		}
	}
	return pins
}

// Valid reports whether phase and certificates fit together.
func (c IdentityCertificates) Valid() bool {
	for i, g := range c.Certificates {
		if g.Generation == 0 || i > 0 && g.Generation == c.Certificates[0].Generation {
			return false
		}
	}
	switch c.Phase {
	case IdentitySteady:
		return len(c.Certificates) == 1
	case IdentityPrepare:
		return len(c.Certificates) == 2 && c.Certificates[0].Generation < c.Certificates[1].Generation
	case IdentityActivate:
		return len(c.Certificates) == 2 && c.Certificates[0].Generation > c.Certificates[1].Generation &&
			len(c.Certificates[0].Certificate) > 0
	}
	return false
}

// Identity is what an endpoint, by IdentityName, proves to be in IKE by. There is
// nothing where its keys are of a node's identity that is no longer the node's.
func (s *Snapshot) Identity(name string) (IdentityCertificates, bool) {
	c, ok := s.Identities[name]
	if !ok || s.Enrolments[c.Node].Key != c.Enrolment {
		return IdentityCertificates{}, false
	}
	if _, revoked := s.Revoked(c.Node); revoked {
		return IdentityCertificates{}, false
	}
	return c, true
}

// Settled is the policy that a connection's tunnels are known to carry packets by.
// While the policy of the documents has another protocol, tunnels have both.
type Settled struct {
	Policy EncryptionPolicySpec `json:"policy"`
	// Revision is the store's at which this was written, 0 while it was not.
	Revision uint64 `json:"-"`
}

// Settle is what of a connection's policies is known to work after a change of
// documents: of a new connection the policy that it has; of one whose protocol
// stays as it was the newest; else what it was. What nobody has settled before
// is what the documents before the change say.
func Settle(before, after map[Key]Document, settled map[string]Settled) map[string]Settled {
	all := make(map[string]Settled, len(settled))
	for k := range after {
		policy, ok := policyOf(after, k)
		if !ok {
			continue
		}
		id := GroupID(k.Customer, k.Name)
		was, known := settled[id]
		if !known {
			old, had := policyOf(before, k)
			if !had {
				old = policy
			}
			was = Settled{Policy: *old}
		}
		if was.Policy.Protocol == policy.Protocol {
			was.Policy = *policy
		}
		all[id] = was
	}
	return all
}

// policyOf is the encryption policy of a connection; false for other documents.
func policyOf(docs map[Key]Document, k Key) (*EncryptionPolicySpec, bool) {
	s, ok := Lookup[*ConnectionSpec](docs, k)
	if !ok {
		return nil, false
	}
	return Lookup[*EncryptionPolicySpec](docs, Key{Kind: KindEncryptionPolicy, Customer: k.Customer, Name: s.EncryptionPolicy})
}

// Protocols are those that a connection's tunnels have: the one that its policy
// wants, and the policy of the one that is on its way out, nil where there is none.
func (s *Snapshot) Protocols(k Key) (want, retiring *EncryptionPolicySpec, ok bool) {
	if want, ok = policyOf(s.Documents, k); !ok {
		return nil, nil, false
	}
	if was, known := s.Settled[GroupID(k.Customer, k.Name)]; known && was.Policy.Protocol != want.Protocol && was.Policy.Protocol != "" {
		retiring = &was.Policy
	}
	return want, retiring, true
}
