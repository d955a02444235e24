// Package devconf reads and sets what the kernel does of its own accord on
// network interfaces: net.ipv4.conf and net.ipv6.conf. One netlink dump tells
// the settings of all interfaces of a namespace, where the sysctl tree takes
// three system calls for each setting of each. It knows names and numbers of
// settings and refuses to know which are wanted.
package devconf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Family is "ipv4" or "ipv6", as the sysctl tree spells it.
type Family string

// The families.
const (
	IPv4 Family = "ipv4"
	IPv6 Family = "ipv6"
)

// Setting is one value of one interface, "all" or "default".
type Setting struct {
	Family Family
	Name   string
	Value  int32
}

func (s Setting) path(scope string) string {
	return filepath.Join("/proc/sys/net", string(s.Family), "conf", scope, s.Name)
}

// On is the setting of an interface, "all" or "default" as sysctl(8) spells it.
func (s Setting) On(scope string) string {
	return fmt.Sprintf("net.%s.conf.%s.%s=%d", s.Family, scope, s.Name, s.Value)
}

// Where a setting stands in what netlink tells: IPV4_DEVCONF_* less one
// (include/uapi/linux/ip.h) in IFLA_INET_CONF, DEVCONF_* (include/uapi/linux/
// ipv6.h) in IFLA_INET6_CONF.
var (
	places4 = map[string]int{
		"forwarding": 0, "accept_redirects": 3, "send_redirects": 5, "rp_filter": 7, "accept_source_route": 8,
		"arp_announce": 17, "arp_ignore": 18, "promote_secondaries": 19,
	}
	places6 = map[string]int{
		"forwarding": 0, "accept_ra": 3, "accept_redirects": 4, "disable_ipv6": 26, "use_oif_addrs_only": 37,
		"force_forwarding": 59, // since Linux 6.17
	}
)

// AddrGenMode is how an interface makes itself a link-local address; NoAddress is
// not at all (IN6_ADDR_GEN_MODE_NONE, include/uapi/linux/if_link.h). It is no
// entry of IFLA_INET6_CONF but IFLA_INET6_ADDR_GEN_MODE.
const (
	AddrGenMode = "addr_gen_mode"
	NoAddress   = 1
)

// The attributes of IFLA_AF_SPEC (include/uapi/linux/if_link.h).
const (
	inetConf         = 1
	inet6Conf        = 2
	inet6AddrGenMode = 8
)

// View is the settings of all interfaces of a namespace at one moment.
type View struct {
	interfaces map[string]values
}

type values struct {
	// v4 and v6 are empty where the interface has not that family.
	v4, v6  []int32
	genMode int32
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
	return View{}, errors.New("read the settings of interfaces: the kernel interrupts every dump")
}

func read() (View, error) {
	request := nl.NewNetlinkRequest(unix.RTM_GETLINK, unix.NLM_F_DUMP)
	request.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	messages, err := request.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWLINK)
	if err != nil {
		return View{}, fmt.Errorf("read the settings of interfaces: %w", err)
	}
	v := View{interfaces: make(map[string]values, len(messages))}
	for _, m := range messages {
		name, x, err := parse(m)
		if err != nil {
			return View{}, fmt.Errorf("read the settings of interfaces: %w", err)
		}
		v.interfaces[name] = x
	}
	return v, nil
}

func parse(m []byte) (name string, x values, err error) {
	if len(m) < unix.SizeofIfInfomsg {
		return "", x, errors.New("a message without a header")
	}
	attributes, err := nl.ParseRouteAttr(m[unix.SizeofIfInfomsg:])
	if err != nil {
		return "", x, err
	}
	for _, a := range attributes {
		switch a.Attr.Type &^ unix.NLA_F_NESTED {
		case unix.IFLA_IFNAME:
			name = unix.ByteSliceToString(a.Value)
		case unix.IFLA_AF_SPEC:
			families, err := nl.ParseRouteAttr(a.Value)
			if err != nil {
				return "", x, err
			}
			for _, f := range families {
				if err := x.take(f.Attr.Type&^unix.NLA_F_NESTED, f.Value); err != nil {
					return "", x, err
				}
			}
		}
	}
	if name == "" {
		return "", x, errors.New("an interface without a name")
	}
	return name, x, nil
}

func (x *values) take(family uint16, raw []byte) error {
	if family != unix.AF_INET && family != unix.AF_INET6 {
		return nil
	}
	attributes, err := nl.ParseRouteAttr(raw)
	if err != nil {
		return err
	}
	for _, a := range attributes {
		switch {
		case family == unix.AF_INET && a.Attr.Type == inetConf:
			x.v4 = array(a.Value)
		case family == unix.AF_INET6 && a.Attr.Type == inet6Conf:
			x.v6 = array(a.Value)
		case family == unix.AF_INET6 && a.Attr.Type == inet6AddrGenMode && len(a.Value) > 0:
			x.genMode = int32(a.Value[0])
		}
	}
	return nil
}

func array(raw []byte) []int32 {
	all := make([]int32, 0, len(raw)/4)
	for ; len(raw) >= 4; raw = raw[4:] {
		all = append(all, int32(binary.NativeEndian.Uint32(raw)))
	}
	return all
}

// Has reports whether there was an interface of that name.
func (v View) Has(name string) bool {
	_, ok := v.interfaces[name]
	return ok
}

// Get is the value of a setting of an interface; false where the view does not
// tell, such as of an interface that came later.
func (v View) Get(name string, family Family, setting string) (int32, bool) {
	x, ok := v.interfaces[name]
	if !ok {
		return 0, false
	}
	all, places := x.v4, places4
	if family == IPv6 {
		all, places = x.v6, places6
		if setting == AddrGenMode && len(x.v6) > 0 {
			return x.genMode, true
		}
	}
	i, known := places[setting]
	if !known || i >= len(all) {
		return 0, false
	}
	return all[i], true
}

// Ensure sets what differs from want on an interface, in the order of want, and
// hands what it has set to changed. It works on the calling thread's namespace,
// which has to be that of the view. A setting that the kernel does not have, as of
// a family or an interface that is not there, is no error. Errors are joined.
func (v View) Ensure(name string, want []Setting, changed func(Setting)) error {
	var errs []error
	for _, s := range want {
		if have, ok := v.Get(name, s.Family, s.Name); ok && have == s.Value {
			continue
		}
		errs = append(errs, Ensure(name, s, changed))
	}
	return errors.Join(errs...)
}

// Known reports whether the kernel has a family at all.
func Known(f Family) bool {
	_, err := os.Stat(filepath.Join("/proc/sys/net", string(f), "conf"))
	return err == nil
}

// Of is what a setting is now for an interface, "all" or "default" of the calling
// thread's namespace, whatever Value s has; false where the kernel has not that
// setting.
func Of(scope string, s Setting) (value int32, ok bool, err error) {
	b, err := os.ReadFile(s.path(scope))
	if errors.Is(err, os.ErrNotExist) {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, fmt.Errorf("read %s: %w", s.path(scope), err)
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 32)
	if err != nil {
		return 0, false, fmt.Errorf("read %s: %w", s.path(scope), err)
	}
	return int32(n), true, nil
}

// Ensure is View.Ensure for one setting of an interface, of "all" or of
// "default", without a view.
func Ensure(scope string, s Setting, changed func(Setting)) error {
	have, ok, err := Of(scope, s)
	if err != nil || !ok || have == s.Value {
		return err
	}
	path := s.path(scope)
	if err := os.WriteFile(path, strconv.AppendInt(nil, int64(s.Value), 10), 0); err != nil {
		return fmt.Errorf("set %s to %d: %w", path, s.Value, err)
	}
	changed(s)
	return nil
}
