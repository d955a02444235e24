package tchook

import (
	"errors"
	"fmt"
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
	owner   string
}

// filter is a filter's place on a hook. Handles begin at 1.
type filter struct {
	preference, protocol uint16
	handle               uint32
}

// first is the lowest preference that there is. Of filters of one preference
// the newest runs first (cls_bpf_change in net/sched/cls_bpf.c).
const first = 1

func (c clsact) close() { c.netlink.Close() }

func (d Direction) parent() uint32 {
	if d == Egress {
		return netlink.HANDLE_MIN_EGRESS
	}
	return netlink.HANDLE_MIN_INGRESS
}

func (clsact) former(string) ([]Attachment, error) { return nil, nil }

func (c clsact) own() ([]Attachment, error) {
	qdiscs, err := netns.Dump(func() ([]netlink.Qdisc, error) { return c.netlink.QdiscList(nil) })
	if err != nil {
		return nil, fmt.Errorf("list qdiscs: %w", err)
	}
	var all []Attachment
	var errs []error
	for _, q := range qdiscs {
		if q.Type() != "clsact" {
			continue
		}
		for _, d := range []Direction{Ingress, Egress} {
			list, err := c.chain(Hook{q.Attrs().LinkIndex, d})
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
	list, err := c.filters(at)
	if err != nil {
		return nil, err
	}
	var all []Attachment
	for i, f := range list {
		attrs := f.Attrs()
		a := Attachment{Hook: at, Here: true, First: i == 0, filter: filter{attrs.Priority, attrs.Protocol, attrs.Handle}}
		// Whatever sees not all packets, or whose verdict does not count, is no
		// attachment of a program.
		if b, ok := f.(*netlink.BpfFilter); ok && b.DirectAction && b.Id > 0 && attrs.Protocol == unix.ETH_P_ALL {
			a.Program = ebpf.ProgramID(b.Id)
			if label, ok := strings.CutPrefix(b.Name, c.owner+"/"); ok {
				a.Label = label
			}
		}
		all = append(all, a)
	}
	return all, nil
}

// filters are those that every packet meets, in their order.
func (c clsact) filters(at Hook) ([]netlink.Filter, error) {
	list, err := netns.Dump(func() ([]netlink.Filter, error) {
		return c.netlink.FilterList(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: at.Ifindex}}, at.Direction.parent())
	})
	if err != nil {
		return nil, fmt.Errorf("list %s filters of interface %d: %w", at.Direction, at.Ifindex, err)
	}
	var met []netlink.Filter
	for _, f := range list {
		// Other chains are met only by those whom a filter sends there.
		if f.Attrs().Chain == nil || *f.Attrs().Chain == 0 {
			met = append(met, f)
		}
	}
	return met, nil
}

func (c clsact) attach(at Hook, label string, p *ebpf.Program) error {
	if err := c.ensureQdisc(at); err != nil {
		return err
	}
	// Without a handle it is a new one.
	err := c.netlink.FilterAdd(c.bpfFilter(at, filter{preference: first, protocol: unix.ETH_P_ALL}, label, p.FD()))
	switch {
	case errors.Is(err, unix.EINVAL):
		return errors.Join(err, c.explain(at))
	case errors.Is(err, unix.ENOENT):
		return fmt.Errorf("%w: this kernel has neither tcx nor bpf filters (CONFIG_NET_CLS_BPF)", err)
	}
	return err
}

// explain finds who keeps a filter of ours from being the first.
func (c clsact) explain(at Hook) error {
	list, err := c.filters(at)
	if err != nil {
		return err
	}
	for _, f := range list {
		if a := f.Attrs(); a.Priority == first && (f.Type() != "bpf" || a.Protocol != unix.ETH_P_ALL) {
			return fmt.Errorf("a filter of type %s for protocol %#x has preference %d, the first: remove it, or give it another preference", f.Type(), a.Protocol, first)
		}
	}
	return nil
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
	list, err := netns.Dump(func() ([]netlink.Qdisc, error) {
		return c.netlink.QdiscList(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: at.Ifindex}})
	})
	if err != nil {
		return fmt.Errorf("list qdiscs: %w", err)
	}
	for _, q := range list {
		if q.Attrs().Parent != netlink.HANDLE_CLSACT {
			continue
		}
		if q.Type() != "clsact" {
			// It would take filters for egress and show them ingress packets.
			return fmt.Errorf("the interface has a qdisc of type %s, want clsact: remove it, or replace it by clsact", q.Type())
		}
	}
	return nil
}

// take relies on the kernel: a filter with a handle that is taken replaces the
// one that has it, in its place and between two packets.
func (c clsact) take(a Attachment, label string, p *ebpf.Program) error {
	if a.filter.handle == 0 {
		return errors.New("it is no filter of a program")
	}
	return c.netlink.FilterReplace(c.bpfFilter(a.Hook, a.filter, label, p.FD()))
}

func (c clsact) detach(a Attachment) error {
	if a.filter.handle == 0 {
		// The kernel would delete all filters of this preference.
		return errors.New("it is no filter of a program")
	}
	const noProgram = -1
	err := c.netlink.FilterDel(c.bpfFilter(a.Hook, a.filter, "", noProgram))
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	if errors.Is(err, unix.EINVAL) {
		// What it is when the qdisc has gone.
		if list, err := c.chain(a.Hook); err == nil && len(list) == 0 {
			return nil
		}
	}
	return err
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
