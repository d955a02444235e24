package guard

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/circuitseal/circuitseal/agent/instance"
	"github.com/circuitseal/circuitseal/agent/netns"
	"github.com/circuitseal/circuitseal/agent/netns/netnstest"
	"github.com/circuitseal/circuitseal/agent/plan"
	"github.com/circuitseal/circuitseal/agent/tchook"
	"github.com/circuitseal/circuitseal/agent/tchook/tchooktest"
)

// way is how programs are attached: everything is tested with each.
var way tchook.Way

func TestMain(m *testing.M) { os.Exit(tchooktest.Main(m, &way)) }

// lab is a circuit namespace with circ0, whose other end is peer0 in a
// namespace of its own.
type lab struct {
	t             testing.TB
	instance      instance.Instance
	circuit, peer netns.Namespace
}

var labs atomic.Uint32

// newLab makes both namespaces; circ0 is down.
func newLab(t testing.TB) *lab {
	t.Helper()
	l := &lab{t: t}
	_, l.circuit = netnstest.New(t)
	_, l.peer = netnstest.New(t)
	name := strconv.FormatUint(uint64(os.Getpid())%46656, 36) + strconv.FormatUint(uint64(labs.Add(1)), 36)
	var err error
	if l.instance, err = instance.Parse("g" + name); err != nil {
		t.Fatal(err)
	}
	g := l.guard()
	t.Cleanup(func() {
		// The context of a test has ended when its clean-up runs.
		if err := g.Remove(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
		if err := unix.Unmount(l.instance.BPFDir(), unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			t.Error(err)
		}
		if err := os.RemoveAll(l.instance.RunDir()); err != nil {
			t.Error(err)
		}
	})
	l.link("circ0", "peer0")
	return l
}

// guard is a new Guard, as of a started agent.
func (l *lab) guard() *Guard {
	l.t.Helper()
	g, err := New(Config{Instance: l.instance, Namespace: l.circuit, Hooks: way, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() {
		if err := g.Close(); err != nil {
			l.t.Error(err)
		}
	})
	return g
}

// arm arms interfaces for a plan that lets nothing pass.
func (l *lab) arm(g *Guard, interfaces ...string) {
	l.t.Helper()
	l.armFor(g, plan.Guard{Interfaces: interfaces})
}

// armFor wants exactly the plan's interfaces to be armed.
func (l *lab) armFor(g *Guard, want plan.Guard) {
	l.t.Helper()
	armed, err := g.Arm(l.t.Context(), want)
	l.must(err)
	if !slices.Equal(armed, want.Interfaces) {
		l.t.Fatalf("armed %q, want %q", armed, want.Interfaces)
	}
}

func (l *lab) must(err error) {
	l.t.Helper()
	if err != nil {
		l.t.Fatal(err)
	}
}

func (l *lab) handle(n netns.Namespace) *netlink.Handle {
	l.t.Helper()
	h, err := n.Netlink()
	l.must(err)
	l.t.Cleanup(h.Close)
	return h
}

func (l *lab) link(name, peer string) {
	l.t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	attrs.HardwareAddr = localMAC
	l.must(l.handle(l.circuit).LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: peer, PeerHardwareAddr: remoteMAC, PeerNamespace: netlink.NsFd(l.peer.FD())}))
	h := l.handle(l.peer)
	p, err := h.LinkByName(peer)
	l.must(err)
	l.must(l.quiet(l.peer, peer))
	l.must(h.LinkSetUp(p))
}

// quiet keeps an interface from talking IPv6 by itself.
func (l *lab) quiet(n netns.Namespace, name string) error {
	return n.Do(func() error {
		err := os.WriteFile("/proc/sys/net/ipv6/conf/"+name+"/disable_ipv6", []byte("1"), 0)
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		return err
	})
}

// up gives circ0 its address and takes it up, with the peer as a fixed
// neighbour unless ARP is the subject.
func (l *lab) up(resolve bool) {
	l.t.Helper()
	h := l.handle(l.circuit)
	c, err := h.LinkByName("circ0")
	l.must(err)
	l.must(h.AddrAdd(c, &netlink.Addr{IPNet: &net.IPNet{IP: localAddr.AsSlice(), Mask: net.CIDRMask(24, 32)}}))
	l.must(h.LinkSetUp(c))
	if resolve {
		return
	}
	for _, a := range []netip.Addr{peerAddr, otherAddr} {
		l.must(h.NeighSet(&netlink.Neigh{LinkIndex: c.Attrs().Index, State: unix.NUD_PERMANENT, IP: a.AsSlice(), HardwareAddr: remoteMAC}))
	}
}

func (l *lab) index(n netns.Namespace, name string) int {
	l.t.Helper()
	i, err := l.handle(n).LinkByName(name)
	l.must(err)
	return i.Attrs().Index
}

// hooks opens those of the circuit namespace, as the guard's.
func (l *lab) hooks() *tchook.Hooks {
	l.t.Helper()
	tc, err := l.guard().openHooks()
	l.must(err)
	l.t.Cleanup(tc.Close)
	return tc
}

// detach takes the eBPF layer away, as a mishap would.
func (l *lab) detach() {
	l.t.Helper()
	l.must(l.hooks().DetachAll())
	l.must(os.RemoveAll(filepath.Join(l.instance.BPFDir(), layout)))
}

// own counts what is attached, wherever it is.
func (l *lab) own() int {
	l.t.Helper()
	own, err := l.hooks().Own()
	l.must(err)
	return len(own)
}

// packetSocket sends and receives whole frames on an interface.
type packetSocket struct {
	l  *lab
	fd int
}

func (l *lab) packets(n netns.Namespace, name string) *packetSocket {
	l.t.Helper()
	index := l.index(n, name)
	s := &packetSocket{l: l, fd: l.socket(n, unix.AF_PACKET, unix.SOCK_RAW, int(binary.NativeEndian.Uint16([]byte{0, unix.ETH_P_ALL})))}
	l.must(unix.Bind(s.fd, &unix.SockaddrLinklayer{Protocol: binary.NativeEndian.Uint16([]byte{0, unix.ETH_P_ALL}), Ifindex: index}))
	// A tap that loses frames proves nothing.
	l.must(unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20))
	return s
}

func (l *lab) socket(n netns.Namespace, domain, kind, protocol int) int {
	l.t.Helper()
	fd := -1
	l.must(n.Do(func() (err error) {
		fd, err = unix.Socket(domain, kind|unix.SOCK_CLOEXEC, protocol)
		return err
	}))
	l.t.Cleanup(func() { _ = unix.Close(fd) })
	return fd
}

func (s *packetSocket) send(frame []byte, mark uint32) {
	s.l.t.Helper()
	s.l.must(unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_MARK, int(mark)))
	if _, err := unix.Write(s.fd, frame); err != nil && !errors.Is(err, unix.ENOBUFS) {
		s.l.t.Fatal(err)
	}
}

// A veth delivers before the sender's call returns, but for a busy machine:
// settle is how long a test waits for what should not come, patience for what
// should.
const (
	settle   = 10 * time.Millisecond
	patience = 2 * time.Second
)

// received are the frames that arrive until none has for a while; what the
// socket itself sent is left out.
func (s *packetSocket) received() [][]byte {
	s.l.t.Helper()
	var out [][]byte
	buf := make([]byte, 1<<17)
	for {
		if !s.l.readable(s.fd, settle) {
			return out
		}
		n, from, err := unix.Recvfrom(s.fd, buf, 0)
		s.l.must(err)
		if ll, ok := from.(*unix.SockaddrLinklayer); ok && ll.Pkttype == unix.PACKET_OUTGOING {
			continue
		}
		out = append(out, append([]byte{}, buf[:n]...))
	}
}

// sees reports whether the frame comes, waiting longer for one that should. The
// kernel takes a VLAN tag off before a tap sees the frame.
func (s *packetSocket) sees(frame []byte, should bool) bool {
	s.l.t.Helper()
	bare := frame
	if len(frame) > 18 && (frame[12] == 0x81 || frame[12] == 0x88 && frame[13] == 0xa8) {
		bare = append(append([]byte{}, frame[:12]...), frame[16:]...)
	}
	return s.seesAny(func(f []byte) bool { return bytes.Equal(f, frame) || bytes.Equal(f, bare) }, should)
}

// seesAny is sees for whatever match wants.
func (s *packetSocket) seesAny(match func([]byte) bool, should bool) bool {
	s.l.t.Helper()
	for start := time.Now(); ; {
		if slices.ContainsFunc(s.received(), match) {
			return true
		}
		if !should || time.Since(start) > patience {
			return false
		}
	}
}

func anything([]byte) bool { return true }

// rawIP sends IPv4 packets, header and all, from the circuit namespace, through
// nftables.
func (l *lab) rawIP() func(packet []byte, mark uint32) error {
	fd := l.socket(l.circuit, unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_RAW)
	return func(packet []byte, mark uint32) error {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, int(mark)); err != nil {
			return err
		}
		return unix.Sendto(fd, packet, 0, &unix.SockaddrInet4{Addr: [4]byte(packet[16:20])})
	}
}

// udpSocket is bound to from in the circuit namespace.
func (l *lab) udpSocket(mark uint32) int {
	l.t.Helper()
	fd := l.socket(l.circuit, unix.AF_INET, unix.SOCK_DGRAM, 0)
	l.must(unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, int(mark)))
	l.must(unix.Bind(fd, &unix.SockaddrInet4{Port: int(tunnelLocal.Port()), Addr: localAddr.As4()}))
	return fd
}

// arrives reports whether a datagram comes to the socket, waiting longer for
// one that should.
func (l *lab) arrives(fd int, should bool) bool {
	l.t.Helper()
	wait := settle
	if should {
		wait = patience
	}
	if !l.readable(fd, wait) {
		return false
	}
	_, _, err := unix.Recvfrom(fd, make([]byte, 1<<16), 0)
	l.must(err)
	return true
}

// readable reports whether something comes to the socket within the time. No
// signal handler makes the kernel restart poll (signal(7)), and Go's scheduler
// sends signals.
func (l *lab) readable(fd int, within time.Duration) bool {
	l.t.Helper()
	for end := time.Now().Add(within); ; {
		left := max(0, time.Until(end)+time.Millisecond-1)
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(left/time.Millisecond))
		if !errors.Is(err, unix.EINTR) {
			l.must(err)
			return n > 0
		}
	}
}

// skBuff begins struct __sk_buff (include/uapi/linux/bpf.h), which
// BPF_PROG_TEST_RUN takes and gives back.
type skBuff struct {
	_       [2]uint32
	Mark    uint32
	_       [7]uint32
	Ifindex uint32
	_       uint32
	CB      [5]uint32
	// The kernel wants room for all that it has, and zeros for what it has not.
	_ [47]uint32
}

func describe(frame []byte) string {
	return fmt.Sprintf("%d bytes: %x", len(frame), frame[:min(len(frame), 64)])
}

// A wait that signals interrupt is neither an error nor shorter.
func TestReadableUnderSignals(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var p [2]int
	l := &lab{t: t}
	l.must(unix.Pipe2(p[:], unix.O_CLOEXEC))
	defer func() { l.must(errors.Join(unix.Close(p[0]), unix.Close(p[1]))) }()
	thread, done, sent := unix.Gettid(), make(chan struct{}), make(chan error)
	go func() {
		for {
			select {
			case <-done:
				sent <- nil
				return
			case <-time.After(time.Millisecond):
				if err := unix.Tgkill(unix.Getpid(), thread, unix.SIGURG); err != nil {
					sent <- err
					return
				}
			}
		}
	}()
	began := time.Now()
	if l.readable(p[0], 50*time.Millisecond) {
		t.Error("an empty pipe is readable")
	}
	if took := time.Since(began); took < 50*time.Millisecond {
		t.Errorf("waited %s, want at least 50ms", took)
	}
	close(done)
	l.must(<-sent)
}
