package guard

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/cilium/ebpf"

	"github.com/circuitseal/circuitseal/agent/bpfmap"
)

// mapState is what the maps hold, or should hold.
type mapState struct {
	stacks    map[programStackKey]bool
	flows     map[programFlowKey]programFlow
	neighbors map[programNeighbor]bool
}

// mapPlan brings one mapState to another: additions come first. A flow with
// another mark is set in place, in one step.
type mapPlan struct {
	// Stacks open nothing.
	addStacks, dropStacks []programStackKey
	setFlows              map[programFlowKey]programFlow
	addNeighbors          []programNeighbor
	dropFlows             []programFlowKey
	dropNeighbors         []programNeighbor
}

// renderMaps is what the maps should hold for p, where index has the interface
// index of every name in p.
func renderMaps(p policy, index map[string]int) mapState {
	out := newMapState()
	for k := range p.stacks {
		out.stacks[programStackKey{Ifindex: uint32(index[k.name]), Tags: uint32(k.tags)}] = true
	}
	for k, marks := range p.flows {
		out.flows[programFlowKey{
			Ifindex:    uint32(index[k.name]),
			Tags:       uint32(k.tags),
			Local:      k.local.Addr().As16(),
			Remote:     k.remote.Addr().As16(),
			LocalPort:  wirePort(k.local.Port()),
			RemotePort: wirePort(k.remote.Port()),
			Protocol:   k.protocol,
			Version:    version(k.local.Addr()),
		}] = programFlow{Marks: marks}
	}
	for k := range p.neighbors {
		out.neighbors[programNeighbor{Ifindex: uint32(index[k.name]), Tags: uint32(k.tags), Local: k.local.As16(), Remote: k.remote.As16(), Version: uint32(version(k.local))}] = true
	}
	return out
}

func newMapState() mapState {
	return mapState{make(map[programStackKey]bool), make(map[programFlowKey]programFlow), make(map[programNeighbor]bool)}
}

func diffMaps(want, have mapState) mapPlan {
	out := mapPlan{setFlows: make(map[programFlowKey]programFlow)}
	for k := range want.stacks {
		if !have.stacks[k] {
			out.addStacks = append(out.addStacks, k)
		}
	}
	for k := range have.stacks {
		if !want.stacks[k] {
			out.dropStacks = append(out.dropStacks, k)
		}
	}
	for k, flow := range want.flows {
		if had, ok := have.flows[k]; !ok || had != flow {
			out.setFlows[k] = flow
		}
	}
	for k := range want.neighbors {
		if !have.neighbors[k] {
			out.addNeighbors = append(out.addNeighbors, k)
		}
	}
	for k := range have.flows {
		if _, ok := want.flows[k]; !ok {
			out.dropFlows = append(out.dropFlows, k)
		}
	}
	for k := range have.neighbors {
		if !want.neighbors[k] {
			out.dropNeighbors = append(out.dropNeighbors, k)
		}
	}
	return out
}

// closing is p without what opens anything.
func (p mapPlan) closing() mapPlan {
	return mapPlan{addStacks: p.addStacks, dropStacks: p.dropStacks, dropFlows: p.dropFlows, dropNeighbors: p.dropNeighbors}
}

func (p mapPlan) empty() bool {
	return len(p.addStacks)+len(p.dropStacks)+len(p.setFlows)+len(p.addNeighbors)+len(p.dropFlows)+len(p.dropNeighbors) == 0
}

// lines are the changes, each to be asked for its text.
func (p mapPlan) lines() []fmt.Stringer {
	var out []fmt.Stringer
	for k := range p.setFlows {
		out = append(out, mapLine{"open flow", k})
	}
	for _, k := range p.addNeighbors {
		out = append(out, mapLine{"open neighbour", k})
	}
	for _, k := range p.dropFlows {
		out = append(out, mapLine{"close flow", k})
	}
	for _, k := range p.dropNeighbors {
		out = append(out, mapLine{"close neighbour", k})
	}
	return out
}

type mapLine struct {
	what string
	key  fmt.Stringer
}

func (l mapLine) String() string { return l.what + " " + l.key.String() }

func readMaps(o *programObjects) (mapState, error) {
	out := newMapState()
	stacks, neighbors := map[programStackKey]uint8{}, map[programNeighbor]uint8{}
	if err := errors.Join(
		bpfmap.ReadAll(o.Stacks, stacks),
		bpfmap.ReadAll(o.Flows, out.flows),
		bpfmap.ReadAll(o.Neighbors, neighbors),
	); err != nil {
		return out, err
	}
	for k := range stacks {
		out.stacks[k] = true
	}
	for k := range neighbors {
		out.neighbors[k] = true
	}
	return out, nil
}

func (p mapPlan) apply(o *programObjects) error {
	var errs []error
	for _, k := range p.addStacks {
		if err := o.Stacks.Update(k, uint8(1), ebpf.UpdateAny); err != nil {
			errs = append(errs, fmt.Errorf("take %s: %w", k, err))
		}
	}
	for k, flow := range p.setFlows {
		if err := o.Flows.Update(k, flow, ebpf.UpdateAny); err != nil {
			errs = append(errs, fmt.Errorf("open flow %s: %w", k, err))
		}
	}
	for _, k := range p.addNeighbors {
		if err := o.Neighbors.Update(k, uint8(1), ebpf.UpdateAny); err != nil {
			errs = append(errs, fmt.Errorf("open neighbour %s: %w", k, err))
		}
	}
	for _, k := range p.dropFlows {
		if err := o.Flows.Delete(k); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			errs = append(errs, fmt.Errorf("close flow %s: %w", k, err))
		}
	}
	for _, k := range p.dropNeighbors {
		if err := o.Neighbors.Delete(k); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			errs = append(errs, fmt.Errorf("close neighbour %s: %w", k, err))
		}
	}
	for _, k := range p.dropStacks {
		if err := o.Stacks.Delete(k); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			errs = append(errs, fmt.Errorf("give up %s: %w", k, err))
		}
	}
	// Maps have no order, and the same faults should read the same each time.
	slices.SortFunc(errs, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	return errors.Join(errs...)
}

// forget closes all that the maps hold for an interface index.
func (g *Guard) forget(ifindex uint32) error {
	have, err := readMaps(g.objects)
	if err != nil {
		return err
	}
	want := newMapState()
	for k := range have.stacks {
		if k.Ifindex != ifindex {
			want.stacks[k] = true
		}
	}
	for k, flow := range have.flows {
		if k.Ifindex != ifindex {
			want.flows[k] = flow
		}
	}
	for k := range have.neighbors {
		if k.Ifindex != ifindex {
			want.neighbors[k] = true
		}
	}
	return diffMaps(want, have).apply(g.objects)
}

// String names tags, the outer one first, and the interface that they are on.
func (k programStackKey) String() string {
	switch outer := k.Tags >> 16; {
	case outer != 0:
		return fmt.Sprintf("VLAN %d.%d on interface %d", outer, k.Tags&vlanID, k.Ifindex)
	case k.Tags != 0:
		return fmt.Sprintf("VLAN %d on interface %d", k.Tags, k.Ifindex)
	}
	return fmt.Sprintf("interface %d", k.Ifindex)
}

func (k programFlowKey) String() string {
	on := programStackKey{Ifindex: k.Ifindex, Tags: k.Tags}
	if k.Protocol == protocolESP {
		return fmt.Sprintf("ESP %s -> %s on %s", hostAddr(k.Local), hostAddr(k.Remote), on)
	}
	return fmt.Sprintf("%s -> %s on %s", netip.AddrPortFrom(hostAddr(k.Local), hostPort(k.LocalPort)),
		netip.AddrPortFrom(hostAddr(k.Remote), hostPort(k.RemotePort)), on)
}

func (k programNeighbor) String() string {
	return fmt.Sprintf("%s of %s on %s", hostAddr(k.Remote), hostAddr(k.Local), programStackKey{Ifindex: k.Ifindex, Tags: k.Tags})
}

// version is that of the packets with this address.
func version(a netip.Addr) uint8 {
	if a.Is4() {
		return 4
	}
	return 6
}

func hostAddr(b [16]byte) netip.Addr { return netip.AddrFrom16(b).Unmap() }

// The maps hold ports in network byte order.

func wirePort(p uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, p))
}

func hostPort(v uint16) uint16 {
	return binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, v))
}
