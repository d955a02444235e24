package scenario

import (
	"errors"
	"fmt"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
	"rsc.io/script"
)

// oneProcessor has everything that is started from now on, and with it what the kernel
// does for it, run on one processor. It is for what an interleaving of two decides that an
// emulated processor stretches. The session's end gives them back.
func (x *session) oneProcessor(_ *script.State, args []string) error {
	if len(args) != 1 || args[0] != "1" {
		return script.ErrUsage
	}
	if x.rig != nil {
		return errors.New("the lab has been built on all processors: say `processors 1` before `lab`")
	}
	if x.processors.Count() == 0 {
		if err := unix.SchedGetaffinity(0, &x.processors); err != nil {
			return fmt.Errorf("read the processors that may be used: %w", err)
		}
	}
	for cpu := range len(x.processors) * strconv.IntSize {
		if x.processors.IsSet(cpu) {
			var one unix.CPUSet
			one.Set(cpu)
			return useProcessors(&one)
		}
	}
	return errors.New("no processor may be used")
}

// allProcessors is the reverse of oneProcessor.
func (x *session) allProcessors() error {
	if x.processors.Count() == 0 {
		return nil
	}
	return useProcessors(&x.processors)
}

// useProcessors sets the processors of all threads of this process. A thread, and a
// process, begins with those of the thread that makes it; so none is missed when a round
// finds only threads that an earlier one has set.
func useProcessors(set *unix.CPUSet) error {
	done := map[int]bool{}
	for changed := true; changed; {
		changed = false
		tasks, err := filepath.Glob("/proc/self/task/*")
		if err != nil {
			return fmt.Errorf("list this process's threads: %w", err)
		}
		for _, path := range tasks {
			thread, err := strconv.Atoi(filepath.Base(path))
			if err != nil || done[thread] {
				continue
			}
			switch err := unix.SchedSetaffinity(thread, set); {
			case errors.Is(err, unix.ESRCH):
				continue
			case err != nil:
				return fmt.Errorf("choose the processors of thread %d: %w", thread, err)
			}
			done[thread], changed = true, true
		}
	}
	return nil
}
