package traffic

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// OuterFlow is what an interface lets through: the datagrams of one tunnel's
// outside behind exactly these tags, with the mark of their link.
type OuterFlow struct {
	// Tags are as ParseTags reads them.
	Tags     []uint32
	From, To netip.AddrPort
	// Mark is 0 where marks do not count: on the way in.
	Mark int
}

// ParseOuterFlows reads such as 300.100/172.16.10.1:51820/172.20.255.4:51820/1, with
// commas between several. The last number is the link's, which is added to
// markBase; 0 is no mark.
func ParseOuterFlows(text string, markBase int) ([]OuterFlow, error) {
	var all []OuterFlow
	for one := range strings.SplitSeq(text, ",") {
		words := strings.Split(one, "/")
		if len(words) != 4 {
			return nil, fmt.Errorf("flow %q: want tags/source:port/to:port/link", one)
		}
		var f OuterFlow
		var errs [4]error
		f.Tags, errs[0] = ParseTags(words[0])
		f.From, errs[1] = netip.ParseAddrPort(words[1])
		f.To, errs[2] = netip.ParseAddrPort(words[2])
		f.Mark, errs[3] = strconv.Atoi(words[3])
		if err := errors.Join(errs[:]...); err != nil {
			return nil, fmt.Errorf("flow %q: %w", one, err)
		}
		if !f.From.Addr().Is4() || !f.To.Addr().Is4() {
			return nil, fmt.Errorf("flow %q: want IPv4 addresses", one)
		}
		if f.Mark != 0 {
			f.Mark |= markBase
		}
		all = append(all, f)
	}
	return all, nil
}

// TagFuzz are frames of which none may pass an interface that carries links by
// their tags: any stack of up to three tags in front of outer datagrams, of
// address resolution and of inner packets. What a flow allows is left out. The
// same options give the same frames.
type TagFuzz struct {
	Canary Canary
	// Sender is as in Fuzz.
	Sender string
	Seed   uint64
	Count  int
	// From and To are hardware addresses.
	From, To net.HardwareAddr
	// Flows are right on the interface, Others on another: their tags, tuples and
	// marks are mixed with those of Flows.
	Flows, Others []OuterFlow
	// Pool has sources and destinations of inner packets, as in Fuzz.
	Pool []netip.Prefix
}

// MarkedFrame is a frame and the mark that it is sent with.
type MarkedFrame struct {
	Mark  int
	Bytes []byte
}

// Frames makes them.
func (f TagFuzz) Frames() ([]MarkedFrame, error) {
	inner := Fuzz{Canary: f.Canary, Sender: f.Sender, Pool: f.Pool}
	v4, v6 := inner.family(true), inner.family(false)
	switch {
	case !validSender([]byte(f.Sender)):
		return nil, fmt.Errorf("fuzz as %q: want at most %d letters, digits and dashes", f.Sender, senderSize)
	case len(f.Flows) == 0 || len(v4.pool) == 0 || len(v6.pool) == 0:
		return nil, errors.New("fuzz of tags: want a flow, and addresses of both families")
	}
	r := rand.New(rand.NewPCG(f.Seed, uint64(f.Count)))
	all := slices.Concat(f.Flows, f.Others)
	var frames []MarkedFrame
	for len(frames) < f.Count {
		tags, payload := f.tags(r, all), inner.payload(uint64(len(frames)))
		mark := []int{0, all[r.IntN(len(all))].Mark}[r.IntN(2)]
		to, kind := f.To, uint16(unix.ETH_P_IP)
		var packet []byte
		switch r.IntN(8) {
		case 0:
			if slices.ContainsFunc(f.Flows, func(o OuterFlow) bool { return slices.Equal(o.Tags, vlans(tags)) }) {
				continue // a link's own
			}
			o := all[r.IntN(len(all))]
			to, kind, packet = broadcast, unix.ETH_P_ARP, f.arp(o.From.Addr(), o.To.Addr(), payload)
		case 1:
			kind, packet = unix.ETH_P_IPV6, anyPacket(r, v6, payload)
		case 2:
			packet = anyPacket(r, v4, payload)
		default:
			// Addresses and ports of one flow, or of two that do not belong together.
			o, other := all[r.IntN(len(all))], all[r.IntN(len(all))]
			if r.IntN(2) == 0 {
				other = o
			}
			if f.right(tags, o.From, other.To, mark) {
				continue
			}
			packet = outer(r, o.From, other.To, uint64(len(frames)), payload)
		}
		frames = append(frames, MarkedFrame{mark, f.frame(to, tags, kind, packet)})
	}
	return frames, nil
}

var broadcast = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// tags are none to three, mostly of VLANs that somebody has, now and then those of a
// link as they should be.
func (f TagFuzz) tags(r *rand.Rand, all []OuterFlow) []uint32 {
	if r.IntN(8) == 0 {
		return slices.Clone(all[r.IntN(len(all))].Tags)
	}
	tags := make([]uint32, r.IntN(4))
	for i := range tags {
		id := r.Uint32N(1 << 12)
		if r.IntN(4) > 0 {
			id = f.known(r, all)
		}
		kind := uint32(unix.ETH_P_8021Q)
		if r.IntN(4) == 0 {
			kind = unix.ETH_P_8021AD
		}
		// Priority and DEI, IEEE 802.1Q section 9.6.
		var priority uint32
		if r.IntN(4) == 0 {
			priority = r.Uint32N(1 << 4)
		}
		tags[i] = kind<<16 | priority<<12 | id
	}
	return tags
}

// known is a VLAN of somebody's, or one that Linux takes for something else.
func (TagFuzz) known(r *rand.Rand, all []OuterFlow) uint32 {
	o := all[r.IntN(len(all))]
	if len(o.Tags) == 0 || r.IntN(4) == 0 {
		return []uint32{0, 1, 4095}[r.IntN(3)]
	}
	return o.Tags[r.IntN(len(o.Tags))] & 0xfff
}

// vlans are tags without priority and DEI.
func vlans(tags []uint32) []uint32 {
	var ids []uint32
	for _, t := range tags {
		ids = append(ids, t&^0xf000)
	}
	return ids
}

// right tells what may pass.
func (f TagFuzz) right(tags []uint32, from, to netip.AddrPort, mark int) bool {
	return slices.ContainsFunc(f.Flows, func(o OuterFlow) bool {
		return slices.Equal(o.Tags, vlans(tags)) && o.From == from && o.To == to && (o.Mark == 0 || o.Mark == mark)
	})
}

func (f TagFuzz) frame(to net.HardwareAddr, tags []uint32, kind uint16, packet []byte) []byte {
	b := slices.Concat(to, f.From)
	for _, t := range tags {
		b = binary.BigEndian.AppendUint32(b, t)
	}
	return append(binary.BigEndian.AppendUint16(b, kind), packet...)
}

// arp asks for an address (RFC 826), with a payload where padding belongs.
func (f TagFuzz) arp(from, to netip.Addr, payload []byte) []byte {
	return slices.Concat([]byte{0, 1, 8, 0, 6, 4, 0, 1}, f.From, from.AsSlice(), make([]byte, 6), to.AsSlice(), payload)
}

func anyPacket(r *rand.Rand, f family, payload []byte) []byte {
	return packet(r, pick(r, f.pool), pick(r, f.pool), payload, 0)
}

// outer has the shape of a WireGuard data message.
func outer(r *rand.Rand, from, to netip.AddrPort, counter uint64, payload []byte) []byte {
	message := []byte{4, 0, 0, 0}
	message = binary.LittleEndian.AppendUint32(message, r.Uint32())
	message = binary.LittleEndian.AppendUint64(message, counter)
	for range 8 {
		message = binary.BigEndian.AppendUint64(message, r.Uint64())
	}
	message = append(message, payload...)
	message = append(message, make([]byte, -len(message)&15)...)
	b := binary.BigEndian.AppendUint16(nil, from.Port())
	b = binary.BigEndian.AppendUint16(b, to.Port())
	b = binary.BigEndian.AppendUint16(b, uint16(8+len(message)))
	b = checked(from.Addr(), to.Addr(), unix.IPPROTO_UDP, append(append(b, 0, 0), message...), 6)
	return header(from.Addr(), to.Addr(), unix.IPPROTO_UDP, b)
}

// SendFrames puts frames on an interface's wire through a packet socket.
func SendFrames(name string, frames []MarkedFrame) error {
	i, err := net.InterfaceByName(name)
	if err != nil {
		return fmt.Errorf("find interface %s: %w", name, err)
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open packet socket: %w", err)
	}
	defer func() { _ = unix.Close(fd) }()
	to := unix.SockaddrLinklayer{Ifindex: i.Index}
	for n, f := range frames {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, f.Mark); err != nil {
			return fmt.Errorf("set the mark: %w", err)
		}
		// A guard that drops a frame on its way out may say so.
		if err := unix.Sendto(fd, f.Bytes, 0, &to); err != nil && !errors.Is(err, unix.ENOBUFS) {
			return fmt.Errorf("send frame %d: %w", n+1, err)
		}
	}
	return nil
}
