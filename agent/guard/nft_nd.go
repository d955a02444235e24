package guard

import (
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// Offsets in neighbour discovery (RFC 4861, sections 4.3 and 4.4) and in the IPv6
// header before it.
const (
	ndTarget        = 8
	ipv6Source      = 8
	ipv6Destination = 24
)

// setsND has a node's own addresses on its interfaces, its neighbours', and by which
// group each is asked for.
func setsND(p policy) []nftSet {
	own := nftSet{setOwn6, concat(nftables.TypeIFName, nftables.TypeIP6Addr), map[string]bool{}}
	neighbors := nftSet{setNeighbors6, own.key, map[string]bool{}}
	solicited := nftSet{setSolicited6, concat(nftables.TypeIFName, nftables.TypeIP6Addr, nftables.TypeIP6Addr), map[string]bool{}}
	for k := range p.neighbors {
		if k.tags != 0 || !k.local.Is6() || k.announces() || k.local == someLinkLocal || k.remote == someLinkLocal {
			continue
		}
		name := nameField(k.name)
		own.elements[string(slices.Concat(name, k.local.AsSlice()))] = true
		neighbors.elements[string(slices.Concat(name, k.remote.AsSlice()))] = true
		for _, a := range []netip.Addr{k.local, k.remote} {
			solicited.elements[string(slices.Concat(name, solicitedNode(a).AsSlice(), a.AsSlice()))] = true
		}
	}
	return []nftSet{own, neighbors, solicited}
}

// acceptNDOut: ask for the neighbour, all or itself; answer it.
func acceptNDOut() [][]expr.Any {
	is := among(expr.MetaKeyOIFNAME)
	asks := slices.Concat(nd(ndSolicitation), is(setNeighbors6, transport, ndTarget))
	answers := slices.Concat(nd(ndAdvertisement), is(setOwn6, network, ipv6Source), is(setOwn6, transport, ndTarget))
	var rules [][]expr.Any
	for _, from := range [][]expr.Any{is(setOwn6, network, ipv6Source), isLinkLocal(ipv6Source)} {
		rules = append(rules,
			accepting(asks, from, toSolicitedNode(expr.MetaKeyOIFNAME)),
			accepting(asks, from, is(setNeighbors6, network, ipv6Destination)))
	}
	return append(rules,
		accepting(answers, is(setNeighbors6, network, ipv6Destination)),
		accepting(answers, isLinkLocal(ipv6Destination)))
}

// acceptNDIn is the same the other way round, and that the neighbour announces
// itself.
func acceptNDIn() [][]expr.Any {
	is := among(expr.MetaKeyIIFNAME)
	asks := slices.Concat(nd(ndSolicitation), is(setOwn6, transport, ndTarget))
	answers := slices.Concat(nd(ndAdvertisement), is(setNeighbors6, network, ipv6Source), is(setNeighbors6, transport, ndTarget))
	var rules [][]expr.Any
	for _, from := range [][]expr.Any{is(setNeighbors6, network, ipv6Source), isLinkLocal(ipv6Source)} {
		rules = append(rules,
			accepting(asks, from, toSolicitedNode(expr.MetaKeyIIFNAME)),
			accepting(asks, from, is(setOwn6, network, ipv6Destination)))
	}
	return append(rules,
		accepting(answers, is(setOwn6, network, ipv6Destination)),
		accepting(answers, isLinkLocal(ipv6Destination)),
		accepting(answers, toAllNodes()))
}

func accepting(matches ...[]expr.Any) []expr.Any {
	return append(slices.Concat(matches...), accept())
}

// nd matches a message of neighbour discovery that has come over no router.
func nd(kind byte) []expr.Any {
	return append(plain6(protocolICMPv6),
		network(reg0, 7, 1),
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg0, Data: []byte{ndHopLimit}},
		transport(reg0, 0, 2),
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg0, Data: []byte{kind, 0}},
	)
}

func toSolicitedNode(device expr.MetaKey) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: device, Register: reg0},
		network(register(4), ipv6Destination, 16),
		transport(register(8), ndTarget, 16),
		&expr.Lookup{SourceRegister: reg0, SetName: setSolicited6},
	}
}

func toAllNodes() []expr.Any {
	return []expr.Any{
		network(reg0, ipv6Destination, 16),
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg0, Data: allNodesAddr.AsSlice()},
	}
}

func isLinkLocal(at uint32) []expr.Any {
	return []expr.Any{
		network(reg0, at, 8),
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg0, Data: linkLocal.Addr().AsSlice()[:8]},
	}
}

// among wants an address of a set, for the interface, at a place that load, which
// is network or transport, reads.
func among(device expr.MetaKey) func(set string, load func(register, offset, length uint32) expr.Any, at uint32) []expr.Any {
	return func(set string, load func(register, offset, length uint32) expr.Any, at uint32) []expr.Any {
		return []expr.Any{
			&expr.Meta{Key: device, Register: reg0},
			load(register(4), at, 16),
			&expr.Lookup{SourceRegister: reg0, SetName: set},
		}
	}
}
