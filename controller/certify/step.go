// Package certify gives the endpoints on our nodes the certificates by which they
// prove in IKE who they are, and renews them in phases, so that no moment exists at
// which one shows a certificate that a peer does not take:
//
//	steady [g] -> prepare [g, g+1] -> activate [g+1, g] -> steady [g+1]
//
// The keys are made on nodes. Peers take the next certificate before its owner is
// told to show it, and the old one goes only when everybody has taken that in. It
// knows what nodes report and what the store keeps; it refuses to know how
// certificates are made, how they reach nodes, and what a node does with two.
//
// Every decision is made from the store and from what nodes report now: a controller
// may die between any two phases, or several may be at it at once, since every write
// is fenced by the revision that it was decided on.
package certify

import (
	"fmt"
	"time"

	"github.com/circuitseal/circuitseal/controller/model"
	"github.com/circuitseal/circuitseal/proto/desired"
)

// Move is what to do with an endpoint's certificates.
type Move uint8

// The moves.
const (
	// Stay: nothing.
	Stay Move = iota
	// Begin: the node is to make a key; what there was is worthless.
	Begin
	// Issue: a key is there, and no certificate over it.
	Issue
	// Prepare: the node is to make the next key.
	Prepare
	// Activate: the owner is to show the next one.
	Activate
	// Retire: the one before goes.
	Retire
)

// String is the word in logs.
func (m Move) String() string {
	switch m {
	case Stay:
		return "stay"
	case Begin:
		return "begin"
	case Issue:
		return "issue"
	case Prepare:
		return "prepare"
	case Activate:
		return "activate"
	case Retire:
		return "retire"
	}
	return fmt.Sprintf("move %d", uint8(m))
}

// Node is what a node says that owns an identity, or is a peer of one that does.
type Node struct {
	Name string
	// Connected tells that it has a session now.
	Connected bool
	// Acknowledged is the newest state that it keeps, zero when it has not said.
	Acknowledged desired.Position
	// Keys are of the owner: those that it holds, by generation.
	Keys map[uint64]model.Fingerprint
}

// Now is what a decision is made of beside the certificates.
type Now struct {
	Epoch uint64
	Time  time.Time
	// Enrolment is the owner's present identity.
	Enrolment model.Fingerprint
	Owner     Node
	Peers     []Node
}

const (
	// The part of a certificate's life after which the next one is made.
	renewNumerator, renewDenominator = 2, 3
	// soon is how near its end a certificate is when peers that are away are no
	// longer waited for: they get the next one when they are back.
	soon = 14 * 24 * time.Hour
	// settle is how long a certificate is left alone at least: two hosts with one
	// identity would else have one issued every second.
	settle = time.Minute
)

// Next decides. waits says in a sentence what a renewal under way waits for; it is
// empty otherwise.
func Next(c model.IdentityCertificates, n Now) (move Move, generation uint64, waits string) {
	if len(c.Certificates) == 0 || c.Node != n.Owner.Name || c.Enrolment != n.Enrolment {
		return Begin, 0, ""
	}
	for _, g := range c.Certificates {
		key, held := n.Owner.Keys[g.Generation]
		switch {
		case !held:
		case len(g.Certificate) == 0:
			return Issue, g.Generation, ""
		case key != g.Key && n.Time.Sub(g.Issued) > settle:
			// It has lost the key and made another: nobody can show that certificate.
			return Begin, 0, ""
		}
	}
	first := c.Certificates[0]
	switch c.Phase {
	case model.IdentitySteady:
		if len(first.Certificate) == 0 {
			return Stay, 0, fmt.Sprintf("waits for node %s to make a key", c.Node)
		}
		if !n.Time.Before(due(first)) {
			return Prepare, 0, ""
		}
		return Stay, 0, ""
	case model.IdentityPrepare:
		if len(c.Certificates[1].Certificate) == 0 {
			return Stay, 0, fmt.Sprintf("waits for node %s to make the next key", c.Node)
		}
		if waits := n.waits(c, first.Expires); waits != "" {
			return Stay, 0, waits
		}
		return Activate, 0, ""
	case model.IdentityActivate:
		if waits := n.waits(c, c.Certificates[1].Expires); waits != "" {
			return Stay, 0, waits
		}
		return Retire, 0, ""
	}
	return Stay, 0, ""
}

// due is when the next one is made.
func due(g model.IdentityGeneration) time.Time {
	return g.Issued.Add(g.Expires.Sub(g.Issued) / renewDenominator * renewNumerator)
}

// waits says who has not taken the certificates in yet. Peers that are away are
// waited for until the certificate that they know nears its end.
func (n Now) waits(c model.IdentityCertificates, ends time.Time) string {
	want := desired.Position{Epoch: n.Epoch, Revision: c.Revision}
	has := func(x Node) bool { return x.Acknowledged.Epoch == n.Epoch && x.Acknowledged.Compare(want) >= 0 }
	if !has(n.Owner) {
		return fmt.Sprintf("waits for node %s to hold state %s", n.Owner.Name, want)
	}
	for _, p := range n.Peers {
		if has(p) || !p.Connected && ends.Sub(n.Time) < soon {
			continue
		}
		if !p.Connected {
			return fmt.Sprintf("waits for node %s, which is not connected", p.Name)
		}
		return fmt.Sprintf("waits for node %s to hold state %s", p.Name, want)
	}
	return ""
}

// Apply is the certificates after a move that issues none; see Issued. floor is the
// store's revision: an endpoint that was deleted and made anew does not get a
// generation again.
func Apply(c model.IdentityCertificates, move Move, n Now, floor uint64) model.IdentityCertificates {
	next := model.IdentityCertificates{Phase: c.Phase, Node: n.Owner.Name, Enrolment: n.Enrolment, Revision: c.Revision}
	fresh := model.IdentityGeneration{Generation: max(1, floor)}
	for _, g := range c.Certificates {
		fresh.Generation = max(fresh.Generation, g.Generation+1)
		next.Certificates = append(next.Certificates, g)
	}
	switch move {
	case Begin:
		next.Phase, next.Certificates = model.IdentitySteady, []model.IdentityGeneration{fresh}
	case Prepare:
		next.Phase, next.Certificates = model.IdentityPrepare, append(next.Certificates, fresh)
	case Activate:
		next.Phase = model.IdentityActivate
		next.Certificates[0], next.Certificates[1] = next.Certificates[1], next.Certificates[0]
	case Retire:
		next.Phase, next.Certificates = model.IdentitySteady, next.Certificates[:1]
	case Stay, Issue:
	}
	return next
}

// Issued is the certificates with the one of a generation made.
func Issued(c model.IdentityCertificates, made model.IdentityGeneration) model.IdentityCertificates {
	next := c
	next.Certificates = make([]model.IdentityGeneration, len(c.Certificates))
	for i, g := range c.Certificates {
		if g.Generation == made.Generation {
			g = made
		}
		next.Certificates[i] = g
	}
	return next
}
