package session

import (
	"context"
	"fmt"
)

// Reached waits until the states of a revision of the store, or of a newer one,
// are compiled: what Report says then is no older. It ends early, with an error,
// when ctx is done or the hub has stopped.
func (h *Hub) Reached(ctx context.Context, revision uint64) error {
	for {
		h.mu.Lock()
		if h.snapshot != nil && h.snapshot.Revision >= revision {
			h.mu.Unlock()
			return nil
		}
		advanced := h.advanced
		h.mu.Unlock()
		select {
		case <-advanced:
		case <-h.stopped:
			return fmt.Errorf("compile revision %d: the controller is stopping", revision)
		case <-ctx.Done():
			return fmt.Errorf("compile revision %d: %w", revision, context.Cause(ctx))
		}
	}
}
