package classifier

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/circuitseal/circuitseal/agent/tchook"
)

// otherLayouts are the directories in which agents of other layouts pinned.
func (c *Classifier) otherLayouts() ([]string, error) {
	list, err := filepath.Glob(filepath.Join(filepath.Dir(c.directory), layoutPrefix+"*"))
	if err != nil {
		return nil, fmt.Errorf("list layouts: %w", err)
	}
	return slices.DeleteFunc(list, func(path string) bool { return path == c.directory }), nil
}

// sweepLayouts removes what another layout left, once this one has taken over
// what it needs: see adoptOrphan.
func (c *Classifier) sweepLayouts() error {
	others, err := c.otherLayouts()
	if err != nil || len(others) == 0 {
		return err
	}
	have, err := c.hooks.Own()
	if err != nil {
		return err
	}
	return c.removeLayouts(others, have)
}

// removeLayouts detaches what is not among taken, and deletes all pins.
func (c *Classifier) removeLayouts(directories []string, taken []tchook.Attachment) error {
	var errs []error
	for _, directory := range directories {
		c.log.Info("remove what another version of the agent left", "directory", directory)
		if err := c.removeLayout(directory, taken); err != nil {
			errs = append(errs, fmt.Errorf("remove %s: %w", directory, err))
		}
	}
	return errors.Join(errs...)
}

func (c *Classifier) removeLayout(directory string, taken []tchook.Attachment) error {
	former, err := c.hooks.Former(directory)
	if err != nil {
		return err
	}
	for _, a := range former {
		if slices.ContainsFunc(taken, a.Is) {
			continue
		}
		if err := c.hooks.Detach(a); err != nil {
			return err
		}
	}
	entries, err := os.ReadDir(directory)
	errs := []error{err}
	for _, e := range entries {
		errs = append(errs, os.Remove(filepath.Join(directory, e.Name())))
	}
	return errors.Join(append(errs, os.Remove(directory))...)
}

// sweepOther removes, once, what is left of another way of attaching.
func (c *Classifier) sweepOther() error {
	if c.swept {
		return nil
	}
	err := c.hooks.DetachOther()
	c.swept = err == nil
	return err
}
