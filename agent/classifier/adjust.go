package classifier

import (
	"context"
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"

	"github.com/circuitseal/circuitseal/agent/plan"
)

// Adjust puts the locals and remotes of a plan, or unless they shall be there
// removes them, and reads and writes nothing else. A prefix is put only where the kernel has its LAN or group
// already, and that is the same tenant's; removing one needs no such thing. What
// it could not do is an error, and left to Sync.
func (c *Classifier) Adjust(_ context.Context, prefixes plan.Classifier, there bool) error {
	if len(prefixes.Locals)+len(prefixes.Remotes) == 0 {
		return nil
	}
	c.pass.Lock()
	defer c.pass.Unlock()
	if err := c.usable(); err != nil {
		return err
	}
	s := newState()
	var errs []error
	for _, l := range prefixes.Locals {
		var index uint32
		if there {
			var err error
			if index, err = c.lanOf(l); err != nil {
				errs = append(errs, err)
				continue
			}
		}
		put(s.locals, &errs, "local", l.Tenant, l.Prefix, bpfLocal{Ifindex: index})
	}
	for _, r := range prefixes.Remotes {
		if there {
			if err := c.groupOf(r); err != nil {
				errs = append(errs, err)
				continue
			}
		}
		put(s.remotes, &errs, "remote", r.Tenant, r.Prefix, bpfRemote{Group: r.Group})
	}
	c.log.Info("change the classifier", "puts", counted(there, s), "removes", counted(!there, s), "attach", 0, "replace", 0, "detach", 0)
	none := newState()
	if there {
		return errors.Join(append(errs, putAll(c.config.Drift, c.objects.Locals, "local", diffTable(s.locals, none.locals)),
			putAll(c.config.Drift, c.objects.Remotes, "remote", diffTable(s.remotes, none.remotes)))...)
	}
	return errors.Join(append(errs, removeAll(c.config.Drift, c.objects.Remotes, "remote", diffTable(none.remotes, s.remotes)),
		removeAll(c.config.Drift, c.objects.Locals, "local", diffTable(none.locals, s.locals)))...)
}

func counted(yes bool, s state) int {
	if !yes {
		return 0
	}
	return len(s.locals) + len(s.remotes)
}

// lanOf is the index of a local prefix's LAN, if the programs know that as the
// same tenant's.
func (c *Classifier) lanOf(l plan.Local) (uint32, error) {
	link, err := c.netlink.LinkByName(l.Interface)
	if err != nil {
		return 0, fmt.Errorf("local prefix %s of tenant %d: look up interface %s: %w", l.Prefix, l.Tenant, l.Interface, err)
	}
	index, err := lanIndex(link, l)
	if err != nil {
		return 0, err
	}
	var p bpfPort
	if err := c.objects.Ports.Lookup(&index, &p); err != nil || p.Kind != bpfPortKindPORT_LAN || p.Tenant != l.Tenant {
		return 0, fmt.Errorf("local prefix %s of tenant %d: %s is no LAN of this tenant's yet", l.Prefix, l.Tenant, l.Interface)
	}
	return index, nil
}

func lanIndex(link netlink.Link, l plan.Local) (uint32, error) {
	if a := link.Attrs(); a.Name == l.Interface {
		return uint32(a.Index), nil
	}
	return 0, fmt.Errorf("local prefix %s of tenant %d: %s is another name of %s", l.Prefix, l.Tenant, l.Interface, link.Attrs().Name)
}

// groupOf wants the kernel to have a remote prefix's group as the same tenant's.
func (c *Classifier) groupOf(r plan.Remote) error {
	var g bpfGroup
	if err := c.objects.Groups.Lookup(&r.Group, &g); err != nil || g.Tenant != r.Tenant {
		return fmt.Errorf("remote prefix %s of tenant %d: there is no group %d of this tenant's yet", r.Prefix, r.Tenant, r.Group)
	}
	return nil
}
