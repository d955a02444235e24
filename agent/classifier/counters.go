package classifier

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/cilium/ebpf"

	"github.com/circuitseal/circuitseal/proto/desired"

	"github.com/circuitseal/circuitseal/agent/bpfmap"
)

// reasons end the names of counters.
var reasons = map[bpfReason]string{
	bpfReasonREASON_FORWARDED:          "forwarded",
	bpfReasonREASON_PASSED:             "passed",
	bpfReasonREASON_UNKNOWN_INTERFACE:  "dropped_unknown_interface",
	bpfReasonREASON_VLAN_TAGGED:        "dropped_vlan_tagged",
	bpfReasonREASON_NOT_IP:             "dropped_not_ip",
	bpfReasonREASON_MALFORMED:          "dropped_malformed",
	bpfReasonREASON_OTHER_HOST:         "dropped_other_host",
	bpfReasonREASON_PROBE_ADDRESS:      "dropped_probe_address",
	bpfReasonREASON_UNROUTABLE_ADDRESS: "dropped_unroutable_address",
	bpfReasonREASON_SPOOFED_SOURCE:     "dropped_spoofed_source",
	bpfReasonREASON_NO_REMOTE:          "dropped_no_remote",
	bpfReasonREASON_NO_LOCAL:           "dropped_no_local",
	bpfReasonREASON_WRONG_SELECTOR:     "dropped_wrong_selector",
	bpfReasonREASON_EXPIRED:            "dropped_expired",
	bpfReasonREASON_NO_GROUP:           "dropped_no_group",
	bpfReasonREASON_NO_MEMBER:          "dropped_no_member",
	bpfReasonREASON_TOO_BIG:            "dropped_too_big",
	bpfReasonREASON_NOT_CLASSIFIED:     "dropped_not_classified",
	bpfReasonREASON_NOT_EDITABLE:       "dropped_not_editable",
	bpfReasonREASON_ROUTER_MESSAGE:     "dropped_router_message",
	bpfReasonREASON_NODE_IS_SHARED:     "dropped_node_is_shared",
	bpfReasonREASON_SLOW_PATH:          "slow_path",
	bpfReasonREASON_TOLD_MTU:           "told_mtu",
	bpfReasonREASON_NOT_SLOW_PATH:      "dropped_not_slow_path",
}

// half is the reasons of one direction in a port's counters.
const half = len(bpfCounts{}.Packets) / 2

// Counters are the packets that each interface's programs have seen, by what
// became of them: classifier_lan_* for what LANs send, classifier_tunnel_in_*
// for what comes out of tunnels, classifier_tunnel_out_* for what enters them,
// classifier_slow_* for what comes back from a LAN's slow path, under the LAN's
// name. "forwarded" was redirected or let into the tunnel, "passed" left to the
// node's own stack, "slow_path" was too big and handed to the slow path, and
// "told_mtu" is what told its sender so. What never happened is left out. They
// are read from the kernel now and survive the process.
func (c *Classifier) Counters() ([]desired.Counter, error) {
	c.pass.Lock()
	defer c.pass.Unlock()
	if err := c.usable(); err != nil {
		return nil, err
	}
	ports := map[uint32]bpfPort{}
	if err := bpfmap.ReadAll(c.objects.Ports, ports); err != nil {
		return nil, err
	}
	names, err := c.interfaceNames()
	if err != nil {
		return nil, err
	}
	var list []desired.Counter
	var errs []error
	for _, ifindex := range slices.Sorted(maps.Keys(ports)) {
		name, ok := names[ifindex]
		if !ok {
			continue // gone; the next Sync forgets it
		}
		counts, err := c.readCounts(ports[ifindex].Slot)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		switch ports[ifindex].Kind {
		case bpfPortKindPORT_LAN:
			list = appendCounters(list, "classifier_lan_", name, counts[:half])
		case bpfPortKindPORT_SLOW:
			if lan, ok := names[ports[ifindex].Partner]; ok {
				list = appendCounters(list, "classifier_slow_", lan, counts[:half])
			}
		case bpfPortKindPORT_TUNNEL:
			list = appendCounters(list, "classifier_tunnel_in_", name, counts[:half])
			list = appendCounters(list, "classifier_tunnel_out_", name, counts[half:])
		}
	}
	counts, err := c.readCounts(0)
	if err != nil {
		return list, errors.Join(append(errs, err)...)
	}
	unknown := counts[bpfReasonREASON_UNKNOWN_INTERFACE] + counts[half+int(bpfReasonREASON_UNKNOWN_INTERFACE)]
	if unknown != 0 {
		list = append(list, desired.Counter{Name: "classifier_dropped_unknown_interface", Packets: unknown})
	}
	return list, errors.Join(errs...)
}

func appendCounters(list []desired.Counter, prefix, name string, packets []uint64) []desired.Counter {
	for _, r := range slices.Sorted(maps.Keys(reasons)) {
		if packets[r] != 0 || r <= bpfReasonREASON_PASSED {
			list = append(list, desired.Counter{Name: prefix + reasons[r], Interface: name, Packets: packets[r]})
		}
	}
	return list
}

// readCounts sums a slot over all CPUs.
func (c *Classifier) readCounts(slot uint32) (sum [2 * half]uint64, err error) {
	var each []bpfCounts
	if err := c.objects.Counters.Lookup(&slot, &each); err != nil {
		return sum, fmt.Errorf("read counters of slot %d: %w", slot, err)
	}
	for _, one := range each {
		for i, n := range one.Packets {
			sum[i] += n
		}
	}
	return sum, nil
}

// clearCounts zeroes the slots that these ports are given.
func (c *Classifier) clearCounts(s state, ifindexes []uint32) error {
	if len(ifindexes) == 0 {
		return nil
	}
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return fmt.Errorf("count CPUs: %w", err)
	}
	var errs []error
	for _, i := range ifindexes {
		slot := s.ports[i].Slot
		if err := c.objects.Counters.Put(&slot, make([]bpfCounts, cpus)); err != nil {
			errs = append(errs, fmt.Errorf("clear counters of slot %d: %w", slot, err))
		}
	}
	return errors.Join(errs...)
}
