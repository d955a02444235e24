package tchook

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/circuitseal/circuitseal/agent/netns"
)

// clsact knows filters by their names, OWNER/LABEL. A name suffices: it is
// given by whoever is root, and says more than the program's maps, which are
// others after the BPF file system was unmounted.
type clsact struct {
	netlink *netlink.Handle
	dump    tcDump
	owner   string
}

// filter is a filter's place on a hook. Handles begin at 1.
type filter struct {
	preference, protocol uint16
	handle               uint32
}

// first is the lowest preference that there is. Of filters of one preference
// the newest runs first, whatever its handle (cls_bpf_change in
// net/sched/cls_bpf.c).
const first = 1

// Filters get handles from firstHandle on. The kernel chooses 1 and what
// follows, and so do people: a `tc filter replace` with the handle of ours would
// put their program in its place. A new filter stands beside the former one for
// a moment, so there must be two; more are for those who race us.
const (
	firstHandle = 0x43530000
	handles     = 256
)

func openClsact(n netns.Namespace, owner string) (c clsact, err error) {
	c.owner = owner
	if c.netlink, err = n.Netlink(); err != nil {
		return c, err
	}
	if c.dump, err = openDump(n); err != nil {
		c.netlink.Close()
	}
	return c, err
}

func (c clsact) close() {
	c.netlink.Close()
	c.dump.close()
}

func (d Direction) parent() uint32 {
	if d == Egress {
		return netlink.HANDLE_MIN_EGRESS
	}
	return netlink.HANDLE_MIN_INGRESS
}

func (clsact) former(string) ([]Attachment, error) { return nil, nil }

func (c clsact) own() ([]Attachment, error) {
	qdiscs, err := c.dump.qdiscs()
	if err != nil {
		return nil, err
	}
	var all []Attachment
	var errs []error
	for _, q := range qdiscs {
		if q.name != "clsact" {
			continue
		}
		for _, d := range []Direction{Ingress, Egress} {
			list, err := c.chain(Hook{q.ifindex, d})
			errs = append(errs, err)
			for _, a := range list {
				if a.Label != "" {
					all = append(all, a)
				}
			}
		}
	}
	return all, errors.Join(errs...)
}

func (c clsact) chain(at Hook) ([]Attachment, error) {
	list, err := c.dump.filters(at)
	if err != nil {
		return nil, err
	}
	var all []Attachment
	for i, f := range list {
		a := Attachment{Hook: at, Here: true, First: i == 0, Alone: len(list) == 1, filter: f.filter}
		// Whatever sees not all packets, or whose verdict does not count, is no
		// attachment of a program.
		if f.name == "bpf" && f.direct && f.program > 0 && f.protocol == unix.ETH_P_ALL {
			a.Program = f.program
			// A block that several interfaces share has none of ours.
			if label, ok := strings.CutPrefix(f.label, c.owner+"/"); ok && f.ifindex == at.Ifindex {
				a.Label = label
			}
		}
		all = append(all, a)
	}
	return all, nil
}

func (c clsact) attach(at Hook, label string, p *ebpf.Program) error {
	if err := c.ensureQdisc(at); err != nil {
		return err
	}
	list, err := c.dump.filters(at)
	if err != nil {
		return err
	}
	for handle := uint32(firstHandle); handle < firstHandle+handles; handle++ {
		if slices.ContainsFunc(list, func(f filterInfo) bool { return f.preference == first && f.handle == handle }) {
			continue
		}
		err := c.netlink.FilterAdd(c.bpfFilter(at, filter{first, unix.ETH_P_ALL, handle}, label, p.FD()))
		switch {
		case errors.Is(err, unix.EEXIST):
			// Somebody has just taken it.
			continue
		case errors.Is(err, unix.EINVAL):
			return errors.Join(err, c.explain(at))
		case errors.Is(err, unix.ENOENT):
			return fmt.Errorf("%w: this kernel has neither tcx nor bpf filters (CONFIG_NET_CLS_BPF)", err)
		}
		return explainShared(err)
	}
	return fmt.Errorf("filters of preference %d have taken all %d handles from %#x on: remove those that are not wanted", first, handles, firstHandle)
}

// explain finds who keeps a filter of ours from being the first.
func (c clsact) explain(at Hook) error {
	list, err := c.dump.filters(at)
	if err != nil {
		return err
	}
	for _, f := range list {
		if f.preference == first && (f.name != "bpf" || f.protocol != unix.ETH_P_ALL) {
			return fmt.Errorf("a filter of type %s for protocol %#x has preference %d, the first: remove it, or give it another preference", f.name, f.protocol, first)
		}
	}
	return nil
}

// explainShared says what a kernel means that does not take filters for one
// interface (tcf_block_find in net/sched/cls_api.c).
func explainShared(err error) error {
	if errors.Is(err, unix.EOPNOTSUPP) {
		return fmt.Errorf("%w: the interface's clsact qdisc takes filters only for a block that others may share (ingress_block, egress_block): delete it, or add it again without the block", err)
	}
	return err
}

// ensureQdisc adds clsact. One that is there, whoever made it, is left alone.
func (c clsact) ensureQdisc(at Hook) error {
	qdisc := &netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: at.Ifindex, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT}}
	err := c.netlink.QdiscAdd(qdisc)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.EOPNOTSUPP):
		return fmt.Errorf("add clsact qdisc: %w: this kernel has neither tcx nor clsact (CONFIG_NET_SCH_INGRESS)", err)
	case !errors.Is(err, unix.EEXIST):
		return fmt.Errorf("add clsact qdisc: %w", err)
	}
	list, err := c.dump.qdiscs()
	if err != nil {
		return err
	}
	for _, q := range list {
		if q.ifindex != at.Ifindex || q.parent != netlink.HANDLE_CLSACT {
			continue
		}
		if q.name != "clsact" {
			// It would take filters for egress and show them ingress packets.
			return fmt.Errorf("the interface has a qdisc of type %s, want clsact: remove it, or replace it by clsact", q.name)
		}
	}
	return nil
}

// take relies on the kernel: a filter with a handle that is taken replaces the
// one that has it, in its place and between two packets.
func (c clsact) take(a Attachment, label string, p *ebpf.Program) error {
	switch _, foreign, err := c.find(a); {
	case err != nil:
		return err
	case foreign:
		return fmt.Errorf("a filter of somebody else's has its handle %#x: %w", a.filter.handle, os.ErrNotExist)
	}
	return explainShared(c.netlink.FilterReplace(c.bpfFilter(a.Hook, a.filter, label, p.FD())))
}

func (c clsact) detach(a Attachment) error {
	if there, _, err := c.find(a); err != nil || !there {
		return err
	}
	const noProgram = -1
	err := c.netlink.FilterDel(c.bpfFilter(a.Hook, a.filter, "", noProgram))
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	if errors.Is(err, unix.EINVAL) {
		// What it is when the qdisc has gone.
		if there, _, err := c.find(a); err == nil && !there {
			return nil
		}
	}
	return explainShared(err)
}

// find tells whether an attachment is there still, or a foreign filter in its
// place. The kernel replaces and deletes by handles alone, whoever has them by
// then; between this look and that there is only a moment.
func (c clsact) find(a Attachment) (there, foreign bool, err error) {
	if a.filter.handle == 0 {
		// The kernel would take all filters of this preference for meant.
		return false, false, errors.New("it is no filter of a program")
	}
	list, err := c.chain(a.Hook)
	if err != nil {
		return false, false, err
	}
	i := slices.IndexFunc(list, a.Is)
	if i < 0 {
		return false, false, nil
	}
	// The owner's keep their name when they get another program.
	there = list[i].Label == a.Label && (a.Label != "" || list[i].Program == a.Program)
	return there, !there, nil
}

func (c clsact) bpfFilter(at Hook, f filter, label string, fd int) *netlink.BpfFilter {
	return &netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{
			LinkIndex: at.Ifindex, Parent: at.Direction.parent(),
			Priority: f.preference, Protocol: f.protocol, Handle: f.handle,
		},
		Fd: fd, Name: c.owner + "/" + label, DirectAction: true,
	}
}
