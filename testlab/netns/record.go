package netns

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// recordDir holds, per lab, a record of what to clean up and a lock that its
// process holds while it lives.
const recordDir = "/run/circuitseal-lab"

// record is what a lab has made, written before each thing is made, so that a
// later run finds all leftovers of a killed one.
type record struct {
	Namespaces []string `json:"namespaces"`
	Instances  []string `json:"instances"`
	// Processes are those that the lab started.
	Processes []identity `json:"processes,omitempty"`
	// Dirs go as a whole.
	Dirs []string `json:"dirs,omitempty"`
}

// identity names a process for good: a pid comes back, a pid with its start
// time does not.
type identity struct {
	PID int `json:"pid"`
	// Start is field 22 of /proc/PID/stat, in clock ticks since boot.
	Start uint64 `json:"start"`
}

func recordPath(id string) string { return filepath.Join(recordDir, id+".json") }
func lockPath(id string) string   { return filepath.Join(recordDir, id+".lock") }

// lock takes the lock of a lab; ok is false while its process lives.
func lock(id string, flags int) (f *os.File, ok bool, err error) {
	f, err = os.OpenFile(lockPath(id), os.O_RDWR|flags, 0o600)
	if err != nil {
		return nil, false, fmt.Errorf("open the lab's lock: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, false, nil
		}
		return nil, false, fmt.Errorf("lock %s: %w", lockPath(id), err)
	}
	return f, true, nil
}

func (r *record) save(id string) error {
	b, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encode the lab's record: %w", err)
	}
	tmp := recordPath(id) + ".tmp"
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return fmt.Errorf("write the lab's record: %w", err)
	}
	if err := os.Rename(tmp, recordPath(id)); err != nil {
		return fmt.Errorf("keep the lab's record: %w", err)
	}
	return nil
}

func load(id string) (*record, error) {
	b, err := os.ReadFile(recordPath(id))
	if errors.Is(err, os.ErrNotExist) {
		return &record{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the lab's record: %w", err)
	}
	var r record
	if err := json.Unmarshal(b, &r); err != nil {
		return nil, fmt.Errorf("decode %s: %w", recordPath(id), err)
	}
	return &r, nil
}

// Sweep removes what labs of killed processes left behind. Labs whose process
// lives are not touched.
func Sweep() error {
	entries, err := os.ReadDir(recordDir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("list labs: %w", err)
	}
	var errs []error
	for _, e := range entries {
		id, isLock := strings.CutSuffix(e.Name(), ".lock")
		if !isLock {
			continue
		}
		f, ok, err := lock(id, 0)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
		if !ok {
			continue
		}
		errs = append(errs, sweepOne(id))
		_ = f.Close()
	}
	return errors.Join(errs...)
}

// sweepOne cleans up one lab whose lock the caller holds.
func sweepOne(id string) error {
	r, err := load(id)
	if err != nil {
		return err
	}
	if err := r.clean(); err != nil {
		return fmt.Errorf("clean up lab %s: %w", id, err)
	}
	return errors.Join(removeIfThere(recordPath(id)), removeIfThere(lockPath(id)))
}

func removeIfThere(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
