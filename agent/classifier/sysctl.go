package classifier

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/circuitseal/circuitseal/agent/drift"
	"github.com/circuitseal/circuitseal/agent/plan"
)

// confDir has what the kernel does of its own on each interface, in the
// namespace of the thread that looks.
const confDir = "/proc/sys/net"

// quiet is what a LAN interface needs beside the programs, which pass ARP and
// neighbour discovery: the node answers for the addresses of this LAN only,
// not for another tenant's, and no LAN host routes the node.
var quiet = []struct{ family, name, value string }{
	{"ipv4", "arp_ignore", "1"},
	{"ipv4", "accept_redirects", "0"},
	{"ipv6", "accept_ra", "0"},
	{"ipv6", "accept_redirects", "0"},
}

// quietAll works on the calling thread's namespace.
func (c *Classifier) quietAll(p plan.Classifier, want state, f facts) error {
	var errs []error
	for _, lan := range p.LANs {
		if _, ok := want.ports[f[lan.Interface].index]; ok {
			errs = append(errs, c.quieten(lan.Interface))
		}
	}
	return errors.Join(errs...)
}

// quieten writes only what differs.
func (c *Classifier) quieten(name string) error {
	var errs []error
	for _, s := range quiet {
		path := filepath.Join(confDir, s.family, "conf", name, s.name)
		have, err := os.ReadFile(path)
		// A host without IPv6, or an interface too small for it, has none.
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		// A host's operator may be stricter about ARP.
		stricter := s.name == "arp_ignore" && strings.TrimSpace(string(have)) > s.value
		if err == nil && strings.TrimSpace(string(have)) != s.value && !stricter {
			if err = os.WriteFile(path, []byte(s.value), 0); err == nil {
				c.config.Drift.Note(drift.ClassifierSysctl, drift.Text(fmt.Sprintf("net.%s.conf.%s.%s=%s", s.family, name, s.name, s.value)))
			}
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("set %s of LAN interface %s to %s: %w", s.name, name, s.value, err))
		}
	}
	return errors.Join(errs...)
}
