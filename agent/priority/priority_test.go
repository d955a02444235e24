package priority

import (
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
