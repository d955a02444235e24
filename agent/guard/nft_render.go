package guard

import (
	"encoding/binary"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// nftTable is one table of the layer. Chains and their rules are the same for
// every plan; only the sets' elements change, so that a change of plan never
// takes a rule away, not for one packet.
type nftTable struct {
	family nftables.TableFamily
	chains []nftChain
	sets   []nftSet
}

// nftChain is a base chain whose policy is drop.
type nftChain struct {
	name     string
	hook     nftables.ChainHook
	priority nftables.ChainPriority
	rules    [][]expr.Any
}

type nftSet struct {
	name     string
	key      nftables.SetDatatype
	elements map[string]bool
}

// Hooks of the arp family (include/uapi/linux/netfilter_arp.h).
const (
	hookARPIn  nftables.ChainHook = 0
	hookARPOut nftables.ChainHook = 1
)

// beforeDefrag precedes nf_defrag_ipv4 (NF_IP_PRI_CONNTRACK_DEFRAG, -400): at
// the input hook fragments are whole again.
const beforeDefrag nftables.ChainPriority = -450

// 32-bit registers by the numbers that the kernel reports: every fourth one
// goes by the name of the 128-bit register that it begins.
const (
	reg0 uint32 = unix.NFT_REG_1
	reg1 uint32 = unix.NFT_REG32_01
	reg2 uint32 = unix.NFT_REG32_02
	reg3 uint32 = unix.NFT_REG32_03
	reg4 uint32 = unix.NFT_REG_2
	reg5 uint32 = unix.NFT_REG32_05
	reg6 uint32 = unix.NFT_REG32_06
	reg7 uint32 = unix.NFT_REG32_07
)

const (
	setLinks     = "links"
	setFlowsOut  = "flows_out"
	setFlowsIn   = "flows_in"
	setAsked     = "neighbors_out"
	setAnswering = "neighbors_in"
)

// renderNFT is the layer for p. Mark and interface are looked up apart from
// mark and tuple, since nft(8) shows keys of five parts at most; a mark has
// one interface, so both together say the same as one key of six parts.
//
// nftables sees packets where they have no tags, so an interface that carries
// tagged links is in no set: nothing is for it.
func renderNFT(p policy) []nftTable {
	links := nftSet{setLinks, concat(nftables.TypeMark, nftables.TypeIFName), map[string]bool{}}
	out := nftSet{setFlowsOut, concat(nftables.TypeMark, nftables.TypeIPAddr, nftables.TypeInetService, nftables.TypeIPAddr, nftables.TypeInetService), map[string]bool{}}
	in := nftSet{setFlowsIn, concat(nftables.TypeIFName, nftables.TypeIPAddr, nftables.TypeInetService, nftables.TypeIPAddr, nftables.TypeInetService), map[string]bool{}}
	asked := nftSet{setAsked, concat(nftables.TypeIFName, nftables.TypeIPAddr, nftables.TypeIPAddr), map[string]bool{}}
	answering := nftSet{setAnswering, asked.key, map[string]bool{}}
	for k, mark := range p.flows {
		if k.tags != 0 {
			continue
		}
		m := binary.NativeEndian.AppendUint32(nil, mark)
		local := slices.Concat(k.local.Addr().AsSlice(), portField(k.local.Port()))
		remote := slices.Concat(k.remote.Addr().AsSlice(), portField(k.remote.Port()))
		links.elements[string(slices.Concat(m, nameField(k.name)))] = true
		out.elements[string(slices.Concat(m, local, remote))] = true
		in.elements[string(slices.Concat(nameField(k.name), remote, local))] = true
	}
	for k := range p.neighbors {
		if k.tags != 0 {
			continue
		}
		element := string(slices.Concat(nameField(k.name), k.local.AsSlice(), k.remote.AsSlice()))
		answering.elements[element] = true
		if !k.announces() {
			asked.elements[element] = true
		}
	}
	rulesIn := [][]expr.Any{acceptLoopback(expr.MetaKeyIIFNAME), acceptFlowsIn(), {&expr.Counter{}}}
	return []nftTable{
		{
			family: nftables.TableFamilyINet,
			chains: []nftChain{
				{"prerouting", *nftables.ChainHookPrerouting, beforeDefrag, rulesIn},
				{"input", *nftables.ChainHookInput, 0, rulesIn},
				{"forward", *nftables.ChainHookForward, 0, [][]expr.Any{{&expr.Counter{}}}},
				{"output", *nftables.ChainHookOutput, 0, [][]expr.Any{acceptLoopback(expr.MetaKeyOIFNAME), acceptFlowsOut(), {&expr.Counter{}}}},
			},
			sets: []nftSet{links, out, in},
		},
		{
			family: nftables.TableFamilyARP,
			chains: []nftChain{
				{"input", hookARPIn, 0, [][]expr.Any{acceptNeighbor(expr.MetaKeyIIFNAME, arpTarget, arpSender, setAnswering), {&expr.Counter{}}}},
				{"output", hookARPOut, 0, [][]expr.Any{acceptNeighbor(expr.MetaKeyOIFNAME, arpSender, arpTarget, setAsked), {&expr.Counter{}}}},
			},
			sets: []nftSet{asked, answering},
		},
	}
}

func acceptLoopback(device expr.MetaKey) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: device, Register: reg0},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg0, Data: nameField("lo")},
		accept(),
	}
}

// plainUDP matches IPv4 UDP without options that is no fragment.
func plainUDP() []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: reg0},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg0, Data: []byte{unix.NFPROTO_IPV4}},
		network(reg0, 0, 1),
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg0, Data: []byte{0x45}},
		network(reg0, 6, 2),
		&expr.Bitwise{SourceRegister: reg0, DestRegister: reg0, Len: 2, Mask: binaryutil.BigEndian.PutUint16(^uint16(dontFragment)), Xor: []byte{0, 0}},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg0, Data: []byte{0, 0}},
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg0},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg0, Data: []byte{protocolUDP}},
	}
}

func acceptFlowsOut() []expr.Any {
	return slices.Concat(plainUDP(), []expr.Any{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: reg0},
		&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: reg1},
		&expr.Lookup{SourceRegister: reg0, SetName: setLinks},
		network(reg1, 12, 4),
		transport(reg2, 0),
		network(reg3, 16, 4),
		transport(reg4, 2),
		&expr.Lookup{SourceRegister: reg0, SetName: setFlowsOut},
		accept(),
	})
}

func acceptFlowsIn() []expr.Any {
	return slices.Concat(plainUDP(), []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: reg0},
		network(reg4, 12, 4),
		transport(reg5, 0),
		network(reg6, 16, 4),
		transport(reg7, 2),
		&expr.Lookup{SourceRegister: reg0, SetName: setFlowsIn},
		accept(),
	})
}

// Offsets in an ARP packet (RFC 826 for Ethernet and IPv4).
const (
	arpSender = 14
	arpTarget = 24
)

// acceptNeighbor has the addresses at offsets local and remote; 1 and 2 are
// request and reply.
func acceptNeighbor(device expr.MetaKey, local, remote uint32, set string) []expr.Any {
	return []expr.Any{
		network(reg0, 0, 7),
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg0, Data: []byte{0, 1, 8, 0, 6, 4, 0}},
		network(reg0, 7, 1),
		&expr.Cmp{Op: expr.CmpOpGte, Register: reg0, Data: []byte{arpRequest}},
		&expr.Cmp{Op: expr.CmpOpLte, Register: reg0, Data: []byte{arpReply}},
		&expr.Meta{Key: device, Register: reg0},
		network(reg4, local, 4),
		network(reg5, remote, 4),
		&expr.Lookup{SourceRegister: reg0, SetName: set},
		accept(),
	}
}

func network(register, offset, length uint32) expr.Any {
	return &expr.Payload{DestRegister: register, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: length}
}

func transport(register, offset uint32) expr.Any {
	return &expr.Payload{DestRegister: register, Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: 2}
}

func accept() expr.Any { return &expr.Verdict{Kind: expr.VerdictAccept} }

// concat does not fail for up to five types.
func concat(types ...nftables.SetDatatype) nftables.SetDatatype {
	return nftables.MustConcatSetType(types...)
}

// nameField is an interface name as meta loads it (IFNAMSIZ).
func nameField(name string) []byte {
	return append([]byte(name), make([]byte, 16-len(name))...)
}

// portField is a port, padded to the register as parts of a key are.
func portField(p uint16) []byte {
	return append(binary.BigEndian.AppendUint16(nil, p), 0, 0)
}
