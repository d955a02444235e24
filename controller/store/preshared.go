package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/circuitseal/circuitseal/controller/model"
	"github.com/circuitseal/circuitseal/proto/desired"
	"github.com/circuitseal/circuitseal/proto/sealed"
)

// presharedRecord is a tunnel's pre-shared keys as they are kept: what is no
// secret in clear, and each key sealed for its tunnel and generation, so that
// none can stand in for another.
type presharedRecord struct {
	Phase model.PresharedPhase `json:"phase"`
	Keys  []presharedEntry     `json:"keys"`
}

type presharedEntry struct {
	Generation uint64    `json:"generation"`
	Made       time.Time `json:"made"`
	Sealed     []byte    `json:"sealed"`
}

func presharedKey(tunnel string) string { return presharedRoot + tunnel }

func presharedPlace(tunnel string, generation uint64) string {
	return presharedKey(tunnel) + "\x00" + strconv.FormatUint(generation, 10)
}

// PutPreshared keeps pre-shared keys by tunnel ID, all or nothing, and returns
// when they are on disk. Each is written only over what it was decided on: the
// record of its Revision, none for 0. ErrConflict when one has changed since,
// or its tunnel has no number any more; read a new snapshot and decide again.
func (s *Store) PutPreshared(ctx context.Context, keys map[string]model.PresharedKeys) error {
	if len(keys) == 0 {
		return nil
	}
	var when []clientv3.Cmp
	then := []clientv3.Op{clientv3.OpPut(changedKey, "")}
	for _, tunnel := range slices.Sorted(maps.Keys(keys)) {
		number, err := numberKey(tunnelClass, tunnel)
		if err != nil {
			return fmt.Errorf("write pre-shared keys: %w", err)
		}
		if !keys[tunnel].Valid() {
			return fmt.Errorf("write pre-shared keys of tunnel %s: phase %q and generations %v do not fit together", tunnel, keys[tunnel].Phase, keys[tunnel].Generations())
		}
		value, err := s.encodePreshared(tunnel, keys[tunnel])
		if err != nil {
			return fmt.Errorf("write pre-shared keys of tunnel %s: %w", tunnel, err)
		}
		when = append(when, exists(number), unchanged(presharedKey(tunnel), int64(keys[tunnel].Revision)))
		then = append(then, clientv3.OpPut(presharedKey(tunnel), value))
	}
	r, err := s.txn(ctx, when, then, nil)
	if err != nil {
		return fmt.Errorf("write pre-shared keys: %w", err)
	}
	if !r.Succeeded {
		return fmt.Errorf("write pre-shared keys: %w", ErrConflict)
	}
	return nil
}

func (s *Store) encodePreshared(tunnel string, keys model.PresharedKeys) (string, error) {
	record := presharedRecord{Phase: keys.Phase}
	for _, k := range keys.Keys {
		record.Keys = append(record.Keys, presharedEntry{
			Generation: k.Generation, Made: k.Made.UTC(),
			Sealed: s.secrets.Seal(presharedPlace(tunnel, k.Generation), k.Key[:]),
		})
	}
	b, err := json.Marshal(record)
	return string(b), err
}

// decodePreshared reads a record; stale says that an older key of the ring has
// sealed some of it.
func (s *Store) decodePreshared(kv *mvccpb.KeyValue) (tunnel string, keys model.PresharedKeys, stale bool, err error) {
	tunnel = strings.TrimPrefix(string(kv.Key), presharedRoot)
	fail := func(err error) (string, model.PresharedKeys, bool, error) {
		return "", model.PresharedKeys{}, false, fmt.Errorf("decode store key %q: %w", kv.Key, err)
	}
	if err := checkNames("tunnel", tunnel, classes[tunnelClass].names); err != nil {
		return fail(err)
	}
	var record presharedRecord
	if err := json.Unmarshal(kv.Value, &record); err != nil {
		return fail(err)
	}
	keys = model.PresharedKeys{Phase: record.Phase, Revision: uint64(kv.ModRevision)}
	for _, e := range record.Keys {
		plain, old, err := s.secrets.Open(presharedPlace(tunnel, e.Generation), e.Sealed)
		if err != nil {
			return fail(fmt.Errorf("generation %d: %w", e.Generation, err))
		}
		stale = stale || old
		secret, err := desired.SecretFromBytes(plain)
		if err != nil {
			return fail(fmt.Errorf("generation %d: %w", e.Generation, err))
		}
		keys.Keys = append(keys.Keys, model.PresharedGeneration{
			PresharedKey: desired.PresharedKey{Generation: e.Generation, Key: secret}, Made: e.Made,
		})
	}
	if !keys.Valid() {
		return fail(fmt.Errorf("phase %q and generations %v do not fit together; was it written by a newer version?", keys.Phase, keys.Generations()))
	}
	return tunnel, keys, stale, nil
}

// readPreshared decodes all records. One that has not changed since the last
// snapshot is taken from it.
func (s *Store) readPreshared(records []*mvccpb.KeyValue) (map[string]model.PresharedKeys, error) {
	all := make(map[string]model.PresharedKeys, len(records))
	var old map[string]model.PresharedKeys
	if s.last != nil {
		old = s.last.snapshot.PresharedKeys
	}
	for _, kv := range records {
		tunnel := strings.TrimPrefix(string(kv.Key), presharedRoot)
		if k, ok := old[tunnel]; ok && k.Revision == uint64(kv.ModRevision) {
			all[tunnel] = k
			continue
		}
		tunnel, keys, _, err := s.decodePreshared(kv)
		if err != nil {
			return nil, err
		}
		all[tunnel] = keys
	}
	return all, nil
}

// sealCheck is what lies under sealKey: a ring that opens it is this store's.
const sealCheck = "circuitseal"

// unlock refuses a ring that is not this store's, before anything is read or
// written with it, and seals anew what an older key of the ring has sealed. The
// first start with a ring makes it the store's.
func (s *Store) unlock(ctx context.Context) error {
	r, err := s.txn(ctx, nil, []clientv3.Op{
		clientv3.OpGet(sealKey), clientv3.OpGet(presharedRoot, clientv3.WithPrefix()),
	}, nil)
	if err != nil {
		return fmt.Errorf("read secrets of the store: %w", err)
	}
	checks, records := r.Responses[0].GetResponseRange().Kvs, r.Responses[1].GetResponseRange().Kvs
	var when []clientv3.Cmp
	var then []clientv3.Op
	var first int64
	rewrite := len(checks) == 0
	if len(checks) == 1 {
		first = checks[0].ModRevision
		plain, stale, err := s.secrets.Open(sealKey, checks[0].Value)
		if err != nil || string(plain) != sealCheck {
			return wrongKey(err)
		}
		rewrite = stale
	}
	if rewrite {
		when = append(when, unchanged(sealKey, first))
		then = append(then, clientv3.OpPut(sealKey, string(s.secrets.Seal(sealKey, []byte(sealCheck)))))
	}
	for _, kv := range records {
		tunnel, keys, stale, err := s.decodePreshared(kv)
		if err != nil {
			return wrongKey(err)
		}
		if !stale {
			continue
		}
		value, err := s.encodePreshared(tunnel, keys)
		if err != nil {
			return err
		}
		when = append(when, unchanged(string(kv.Key), kv.ModRevision))
		then = append(then, clientv3.OpPut(string(kv.Key), value))
	}
	if len(then) == 0 {
		return nil
	}
	done, err := s.txn(ctx, when, then, nil)
	if err == nil && !done.Succeeded {
		err = ErrConflict
	}
	if err != nil {
		return fmt.Errorf("encrypt secrets of the store with %s: %w", s.secrets.First(), err)
	}
	if len(checks) == 1 {
		s.log.Info("secrets are encrypted with another secret key now", "secret_key", s.secrets.First(), "secrets", len(then)-1)
	}
	return nil
}

func wrongKey(err error) error {
	if errors.Is(err, sealed.ErrOtherKey) {
		return fmt.Errorf("%w: %w", ErrSecretKey, err)
	}
	return fmt.Errorf("%w: secrets of the store: %w", ErrDamaged, err)
}
