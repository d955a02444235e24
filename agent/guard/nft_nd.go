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

// setsND has who may ask for whom and answer to whom, by which group each may be
// asked for, and neighbours that may announce themselves.
func setsND(p policy) []nftSet {
	pairs := nftSet{setNeighbors6, concat(nftables.TypeIFName, nftables.TypeIP6Addr, nftables.TypeIP6Addr), map[string]bool{}}
	solicited := nftSet{setSolicited6, pairs.key, map[string]bool{}}
	announcers := nftSet{setAnnouncers6, concat(nftables.TypeIFName, nftables.TypeIP6Addr), map[string]bool{}}
	for k := range p.neighbors {
		switch {
		case k.tags != 0 || !k.local.Is6():
		case k.announces():
			announcers.elements[string(slices.Concat(nameField(k.name), k.remote.AsSlice()))] = true
		default:
			pairs.elements[string(slices.Concat(nameField(k.name), k.local.AsSlice(), k.remote.AsSlice()))] = true
			for _, a := range []netip.Addr{k.local, k.remote} {
				solicited.elements[string(slices.Concat(nameField(k.name), solicitedNode(a).AsSlice(), a.AsSlice()))] = true
			}
		}
	}
	return []nftSet{pairs, solicited, announcers}
}

// acceptNDOut: ask for the neighbour, all or itself; answer it.
func acceptNDOut() [][]expr.Any {
	const out = expr.MetaKeyOIFNAME
	return [][]expr.Any{
		accepting(nd(ndSolicitation), toSolicitedNode(out), pair(out, network, ipv6Source, transport, ndTarget)),
		accepting(nd(ndSolicitation), pair(out, network, ipv6Source, transport, ndTarget), pair(out, network, ipv6Source, network, ipv6Destination)),
		accepting(nd(ndAdvertisement), pair(out, network, ipv6Source, network, ipv6Destination), pair(out, transport, ndTarget, network, ipv6Destination)),
	}
}

// acceptNDIn is the same the other way round, and that the neighbour announces
// itself.
func acceptNDIn() [][]expr.Any {
	const in = expr.MetaKeyIIFNAME
	return [][]expr.Any{
		accepting(nd(ndSolicitation), toSolicitedNode(in), pair(in, transport, ndTarget, network, ipv6Source)),
		accepting(nd(ndSolicitation), pair(in, transport, ndTarget, network, ipv6Source), pair(in, network, ipv6Destination, network, ipv6Source)),
		accepting(nd(ndAdvertisement), pair(in, network, ipv6Destination, network, ipv6Source), pair(in, network, ipv6Destination, transport, ndTarget)),
		accepting(nd(ndAdvertisement), toAllNodes(), announcer(network, ipv6Source), announcer(transport, ndTarget)),
	}
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
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg0, Data: []byte{0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1}},
	}
}

// load is network or transport.
type load func(register, offset, length uint32) expr.Any

// pair wants a node's address and its neighbour's at these places.
func pair(device expr.MetaKey, local load, localAt uint32, remote load, remoteAt uint32) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: device, Register: reg0},
		local(register(4), localAt, 16),
		remote(register(8), remoteAt, 16),
		&expr.Lookup{SourceRegister: reg0, SetName: setNeighbors6},
	}
}

func announcer(from load, at uint32) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: reg0},
		from(register(4), at, 16),
		&expr.Lookup{SourceRegister: reg0, SetName: setAnnouncers6},
	}
}
