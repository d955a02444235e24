package store

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// Restored makes a store that was restored from a backup fit for use, in one
// transaction: it raises the epoch, so that everything from now on is newer than
// what came after the backup, and voids the tokens that look unused, since some
// of them may have been used meanwhile. It returns the new epoch and how many
// tokens were voided. Doing it again, or without need, does no harm. It is for
// before the first snapshot is compiled.
//
// The epoch becomes the time in seconds, unless it is that high already: one
// more than the backup's would not do when one backup is restored twice.
func (s *Store) Restored(ctx context.Context, now time.Time) (epoch uint64, voided int, err error) {
	s.reading.Lock()
	defer s.reading.Unlock()
	r, err := s.txn(ctx, nil, []clientv3.Op{
		clientv3.OpGet(epochKey),
		clientv3.OpGet(tokensRoot, clientv3.WithPrefix()),
	}, nil)
	if err != nil {
		return 0, 0, fmt.Errorf("raise the store's epoch: %w", err)
	}
	epoch = max(s.epoch+1, uint64(max(0, now.Unix())))
	when := []clientv3.Cmp{}
	for _, kv := range r.Responses[0].GetResponseRange().Kvs {
		when = append(when, unchanged(epochKey, kv.ModRevision))
	}
	then := []clientv3.Op{
		clientv3.OpPut(epochKey, strconv.FormatUint(epoch, 10)),
		clientv3.OpPut(changedKey, ""),
		// Without it no token can be redeemed, whatever else is kept of it.
		clientv3.OpDelete(redeemRoot, clientv3.WithPrefix()),
	}
	for _, kv := range r.Responses[1].GetResponseRange().Kvs {
		var t tokenRecord
		if err := json.Unmarshal(kv.Value, &t); err != nil {
			return 0, 0, fmt.Errorf("decode store key %q: %w", kv.Key, err)
		}
		if t.Redeemed == nil {
			when = append(when, unchanged(string(kv.Key), kv.ModRevision))
			then = append(then, clientv3.OpDelete(string(kv.Key)))
			voided++
		}
	}
	done, err := s.txn(ctx, when, then, nil)
	if err != nil {
		return 0, 0, fmt.Errorf("raise the store's epoch: %w", err)
	}
	if !done.Succeeded {
		return 0, 0, fmt.Errorf("raise the store's epoch: %w", ErrConflict)
	}
	s.epoch = epoch
	return epoch, voided, nil
}
