// Package netdev tells what network interfaces a namespace has and what the
// kernel does on them of its own accord (net.ipv4.conf and net.ipv6.conf), all in
// one netlink dump, where asking for each interface and reading the sysctl tree
// takes several system calls for each of hundreds. It sets such settings, gives and
// takes addresses of tunnels' devices, and removes these, whatever made them. It knows
// names and numbers, and refuses to know which interfaces and settings are wanted.
package netdev

import (
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"math"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/circuitseal/circuitseal/agent/nlmsg"
)

// Interface is one network interface, as rtnetlink(7) tells it.
type Interface struct {
	Name  string
	Index int
	MTU   int
	// Flags are IFF_* (netdevice(7)).
	Flags uint32
	// Ethernet tells that frames have Ethernet headers (ARPHRD_ETHER).
	Ethernet bool
	// Kind is IFLA_INFO_KIND, such as "veth"; empty for physical ones.
	Kind string
	// Parent is IFLA_LINK: a VLAN device's lower interface, or the other end of a
	// veth pair; 0 for none. Away is the number of the namespace where that is
	// (IFLA_LINK_NETNSID), -1 for this one.
	Parent, Away int
	// XDP tells that a program of XDP is attached.
	XDP bool

	settings settings
}

// View is all interfaces of a namespace at one moment.
type View struct {
	all    []Interface
	byName map[string]int
}

// All are the interfaces in the order in which the kernel tells them.
func (v View) All() iter.Seq[Interface] {
	return func(yield func(Interface) bool) {
		for _, i := range v.all {
			if !yield(i) {
				return
			}
		}
	}
}

// Len is how many there are.
func (v View) Len() int { return len(v.all) }

// Named finds an interface by its own name, not by an alternative one.
func (v View) Named(name string) (Interface, bool) {
	i, ok := v.byName[name]
	if !ok {
		return Interface{}, false
	}
	return v.all[i], true
}

// Has reports whether there was an interface of that name.
func (v View) Has(name string) bool {
	_, ok := v.byName[name]
	return ok
}

// Read reads the calling thread's namespace. A dump that the kernel says was
// interrupted is repeated.
func Read() (View, error) {
	for range 8 {
		v, err := read()
		if !errors.Is(err, nl.ErrDumpInterrupted) && !errors.Is(err, unix.EINTR) {
			return v, err
		}
	}
	return View{}, errors.New("list interfaces: the kernel interrupts every dump")
}

// skipStatistics is RTEXT_FILTER_SKIP_STATS (include/uapi/linux/rtnetlink.h): a
// quarter of what the kernel would write are counters that nobody here reads.
// Kernels of before 2025 leave AddrGenMode out with them, which View then does not
// tell.
const skipStatistics = 1 << 3

func read() (View, error) {
	request := nl.NewNetlinkRequest(unix.RTM_GETLINK, unix.NLM_F_DUMP)
	request.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	request.AddData(nl.NewRtAttr(unix.IFLA_EXT_MASK, nl.Uint32Attr(skipStatistics)))
	v := View{byName: map[string]int{}}
	var bad error
	err := request.ExecuteIter(unix.NETLINK_ROUTE, unix.RTM_NEWLINK, func(m []byte) bool {
		var i Interface
		if i, bad = parse(m); bad != nil {
			return false
		}
		v.byName[i.Name] = len(v.all)
		v.all = append(v.all, i)
		return true
	})
	if err = errors.Join(err, bad); err != nil {
		return View{}, fmt.Errorf("list interfaces: %w", err)
	}
	return v, nil
}

func parse(m []byte) (i Interface, err error) {
	if len(m) < unix.SizeofIfInfomsg {
		return i, errors.New("a message without a header")
	}
	i.Away = -1
	i.settings = noSettings
	i.Ethernet = binary.NativeEndian.Uint16(m[2:]) == unix.ARPHRD_ETHER
	i.Index = int(int32(binary.NativeEndian.Uint32(m[4:])))
	i.Flags = binary.NativeEndian.Uint32(m[8:])
	err = nlmsg.Attributes(m[unix.SizeofIfInfomsg:], func(kind uint16, value []byte) error {
		switch kind {
		case unix.IFLA_IFNAME:
			i.Name = unix.ByteSliceToString(value)
		case unix.IFLA_MTU:
			i.MTU = int(number(value))
		case unix.IFLA_LINK:
			i.Parent = int(number(value))
		case unix.IFLA_LINK_NETNSID:
			i.Away = int(number(value))
		case unix.IFLA_LINKINFO:
			return nlmsg.Attributes(value, func(kind uint16, value []byte) error {
				if kind == unix.IFLA_INFO_KIND {
					i.Kind = unix.ByteSliceToString(value)
				}
				return nil
			})
		case unix.IFLA_XDP:
			return nlmsg.Attributes(value, func(kind uint16, value []byte) error {
				if kind == unix.IFLA_XDP_ATTACHED {
					i.XDP = len(value) > 0 && value[0] != 0
				}
				return nil
			})
		case unix.IFLA_AF_SPEC:
			return nlmsg.Attributes(value, i.settings.take)
		}
		return nil
	})
	if err == nil && i.Name == "" {
		err = errors.New("an interface without a name")
	}
	return i, err
}

// number is a value of 32 bits with a sign, 0 for another length.
func number(value []byte) int32 {
	if len(value) != 4 {
		return 0
	}
	return int32(binary.NativeEndian.Uint32(value))
}

// settings are those of one interface; absent where the kernel does not tell.
type settings struct {
	v4         [last4 + 1]int32
	v6         [last6 + 1]int32
	genMode    int32
	hasGenMode bool
}

// absent is a value that no setting here has.
const absent = math.MinInt32

var noSettings = func() (s settings) {
	for i := range s.v4 {
		s.v4[i] = absent
	}
	for i := range s.v6 {
		s.v6[i] = absent
	}
	return s
}()

// The attributes of IFLA_AF_SPEC (include/uapi/linux/if_link.h).
const (
	inetConf         = 1
	inet6Conf        = 2
	inet6AddrGenMode = 8
)

func (s *settings) take(family uint16, raw []byte) error {
	if family != unix.AF_INET && family != unix.AF_INET6 {
		return nil
	}
	return nlmsg.Attributes(raw, func(kind uint16, value []byte) error {
		switch {
		case family == unix.AF_INET && kind == inetConf:
			fill(s.v4[:], value)
		case family == unix.AF_INET6 && kind == inet6Conf:
			fill(s.v6[:], value)
		case family == unix.AF_INET6 && kind == inet6AddrGenMode && len(value) > 0:
			s.genMode, s.hasGenMode = int32(value[0]), true
		}
		return nil
	})
}

// fill takes an array of the kernel's, which may be longer or shorter.
func fill(into []int32, raw []byte) {
	for i := 0; i < len(into) && len(raw) >= 4; i, raw = i+1, raw[4:] {
		into[i] = int32(binary.NativeEndian.Uint32(raw))
	}
}
