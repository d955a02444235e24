package liveness

import (
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"testing"
	"time"
	"unsafe"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/circuitseal/circuitseal/agent/netns"
	"github.com/circuitseal/circuitseal/agent/netns/netnstest"
	"github.com/circuitseal/circuitseal/proto/desired"
)

// TestKernelAnswers probes from one namespace to another over a veth, deletes
// the device and makes it anew.
func TestKernelAnswers(t *testing.T) {
	_, near := netnstest.New(t)
	_, far := netnstest.New(t)
	x := one()
	connect(t, near, far, x)

	changes := make(chan bool, 10)
	m := New(Config{Namespace: near, Log: slog.New(slog.DiscardHandler), OnChange: func(_ string, up bool) { changes <- up }})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	m.Set([]Target{x})
	wantChange(t, changes, true)
	if h := m.Snapshot()[x.Tunnel]; h.RTT <= 0 || h.RTT > time.Second {
		t.Errorf("health = %+v", h)
	}

	h, err := near.Netlink()
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	l, err := h.LinkByName(x.Device)
	if err != nil {
		t.Fatal(err)
	}
	if err := h.LinkDel(l); err != nil {
		t.Fatal(err)
	}
	wantChange(t, changes, false)
	connect(t, near, far, x)
	m.Set(nil) // as new, it needs one answer
	m.Set([]Target{x})
	wantChange(t, changes, true)

	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("Run = %v", err)
	}
}

// Nobody who reaches this host can fill the socket's buffer: what is not an
// answer to a probe takes no place in it.
func TestFloodLeavesRoom(t *testing.T) {
	s, x, send := flooded(t)
	// Each takes some hundred bytes of a buffer of some hundred KiB.
	for range 10_000 {
		send(elsewhere, s.identifier, probe{nonce: 1})
		send(x.Local, s.identifier+1, probe{nonce: 2})
	}
	want := probe{sequence: 7, nonce: 3}
	send(x.Local, s.identifier, want)
	got, err := s.receive()
	if err != nil || got.probe != want || got.local != x.Local {
		t.Errorf("received %+v (%v), want %+v for %s", got, err, want, x.Local)
	}
}

// Answers through as many tunnels as a node can have wait for an agent that is
// kept from the processor for a while; none is taken for lost.
func TestAnswersWait(t *testing.T) {
	s, x, send := flooded(t)
	const tunnels = 4000
	for i := range uint64(tunnels) {
		before := memory(t, s)
		// What the socket holds or drops counts, not what the way to it loses.
		for again := time.Now(); memory(t, s)[unix.SK_MEMINFO_RMEM_ALLOC] == before[unix.SK_MEMINFO_RMEM_ALLOC]; {
			if memory(t, s)[unix.SK_MEMINFO_DROPS] > 0 {
				t.Fatalf("no room for answer %d", i)
			}
			if now := time.Now(); !now.Before(again) {
				again = now.Add(20 * time.Millisecond)
				send(x.Local, s.identifier, probe{nonce: i})
			}
		}
	}
	for seen := map[uint64]bool{}; len(seen) < tunnels; {
		got, err := s.receive()
		if err != nil {
			t.Fatalf("after %d answers: %v", len(seen), err)
		}
		seen[got.nonce] = true
	}
}

// memory is what the socket's buffers hold and have dropped (SO_MEMINFO).
func memory(t *testing.T, s *socket) (m [unix.SK_MEMINFO_VARS]uint32) {
	t.Helper()
	c, err := s.raw.(*net.IPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Control(func(fd uintptr) {
		b := make([]byte, 4*len(m))
		n := uint32(len(b))
		if _, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, fd, unix.SOL_SOCKET, unix.SO_MEMINFO,
			uintptr(unsafe.Pointer(&b[0])), uintptr(unsafe.Pointer(&n)), 0); errno != 0 {
			t.Fatal(errno)
		}
		for i := range m {
			m[i] = binary.NativeEndian.Uint32(b[4*i:])
		}
	}); err != nil {
		t.Fatal(err)
	}
	return m
}

var elsewhere = netip.MustParseAddr("fd01::1")

// flooded is a socket in a namespace in which send makes any answers.
func flooded(t *testing.T) (s *socket, x Target, send func(to netip.Addr, identifier uint16, p probe)) {
	t.Helper()
	_, n := netnstest.New(t)
	x = one()
	h, err := n.Netlink()
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	lo, err := h.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range []netip.Addr{x.Local, x.Remote, elsewhere} {
		if err := h.AddrAdd(lo, &netlink.Addr{IPNet: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(128, 128)}, Flags: unix.IFA_F_NODAD}); err != nil {
			t.Fatal(err)
		}
	}
	if err := h.LinkSetUp(lo); err != nil {
		t.Fatal(err)
	}
	opened, err := openSocket(n, desired.ProbePrefix)
	if err != nil {
		t.Fatal(err)
	}
	s = opened.(*socket)
	t.Cleanup(func() { _ = s.Close() })
	if err := s.raw.SetReadDeadline(time.Now().Add(60 * time.Second)); err != nil {
		t.Fatal(err)
	}
	flood := -1
	if err := n.Do(func() (err error) {
		flood, err = unix.Socket(unix.AF_INET6, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMPV6)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(flood) })
	return s, x, func(to netip.Addr, identifier uint16, p probe) {
		t.Helper()
		b := encode(identifier, p)
		b[0] = typeEchoReply
		if err := unix.Sendto(flood, b, 0, &unix.SockaddrInet6{Addr: to.As16()}); err != nil {
			t.Fatal(err)
		}
	}
}

func wantChange(t *testing.T, changes <-chan bool, want bool) {
	t.Helper()
	select {
	case got := <-changes:
		if got != want {
			t.Fatalf("up = %t, want %t", got, want)
		}
	case <-time.After(10 * time.Second):
		t.Fatalf("no change to up = %t", want)
	}
}

func connect(t *testing.T, near, far netns.Namespace, x Target) {
	t.Helper()
	a, err := near.Netlink()
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	b, err := far.Netlink()
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: x.Device}, PeerName: "far", PeerNamespace: netlink.NsFd(far.FD())}
	if err := a.LinkAdd(veth); err != nil {
		t.Fatal(err)
	}
	for _, end := range []struct {
		h             *netlink.Handle
		name          string
		local, remote netip.Addr
	}{{a, x.Device, x.Local, x.Remote}, {b, "far", x.Remote, x.Local}} {
		l, err := end.h.LinkByName(end.name)
		if err != nil {
			t.Fatal(err)
		}
		one := func(a netip.Addr) *net.IPNet {
			return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(128, 128)}
		}
		if err := errors.Join(
			end.h.AddrAdd(l, &netlink.Addr{IPNet: one(end.local), Flags: unix.IFA_F_NODAD}),
			end.h.LinkSetUp(l),
			end.h.RouteReplace(&netlink.Route{Family: netlink.FAMILY_V6, LinkIndex: l.Attrs().Index, Dst: one(end.remote)}),
		); err != nil {
			t.Fatal(err)
		}
	}
}
