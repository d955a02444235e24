package agent

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/circuitseal/circuitseal/agent/drift"
	"github.com/circuitseal/circuitseal/agent/guard"
	"github.com/circuitseal/circuitseal/agent/instance"
	"github.com/circuitseal/circuitseal/agent/link"
	"github.com/circuitseal/circuitseal/agent/netns"
	"github.com/circuitseal/circuitseal/agent/netns/netnstest"
	"github.com/circuitseal/circuitseal/agent/plan"
	"github.com/circuitseal/circuitseal/agent/reconcile"
	"github.com/circuitseal/circuitseal/agent/tchook"
)

// nothing stands for the drivers above the links: there are no tunnels.
type nothing struct{}

func (nothing) Sync(context.Context, []plan.Tunnel, func([]string) error) error { return nil }
func (nothing) Adjust(context.Context, []plan.Tunnel) error                     { return nil }
func (nothing) Sweep(context.Context) error                                     { return nil }

type noPaths struct{}

func (noPaths) Sync(context.Context, []plan.LAN) error { return nil }

type noJudge struct{}

func (noJudge) Adjust(context.Context, plan.Classifier, bool) error     { return nil }
func (noJudge) Sync(context.Context, plan.Classifier) ([]string, error) { return []string{}, nil }

var canary = bytes.Repeat([]byte("circuitseal in clear"), 4)

// packets opens a packet socket for all interfaces of a namespace.
func packets(t *testing.T, n netns.Namespace) int {
	t.Helper()
	fd := -1
	if err := n.Do(func() (err error) {
		all := int(binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, unix.ETH_P_ALL)))
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, all)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	return fd
}

// arrived counts what a packet socket got of the frames in clear, and of others.
func arrived(fd int) (inClear, others int) {
	buffer := make([]byte, 2048)
	for {
		n, from, err := unix.Recvfrom(fd, buffer, 0)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return inClear, others
		case from.(*unix.SockaddrLinklayer).Pkttype == unix.PACKET_OUTGOING:
		case bytes.Contains(buffer[:n], canary):
			inClear++
		default:
			others++
		}
	}
}

// An interface that is unplugged and comes back is guarded before it carries
// anything: somebody in the circuit namespace sends in clear as fast as it goes,
// from the moment the interface is there, and nothing reaches the other end.
func TestReplugged(t *testing.T) {
	netnstest.RequireRoot(t)
	_, main := netnstest.New(t)
	_, circuit := netnstest.New(t)
	_, far := netnstest.New(t)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	open := func(n netns.Namespace) *netlink.Handle {
		t.Helper()
		h, err := n.Netlink()
		must(err)
		t.Cleanup(h.Close)
		return h
	}
	inMain, inCircuit, inFar := open(main), open(circuit), open(far)
	plug := func() {
		t.Helper()
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "circ0"
		must(inMain.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "far0", PeerNamespace: netlink.NsFd(far.FD())}))
		must(far.Do(func() error {
			err := os.WriteFile("/proc/sys/net/ipv6/conf/far0/disable_ipv6", []byte("1"), 0)
			if errors.Is(err, os.ErrNotExist) {
				return nil
			}
			return err
		}))
		l, err := inFar.LinkByName("far0")
		must(err)
		must(inFar.LinkSetUp(l))
	}

	// The sender sends whenever circ0 is in the circuit namespace and up.
	sender, tap := packets(t, circuit), packets(t, far)
	var sent atomic.Uint64
	frame := append([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 1, 8, 0}, canary...)
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		h, err := circuit.Netlink()
		if err != nil {
			t.Error(err)
			return
		}
		defer h.Close()
		for {
			select {
			case <-stop:
				return
			default:
			}
			l, err := h.LinkByName("circ0")
			if err != nil {
				continue
			}
			for range 20 {
				// A frame that a program drops is ENOBUFS, an interface that is down ENETDOWN.
				err := unix.Sendto(sender, frame, 0, &unix.SockaddrLinklayer{Ifindex: l.Attrs().Index, Halen: 6})
				if err == nil || errors.Is(err, unix.ENOBUFS) {
					sent.Add(1)
				}
			}
		}
	}()
	defer func() {
		close(stop)
		<-stopped
	}()
	eventually := func(what string, f func() bool) {
		t.Helper()
		for deadline := time.Now().Add(time.Minute); !f(); time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%s: not within a minute", what)
			}
		}
	}

	// Without a guard it arrives: the test can fail.
	plug()
	l, err := inMain.LinkByName("circ0")
	must(err)
	must(inMain.LinkSetNsFd(l, circuit.FD()))
	must(inCircuit.LinkSetUp(l))
	eventually("frames arrive without a guard", func() bool { n, _ := arrived(tap); return n > 0 })
	must(inCircuit.LinkDel(l))

	i, err := instance.Parse("r" + strconv.FormatUint(uint64(os.Getpid())%60466176, 36))
	must(err)
	way, err := tchook.Probe()
	must(err)
	log := slog.New(slog.DiscardHandler)
	g, err := guard.New(guard.Config{Instance: i, Namespace: circuit, Hooks: way, Log: log})
	must(err)
	t.Cleanup(func() {
		err := errors.Join(g.Remove(context.Background()), g.Close(), unix.Unmount(i.BPFDir(), unix.MNT_DETACH), os.RemoveAll(i.RunDir()))
		if err != nil {
			t.Error(err)
		}
	})
	links := link.New(link.Config{Main: main, Circuit: circuit, Instance: i, Log: log})
	loop := reconcile.New(g, links, nothing{}, noIPsec{}, noPaths{}, noJudge{}, drift.New(), log)
	ctx, cancel := context.WithCancel(t.Context())
	changes, err := links.Watch(ctx)
	must(err)
	ended := make(chan error, 1)
	go func() { ended <- loop.Run(ctx, func(bool) {}) }()
	go func() {
		for range changes {
			loop.Dirty()
		}
	}()
	loop.Want(plan.Plan{
		Interfaces: []plan.Interface{{Name: "circ0", Addresses: []netip.Prefix{netip.MustParsePrefix("172.16.10.1/30")}}},
		Guard: plan.Guard{Interfaces: []string{"circ0"}, Neighbors: []plan.Neighbor{{
			Interface: "circ0", Local: netip.MustParseAddr("172.16.10.1"), Remote: netip.MustParseAddr("172.16.10.2"),
		}}},
	}, 1)

	arrived(tap)
	for round := range 10 {
		plug()
		before := uint64(0)
		eventually("circ0 is up in the circuit namespace", func() bool {
			l, err := inCircuit.LinkByName("circ0")
			return err == nil && l.Attrs().RawFlags&unix.IFF_UP != 0
		})
		before = sent.Load()
		eventually("the sender sends", func() bool { return sent.Load() > before+100 })
		if inClear, others := arrived(tap); inClear+others != 0 {
			t.Errorf("round %d: %d frames in clear and %d others came through", round, inClear, others)
		}
		l, err := inCircuit.LinkByName("circ0")
		must(err)
		must(inCircuit.LinkDel(l))
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("Run: %v", err)
	}
}

type noIPsec struct{}

func (noIPsec) Sync(context.Context, plan.IPsec, func([]string) error) error { return nil }
func (noIPsec) Sweep(context.Context) error                                  { return nil }
