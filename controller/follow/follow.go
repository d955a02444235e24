// Package follow does something again and again with the newest snapshot of a store:
// the loop of whoever moves keys, certificates and protocols on in phases. It knows
// neither what is moved nor when.
package follow

import (
	"context"
	"errors"
	"iter"
	"log/slog"
	"time"

	"github.com/circuitseal/circuitseal/controller/model"
	"github.com/circuitseal/circuitseal/controller/store"
)

// every is how often reports of nodes are looked at beside new snapshots: what waits
// for them takes seconds at least.
const every = time.Second

// Store yields the present snapshot and then every newer one, coalesced; store.Store
// has it.
type Store interface {
	Watch(ctx context.Context) iter.Seq2[*model.Snapshot, error]
}

// Run calls pass with the newest snapshot, for each and every second, until ctx is
// done, which is no error, or until the store cannot be read any more. What pass could
// not do is logged, with what for its words, and tried again.
func Run(ctx context.Context, s Store, log *slog.Logger, what string, pass func(context.Context, *model.Snapshot) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type news struct {
		snapshot *model.Snapshot
		err      error
	}
	snapshots := make(chan news)
	go func() {
		defer close(snapshots)
		for s, err := range s.Watch(ctx) {
			select {
			case snapshots <- news{s, err}:
			case <-ctx.Done():
				return
			}
		}
	}()
	tick := time.NewTicker(every)
	defer tick.Stop()
	var now *model.Snapshot
	for {
		select {
		case n, ok := <-snapshots:
			if !ok {
				return nil
			}
			if n.err != nil {
				return n.err
			}
			now = n.snapshot
		case <-tick.C:
		}
		if now == nil {
			continue
		}
		switch err := pass(ctx, now); {
		case err == nil, ctx.Err() != nil:
		case errors.Is(err, store.ErrConflict):
			// Somebody else was faster; what they wrote comes as a snapshot.
			log.Debug("something was decided on what has changed meanwhile", "what", what, "error", err)
		default:
			log.Warn("something was not done; trying again", "what", what, "error", err)
		}
	}
}
