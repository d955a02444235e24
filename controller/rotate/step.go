// Package rotate changes the pre-shared keys of tunnels in phases, so that no
// moment exists at which one end uses a key that the other does not hold:
//
//	steady [g] -> prepare [g, g+1] -> activate [g+1, g] -> steady [g+1]
//
// Both ends acknowledge prepare before either is told to use the new key, and
// the old one goes only when both have completed a handshake with the new. With a
// gateway without our agent, of which nothing is known, our own end alone decides:
// it falls back to the old key until somebody has told the gateway the new one. It
// knows what nodes report and what the store keeps of a tunnel's keys; it
// refuses to know how keys reach nodes, and what a node does with two.
//
// Every decision is made from the store and from what nodes report now, and
// nothing is remembered of an earlier one: a controller may die between any two
// phases, or several may rotate at once, since every write is fenced by the
// revision that it was decided on.
package rotate

import (
	"fmt"
	"slices"
	"time"

	"github.com/circuitseal/circuitseal/controller/model"
	"github.com/circuitseal/circuitseal/proto/desired"
)

// Move is what to do with a tunnel's keys.
type Move uint8

// The moves.
const (
	// Stay: nothing.
	Stay Move = iota
	// Create: the tunnel has no key yet.
	Create
	// Prepare: tell both ends the next key.
	Prepare
	// Activate: have both ends use it.
	Activate
	// Retire: take the key before it away.
	Retire
)

// String is the word in logs.
func (m Move) String() string {
	switch m {
	case Stay:
		return "stay"
	case Create:
		return "create"
	case Prepare:
		return "prepare"
	case Activate:
		return "activate"
	case Retire:
		return "retire"
	}
	return fmt.Sprintf("move %d", uint8(m))
}

// End is what a node says of its end of a tunnel.
type End struct {
	Node string
	// Gateway tells that no agent of ours is there, and nothing is known of it.
	Gateway bool
	// Connected tells that it has a session now.
	Connected bool
	// Acknowledged is the newest state that it keeps, zero when it has not said.
	Acknowledged desired.Position
	// Held are the generations that it holds, Used is that of the last
	// handshake, 0 when that is not known.
	Held []uint64
	Used uint64
}

// Next decides. epoch is the store's, and due tells that the key in use is old
// enough to be replaced. waits says in a sentence what a rotation under way, or
// one that is due, waits for; it is empty otherwise.
func Next(keys model.PresharedKeys, ends [2]End, epoch uint64, due bool) (move Move, waits string) {
	if len(keys.Keys) == 0 {
		return Create, ""
	}
	if keys.Phase == model.PresharedSteady && !due {
		return Stay, ""
	}
	if keys.Phase != model.PresharedActivate {
		// What is retired later is decided on facts that a node which goes away
		// does not take back; what makes it fall back is not begun without it.
		for _, e := range ends {
			if !e.Connected && !e.Gateway {
				return Stay, fmt.Sprintf("waits for node %s, which is not connected", e.Node)
			}
		}
	}
	if keys.Phase == model.PresharedSteady {
		return Prepare, ""
	}
	for _, e := range ends {
		if !e.Gateway && !acknowledged(keys, e, epoch) {
			return Stay, fmt.Sprintf("waits for node %s to hold generations %v", e.Node, keys.Generations())
		}
	}
	if keys.Phase == model.PresharedPrepare {
		return Activate, ""
	}
	for _, e := range ends {
		if !e.Gateway && e.Used != keys.Keys[0].Generation {
			return Stay, fmt.Sprintf("waits for a handshake of node %s with generation %d", e.Node, keys.Keys[0].Generation)
		}
	}
	return Retire, ""
}

// acknowledged reports whether an end holds these keys: a state that was made
// of them, and their generations. Generations alone would not do, since a store
// that was restored from a backup gives them anew.
func acknowledged(keys model.PresharedKeys, e End, epoch uint64) bool {
	return e.Acknowledged.Compare(desired.Position{Epoch: epoch, Revision: keys.Revision}) >= 0 &&
		e.Acknowledged.Epoch == epoch && slices.Equal(e.Held, keys.Generations())
}

// Apply is the keys after a move. fresh is a key that was never used, needed by
// Create and Prepare; its generation becomes greater than all before, and than
// floor, the store's revision: a tunnel whose keys were removed and made anew
// does not get a generation again.
func Apply(keys model.PresharedKeys, move Move, fresh desired.Secret, floor uint64, now time.Time) model.PresharedKeys {
	next := model.PresharedKeys{Phase: keys.Phase, Keys: slices.Clone(keys.Keys), Revision: keys.Revision}
	made := model.PresharedGeneration{PresharedKey: desired.PresharedKey{Generation: max(1, floor), Key: fresh}, Made: now}
	for _, k := range keys.Keys {
		made.Generation = max(made.Generation, k.Generation+1)
	}
	switch move {
	case Create:
		next.Phase, next.Keys = model.PresharedSteady, []model.PresharedGeneration{made}
	case Prepare:
		next.Phase, next.Keys = model.PresharedPrepare, append(next.Keys, made)
	case Activate:
		next.Phase = model.PresharedActivate
		slices.Reverse(next.Keys)
	case Retire:
		next.Phase, next.Keys = model.PresharedSteady, next.Keys[:1]
	case Stay:
	}
	return next
}
