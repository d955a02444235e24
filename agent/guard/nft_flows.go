package guard

import (
	"encoding/binary"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// layer3 is what the rules for tunnels' packets have to know of IPv4 or IPv6.
type layer3 struct {
	// suffix is behind the names of its sets.
	suffix  string
	address nftables.SetDatatype
	// words is how many words of a key an address takes, source and destination
	// where they are in the header.
	words, source, destination uint32
	// plain matches packets of a protocol that have nothing between the header and
	// that protocol, and are no fragments.
	plain func(protocol byte) []expr.Any
}

var (
	layer4 = layer3{"", nftables.TypeIPAddr, 1, 12, 16, plain4}
	layer6 = layer3{"6", nftables.TypeIP6Addr, 4, 8, 24, plain6}
)

func (l layer3) sets(p policy) []nftSet {
	ports := nftables.TypeMark
	udpOut := nftSet{setUDPOut + l.suffix, concat(nftables.TypeMark, nftables.TypeIFName, l.address, l.address, ports), map[string]bool{}}
	udpIn := nftSet{setUDPIn + l.suffix, concat(nftables.TypeIFName, l.address, nftables.TypeInetService, l.address, nftables.TypeInetService), map[string]bool{}}
	espOut := nftSet{setESPOut + l.suffix, concat(nftables.TypeMark, nftables.TypeIFName, l.address, l.address), map[string]bool{}}
	espIn := nftSet{setESPIn + l.suffix, concat(nftables.TypeIFName, l.address, l.address), map[string]bool{}}
	for k, marks := range p.flows {
		if k.tags != 0 || k.local.Addr().BitLen() != int(32*l.words) {
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
	return []nftSet{udpOut, udpIn, espOut, espIn}
}

func plain4(protocol byte) []expr.Any {
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

// plain6 asks the header itself: what the kernel calls a packet's protocol may be
// behind others.
func plain6(protocol byte) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: reg0},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg0, Data: []byte{unix.NFPROTO_IPV6}},
		network(reg0, 6, 1),
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg0, Data: []byte{protocol}},
	}
}

// plainESP is plain of ESP whose SPI is not reserved.
func (l layer3) plainESP() []expr.Any {
	return append(l.plain(protocolESP), transport(reg0, 0, 4), &expr.Cmp{Op: expr.CmpOpGte, Register: reg0, Data: binaryutil.BigEndian.PutUint32(minSPI)})
}

// The first part of a key is one word for a mark, and an interface's name takes
// four.

func (l layer3) acceptUDPOut() []expr.Any {
	return slices.Concat(l.plain(protocolUDP), l.marked(), []expr.Any{
		transport(register(5+2*l.words), 0, 4),
		&expr.Lookup{SourceRegister: reg0, SetName: setUDPOut + l.suffix},
		accept(),
	})
}

func (l layer3) acceptESPOut() []expr.Any {
	return slices.Concat(l.plainESP(), l.marked(), []expr.Any{
		&expr.Lookup{SourceRegister: reg0, SetName: setESPOut + l.suffix},
		accept(),
	})
}

// marked loads what the key of a packet that goes out begins with.
func (l layer3) marked() []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: reg0},
		&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: register(1)},
		network(register(5), l.source, 4*l.words),
		network(register(5+l.words), l.destination, 4*l.words),
	}
}

func (l layer3) acceptUDPIn() []expr.Any {
	return slices.Concat(l.plain(protocolUDP), []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: reg0},
		network(register(4), l.source, 4*l.words),
		transport(register(4+l.words), 0, 2),
		network(register(5+l.words), l.destination, 4*l.words),
		transport(register(5+2*l.words), 2, 2),
		&expr.Lookup{SourceRegister: reg0, SetName: setUDPIn + l.suffix},
		accept(),
	})
}

func (l layer3) acceptESPIn() []expr.Any {
	return slices.Concat(l.plainESP(), []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: reg0},
		network(register(4), l.source, 4*l.words),
		network(register(4+l.words), l.destination, 4*l.words),
		&expr.Lookup{SourceRegister: reg0, SetName: setESPIn + l.suffix},
		accept(),
	})
}

// portField is a port, padded to the register as parts of a key are.
func portField(p uint16) []byte {
	return append(binary.BigEndian.AppendUint16(nil, p), 0, 0)
}

// portsField is the beginning of UDP's header.
func portsField(source, destination uint16) []byte {
	return binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, source), destination)
}
