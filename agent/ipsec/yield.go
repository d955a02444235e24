package ipsec

import (
	"fmt"
	"slices"
	"strconv"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/circuitseal/circuitseal/agent/netns"
)

// The end that answers installs an SA before its answer is on its way. Sent by at
// once, what it sends would be lost until the other end has the answer and the SA, too.
// charon delays that when it rekeys, and not for a new IKE SA. So the ESP SAs of a
// connection that replaces one have a lower priority at the answering end: charon puts
// the one of the highest into the kernel's policy (add_policy in
// src/libcharon/plugins/kernel_netlink/kernel_netlink_ipsec.c), which is the old one
// until the other end, which sends by the new one at once, ends it. The policy is where
// the last priority is remembered.

// firstPriority is that of a tunnel's first connection. Lower numbers have precedence.
const firstPriority = 1000

// yield gives the connections that are to be loaded at the answering end their priorities.
func (d *Driver) yield(want wanted, loads []load) error {
	loads = slices.DeleteFunc(slices.Clone(loads), func(l load) bool {
		return l.verb != loadConnection || want.initiates[l.number]
	})
	if d.backend != Kernel || len(loads) == 0 {
		return nil
	}
	h, err := d.config.Circuit.Netlink(unix.NETLINK_XFRM)
	if err != nil {
		return err
	}
	defer h.Close()
	policies, err := netns.Dump(func() ([]netlink.XfrmPolicy, error) { return h.XfrmPolicyList(netlink.FAMILY_ALL) })
	if err != nil {
		return fmt.Errorf("list policies: %w", err)
	}
	last := priorities(policies)
	for _, l := range loads {
		want.connections[l.number].prioritize(max(firstPriority, last[l.number]+1))
	}
	return nil
}

// priorities are the highest of what our tunnels send by.
func priorities(policies []netlink.XfrmPolicy) map[uint16]int {
	last := map[uint16]int{}
	for _, p := range policies {
		if n, ok := ours(uint32(p.Ifid)); ok && p.Dir == netlink.XFRM_DIR_OUT {
			last[n] = max(last[n], p.Priority)
		}
	}
	return last
}

// prioritize sets the priority of what comes of the connection. It is no part of its
// name: a connection that is there is as it was loaded.
func (c connection) prioritize(priority int) { put(c.child, "priority", strconv.Itoa(priority)) }
