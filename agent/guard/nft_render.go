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
	reg4 uint32 = unix.NFT_REG_2
	reg5 uint32 = unix.NFT_REG32_05
	reg6 uint32 = unix.NFT_REG32_06
	reg7 uint32 = unix.NFT_REG32_07
)

const (
	setUDPOut    = "udp_out"
	setUDPIn     = "udp_in"
	setESPOut    = "esp_out"
	setESPIn     = "esp_in"
	setAsked     = "neighbors_out"
	setAnswering = "neighbors_in"
)

// renderNFT is the layer for p. Mark, interface and tuple are one key, in which
// both ports are one part: nft(8) shows keys of five parts at most.
//
// nftables sees packets where they have no tags, so an interface that carries
// tagged links is in no set: nothing is for it.
func renderNFT(p policy) []nftTable {
	address, ports := nftables.TypeIPAddr, nftables.TypeMark
	udpOut := nftSet{setUDPOut, concat(nftables.TypeMark, nftables.TypeIFName, address, address, ports), map[string]bool{}}
	udpIn := nftSet{setUDPIn, concat(nftables.TypeIFName, address, nftables.TypeInetService, address, nftables.TypeInetService), map[string]bool{}}
	espOut := nftSet{setESPOut, concat(nftables.TypeMark, nftables.TypeIFName, address, address), map[string]bool{}}
	espIn := nftSet{setESPIn, concat(nftables.TypeIFName, address, address), map[string]bool{}}
	asked := nftSet{setAsked, concat(nftables.TypeIFName, nftables.TypeIPAddr, nftables.TypeIPAddr), map[string]bool{}}
	answering := nftSet{setAnswering, asked.key, map[string]bool{}}
	for k, marks := range p.flows {
		if k.tags != 0 {
			continue
		}
		name, local, remote := nameField(k.name), k.local.Addr().AsSlice(), k.remote.Addr().AsSlice()
		out := espOut
		if k.protocol == protocolESP {
			espIn.elements[string(slices.Concat(name, remote, local))] = true
		} else {
			out = udpOut
			udpIn.elements[string(slices.Concat(name, remote, portField(k.remote.Port()), local, portField(k.local.Port())))] = true
			remote = slices.Concat(remote, portsField(k.local.Port(), k.remote.Port()))
		}
		for _, m := range marks {
			out.elements[string(slices.Concat(binary.NativeEndian.AppendUint32(nil, m), name, local, remote))] = true
		}
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
	rulesIn := [][]expr.Any{acceptLoopback(expr.MetaKeyIIFNAME), acceptUDPIn(), acceptESPIn(), {&expr.Counter{}}}
	return []nftTable{
		{
			family: nftables.TableFamilyINet,
			chains: []nftChain{
				{"prerouting", *nftables.ChainHookPrerouting, beforeDefrag, rulesIn},
				{"input", *nftables.ChainHookInput, 0, rulesIn},
				{"forward", *nftables.ChainHookForward, 0, [][]expr.Any{{&expr.Counter{}}}},
				{"output", *nftables.ChainHookOutput, 0, [][]expr.Any{acceptLoopback(expr.MetaKeyOIFNAME), acceptUDPOut(), acceptESPOut(), {&expr.Counter{}}}},
			},
			sets: []nftSet{udpOut, udpIn, espOut, espIn},
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

// plain matches IPv4 of a protocol without options that is no fragment.
func plain(protocol byte) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: reg0},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg0, Data: []byte{unix.NFPROTO_IPV4}},
		network(reg0, 0, 1),
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg0, Data: []byte{0x45}},
		network(reg0, 6, 2),
		&expr.Bitwise{SourceRegister: reg0, DestRegister: reg0, Len: 2, Mask: binaryutil.BigEndian.PutUint16(^uint16(dontFragment)), Xor: []byte{0, 0}},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg0, Data: []byte{0, 0}},
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg0},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg0, Data: []byte{protocol}},
	}
}

// plainESP is plain of ESP whose SPI is not reserved.
func plainESP() []expr.Any {
	return append(plain(protocolESP), transport(reg0, 0, 4), &expr.Cmp{Op: expr.CmpOpGte, Register: reg0, Data: binaryutil.BigEndian.PutUint32(minSPI)})
}

func acceptUDPOut() []expr.Any {
	return slices.Concat(plain(protocolUDP), marked(), []expr.Any{
		network(reg5, 12, 4),
		network(reg6, 16, 4),
		transport(reg7, 0, 4),
		&expr.Lookup{SourceRegister: reg0, SetName: setUDPOut},
		accept(),
	})
}

func acceptESPOut() []expr.Any {
	return slices.Concat(plainESP(), marked(), []expr.Any{
		network(reg5, 12, 4),
		network(reg6, 16, 4),
		&expr.Lookup{SourceRegister: reg0, SetName: setESPOut},
		accept(),
	})
}

// marked loads what the key of a packet that goes out begins with: up to reg4.
func marked() []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: reg0},
		&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: reg1},
	}
}

func acceptUDPIn() []expr.Any {
	return slices.Concat(plain(protocolUDP), []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: reg0},
		network(reg4, 12, 4),
		transport(reg5, 0, 2),
		network(reg6, 16, 4),
		transport(reg7, 2, 2),
		&expr.Lookup{SourceRegister: reg0, SetName: setUDPIn},
		accept(),
	})
}

func acceptESPIn() []expr.Any {
	return slices.Concat(plainESP(), []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: reg0},
		network(reg4, 12, 4),
		network(reg5, 16, 4),
		&expr.Lookup{SourceRegister: reg0, SetName: setESPIn},
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

// portField is a port, padded to the register as parts of a key are.
func portField(p uint16) []byte {
	return append(binary.BigEndian.AppendUint16(nil, p), 0, 0)
}

// portsField is the beginning of UDP's header.
func portsField(source, destination uint16) []byte {
	return binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, source), destination)
}
