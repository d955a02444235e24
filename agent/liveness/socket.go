package liveness

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.org/x/net/bpf"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"

	"github.com/circuitseal/circuitseal/agent/netns"
)

// socket is one raw ICMPv6 socket for all tunnels. Each probe names its device
// and source in IPV6_PKTINFO (RFC 3542, section 6), which binds it to them as
// SO_BINDTODEVICE would bind a socket of its own, and survives that a device is
// made anew; each answer tells the same of where it came in.
type socket struct {
	conn       *ipv6.PacketConn
	raw        net.PacketConn
	query      int // for ioctls on interfaces
	identifier uint16

	mu      sync.Mutex
	names   map[int]string
	indexes map[string]int
	buffer  []byte
}

// openSocket opens one that hears answers to addresses of prefix, a /48, only.
func openSocket(n netns.Namespace, prefix netip.Prefix) (transport, error) {
	if n.FD() < 0 {
		return newSocket(prefix)
	}
	var s transport
	err := n.Do(func() (err error) {
		s, err = newSocket(prefix)
		return err
	})
	return s, err
}

func newSocket(prefix netip.Prefix) (transport, error) {
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_ICMPV6)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "icmpv6")
	raw, err := net.FilePacketConn(f)
	if err := errors.Join(err, f.Close()); err != nil {
		return nil, err
	}
	s := &socket{
		conn: ipv6.NewPacketConn(raw), raw: raw, query: -1,
		identifier: uint16(rand.Uint32()),
		names:      map[int]string{}, indexes: map[string]int{},
		buffer: make([]byte, 2048),
	}
	if err := s.prepare(prefix); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// room is for the answers of some thousand tunnels: that many come within a
// second, in which a busy host may give an agent no processor. The usual buffer
// is full after 256, and what is dropped then would be taken for lost.
const room = 16 << 20

func (s *socket) prepare(prefix netip.Prefix) (err error) {
	if err := s.filter(prefix); err != nil {
		return err
	}
	if err := s.makeRoom(); err != nil {
		return fmt.Errorf("make room for answers: %w", err)
	}
	if err := s.conn.SetControlMessage(ipv6.FlagDst|ipv6.FlagInterface, true); err != nil {
		return fmt.Errorf("ask for packet information: %w", err)
	}
	s.query, err = unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	return err
}

func (s *socket) makeRoom() error {
	c, err := s.raw.(*net.IPConn).SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = c.Control(func(fd uintptr) {
		failed = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, room)
	})
	return errors.Join(err, failed)
}

// filter makes the kernel drop all else before it takes a place in the socket's
// buffer: otherwise anybody who reaches an address of this host could fill it,
// and every tunnel would seem dead.
func (s *socket) filter(prefix netip.Prefix) error {
	var filter ipv6.ICMPFilter
	filter.SetAll(true)
	filter.Accept(ipv6.ICMPTypeEchoReply)
	if err := s.conn.SetICMPFilter(&filter); err != nil {
		return fmt.Errorf("filter echo replies: %w", err)
	}
	program, err := bpf.Assemble(answersOnly(s.identifier, prefix))
	if err != nil {
		return fmt.Errorf("assemble the filter of answers: %w", err)
	}
	if err := s.conn.SetBPF(program); err != nil {
		return fmt.Errorf("filter answers: %w", err)
	}
	return nil
}

// answersOnly passes answers to this identifier at an address of the /48. What
// it loads begins with the ICMPv6 header; the IPv6 header is relative to
// SKF_NET_OFF (include/uapi/linux/filter.h).
func answersOnly(identifier uint16, prefix netip.Prefix) []bpf.Instruction {
	const (
		network     = 0xfff00000 // SKF_NET_OFF, -0x100000
		destination = network + 24
	)
	want := prefix.Addr().As16()
	return []bpf.Instruction{
		bpf.LoadAbsolute{Off: 4, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: uint32(identifier), SkipTrue: 5},
		bpf.LoadAbsolute{Off: destination, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: binary.BigEndian.Uint32(want[:4]), SkipTrue: 3},
		bpf.LoadAbsolute{Off: destination + 4, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: uint32(binary.BigEndian.Uint16(want[4:6])), SkipTrue: 1},
		bpf.RetConstant{Val: 1 << 16},
		bpf.RetConstant{Val: 0},
	}
}

func (s *socket) send(t Target, p probe) error {
	index, err := s.index(t.Device)
	if err != nil {
		return err
	}
	control := &ipv6.ControlMessage{Src: t.Local.AsSlice(), IfIndex: index, HopLimit: 1}
	if err := s.raw.SetWriteDeadline(time.Now().Add(10 * time.Millisecond)); err != nil {
		return err
	}
	_, err = s.conn.WriteTo(encode(s.identifier, p), control, &net.IPAddr{IP: t.Remote.AsSlice()})
	return err
}

func (s *socket) receive() (answer, error) {
	for {
		n, control, from, err := s.conn.ReadFrom(s.buffer)
		if errors.Is(err, net.ErrClosed) {
			return answer{}, os.ErrClosed
		}
		if err != nil {
			return answer{}, err
		}
		now := time.Now()
		p, err := decode(s.buffer[:n], s.identifier)
		source, ok := from.(*net.IPAddr)
		if err != nil || !ok || control == nil {
			continue
		}
		a := answer{probe: p, at: now, device: s.name(control.IfIndex)}
		a.from, _ = netip.AddrFromSlice(source.IP)
		a.local, _ = netip.AddrFromSlice(control.Dst)
		return a, nil
	}
}

// index asks each time: a device that was made anew has another one.
func (s *socket) index(name string) (int, error) {
	r, err := unix.NewIfreq(name)
	if err != nil {
		return 0, err
	}
	if err := unix.IoctlIfreq(s.query, unix.SIOCGIFINDEX, r); err != nil {
		return 0, fmt.Errorf("find device %s: %w", name, err)
	}
	index := int(r.Uint32())
	s.mu.Lock()
	defer s.mu.Unlock()
	if old, ok := s.indexes[name]; ok && old != index {
		delete(s.names, old)
	}
	s.indexes[name], s.names[index] = index, name
	return index, nil
}

// name is the device that the last probe by this index was for.
func (s *socket) name(index int) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.names[index]
}

// Close makes receive return os.ErrClosed.
func (s *socket) Close() error {
	err := s.raw.Close()
	if s.query >= 0 {
		err = errors.Join(err, unix.Close(s.query))
		s.query = -1
	}
	return err
}
