package classifier

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/cilium/ebpf/link"
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
	pins, err := c.readPins()
	if err != nil {
		return err
	}
	defer pins.close()
	taken := map[link.ID]bool{}
	for a, p := range pins {
		info, err := p.link.Info()
		if err != nil {
			return fmt.Errorf("examine pin %s: %w", a.pinName(), err)
		}
		taken[info.ID] = true
	}
	return c.removeLayouts(others, taken)
}

// removeLayouts detaches what is not among these links, and deletes all pins.
func (c *Classifier) removeLayouts(directories []string, taken map[link.ID]bool) error {
	var errs []error
	for _, directory := range directories {
		c.log.Info("remove what another version of the agent left", "directory", directory)
		entries, err := os.ReadDir(directory)
		errs = append(errs, err)
		for _, e := range entries {
			path := filepath.Join(directory, e.Name())
			if _, ok := parsePin(e.Name()); ok {
				if err := detachUnless(path, taken); err != nil {
					errs = append(errs, fmt.Errorf("detach %s: %w", path, err))
					continue
				}
			}
			errs = append(errs, os.Remove(path))
		}
		errs = append(errs, os.Remove(directory))
	}
	return errors.Join(errs...)
}

func detachUnless(path string, taken map[link.ID]bool) error {
	l, err := link.LoadPinnedLink(path, nil)
	if err != nil {
		return err
	}
	info, err := l.Info()
	if err == nil && !taken[info.ID] {
		err = l.Detach()
	}
	return errors.Join(err, l.Close())
}
