package plan

import (
	"reflect"
	"slices"
)

// Prefixes are all that tells two plans apart: some prefixes that come, some that
// go, and the tunnels that must let others through for it.
type Prefixes struct {
	Tunnels []Tunnel
	// Coming and Going have locals and remotes, and nothing else.
	Coming, Going Classifier
}

// PrefixesFrom is what leads from old to p, if that is prefixes only: of sites
// and groups that stay, on interfaces and in tunnels that stay. It reports false
// when anything else differs, and when a prefix passes from one group or LAN to
// another, which must not happen in two steps.
func (p Plan) PrefixesFrom(old Plan) (Prefixes, bool) {
	a, b := old.withoutPrefixes(), p.withoutPrefixes()
	if !reflect.DeepEqual(a, b) {
		return Prefixes{}, false
	}
	var d Prefixes
	for i, t := range p.Tunnels {
		if !reflect.DeepEqual(t.AllowedIPs, old.Tunnels[i].AllowedIPs) {
			d.Tunnels = append(d.Tunnels, t)
		}
	}
	d.Coming.Locals, d.Going.Locals = exchanged(p.Classifier.Locals, old.Classifier.Locals)
	d.Coming.Remotes, d.Going.Remotes = exchanged(p.Classifier.Remotes, old.Classifier.Remotes)
	going := map[any]bool{}
	for _, l := range d.Going.Locals {
		l.Interface = ""
		going[l] = true
	}
	for _, r := range d.Going.Remotes {
		r.Group = 0
		going[r] = true
	}
	for _, l := range d.Coming.Locals {
		if l.Interface = ""; going[l] {
			return Prefixes{}, false
		}
	}
	for _, r := range d.Coming.Remotes {
		if r.Group = 0; going[r] {
			return Prefixes{}, false
		}
	}
	return d, true
}

// withoutPrefixes shares what it does not change with p.
func (p Plan) withoutPrefixes() Plan {
	tunnels := make([]Tunnel, len(p.Tunnels))
	for i, t := range p.Tunnels {
		t.AllowedIPs = nil
		tunnels[i] = t
	}
	p.Tunnels = tunnels
	// What of them IPsec needs can wait for the pass that follows.
	p.IPsec.Tunnels = slices.Clone(p.IPsec.Tunnels)
	for i := range p.IPsec.Tunnels {
		p.IPsec.Tunnels[i].Locals, p.IPsec.Tunnels[i].Remotes = nil, nil
	}
	p.Classifier.Locals, p.Classifier.Remotes = nil, nil
	return p
}

// exchanged are those of a that b lacks, and the other way round.
func exchanged[T comparable](a, b []T) (onlyA, onlyB []T) {
	inA, inB := make(map[T]bool, len(a)), make(map[T]bool, len(b))
	for _, v := range a {
		inA[v] = true
	}
	for _, v := range b {
		inB[v] = true
	}
	return keep(a, func(v T) bool { return !inB[v] }), keep(b, func(v T) bool { return !inA[v] })
}
