package session

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
)

// Who waits for a revision gets it when it is compiled, and not before.
func TestReached(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := run(t)
		wait := func(ctx context.Context, revision uint64) chan error {
			done := make(chan error, 1)
			go func() { done <- h.hub.Reached(ctx, revision) }()
			return done
		}
		first, second := wait(t.Context(), 1), wait(t.Context(), 2)
		synctest.Wait()
		if len(first)+len(second) > 0 {
			t.Error("a revision is reached before it is compiled")
		}
		h.store.set(samples(t, 1, "1400"))
		if err := <-first; err != nil {
			t.Error(err)
		}
		synctest.Wait()
		if len(second) > 0 {
			t.Error("revision 2 is reached with revision 1")
		}
		h.store.set(samples(t, 3, "1380"))
		if err := <-second; err != nil {
			t.Error(err)
		}
		if _, wanted, _ := h.hub.Report("nva-1"); wanted.Revision != 3 {
			t.Errorf("it wants %s", wanted)
		}
		if err := <-wait(t.Context(), 2); err != nil {
			t.Errorf("an older revision: %v", err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		gone := wait(ctx, 9)
		synctest.Wait()
		cancel()
		if err := <-gone; !errors.Is(err, context.Canceled) {
			t.Errorf("whoever goes away gets %v", err)
		}
		last := wait(t.Context(), 9)
		synctest.Wait()
		h.stop()
		if err := <-last; err == nil {
			t.Error("a hub that stops says that it got there")
		}
		if err := <-h.ran; err != nil {
			t.Error(err)
		}
	})
}
