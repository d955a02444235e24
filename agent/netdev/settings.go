package netdev

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
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
const (
	last4 = 19
	last6 = 59
)

var (
	places4 = map[string]int{
		"forwarding": 0, "accept_redirects": 3, "send_redirects": 5, "rp_filter": 7, "accept_source_route": 8,
		"arp_announce": 17, "arp_ignore": 18, "promote_secondaries": 19,
	}
	places6 = map[string]int{
		"forwarding": 0, "accept_ra": 3, "accept_redirects": 4, "disable_ipv6": 26, "accept_dad": 27, "use_oif_addrs_only": 37,
		"force_forwarding": 59, // since Linux 6.17
	}
)

// AddrGenMode is how an interface makes itself a link-local address; NoAddress is
// not at all, HardwareAddress of its hardware address (IN6_ADDR_GEN_MODE_NONE and
// _EUI64, include/uapi/linux/if_link.h). It is no
// entry of IFLA_INET6_CONF but IFLA_INET6_ADDR_GEN_MODE.
const (
	AddrGenMode     = "addr_gen_mode"
	HardwareAddress = 0
	NoAddress       = 1
)

// Get is the value of a setting of an interface; false where the view does not
// tell, such as of an interface that came later.
func (v View) Get(name string, family Family, setting string) (int32, bool) {
	i, ok := v.byName[name]
	if !ok {
		return 0, false
	}
	x := v.all[i].settings
	if setting == AddrGenMode {
		return x.genMode, family == IPv6 && x.hasGenMode
	}
	values, places := x.v4[:], places4
	if family == IPv6 {
		values, places = x.v6[:], places6
	}
	p, known := places[setting]
	if !known || p >= len(values) || values[p] == absent {
		return 0, false
	}
	return values[p], true
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
