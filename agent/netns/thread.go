package netns

import (
	"errors"
	"runtime"

	"golang.org/x/sys/unix"
)

// onThread runs f on a locked thread. The thread goes back to the scheduler
// only when f says that it is as it was; otherwise it ends with its goroutine.
func onThread(f func() (restored bool, err error)) error {
	result := make(chan error, 1)
	go func() {
		finished := false
		defer func() {
			if !finished {
				result <- errors.New("run in namespace: the function ended its goroutine")
			}
		}()
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// The first thread cannot end, and /proc/self shows its namespace
			// as that of the process: leave it alone. While it is locked here
			// the next goroutine gets another one.
			err := onThread(f)
			runtime.UnlockOSThread()
			finished = true
			result <- err
			return
		}
		restored, err := f()
		if restored {
			runtime.UnlockOSThread()
		}
		finished = true
		result <- err
	}()
	return <-result
}
