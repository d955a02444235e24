package classifier

import (
	"errors"
	"fmt"
	"os"

	"github.com/cilium/ebpf"
)

// SetAlive says which members of a group may carry flows: bit i for the
// group's i-th member in the plan of the last Sync. 0 means all. It is one map
// update, whatever the number of prefixes and flows, and holds until the next
// SetAlive, also over restarts. The error wraps os.ErrNotExist if there is no
// such group.
func (c *Classifier) SetAlive(group, mask uint32) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	g, err := c.readGroup(group)
	if err != nil {
		return err
	}
	if all := uint32(1<<g.Count - 1); mask&^all != 0 {
		return fmt.Errorf("set alive members of group %d: mask %b names more than its %d members", group, mask, g.Count)
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

// Alive is the mask that is in force, perhaps from an earlier process. The
// error wraps os.ErrNotExist if there is no such group.
func (c *Classifier) Alive(group uint32) (mask uint32, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	g, err := c.readGroup(group)
	return g.Alive, err
}

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
