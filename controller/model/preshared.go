package model

import (
	"slices"
	"time"

	"github.com/circuitseal/circuitseal/proto/desired"
)

// PresharedPhase is how far the rotation of a tunnel's pre-shared key is.
type PresharedPhase string

// The phases. In each the first of PresharedKeys.Keys is the one that both ends
// are to use.
const (
	// PresharedSteady: there is one key.
	PresharedSteady PresharedPhase = "steady"
	// PresharedPrepare: both ends are told the next one, which stands second.
	PresharedPrepare PresharedPhase = "prepare"
	// PresharedActivate: the next one stands first, the one before it second.
	PresharedActivate PresharedPhase = "activate"
)

// PresharedKeys are a tunnel's, as its two nodes have to have them.
type PresharedKeys struct {
	Phase PresharedPhase
	// Keys are one in PresharedSteady, else two.
	Keys []PresharedGeneration
	// Revision is the store's at which this was written, 0 while it was not.
	Revision uint64
}

// PresharedGeneration is one key and since when it is, by the clock on the wall
// of the controller that made it.
type PresharedGeneration struct {
	desired.PresharedKey
	Made time.Time
}

// Desired is what nodes are given.
func (p PresharedKeys) Desired() []desired.PresharedKey {
	var keys []desired.PresharedKey
	for _, k := range p.Keys {
		keys = append(keys, k.PresharedKey)
	}
	return keys
}

// Generations are those of Keys, in their order.
func (p PresharedKeys) Generations() []uint64 {
	var all []uint64
	for _, k := range p.Keys {
		all = append(all, k.Generation)
	}
	return all
}

// Valid reports whether phase and keys fit together.
func (p PresharedKeys) Valid() bool {
	for i, k := range p.Keys {
		if k.Generation == 0 || k.Key.IsZero() || slices.Contains(p.Generations()[:i], k.Generation) {
			return false
		}
	}
	switch p.Phase {
	case PresharedSteady:
		return len(p.Keys) == 1
	case PresharedPrepare:
		return len(p.Keys) == 2 && p.Keys[0].Generation < p.Keys[1].Generation
	case PresharedActivate:
		return len(p.Keys) == 2 && p.Keys[0].Generation > p.Keys[1].Generation
	}
	return false
}
