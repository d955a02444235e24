package priority

import (
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

func TestNewThreadsInherit(t *testing.T) {
	policy := func() uint32 {
		a, err := unix.SchedGetAttr(0, 0)
		if err != nil {
			t.Fatal(err)
		}
		return a.Policy
	}
	for _, step := range []struct {
		set  func() error
		want uint32
	}{{Yield, unix.SCHED_BATCH}, {Normal, unix.SCHED_NORMAL}} {
		if err := step.set(); err != nil {
			t.Fatal(err)
		}
		seen := make(chan uint32)
		for range 8 {
			go func() { seen <- policy() }()
		}
		for range 8 {
			if got := <-seen; got != step.want {
				t.Errorf("a thread has policy %d, want %d", got, step.want)
			}
		}
	}
}

// What the host's operator has set stays: nice values, and policies other than
// the usual one.
func TestOperatorsSettingsStay(t *testing.T) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		// Never unlocked: the thread ends with the goroutine.
		runtime.LockOSThread()
		tid := unix.Gettid()
		for _, policy := range []uint32{unix.SCHED_NORMAL, unix.SCHED_IDLE} {
			if err := unix.SchedSetAttr(tid, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: policy, Nice: 7}, 0); err != nil {
				t.Error(err)
				return
			}
			for _, set := range []func() error{Yield, Normal} {
				if err := set(); err != nil {
					t.Error(err)
				}
				a, err := unix.SchedGetAttr(tid, 0)
				if err != nil || a.Nice != 7 || policy == unix.SCHED_IDLE && a.Policy != policy {
					t.Errorf("policy %d with nice 7 became %+v (%v)", policy, a, err)
				}
			}
		}
	}()
	<-done
}
