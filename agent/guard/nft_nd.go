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
func acceptNDOut() [][]expr.Any { return discovery(expr.MetaKeyOIFNAME, setOwn6, setNeighbors6) }

// acceptNDIn is the same the other way round, and that the neighbour announces
// itself.
func acceptNDIn() [][]expr.Any {
	is := among(expr.MetaKeyIIFNAME)
	return append(discovery(expr.MetaKeyIIFNAME, setNeighbors6, setOwn6),
		accepting(nd(ndAdvertisement), is(setNeighbors6, network, ipv6Source), is(setNeighbors6, transport, ndTarget), toAllNodes()))
}

// discovery is what those of one set tell those of another. Link-local addresses
// are either's.
func discovery(device expr.MetaKey, from, to string) (rules [][]expr.Any) {
	is := among(device)
	asks, answers := nd(ndSolicitation), nd(ndAdvertisement)
	for _, source := range [][]expr.Any{is(from, network, ipv6Source), isLinkLocal(network, ipv6Source)} {
		rules = append(rules,
			accepting(asks, source, is(to, transport, ndTarget), toSolicitedNode(device)),
			accepting(asks, source, is(to, transport, ndTarget), is(to, network, ipv6Destination)),
			accepting(asks, source, isLinkLocal(transport, ndTarget), isLinkLocal(network, ipv6Destination)))
	}
	for _, destination := range [][]expr.Any{is(to, network, ipv6Destination), isLinkLocal(network, ipv6Destination)} {
		rules = append(rules,
			accepting(answers, is(from, network, ipv6Source), is(from, transport, ndTarget), destination),
			accepting(answers, isLinkLocal(network, ipv6Source), isLinkLocal(transport, ndTarget), destination))
	}
	return rules
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

func isLinkLocal(read load, at uint32) []expr.Any {
	return []expr.Any{
		read(reg0, at, 8),
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg0, Data: linkLocal.Addr().AsSlice()[:8]},
	}
}

// load is network or transport.
type load func(register, offset, length uint32) expr.Any

// among wants the address that is read at a place to be one of a set, for the
// interface.
func among(device expr.MetaKey) func(set string, read load, at uint32) []expr.Any {
	return func(set string, read load, at uint32) []expr.Any {
		return []expr.Any{
			&expr.Meta{Key: device, Register: reg0},
			read(register(4), at, 16),
			&expr.Lookup{SourceRegister: reg0, SetName: set},
		}
	}
}
