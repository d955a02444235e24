package ipsec

import (
	"errors"
	"fmt"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/circuitseal/circuitseal/agent/netns"
)

// Of a charon that was killed the kernel keeps SAs and policies, which carry on.
// The next one neither knows nor removes them.

// kernelSAs are those of a tunnel's interface that have keys.
type kernelSAs struct {
	states []netlink.XfrmState
}

// carries reports whether there are SAs of both directions.
func (k kernelSAs) carries(local string) bool {
	var in, out bool
	for _, s := range k.states {
		if s.Dst.String() == local {
			in = true
		} else {
			out = true
		}
	}
	return in && out
}

// counters sums up.
func (k kernelSAs) counters(local string) (in, out netlink.XfrmStateStats) {
	for _, s := range k.states {
		sum := &out
		if s.Dst.String() == local {
			sum = &in
		}
		sum.Bytes += s.Statistics.Bytes
		sum.Packets += s.Statistics.Packets
	}
	return in, out
}

// ours reports whether an interface ID is one of instance.InterfaceID. In the
// circuit namespace no other instance has any.
func ours(id uint32) (tunnel uint16, ok bool) {
	return uint16(id), id>>16 == interfaceBase && uint16(id) != 0
}

// readKernel lists the SAs with keys of our interfaces, by tunnel.
func readKernel(h *netlink.Handle) (map[uint16]kernelSAs, error) {
	states, err := netns.Dump(func() ([]netlink.XfrmState, error) { return h.XfrmStateList(netlink.FAMILY_ALL) })
	if errors.Is(err, unix.EPROTONOSUPPORT) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list SAs: %w", err)
	}
	all := map[uint16]kernelSAs{}
	for _, s := range states {
		n, ok := ours(uint32(s.Ifid))
		// One without keys is an SPI that charon has reserved.
		if !ok || s.Proto != netlink.XFRM_PROTO_ESP || s.Aead == nil && s.Crypt == nil {
			continue
		}
		// Keys have no business here.
		s.Aead, s.Crypt, s.Auth = nil, nil, nil
		k := all[n]
		k.states = append(k.states, s)
		all[n] = k
	}
	return all, nil
}

// orphanAge is how old an SA is before it counts as an orphan: charon installs one
// before it tells of it.
const orphanAge = 15 * time.Second

// orphans are those that charon does not know; young tells that there are some of
// which that is not sure yet.
func (k kernelSAs) orphans(known []ikeSA, now time.Time) (orphans []netlink.XfrmState, young bool) {
	spis := map[uint32]bool{}
	for _, s := range known {
		for _, c := range s.children {
			spis[c.spiIn], spis[c.spiOut] = true, true
		}
	}
	for _, s := range k.states {
		switch {
		case spis[uint32(s.Spi)]:
		case now.Unix()-int64(s.Statistics.AddTime) > int64(orphanAge/time.Second):
			orphans = append(orphans, s)
		default:
			young = true
		}
	}
	return orphans, young
}

func removeSA(h *netlink.Handle, s netlink.XfrmState) error {
	err := h.XfrmStateDel(&s)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove SA %#x: %w", uint32(s.Spi), err)
	}
	return nil
}

// flushKernel removes what the kernel has of tunnels that keep does not name. A
// kernel without IPsec has nothing.
func (d *Driver) flushKernel(keep func(tunnel uint16) bool) error {
	if d.backend == Libipsec {
		return nil
	}
	h, err := d.config.Circuit.Netlink(unix.NETLINK_XFRM)
	if errors.Is(err, unix.EPROTONOSUPPORT) {
		return nil
	}
	if err != nil {
		return err
	}
	defer h.Close()
	return flushSAs(h, keep)
}

// flushSAs removes all SAs and policies of our interfaces that keep does not name.
func flushSAs(h *netlink.Handle, keep func(tunnel uint16) bool) error {
	states, err := readKernel(h)
	if err != nil {
		return err
	}
	var errs []error
	for n, k := range states {
		if keep(n) {
			continue
		}
		for _, s := range k.states {
			errs = append(errs, removeSA(h, s))
		}
	}
	policies, err := netns.Dump(func() ([]netlink.XfrmPolicy, error) { return h.XfrmPolicyList(netlink.FAMILY_ALL) })
	if errors.Is(err, unix.EPROTONOSUPPORT) {
		return errors.Join(errs...)
	}
	if err != nil {
		return errors.Join(append(errs, fmt.Errorf("list IPsec policies: %w", err))...)
	}
	for _, p := range policies {
		if n, ok := ours(uint32(p.Ifid)); !ok || keep(n) {
			continue
		}
		if err := h.XfrmPolicyDel(&p); err != nil && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, fmt.Errorf("remove IPsec policy %s: %w", p.Dir, err))
		}
	}
	return errors.Join(errs...)
}
