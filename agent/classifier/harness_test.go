package classifier

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"sync/atomic"
	"testing"

	"github.com/cilium/ebpf"
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

var instances atomic.Uint32

// testInstance is an instance that nothing else on the host uses; what it
// leaves is removed after the test.
func testInstance(t testing.TB) instance.Instance {
	t.Helper()
	n := uint32(os.Getpid())*31 + instances.Add(1)
	i, err := instance.Parse(fmt.Sprintf("t%05x", n&0xfffff))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(i.BPFDir(), 0); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			t.Errorf("unmount %s: %v", i.BPFDir(), err)
		}
		if err := os.RemoveAll(i.RunDir()); err != nil {
			t.Error(err)
		}
	})
	return i
}

// open makes a Classifier inside a namespace.
func open(t testing.TB, i instance.Instance, n netns.Namespace) *Classifier {
	t.Helper()
	var c *Classifier
	err := n.Do(func() (err error) {
		c, err = New(Config{Instance: i, Hooks: way, Log: slog.New(slog.DiscardHandler)})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// bed is a namespace with the interfaces of testPlan, all of them Ethernet so
// that programs can be run by hand.
type bed struct {
	t          testing.TB
	ns         netns.Namespace
	instance   instance.Instance
	plan       plan.Classifier
	classifier *Classifier
	index      map[string]uint32
	mac        map[string][6]byte
	mtu        map[string]int
	name       map[uint32]string
	addresses  map[string][]string
}

func newBed(t testing.TB) *bed {
	t.Helper()
	_, ns := netnstest.New(t)
	b := &bed{t: t, ns: ns, instance: testInstance(t), index: map[string]uint32{}, mac: map[string][6]byte{},
		mtu: map[string]int{}, name: map[uint32]string{}, addresses: map[string][]string{
			"lan7a": {"10.1.0.1/16", "fd01::1/64", "fe80::1/64"},
			"lan7b": {"10.1.128.1/17", "fd01:0:8000::1/64", "fe80::1/64"},
			"lan8":  {"10.1.0.1/16", "fd01::1/64", "fe80::1/64"},
		}}
	b.plan = renamed(testPlan(), b.instance.DevicePrefix())
	// All tunnels of this one are pending.
	b.plan.Groups = append(b.plan.Groups, plan.Group{ID: "fabrikam/c", Number: 5, Tenant: 8})
	b.plan.Remotes = append(b.plan.Remotes, plan.Remote{Tenant: 8, Prefix: netip.MustParsePrefix("10.3.0.0/16"), Group: 5})
	h, err := ns.Netlink()
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	p := b.instance.DevicePrefix()
	b.pair(h, "lan7a", "lan7b", 1500)
	b.pair(h, "lan8", "other", 1450)
	b.pair(h, p+"1", p+"2", 9000)
	b.pair(h, p+"3", p+"4", 9000)
	b.pair(h, p+"5", p+"6", 9000)
	b.pair(h, p+"7", "gone", 1380)
	// lan7b has no slow path.
	b.pair(h, b.slowDevice("lan7a"), "slow7a", 1380)
	b.pair(h, b.slowDevice("lan8"), "slow8", 1380)
	for lan, list := range b.addresses {
		for _, a := range list {
			addr, err := netlink.ParseAddr(a)
			if err != nil {
				t.Fatal(err)
			}
			addr.Flags = unix.IFA_F_NODAD
			l, err := h.LinkByName(lan)
			if err != nil {
				t.Fatal(err)
			}
			if err := h.AddrAdd(l, addr); err != nil {
				t.Fatal(err)
			}
		}
	}
	b.classifier = open(t, b.instance, ns)
	t.Cleanup(func() {
		if err := b.classifier.Remove(context.Background()); err != nil {
			t.Error(err)
		}
	})
	// The eighth device does not exist: its group works with the other.
	checked, err := b.classifier.Sync(t.Context(), b.plan)
	if err == nil {
		t.Error("sync without a device says nothing")
	}
	if n := len(b.index); len(checked) == 0 || len(checked) >= n {
		t.Errorf("checked %q of %d interfaces", checked, n)
	}
	return b
}

// alive is the mask of a group that is in force, bit i for the i-th member.
func (c *Classifier) alive(group uint32) (uint32, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	g, err := c.readGroup(group)
	return g.Alive, err
}

// masked is a mask of a group's members as SetAlive takes it.
func masked(g plan.Group, mask uint32) map[uint16]bool {
	alive := map[uint16]bool{}
	for i, m := range g.Members {
		alive[m.Number] = mask&(1<<i) != 0
	}
	return alive
}

func renamed(c plan.Classifier, prefix string) plan.Classifier {
	for _, g := range c.Groups {
		for i := range g.Members {
			g.Members[i].Device = prefix + g.Members[i].Device[len(testPrefix):]
		}
	}
	return c
}

// slowDevice is the name of the slow path that a LAN may have.
func (b *bed) slowDevice(lan string) string {
	name, _ := b.instance.SlowDevice(b.index[lan])
	return name
}

func (b *bed) pair(h *netlink.Handle, one, two string, mtu int) {
	b.t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = one, mtu
	if err := h.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: two, PeerMTU: uint32(mtu)}); err != nil {
		b.t.Fatal(err)
	}
	for _, name := range []string{one, two} {
		l, err := h.LinkByName(name)
		if err != nil {
			b.t.Fatal(err)
		}
		b.index[name] = uint32(l.Attrs().Index)
		b.name[b.index[name]] = name
		b.mac[name] = [6]byte(l.Attrs().HardwareAddr)
		b.mtu[name] = mtu
	}
}

// skbContext is struct __sk_buff of linux/bpf.h.
type skbContext struct {
	Len, PktType, Mark, QueueMapping, Protocol, VlanPresent, VlanTci, VlanProto, Priority uint32
	IngressIfindex, Ifindex, TCIndex                                                      uint32
	CB                                                                                    [5]uint32
	Hash, TCClassid, Data, DataEnd, NapiID, Family, RemoteIP4, LocalIP4                   uint32
	RemoteIP6, LocalIP6                                                                   [4]uint32
	RemotePort, LocalPort, DataMeta                                                       uint32
	FlowKeys, Tstamp                                                                      uint64
	WireLen, GSOSegs                                                                      uint32
	Sk                                                                                    uint64
	GSOSize, TstampType                                                                   uint32
	Hwtstamp                                                                              uint64
}

// frame is a packet as it meets a program.
type frame struct {
	program   string
	device    string
	mac       [6]byte
	ethertype uint16
	mark      uint32
	gsoSize   int
	// data begins with the network header.
	data []byte
}

// outcome is what a program made of a frame.
type outcome struct {
	reason bpfReason
	target string
	data   []byte
}

const (
	actionNext     = ^uint32(0)
	actionDrop     = 2
	actionRedirect = 7
)

// run runs a program on a frame. Call it inside the bed's namespace.
func (b *bed) run(f frame) (outcome, error) {
	in := make([]byte, 14+len(f.data))
	copy(in, f.mac[:])
	copy(in[6:], "\x02other")
	binary.BigEndian.PutUint16(in[12:], f.ethertype)
	copy(in[14:], f.data)
	out := make([]byte, len(in)+64)
	ctx := skbContext{Ifindex: b.index[f.device], Mark: f.mark}
	if f.gsoSize > 0 {
		ctx.GSOSize, ctx.GSOSegs = uint32(f.gsoSize), uint32(len(f.data)/f.gsoSize+1)
	}
	got := skbContext{}
	o := ebpf.RunOptions{Data: in, DataOut: out, Context: ctx, ContextOut: &got}
	action, err := b.classifier.programs()[f.program].Run(&o)
	if err != nil {
		return outcome{}, err
	}
	r := outcome{reason: bpfReason(got.CB[0]), data: o.DataOut[14:]}
	want := uint32(actionDrop)
	switch {
	case r.reason == bpfReasonREASON_PASSED:
		want = actionNext
	case r.reason == bpfReasonREASON_FORWARDED && f.program == bpfProgCsTunnelOut:
		want = actionNext
	case r.reason == bpfReasonREASON_FORWARDED, r.reason == bpfReasonREASON_SLOW_PATH, r.reason == bpfReasonREASON_TOLD_MTU:
		want = actionRedirect
		r.target = b.name[got.CB[1]]
	}
	if action != want {
		return r, fmt.Errorf("action %d with reason %s, want action %d", int32(action), reasons[r.reason], int32(want))
	}
	wantMark := uint32(0)
	switch {
	case r.reason == bpfReasonREASON_SLOW_PATH:
		wantMark = b.index[f.device]
	case r.reason == bpfReasonREASON_FORWARDED && (f.program == bpfProgCsLanIn || f.program == bpfProgCsSlowIn):
		g, _ := b.member(r.target)
		wantMark = b.mark(g)
	case r.reason == bpfReasonREASON_FORWARDED && f.program == bpfProgCsTunnelOut:
		// An XFRM interface, which shows a header, looks for a route with it.
		var port bpfPort
		if err := b.classifier.objects.Ports.Lookup(b.index[f.device], &port); err != nil {
			return r, err
		}
		if port.Header != 0 {
			wantMark = f.mark
		}
	}
	if f.program == bpfProgCsTunnelOut && r.reason == bpfReasonREASON_FORWARDED {
		// An XFRM interface finds its route by it.
		wantMark = f.mark
	}
	if got.Mark != wantMark {
		return r, fmt.Errorf("mark %#x, want %#x", got.Mark, wantMark)
	}
	return r, nil
}
