package classifier

import (
	"errors"
	"fmt"
	"os"

	"github.com/cilium/ebpf"

	"github.com/circuitseal/circuitseal/agent/plan"
)

// SetAlive says which members of a group may carry flows, by member number; one
// that is not named keeps what the kernel has, perhaps from an earlier process.
// With none alive all carry. It is one map update, whatever the number of
// prefixes and flows, none when nothing changes, and holds until the next
// SetAlive, also over restarts. It does not wait for a Sync that is under way. The
// error wraps os.ErrNotExist if there is no such group.
func (c *Classifier) SetAlive(group uint32, alive map[uint16]bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	g, err := c.readGroup(group)
	if err != nil {
		return err
	}
	mask := g.Alive
	for i, m := range g.Members[:min(g.Count, plan.MaxMembers)] {
		up, known := alive[uint16(m.Number)]
		switch {
		case known && up:
			mask |= 1 << i
		case known:
			mask &^= 1 << i
		}
	}
	if g.Alive == mask {
		return nil
	}
	g.Alive = mask
	if err := c.objects.Groups.Update(&group, &g, ebpf.UpdateExist); err != nil {
		return fmt.Errorf("set alive members of group %d: %w", group, err)
	}
	return nil
}

// readGroup is called with mu held.
func (c *Classifier) readGroup(group uint32) (bpfGroup, error) {
	if err := c.usable(); err != nil {
		return bpfGroup{}, err
	}
	var g bpfGroup
	err := c.objects.Groups.Lookup(&group, &g)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return bpfGroup{}, fmt.Errorf("read group %d: %w", group, os.ErrNotExist)
	}
	if err != nil {
		return bpfGroup{}, fmt.Errorf("read group %d: %w", group, err)
	}
	return g, nil
}
