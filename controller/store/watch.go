package store

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/circuitseal/circuitseal/controller/model"
)

// retryPause is about how long Watch waits before it asks again a store that
// did not answer.
const retryPause = time.Second

// Watch yields the present snapshot and then every newer one, each once and in
// order. Changes that come while the consumer is busy are coalesced: it gets
// the newest. Every snapshot is whole, so that no compaction and no gap can
// hide a delete. The iterator blocks between snapshots, and as long as the
// store does not answer: a slow disk is no end, nor is a dead engine, which
// changes nothing any more. It ends when the consumer stops, when ctx is done
// (without an error), or with one error: one that wraps ErrClosed when the store
// was closed, or one that says what cannot be read.
func (s *Store) Watch(ctx context.Context) iter.Seq2[*model.Snapshot, error] {
	return func(yield func(*model.Snapshot, error) bool) {
		var last uint64
		stalled := false
		for ctx.Err() == nil {
			v, err := s.read(ctx)
			if err == nil {
				stalled = false
			}
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
			switch {
			case ctx.Err() != nil:
			case err == nil:
			case s.dead():
				err = s.sleep(ctx)
				if err != nil {
					yield(nil, fmt.Errorf("watch store: %w", err))
				}
				return
			case errors.Is(err, ErrClosed), errors.As(err, &unreadable{}):
				yield(nil, fmt.Errorf("watch store: %w", err))
				return
			default:
				if !stalled {
					s.log.Warn("the store does not answer; nodes keep the states that they have until it does", "error", err)
				}
				stalled = true
				select {
				case <-time.After(retryPause/2 + rand.N(retryPause)):
				case <-ctx.Done():
				}
			}
		}
	}
}

// sleep blocks until ctx is done, or the store is closed, which is the error.
func (s *Store) sleep(ctx context.Context) error {
	select {
	case <-s.client.Ctx().Done():
		return ErrClosed
	case <-ctx.Done():
		return nil
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
	if err := s.over(); err != nil {
		s.life.RUnlock()
		return err
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
	case <-s.died.done:
		return s.Await(ctx)
	case <-s.server.StopNotify():
		return ErrClosed
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
