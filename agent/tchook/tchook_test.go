package tchook_test

import (
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/circuitseal/circuitseal/agent/bpffs"
	"github.com/circuitseal/circuitseal/agent/netns"
	"github.com/circuitseal/circuitseal/agent/netns/netnstest"
	"github.com/circuitseal/circuitseal/agent/tchook"
	"github.com/circuitseal/circuitseal/agent/tchook/tchooktest"
)

// way is how programs are attached: everything is tested with each.
var way tchook.Way

func TestMain(m *testing.M) { os.Exit(tchooktest.Main(m, &way)) }

// bed is a namespace with a0, whose other end is b0, and a BPF file system.
type bed struct {
	t     *testing.T
	ns    netns.Namespace
	pins  string
	index map[string]int
	// handle belongs to the namespace.
	handle *netlink.Handle
}

func newBed(t *testing.T) *bed {
	t.Helper()
	_, ns := netnstest.New(t)
	b := &bed{t: t, ns: ns, pins: t.TempDir(), index: map[string]int{}}
	b.must(bpffs.Ensure(b.pins))
	t.Cleanup(func() { b.must(unix.Unmount(b.pins, unix.MNT_DETACH)) })
	var err error
	b.handle, err = ns.Netlink()
	b.must(err)
	t.Cleanup(b.handle.Close)
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "a0"
	b.must(b.handle.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "b0"}))
	for _, name := range []string{"a0", "b0"} {
		l, err := b.handle.LinkByName(name)
		b.must(err)
		b.index[name] = l.Attrs().Index
		b.must(ns.Do(func() error {
			return os.WriteFile("/proc/sys/net/ipv6/conf/"+name+"/disable_ipv6", []byte("1"), 0)
		}))
		b.must(b.handle.LinkSetUp(l))
	}
	return b
}

func (b *bed) must(err error) {
	b.t.Helper()
	if err != nil {
		b.t.Fatal(err)
	}
}

func (b *bed) config(owner string) tchook.Config {
	dir := filepath.Join(b.pins, owner)
	b.must(os.MkdirAll(dir, 0o700))
	return tchook.Config{Way: way, Namespace: b.ns, Pins: dir, Owner: "circuitseal-test/" + owner}
}

func (b *bed) open(owner string) *tchook.Hooks {
	b.t.Helper()
	return b.openConfig(b.config(owner))
}

func (b *bed) openConfig(c tchook.Config) *tchook.Hooks {
	b.t.Helper()
	h, err := tchook.Open(c)
	b.must(err)
	b.t.Cleanup(h.Close)
	return h
}

func (b *bed) out() tchook.Hook { return tchook.Hook{Ifindex: b.index["a0"], Direction: tchook.Egress} }

const (
	next = -1
	drop = 2
)

func (b *bed) program(verdict int32) *ebpf.Program {
	b.t.Helper()
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, License: "MIT", Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, verdict), asm.Return()}})
	b.must(err)
	b.t.Cleanup(func() { _ = p.Close() })
	return p
}

func (b *bed) id(p *ebpf.Program) ebpf.ProgramID {
	b.t.Helper()
	info, err := p.Info()
	b.must(err)
	id, _ := info.ID()
	return id
}

// one wants exactly one attachment of the owner's, with a program.
func (b *bed) one(h *tchook.Hooks, p *ebpf.Program) tchook.Attachment {
	b.t.Helper()
	own, err := h.Own()
	b.must(err)
	if len(own) != 1 {
		b.t.Fatalf("%d attachments, want 1: %+v", len(own), own)
	}
	if own[0].Program != b.id(p) || own[0].Hook != b.out() || own[0].Label != "label" || !own[0].Here {
		b.t.Errorf("found %+v, want program %d at %+v", own[0], b.id(p), b.out())
	}
	return own[0]
}

// order wants these programs on the egress hook.
func (b *bed) order(h *tchook.Hooks, want ...*ebpf.Program) {
	b.t.Helper()
	chain, err := h.Chain(b.out())
	b.must(err)
	if len(chain) != len(want) {
		b.t.Fatalf("%d programs, want %d: %+v", len(chain), len(want), chain)
	}
	for i, a := range chain {
		if a.Program != b.id(want[i]) || a.First != (i == 0) {
			b.t.Errorf("at place %d is %+v, want program %d", i, a, b.id(want[i]))
		}
	}
}

// The newest is first; what was overtaken says so, is replaced where it is, and
// comes to the head by being attached again.
func TestOrder(t *testing.T) {
	b := newBed(t)
	ours, foreign := b.open("ours"), b.open("foreign")
	p, other, third := b.program(next), b.program(next), b.program(next)
	b.must(ours.Attach(b.out(), "label", p))
	if a := b.one(ours, p); !a.First {
		t.Error("an only program is not the first")
	}
	b.must(foreign.Attach(b.out(), "label", other))
	b.order(ours, other, p)
	behind := b.one(ours, p)
	if behind.First {
		t.Error("a program behind another is the first")
	}
	b.must(ours.Take(behind, "label", third))
	if !b.one(ours, third).Is(behind) {
		t.Error("another attachment after a replacement")
	}
	b.order(ours, other, third)
	b.must(ours.Attach(b.out(), "label", p))
	b.must(ours.Detach(behind))
	b.must(ours.Detach(behind))
	b.order(ours, p, other)
	b.one(ours, p)
	b.one(foreign, other)

	b.must(ours.DetachAll())
	b.order(ours, other)
	b.must(foreign.DetachAll())
	b.order(ours)
}

// Both directions of an interface are apart, and so are interfaces.
func TestDirections(t *testing.T) {
	b := newBed(t)
	h := b.open("ours")
	p := b.program(next)
	b.must(h.Attach(b.out(), "label", p))
	for _, at := range []tchook.Hook{{b.index["a0"], tchook.Ingress}, {b.index["b0"], tchook.Egress}, {4_000_000, tchook.Egress}} {
		chain, err := h.Chain(at)
		b.must(err)
		if len(chain) > 0 {
			t.Errorf("at %+v: %+v", at, chain)
		}
	}
	if err := h.Attach(tchook.Hook{Ifindex: 4_000_000, Direction: tchook.Egress}, "label", p); !errors.Is(err, unix.ENODEV) {
		t.Errorf("attach to no interface: %v", err)
	}
}

// An attachment of nobody known is made one's own where it is.
func TestTakeOver(t *testing.T) {
	b := newBed(t)
	former, ours := b.open("former"), b.open("ours")
	p, q := b.program(next), b.program(next)
	b.must(former.Attach(b.out(), "old", p))
	chain, err := ours.Chain(b.out())
	b.must(err)
	b.must(ours.Take(chain[0], "label", q))
	if a := b.one(ours, q); !a.Is(chain[0]) {
		t.Errorf("taken over as %+v, want %+v", a, chain[0])
	}
	b.order(ours, q)
}

// What is attached outlives handles, and ends with the interface; by tcx it is
// told apart from what is at work.
func TestInterfaceGone(t *testing.T) {
	b := newBed(t)
	h := b.open("ours")
	p := b.program(next)
	b.must(h.Attach(b.out(), "label", p))
	h.Close()
	h = b.open("ours")
	b.one(h, p)
	l, err := b.handle.LinkByName("a0")
	b.must(err)
	b.must(b.handle.LinkDel(l))
	own, err := h.Own()
	b.must(err)
	want := 0
	if way == tchook.TCX {
		want = 1
	}
	if len(own) != want || want > 0 && (own[0].Here || own[0].Ifindex != 0) {
		t.Errorf("after the interface has gone: %+v", own)
	}
	b.must(h.DetachAll())
	own, err = h.Own()
	b.must(err)
	if len(own) > 0 {
		t.Errorf("after all was detached: %+v", own)
	}
}

// An interface that leaves the namespace takes links along and loses filters.
func TestInterfaceLeaves(t *testing.T) {
	b := newBed(t)
	_, away := netnstest.New(t)
	h := b.open("ours")
	b.must(h.Attach(b.out(), "label", b.program(next)))
	l, err := b.handle.LinkByName("a0")
	b.must(err)
	b.must(b.handle.LinkSetNsFd(l, away.FD()))
	own, err := h.Own()
	b.must(err)
	c := b.config("ours")
	c.Namespace = away
	there, err := b.openConfig(c).Chain(b.out())
	b.must(err)
	want := 0
	if way == tchook.TCX {
		want = 1
	}
	if len(own) != want || len(there) != want || want > 0 && own[0].Here {
		t.Errorf("after the interface has left: %+v, with it %+v", own, there)
	}
}

// Not one packet passes while a program that drops is replaced by another one,
// or comes to the head again.
func TestReplacementIsAtomic(t *testing.T) {
	b := newBed(t)
	h, foreign := b.open("ours"), b.open("foreign")
	programs := [2]*ebpf.Program{b.program(drop), b.program(drop)}
	socket := func(name string) (fd int) {
		t.Helper()
		all := binary.NativeEndian.Uint16([]byte{0, unix.ETH_P_ALL})
		b.must(b.ns.Do(func() (err error) {
			if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, int(all)); err != nil {
				return err
			}
			return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: b.index[name]})
		}))
		t.Cleanup(func() { _ = unix.Close(fd) })
		return fd
	}
	in, out := socket("b0"), socket("a0")
	frame := make([]byte, 60)
	frame[12], frame[13] = 0x88, 0xb5
	send := func() { _, _ = unix.Write(out, frame) }
	received := func() bool {
		n, _, err := unix.Recvfrom(in, make([]byte, 100), 0)
		return err == nil && n > 0
	}
	for end := time.Now().Add(5 * time.Second); ; {
		if send(); received() {
			break
		}
		if time.Now().After(end) {
			t.Fatal("nothing passes without a program")
		}
	}
	b.must(h.Attach(b.out(), "label", programs[0]))
	for received() {
	}
	var stop atomic.Bool
	sent := make(chan int)
	go func() {
		n := 0
		for ; !stop.Load(); n++ {
			send()
		}
		sent <- n
	}()
	a := b.one(h, programs[0])
	for i := range 2000 {
		b.must(h.Take(a, "label", programs[(i+1)%2]))
	}
	b.must(foreign.Attach(b.out(), "label", b.program(next)))
	for i := range 200 {
		b.must(h.Attach(b.out(), "label", programs[(i+1)%2]))
		b.must(h.Detach(a))
		a = b.one(h, programs[(i+1)%2])
	}
	stop.Store(true)
	n := <-sent
	if received() {
		t.Error("a packet passed")
	}
	t.Logf("%d packets sent", n)
	if n < 1000 {
		t.Errorf("only %d packets sent, too few to say anything", n)
	}
}

func TestOpenRefuses(t *testing.T) {
	b := newBed(t)
	c := b.config("ours")
	c.Way = 0
	if _, err := tchook.Open(c); err == nil || !strings.Contains(err.Error(), "way 0") {
		t.Errorf("no way: %v", err)
	}
	if _, err := tchook.Open(tchook.Config{Way: way, Pins: "/", Owner: "x"}); err == nil {
		t.Error("no namespace: no error")
	}
}
