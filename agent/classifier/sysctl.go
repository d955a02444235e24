package classifier

import (
	"errors"
	"fmt"

	"github.com/circuitseal/circuitseal/agent/drift"
	"github.com/circuitseal/circuitseal/agent/netdev"
	"github.com/circuitseal/circuitseal/agent/plan"
)

// quiet is what a LAN interface needs beside the programs, which pass ARP and
// neighbour discovery: no LAN host routes the node.
var quiet = []netdev.Setting{
	{Family: netdev.IPv4, Name: "accept_redirects", Value: 0},
	{Family: netdev.IPv6, Name: "accept_ra", Value: 0},
	{Family: netdev.IPv6, Name: "accept_redirects", Value: 0},
}

// ownAddresses has the node answer for the addresses of this LAN only, not for
// another tenant's. A host's operator may be stricter.
var ownAddresses = netdev.Setting{Family: netdev.IPv4, Name: "arp_ignore", Value: 1}

// quietAll works on the calling thread's namespace.
func (c *Classifier) quietAll(p plan.Classifier, want state, f facts, view netdev.View) error {
	var errs []error
	for _, lan := range p.LANs {
		if _, ok := want.ports[f[lan.Interface].index]; !ok {
			continue
		}
		needs := quiet
		if have, ok := view.Get(lan.Interface, ownAddresses.Family, ownAddresses.Name); !ok || have < ownAddresses.Value {
			needs = append([]netdev.Setting{ownAddresses}, quiet...)
		}
		err := view.Ensure(lan.Interface, needs, func(s netdev.Setting) {
			c.config.Drift.Note(drift.ClassifierSysctl, drift.Text(s.On(lan.Interface)))
		})
		if err != nil {
			errs = append(errs, fmt.Errorf("LAN interface %s: %w", lan.Interface, err))
		}
	}
	return errors.Join(errs...)
}
