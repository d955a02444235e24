package guard

import (
	"slices"

	"github.com/google/nftables"
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

// register is the place of a part of a key, in 32-bit words, by the number that the
// kernel reports: every fourth goes by the name of the 128-bit register that it
// begins.
func register(word uint32) uint32 {
	if word%4 == 0 {
		return unix.NFT_REG_1 + word/4
	}
	return unix.NFT_REG32_00 + word
}

var reg0 = register(0)

const (
	setUDPOut     = "udp_out"
	setUDPIn      = "udp_in"
	setESPOut     = "esp_out"
	setESPIn      = "esp_in"
	setAsked      = "neighbors_out"
	setAnswering  = "neighbors_in"
	setOwn6       = "own6"
	setNeighbors6 = "neighbors6"
	setSolicited6 = "solicited6"
)

// renderNFT is the layer for p. Mark, interface and tuple are one key, in which
// both ports are one part: nft(8) shows keys of five parts at most.
//
// nftables sees packets where they have no tags, so an interface that carries
// tagged links is in no set: nothing is for it.
func renderNFT(p policy) []nftTable {
	rulesIn, rulesOut := [][]expr.Any{acceptLoopback(expr.MetaKeyIIFNAME)}, [][]expr.Any{acceptLoopback(expr.MetaKeyOIFNAME)}
	var sets []nftSet
	for _, l := range []layer3{layer4, layer6} {
		sets = append(sets, l.sets(p)...)
		rulesIn = append(rulesIn, l.acceptUDPIn(), l.acceptESPIn())
		rulesOut = append(rulesOut, l.acceptUDPOut(), l.acceptESPOut())
	}
	sets = append(sets, setsND(p)...)
	rulesIn = append(append(rulesIn, acceptNDIn()...), []expr.Any{&expr.Counter{}})
	rulesOut = append(append(rulesOut, acceptNDOut()...), []expr.Any{&expr.Counter{}})
	return []nftTable{
		{
			family: nftables.TableFamilyINet,
			chains: []nftChain{
				{"prerouting", *nftables.ChainHookPrerouting, beforeDefrag, rulesIn},
				{"input", *nftables.ChainHookInput, 0, rulesIn},
				{"forward", *nftables.ChainHookForward, 0, [][]expr.Any{{&expr.Counter{}}}},
				{"output", *nftables.ChainHookOutput, 0, rulesOut},
			},
			sets: sets,
		},
		{
			family: nftables.TableFamilyARP,
			chains: []nftChain{
				{"input", hookARPIn, 0, [][]expr.Any{acceptNeighbor(expr.MetaKeyIIFNAME, arpTarget, arpSender, setAnswering), {&expr.Counter{}}}},
				{"output", hookARPOut, 0, [][]expr.Any{acceptNeighbor(expr.MetaKeyOIFNAME, arpSender, arpTarget, setAsked), {&expr.Counter{}}}},
			},
			sets: setsARP(p),
		},
	}
}

func setsARP(p policy) []nftSet {
	asked := nftSet{setAsked, concat(nftables.TypeIFName, nftables.TypeIPAddr, nftables.TypeIPAddr), map[string]bool{}}
	answering := nftSet{setAnswering, asked.key, map[string]bool{}}
	for k := range p.neighbors {
		if k.tags != 0 || !k.local.Is4() {
			continue
		}
		element := string(slices.Concat(nameField(k.name), k.local.AsSlice(), k.remote.AsSlice()))
		answering.elements[element] = true
		if !k.announces() {
			asked.elements[element] = true
		}
	}
	return []nftSet{asked, answering}
}

func acceptLoopback(device expr.MetaKey) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: device, Register: reg0},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg0, Data: nameField("lo")},
		accept(),
	}
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
		network(register(4), local, 4),
		network(register(5), remote, 4),
		&expr.Lookup{SourceRegister: reg0, SetName: set},
		accept(),
	}
}

func network(register, offset, length uint32) expr.Any {
	return &expr.Payload{DestRegister: register, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: length}
}

func transport(register, offset, length uint32) expr.Any {
	return &expr.Payload{DestRegister: register, Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: length}
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
