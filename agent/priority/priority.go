// Package priority says how a process of ours shares the processors with those
// that carry packets. It knows sched(7) and nothing of what the process does.
package priority

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// Yield takes all threads of the process, and those that they will make, out of
// the tasks that preempt others when they wake up (SCHED_BATCH). An agent wakes
// up often and briefly, on a host whose processors are busy with packets: each
// time a thread that encrypts would lose its place.
func Yield() error { return set(unix.SCHED_BATCH) }

// Normal undoes Yield, which a process inherits from who starts it.
func Normal() error { return set(unix.SCHED_NORMAL) }

func set(policy uint32) error {
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return fmt.Errorf("list own threads: %w", err)
	}
	for _, t := range threads {
		tid, err := strconv.Atoi(t.Name())
		if err != nil {
			return fmt.Errorf("list own threads: %w", err)
		}
		a := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: policy}
		// A thread may have ended since.
		if err := unix.SchedSetAttr(tid, &a, 0); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("set scheduling policy of thread %d: %w", tid, err)
		}
	}
	return nil
}
