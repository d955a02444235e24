package guard

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/cilium/ebpf"

	"github.com/circuitseal/circuitseal/agent/tchook"
)

// layout names the directory of pins. A program of one layout never meets the
// maps of another: change it with every change to a map in bpf/layout.h.
const (
	layoutPrefix = "guard-v"
	layout       = layoutPrefix + "5"
)

// loadPrograms loads new copies of the programs onto the maps that are pinned
// in dir, which it makes when they are not there.
func loadPrograms(dir string) (*programObjects, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make directory for pins: %w", err)
	}
	objects := new(programObjects)
	err := loadProgramObjects(objects, &ebpf.CollectionOptions{Maps: ebpf.MapOptions{PinPath: dir}})
	switch {
	case errors.Is(err, ebpf.ErrMapIncompatible):
		return nil, fmt.Errorf("adopt maps in %s: %w: another program pinned them", dir, err)
	case err != nil:
		return nil, fmt.Errorf("load guard programs: %w", err)
	}
	// Takes what no interface's entry takes.
	if err := ensureCounters(objects.Counters, 0); err != nil {
		return nil, errors.Join(err, objects.Close())
	}
	return objects, nil
}

// load replaces the programs that are loaded.
func (g *Guard) load() error {
	objects, err := loadPrograms(g.pins)
	if err != nil {
		return err
	}
	ids := map[tchook.Direction]ebpf.ProgramID{}
	for _, h := range hooks {
		if ids[h.direction], err = programID(h.program(objects)); err != nil {
			return errors.Join(err, objects.Close())
		}
	}
	err = g.unload()
	g.objects, g.ids = objects, ids
	return err
}

// loaded reports whether the programs are there and use the maps that are
// pinned: somebody may have unmounted the bpffs.
func (g *Guard) loaded() bool {
	if g.objects == nil {
		return false
	}
	for name, m := range map[string]*ebpf.Map{
		programMapStacks:    g.objects.Stacks,
		programMapFlows:     g.objects.Flows,
		programMapNeighbors: g.objects.Neighbors,
		programMapCounters:  g.objects.Counters,
	} {
		if !samePinned(filepath.Join(g.pins, name), m) {
			return false
		}
	}
	return true
}

func samePinned(path string, m *ebpf.Map) bool {
	there, err := ebpf.LoadPinnedMap(path, nil)
	if err != nil {
		return false
	}
	defer func() { _ = there.Close() }()
	a, errA := mapID(there)
	b, errB := mapID(m)
	return errA == nil && errB == nil && a == b
}

func mapID(m *ebpf.Map) (ebpf.MapID, error) {
	info, err := m.Info()
	if err != nil {
		return 0, err
	}
	id, _ := info.ID()
	return id, nil
}

// ensureCounters makes the entry of an interface and leaves one that is there.
func ensureCounters(m *ebpf.Map, ifindex uint32) error {
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return fmt.Errorf("count CPUs: %w", err)
	}
	zero := make([]programCounts, cpus)
	if err := m.Update(ifindex, zero, ebpf.UpdateNoExist); err != nil && !errors.Is(err, ebpf.ErrKeyExist) {
		return fmt.Errorf("make counters of interface %d: %w", ifindex, err)
	}
	return nil
}

// layouts are the directories of pins in a bpffs, of this layout and others.
func layouts(bpffs string) ([]string, error) {
	entries, err := os.ReadDir(bpffs)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list pins: %w", err)
	}
	var out []string
	for _, e := range entries {
		if e.IsDir() && strings.HasPrefix(e.Name(), layoutPrefix) {
			out = append(out, filepath.Join(bpffs, e.Name()))
		}
	}
	return out, nil
}

// removeLayout detaches what is pinned in dir, and removes all that is in it.
func removeLayout(tc *tchook.Hooks, dir string) error {
	former, err := tc.Former(dir)
	errs := []error{err}
	for _, a := range former {
		errs = append(errs, tc.Detach(a))
	}
	entries, err := os.ReadDir(dir)
	errs = append(errs, err)
	for _, e := range entries {
		errs = append(errs, os.Remove(filepath.Join(dir, e.Name())))
	}
	errs = append(errs, os.Remove(dir))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove pins: %w", err)
	}
	return nil
}
