package tchook

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/circuitseal/circuitseal/agent/netns"
	"github.com/circuitseal/circuitseal/agent/nlmsg"
)

// tcDump lists qdiscs and filters. The netlink library reads the options of all
// kinds and fails at one that it cannot read, so that anybody's filter on any
// interface could keep us from ours. Here nothing but a bpf filter's options is
// read.
type tcDump struct {
	sockets map[int]*nl.SocketHandle
}

func openDump(n netns.Namespace) (d tcDump, err error) {
	err = n.Do(func() error {
		s, err := nl.Subscribe(unix.NETLINK_ROUTE)
		if err != nil {
			return fmt.Errorf("open netlink socket: %w", err)
		}
		d.sockets = map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: {Socket: s}}
		return nil
	})
	return d, err
}

func (d tcDump) close() {
	for _, s := range d.sockets {
		s.Close()
	}
}

// kind is what a qdisc or filter is, and where.
type kind struct {
	ifindex int
	parent  uint32
	name    string
}

// filterInfo is what must be known of a filter.
type filterInfo struct {
	kind
	filter
	// The rest is of bpf filters.
	label   string
	program ebpf.ProgramID
	direct  bool
}

// qdiscs are those of all interfaces.
func (d tcDump) qdiscs() (all []kind, err error) {
	messages, err := d.dump(unix.RTM_GETQDISC, unix.RTM_NEWQDISC, &nl.TcMsg{})
	if err != nil {
		return nil, fmt.Errorf("list qdiscs: %w", err)
	}
	for _, m := range messages {
		k, _, err := parseKind(m)
		if err != nil {
			return nil, fmt.Errorf("list qdiscs: %w", err)
		}
		all = append(all, k)
	}
	return all, nil
}

// filters are those that every packet meets on a hook, in their order; none if
// there is no such interface.
func (d tcDump) filters(at Hook) (met []filterInfo, err error) {
	messages, err := d.dump(unix.RTM_GETTFILTER, unix.RTM_NEWTFILTER, &nl.TcMsg{Ifindex: int32(at.Ifindex), Parent: at.Direction.parent()})
	for i := 0; i < len(messages) && err == nil; i++ {
		var f filterInfo
		var ok bool
		if f, ok, err = parseFilter(messages[i]); ok {
			met = append(met, f)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("list %s filters of interface %d: %w", at.Direction, at.Ifindex, err)
	}
	return met, nil
}

func (d tcDump) dump(request int, answer uint16, about *nl.TcMsg) ([][]byte, error) {
	return netns.Dump(func() ([][]byte, error) {
		r := nl.NewNetlinkRequest(request, unix.NLM_F_DUMP)
		r.Sockets = d.sockets
		r.AddData(about)
		return r.Execute(unix.NETLINK_ROUTE, answer)
	})
}

// parseKind reads struct tcmsg and the attributes behind it.
func parseKind(m []byte) (k kind, attributes map[uint16][]byte, err error) {
	if len(m) < nl.SizeofTcMsg {
		return k, nil, fmt.Errorf("a message of %d bytes: %w", len(m), unix.EINVAL)
	}
	k.ifindex = int(int32(binary.NativeEndian.Uint32(m[4:])))
	k.parent = binary.NativeEndian.Uint32(m[12:])
	if attributes, err = parseAttributes(m[nl.SizeofTcMsg:]); err != nil {
		return k, nil, err
	}
	k.name = text(attributes[nl.TCA_KIND])
	return k, attributes, nil
}

// parseFilter tells with ok that every packet meets the filter.
func parseFilter(m []byte) (f filterInfo, ok bool, err error) {
	k, attributes, err := parseKind(m)
	if err != nil {
		return f, false, err
	}
	info := binary.NativeEndian.Uint32(m[16:])
	f.kind = k
	f.filter = filter{
		preference: uint16(info >> 16), protocol: binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, uint16(info))),
		handle: binary.NativeEndian.Uint32(m[8:]),
	}
	options, detailed := attributes[nl.TCA_OPTIONS]
	// Other chains are met only by those whom a filter sends there. What has no
	// options is a preference, which is listed before its filters.
	if !detailed || number(attributes[nl.TCA_CHAIN]) != 0 {
		return f, false, nil
	}
	switch k.name {
	case "u32":
		// A hash table is listed like a filter, and has no selector.
		list, err := parseAttributes(options)
		_, selects := list[nl.TCA_U32_SEL]
		return f, selects || err != nil, nil
	case "bpf":
		list, err := parseAttributes(options)
		if err != nil {
			return f, false, err
		}
		f.label, f.program = text(list[nl.TCA_BPF_NAME]), ebpf.ProgramID(number(list[nl.TCA_BPF_ID]))
		f.direct = number(list[nl.TCA_BPF_FLAGS])&nl.TCA_BPF_FLAG_ACT_DIRECT != 0
	}
	return f, true, nil
}

// parseAttributes reads a list of attributes; of one type the last counts.
func parseAttributes(b []byte) (map[uint16][]byte, error) {
	all := map[uint16][]byte{}
	err := nlmsg.Attributes(b, func(kind uint16, value []byte) error {
		all[kind] = value
		return nil
	})
	if err != nil {
		return nil, err
	}
	return all, nil
}

func text(b []byte) string { return string(bytes.TrimRight(b, "\x00")) }

func number(b []byte) uint32 {
	if len(b) < 4 {
		return 0
	}
	return binary.NativeEndian.Uint32(b)
}
