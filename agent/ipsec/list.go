package ipsec

import (
	"context"
	"slices"

	"github.com/strongswan/govici/vici"
)

// listSAs are those of our connections. charon lists one IKE SA after the other, while
// a rekeyed one hands its ESP SAs to its successor. A list that met the successor
// before that and the other one after it has them nowhere: so what has lost its ESP SAs
// since the last list is looked at twice. One that met them the other way round has them
// twice; see untangle.
func (d *Driver) listSAs(ctx context.Context) (map[uint16][]namedSA, error) {
	all, err := d.listOnce(ctx)
	if err == nil && lost(d.carried, all) {
		all, err = d.listOnce(ctx)
	}
	if err != nil {
		return nil, err
	}
	d.carried = carrying(all)
	return all, nil
}

// untangle removes an ESP SA from the IKE SA that had it before the last one: charon's
// numbers of ESP SAs are unique, and what was listed later is what is true.
func untangle(sas []namedSA) {
	seen := map[uint64]bool{}
	for i := range slices.Backward(sas) {
		sas[i].children = slices.DeleteFunc(sas[i].children, func(c childSA) bool { return seen[c.id] })
		for _, c := range sas[i].children {
			seen[c.id] = true
		}
	}
}

// carrying are the tunnels that have an SA by which packets can go both ways.
func carrying(sas map[uint16][]namedSA) map[uint16]bool {
	up := map[uint16]bool{}
	for n, list := range sas {
		if slices.ContainsFunc(list, func(s namedSA) bool { return s.up() }) {
			up[n] = true
		}
	}
	return up
}

// lost reports whether a tunnel that had such an SA has none.
func lost(carried map[uint16]bool, sas map[uint16][]namedSA) bool {
	now := carrying(sas)
	for n := range carried {
		if !now[n] {
			return true
		}
	}
	return false
}

func (d *Driver) listOnce(ctx context.Context) (map[uint16][]namedSA, error) {
	if d.open == nil {
		return nil, errNotRunning
	}
	all := map[uint16][]namedSA{}
	err := d.open.stream(ctx, "list-sas", "list-sa", nil, func(m *vici.Message) error {
		sas, err := parseSAs(m)
		if err != nil {
			return err
		}
		for _, s := range sas {
			if n, ours := parseName(d.config.Instance, s.name); ours {
				all[n.number] = append(all[n.number], namedSA{ikeSA: s, connection: n})
			}
		}
		return nil
	})
	if err != nil {
		d.hangUp()
		return nil, err
	}
	for _, sas := range all {
		untangle(sas)
	}
	return all, nil
}
