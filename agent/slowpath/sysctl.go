package slowpath

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/circuitseal/circuitseal/agent/drift"
)

const procNet = "/proc/sys/net"

// sysctl is a path below procNet and what it must say. The part %s is an
// interface, "all", or "default", which an interface gets when it arrives.
type sysctl struct{ path, value string }

var (
	// Answers carry the mark of what they answer, and so take its LAN's table.
	reflects = []sysctl{
		{"ipv4/fwmark_reflect", "1"},
		{"ipv6/fwmark_reflect", "1"},
	}
	// Whatever else the kernel does by itself is off. addr_gen_mode 1 is
	// IN6_ADDR_GEN_MODE_NONE (include/uapi/linux/if_link.h).
	routing = []sysctl{
		{"ipv4/conf/%s/forwarding", "1"},
		{"ipv4/conf/%s/rp_filter", "0"},
		{"ipv4/conf/%s/send_redirects", "0"},
		{"ipv4/conf/%s/accept_redirects", "0"},
		{"ipv4/conf/%s/accept_source_route", "0"},
		// No LAN's address serves for another LAN.
		{"ipv6/conf/%s/use_oif_addrs_only", "1"},
		{"ipv6/conf/%s/disable_ipv6", "0"},
		{"ipv6/conf/%s/accept_ra", "0"},
		{"ipv6/conf/%s/accept_redirects", "0"},
	}
	forwarding6 = "ipv6/conf/%s/forwarding"
	noAddress   = sysctl{"ipv6/conf/%s/addr_gen_mode", "1"}
	// An end in the main namespace takes part in nothing there.
	apart = []sysctl{
		{"ipv4/conf/%s/forwarding", "0"},
		{"ipv6/conf/%s/disable_ipv6", "1"},
	}
)

// prepareNamespace works on the calling thread's namespace.
func (d *Driver) prepareNamespace() error {
	l := d.config.Drift
	errs := []error{noAddress.set(l, "default")}
	for _, s := range reflects {
		errs = append(errs, s.set(l, ""))
	}
	for _, scope := range []string{"default", "all"} {
		for _, s := range routing {
			errs = append(errs, s.set(l, scope))
		}
	}
	// The first sets the second too. A new interface is silent before it
	// forwards.
	errs = append(errs, sysctl{forwarding6, "1"}.set(l, "all"), sysctl{forwarding6, "0"}.set(l, "default"))
	return errors.Join(errs...)
}

// prepareEnds is for pairs that are there, before they are up.
func (d *Driver) prepareEnds(h handles, names []string) error {
	each := func(list []sysctl) func() error {
		return func() error {
			var errs []error
			for _, name := range names {
				for _, s := range list {
					errs = append(errs, s.set(d.config.Drift, name))
				}
			}
			return errors.Join(errs...)
		}
	}
	return errors.Join(h.mainNS.Do(each(apart)), h.away.Do(each(append([]sysctl{noAddress, {forwarding6, "1"}}, routing...))))
}

// set writes only what differs. What the kernel does not have, such as IPv6 or
// an interface that has just gone, needs no setting. l takes note.
func (s sysctl) set(l *drift.Ledger, scope string) error {
	path := filepath.Join(procNet, strings.ReplaceAll(s.path, "%s", scope))
	have, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err == nil && strings.TrimSpace(string(have)) != s.value {
		if err = os.WriteFile(path, []byte(s.value), 0); err == nil {
			l.Note(drift.SlowSysctl, drift.Text(path+"="+s.value))
		}
	}
	if err != nil {
		return fmt.Errorf("set %s to %s: %w", path, s.value, err)
	}
	return nil
}
