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
// twice, and an IKE SA that moves while it is made is listed twice itself; see untangle.
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

// untangle leaves of an IKE SA the last of what was listed, and removes an ESP SA from the
// IKE SA that had it before the last one: charon's numbers of both are unique, and what
// was listed later is what is true.
func untangle(sas []namedSA) []namedSA {
	seen, children := map[uint64]bool{}, map[uint64]bool{}
	var last []namedSA
	for _, s := range slices.Backward(sas) {
		if seen[s.id] {
			continue
		}
		seen[s.id] = true
		s.children = slices.DeleteFunc(s.children, func(c childSA) bool { return children[c.id] })
		for _, c := range s.children {
			children[c.id] = true
		}
		last = append(last, s)
	}
	slices.Reverse(last)
	return last
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
		sas, err := parseSAs(d.config.Instance, m)
		if err != nil {
			return err
		}
		for _, s := range sas {
			all[s.connection.number] = append(all[s.connection.number], s)
		}
		return nil
	})
	if err != nil {
		d.hangUp()
		return nil, err
	}
	for n, sas := range all {
		all[n] = untangle(sas)
	}
	return all, nil
}
