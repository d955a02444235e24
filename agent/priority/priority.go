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
// time a thread that encrypts would lose its place. Threads that the host's
// operator has given another policy than the usual one keep it.
func Yield() error { return change(unix.SCHED_NORMAL, unix.SCHED_BATCH) }

// Normal undoes Yield, which a process inherits from who starts it.
func Normal() error { return change(unix.SCHED_BATCH, unix.SCHED_NORMAL) }

// change leaves nice values and all else alone. It goes over the threads until
// it finds none to change, since one that was not changed yet may make another.
func change(from, to uint32) error {
	for {
		changed, err := changeEach(from, to)
		if err != nil || changed == 0 {
			return err
		}
	}
}

func changeEach(from, to uint32) (changed int, err error) {
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return 0, fmt.Errorf("list own threads: %w", err)
	}
	for _, t := range threads {
		tid, err := strconv.Atoi(t.Name())
		if err != nil {
			return 0, fmt.Errorf("list own threads: %w", err)
		}
		a, err := unix.SchedGetAttr(tid, 0)
		// A thread may have ended since.
		if errors.Is(err, unix.ESRCH) || err == nil && a.Policy != from {
			continue
		}
		if err == nil {
			err = unix.SchedSetAttr(tid, &unix.SchedAttr{
				Size: unix.SizeofSchedAttr, Policy: to, Nice: a.Nice, Flags: a.Flags & unix.SCHED_FLAG_RESET_ON_FORK,
			}, 0)
		}
		if err != nil && !errors.Is(err, unix.ESRCH) {
			return changed, fmt.Errorf("set scheduling policy of thread %d: %w", tid, err)
		}
		changed++
	}
	return changed, nil
}
