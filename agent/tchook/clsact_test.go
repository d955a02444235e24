package tchook_test

import (
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/circuitseal/circuitseal/agent/tchook"
)

func requireClsact(t *testing.T) {
	t.Helper()
	if way != tchook.Clsact {
		t.Skip("links know no qdiscs and preferences")
	}
}

// foreign is a filter that somebody else has on the egress hook.
func (b *bed) foreign(preference uint16, handle uint32) {
	b.t.Helper()
	b.must(b.handle.FilterAdd(&netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{LinkIndex: b.index["a0"], Parent: netlink.HANDLE_MIN_EGRESS, Priority: preference, Handle: handle, Protocol: unix.ETH_P_ALL},
		Fd:          b.program(next).FD(), Name: "theirs", DirectAction: true,
	}))
}

func (b *bed) qdisc(q netlink.Qdisc) {
	b.t.Helper()
	*q.Attrs() = netlink.QdiscAttrs{LinkIndex: b.index["a0"], Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT}
	b.must(b.handle.QdiscAdd(q))
}

// A qdisc and filters of somebody else's stay, in front and behind.
func TestForeignFilters(t *testing.T) {
	requireClsact(t)
	b := newBed(t)
	b.qdisc(&netlink.Clsact{})
	b.foreign(1, 7)
	b.foreign(9, 0)
	h := b.open("ours")
	p := b.program(next)
	b.must(h.Attach(b.out(), "label", p))
	if a := b.one(h, p); !a.First {
		t.Error("ours is not the first")
	}
	b.foreign(1, 0)
	if a := b.one(h, p); a.First {
		t.Error("ours is the first behind a foreign filter")
	}
	b.must(h.DetachAll())
	chain, err := h.Chain(b.out())
	b.must(err)
	if len(chain) != 3 {
		t.Errorf("%d foreign filters are left, want 3", len(chain))
	}
}

// A filter of our name that sees not all packets, or whose verdict does not
// count, is none of ours.
func TestImpostor(t *testing.T) {
	requireClsact(t)
	b := newBed(t)
	b.qdisc(&netlink.Clsact{})
	name := b.config("ours").Owner + "/label"
	for preference, change := range map[uint16]func(*netlink.BpfFilter){
		5: func(f *netlink.BpfFilter) { f.Protocol = unix.ETH_P_IP },
		6: func(f *netlink.BpfFilter) { f.DirectAction = false },
		7: func(f *netlink.BpfFilter) { f.Chain = new(uint32); *f.Chain = 3 },
	} {
		f := &netlink.BpfFilter{
			FilterAttrs: netlink.FilterAttrs{LinkIndex: b.index["a0"], Parent: netlink.HANDLE_MIN_EGRESS, Priority: preference, Protocol: unix.ETH_P_ALL},
			Fd:          b.program(next).FD(), Name: name, DirectAction: true,
		}
		change(f)
		b.must(b.handle.FilterAdd(f))
	}
	own, err := b.open("ours").Own()
	b.must(err)
	if len(own) > 0 {
		t.Errorf("taken for ours: %+v", own)
	}
}

// Where the first place cannot be had, the error says who has it.
func TestFirstPlaceIsTaken(t *testing.T) {
	requireClsact(t)
	for name, test := range map[string]struct {
		mishap func(*bed)
		want   string
	}{
		"another kind": {func(b *bed) {
			b.qdisc(&netlink.Clsact{})
			b.must(b.handle.FilterAdd(&netlink.U32{FilterAttrs: netlink.FilterAttrs{
				LinkIndex: b.index["a0"], Parent: netlink.HANDLE_MIN_EGRESS, Priority: 1, Protocol: unix.ETH_P_ALL,
			}, ClassId: 1}))
		}, "a filter of type u32"},
		"another protocol": {func(b *bed) {
			b.qdisc(&netlink.Clsact{})
			b.must(b.handle.FilterAdd(&netlink.BpfFilter{FilterAttrs: netlink.FilterAttrs{
				LinkIndex: b.index["a0"], Parent: netlink.HANDLE_MIN_EGRESS, Priority: 1, Protocol: unix.ETH_P_IP,
			}, Fd: b.program(next).FD(), Name: "theirs", DirectAction: true}))
		}, "for protocol 0x800"},
		"another qdisc": {func(b *bed) { b.qdisc(&netlink.Ingress{}) }, "has a qdisc of type ingress, want clsact"},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t)
			test.mishap(b)
			if err := b.open("ours").Attach(b.out(), "label", b.program(next)); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("attach: %v, want an error with %q", err, test.want)
			}
		})
	}
}

// Filters need no BPF file system, and go with the qdisc.
func TestFiltersLive(t *testing.T) {
	requireClsact(t)
	b := newBed(t)
	h := b.open("ours")
	p := b.program(next)
	b.must(h.Attach(b.out(), "label", p))
	b.must(unix.Unmount(b.pins, unix.MNT_DETACH))
	a := b.one(h, p)
	b.must(unix.Mount("bpf", b.pins, "bpf", 0, ""))
	b.must(b.handle.QdiscDel(&netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: b.index["a0"], Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT}}))
	own, err := h.Own()
	b.must(err)
	if len(own) > 0 {
		t.Errorf("without the qdisc: %+v", own)
	}
	b.must(h.Detach(a))
	if err := h.Take(a, "label", p); err == nil {
		t.Error("replaced what has gone")
	}
	b.must(h.Attach(b.out(), "label", p))
	b.one(h, p)
}

// With links in use, filters that are left are found, ours alone.
func TestDetachOther(t *testing.T) {
	requireClsact(t)
	if best, err := tchook.Probe(); err != nil || best != tchook.TCX {
		t.Skip("this kernel has no other way")
	}
	b := newBed(t)
	filters, theirs := b.open("ours"), b.open("theirs")
	p := b.program(next)
	b.must(filters.Attach(b.out(), "label", p))
	b.must(theirs.Attach(b.out(), "label", p))
	c := b.config("ours")
	c.Way = tchook.TCX
	links := b.openConfig(c)
	b.must(links.Attach(b.out(), "label", p))
	b.must(links.DetachOther())
	b.one(links, p)
	b.one(theirs, p)
	b.order(filters, p)
}

// replace is `tc filter replace dev a0 egress pref 1 handle HANDLE bpf ...`.
func (b *bed) replace(handle uint32) {
	b.t.Helper()
	b.must(b.handle.FilterReplace(&netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{LinkIndex: b.index["a0"], Parent: netlink.HANDLE_MIN_EGRESS, Priority: 1, Handle: handle, Protocol: unix.ETH_P_ALL},
		Fd:          b.program(next).FD(), Name: "theirs", DirectAction: true,
	}))
}

func (b *bed) handles() (list []uint32) {
	b.t.Helper()
	filters, err := b.handle.FilterList(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: b.index["a0"]}}, netlink.HANDLE_MIN_EGRESS)
	b.must(err)
	for _, f := range filters {
		list = append(list, f.Attrs().Handle)
	}
	return list
}

// Who replaces a filter by a handle that people and kernels choose meets none of
// ours, and is overtaken again.
func TestForeignReplace(t *testing.T) {
	requireClsact(t)
	b := newBed(t)
	h := b.open("ours")
	p, q := b.program(next), b.program(next)
	b.must(h.Attach(b.out(), "label", p))
	for range 2 {
		b.replace(1)
	}
	behind := b.one(h, p)
	if behind.First {
		t.Error("ours is the first behind a foreign filter")
	}
	b.must(h.Attach(b.out(), "label", q))
	b.must(h.Detach(behind))
	if a := b.one(h, q); !a.First {
		t.Error("ours is not the first again")
	}
	if list := b.handles(); len(list) != 2 || list[0] != 0x43530001 || list[1] != 1 {
		t.Errorf("handles %#x, want the second of ours before 1", list)
	}
	b.must(h.Attach(b.out(), "label", p))
	if list := b.handles(); len(list) != 3 || list[0] != 0x43530000 {
		t.Errorf("handles %#x, want the first of ours, which is free, at the head", list)
	}
}

// A foreign filter that has a handle of ours meanwhile is not touched.
func TestHandleIsLost(t *testing.T) {
	requireClsact(t)
	b := newBed(t)
	h := b.open("ours")
	p := b.program(next)
	b.must(h.Attach(b.out(), "label", p))
	lost := b.one(h, p)
	b.replace(0x43530000)
	if err := h.Take(lost, "label", p); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("take what is somebody else's: %v, want %v", err, os.ErrNotExist)
	}
	b.must(h.Detach(lost))
	own, err := h.Own()
	b.must(err)
	if list := b.handles(); len(list) != 1 || len(own) > 0 {
		t.Errorf("handles %#x and own %+v, want the foreign one alone", list, own)
	}
	b.must(h.Attach(b.out(), "label", p))
	if a := b.one(h, p); !a.First {
		t.Error("ours is not the first")
	}
}

func TestSharedBlock(t *testing.T) {
	requireClsact(t)
	b := newBed(t)
	block := uint32(7)
	b.must(b.handle.QdiscAdd(&netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: b.index["a0"], Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT, IngressBlock: &block,
	}}))
	h := b.open("ours")
	err := h.Attach(tchook.Hook{Ifindex: b.index["a0"], Direction: tchook.Ingress}, "label", b.program(next))
	if !errors.Is(err, unix.EOPNOTSUPP) || !strings.Contains(err.Error(), "a block that others may share") {
		t.Errorf("attach to a shared block: %v", err)
	}
	// The other hook has no block.
	b.must(h.Attach(b.out(), "label", b.program(next)))
}
