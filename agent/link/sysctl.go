package link

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/circuitseal/circuitseal/agent/drift"
)

const procNet = "/proc/sys/net"

type sysctl struct{ name, value string }

// Of "all" and an interface's own value the kernel takes the larger one for
// rp_filter, arp_ignore and arp_announce (include/linux/inetdevice.h), so both
// are set. "default" is what an interface gets at the moment it arrives.
var (
	ipv4Quiet = []sysctl{
		{"forwarding", "0"},
		// Marked packets leave by one table and come back by another.
		{"rp_filter", "0"},
		// Answer for an address of this interface to its own subnet only.
		{"arp_ignore", "2"},
		{"arp_announce", "2"},
		{"accept_redirects", "0"},
		{"send_redirects", "0"},
		{"accept_source_route", "0"},
		// Removing an address must not take others of its subnet along.
		{"promote_secondaries", "1"},
	}
	ipv6Quiet = []sysctl{
		{"disable_ipv6", "1"},
		{"forwarding", "0"},
		{"accept_ra", "0"},
		{"accept_redirects", "0"},
	}
	// addr_gen_mode 1 is IN6_ADDR_GEN_MODE_NONE (include/uapi/linux/if_link.h);
	// "all" cannot be set before anything exists and is not needed.
	noLinkLocal = sysctl{"addr_gen_mode", "1"}
)

// silenceNamespace works on the calling thread's namespace.
func (d *Driver) silenceNamespace() error {
	var errs []error
	for _, scope := range []string{"default", "all"} {
		for _, s := range ipv4Quiet {
			errs = append(errs, d.setSysctl("ipv4", scope, s))
		}
		for _, s := range ipv6Quiet {
			errs = append(errs, d.setSysctl("ipv6", scope, s))
		}
	}
	return errors.Join(append(errs, d.setSysctl("ipv6", "default", noLinkLocal))...)
}

func (d *Driver) silenceInterface(name string) error {
	var errs []error
	for _, s := range ipv4Quiet {
		errs = append(errs, d.setSysctl("ipv4", name, s))
	}
	// First, so that enabling IPv6 by hand later makes no address.
	errs = append(errs, d.setSysctl("ipv6", name, noLinkLocal))
	for _, s := range ipv6Quiet {
		errs = append(errs, d.setSysctl("ipv6", name, s))
	}
	return errors.Join(errs...)
}

// setSysctl writes only what differs. A kernel without the family has nothing
// to set.
func (d *Driver) setSysctl(family, scope string, s sysctl) error {
	path := filepath.Join(procNet, family, "conf", scope, s.name)
	have, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		if _, err := os.Stat(filepath.Join(procNet, family, "conf", "all")); errors.Is(err, os.ErrNotExist) {
			return nil
		}
	}
	if err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	if strings.TrimSpace(string(have)) == s.value {
		return nil
	}
	if err := os.WriteFile(path, []byte(s.value), 0); err != nil {
		return fmt.Errorf("set %s to %s: %w", path, s.value, err)
	}
	d.config.Drift.Note(drift.Sysctl, drift.Text(strings.ReplaceAll(strings.TrimPrefix(path, "/proc/sys/"), "/", ".")+"="+s.value))
	return nil
}
