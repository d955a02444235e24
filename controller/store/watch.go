package store

import (
	"context"
	"fmt"
	"iter"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/circuitseal/circuitseal/controller/model"
)

// Watch yields the present snapshot and then every newer one, each once and in
// order. Changes that come while the consumer is busy are coalesced: it gets
// the newest. Every snapshot is whole, so that no compaction and no gap can
// hide a delete. The iterator blocks between snapshots; it ends when the
// consumer stops, when ctx is done (without an error), or with one error, which
// wraps ErrClosed when the store was closed.
func (s *Store) Watch(ctx context.Context) iter.Seq2[*model.Snapshot, error] {
	return func(yield func(*model.Snapshot, error) bool) {
		var last uint64
		for ctx.Err() == nil {
			v, err := s.read(ctx)
			if err == nil && v.snapshot.Revision > last {
				last = v.snapshot.Revision
				if !yield(v.snapshot, nil) {
					return
				}
				// The consumer may have taken its time: v.seen may be
				// compacted by now, which wait finds out.
			}
			if err == nil {
				err = s.wait(ctx, v.seen+1)
			}
			if err != nil && ctx.Err() == nil {
				yield(nil, fmt.Errorf("watch store: %w", err))
				return
			}
		}
	}
}

// wait blocks until there may be a change at or after an etcd revision. It is
// a doorbell and carries nothing: also when the revision is compacted or etcd
// ends the watch it just returns, and the caller reads again.
func (s *Store) wait(ctx context.Context, from int64) error {
	ctx, cancel := context.WithCancel(ctx)
	// Nothing piles up while the consumer is busy: the watch ends here.
	defer cancel()
	s.life.RLock()
	if s.closed {
		s.life.RUnlock()
		return ErrClosed
	}
	ch := s.client.Watch(ctx, changedKey, clientv3.WithRev(from))
	s.life.RUnlock()
	select {
	case r := <-ch:
		// Closing cancels the client first, and that can show here before the
		// engine says that it has stopped.
		if s.client.Ctx().Err() != nil {
			return ErrClosed
		}
		if err := r.Err(); err != nil && r.CompactRevision == 0 {
			return engineError(err)
		}
		return nil
	case <-s.server.StopNotify():
		return ErrClosed
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
