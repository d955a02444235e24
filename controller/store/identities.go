package store

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/circuitseal/circuitseal/controller/model"
)

// certificateKey is where the certificates of an endpoint's identity in IKE are,
// and documentOf its document.
func certificateKey(name string) (key, document string, err error) {
	k, ok := model.EndpointOfIdentity(name)
	if !ok {
		return "", "", fmt.Errorf("identity %q is no endpoint's", model.Shorten(name))
	}
	if document, err = documentKey(k); err != nil {
		return "", "", err
	}
	return certificatesRoot + k.Customer + "/" + k.Name, document, nil
}

// PutIdentities keeps certificates of endpoints by model.IdentityName, all or
// nothing, and returns when they are on disk. Each is written only over what it was
// decided on: the record of its Revision, none for 0. ErrConflict when one has
// changed since, or its endpoint is gone; read a new snapshot and decide again.
func (s *Store) PutIdentities(ctx context.Context, identities map[string]model.IdentityCertificates) error {
	if len(identities) == 0 {
		return nil
	}
	var when []clientv3.Cmp
	then := []clientv3.Op{clientv3.OpPut(changedKey, "")}
	for _, name := range slices.Sorted(maps.Keys(identities)) {
		key, endpoint, err := certificateKey(name)
		if err != nil {
			return fmt.Errorf("write certificates: %w", err)
		}
		if !identities[name].Valid() {
			return fmt.Errorf("write certificates of %s: phase %q does not fit %d certificates", name, identities[name].Phase, len(identities[name].Certificates))
		}
		value, err := json.Marshal(identities[name])
		if err != nil {
			return fmt.Errorf("write certificates of %s: %w", name, err)
		}
		when = append(when, exists(endpoint), unchanged(key, int64(identities[name].Revision)))
		then = append(then, clientv3.OpPut(key, string(value)))
	}
	return s.put(ctx, "write certificates", when, then)
}

// put makes a fenced write that is not of documents.
func (s *Store) put(ctx context.Context, what string, when []clientv3.Cmp, then []clientv3.Op) error {
	r, err := s.txn(ctx, when, then, nil)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	if !r.Succeeded {
		return fmt.Errorf("%s: %w", what, ErrConflict)
	}
	return nil
}

// PutAuthorities keeps the certificates, DER, under which this controller issues.
// Nothing is written when they are there already.
func (s *Store) PutAuthorities(ctx context.Context, authorities [][]byte) error {
	value, err := json.Marshal(authorities)
	if err != nil {
		return fmt.Errorf("write authorities: %w", err)
	}
	r, err := s.get(ctx, authoritiesKey)
	if err != nil {
		return fmt.Errorf("write authorities: %w", err)
	}
	if len(r.Kvs) == 1 && bytes.Equal(r.Kvs[0].Value, value) {
		return nil
	}
	return s.put(ctx, "write authorities", nil, []clientv3.Op{clientv3.OpPut(authoritiesKey, string(value)), clientv3.OpPut(changedKey, "")})
}

// PutSettled keeps which policies connections are known to work by, by
// model.GroupID, all or nothing. Each is written only over the record of its
// Revision, and only while seen, the documents on which that was decided, are at
// their revisions. ErrConflict when something has changed since.
//
// It counts as a change of documents does: one that is under way is judged anew.
func (s *Store) PutSettled(ctx context.Context, settled map[string]model.Settled, seen []model.Document) error {
	if len(settled) == 0 {
		return nil
	}
	var when []clientv3.Cmp
	then := []clientv3.Op{clientv3.OpPut(changedKey, ""), clientv3.OpPut(writtenKey, "")}
	for _, group := range slices.Sorted(maps.Keys(settled)) {
		key, value, err := encodeSettled(group, settled[group])
		if err != nil {
			return fmt.Errorf("write what is settled: %w", err)
		}
		when = append(when, unchanged(key, int64(settled[group].Revision)))
		then = append(then, clientv3.OpPut(key, value))
	}
	for _, d := range seen {
		key, err := documentKey(d.Key)
		if err != nil {
			return fmt.Errorf("write what is settled: %w", err)
		}
		when = append(when, unchanged(key, int64(d.Revision)))
	}
	return s.put(ctx, "write what is settled", when, then)
}

func encodeSettled(group string, was model.Settled) (key, value string, err error) {
	if err := checkNames(groupClass, group, classes[groupClass].names); err != nil {
		return "", "", err
	}
	b, err := json.Marshal(was)
	return settledRoot + group, string(b), err
}

// settledOps lead from what is settled to what is after a change of documents; nil
// leaves all as it is.
func settledOps(have, want map[string]model.Settled) ([]clientv3.Op, error) {
	if want == nil {
		return nil, nil
	}
	var ops []clientv3.Op
	for _, group := range slices.Sorted(maps.Keys(want)) {
		key, value, err := encodeSettled(group, want[group])
		if err != nil {
			return nil, err
		}
		if was, ok := have[group]; ok {
			if _, old, err := encodeSettled(group, was); err == nil && old == value {
				continue
			}
		}
		ops = append(ops, clientv3.OpPut(key, value))
	}
	for _, group := range slices.Sorted(maps.Keys(have)) {
		if _, ok := want[group]; !ok {
			ops = append(ops, clientv3.OpDelete(settledRoot+group))
		}
	}
	return ops, nil
}

// readCertificates adds what endpoints prove to be by, and by whom.
func readCertificates(to *model.Snapshot, records, authorities, settled []*mvccpb.KeyValue) error {
	to.Identities = make(map[string]model.IdentityCertificates, len(records))
	for _, kv := range records {
		customer, endpoint, ok := strings.Cut(strings.TrimPrefix(string(kv.Key), certificatesRoot), "/")
		c := model.IdentityCertificates{}
		err := json.Unmarshal(kv.Value, &c)
		if err == nil && (!ok || !c.Valid()) {
			err = errors.New("phase and certificates do not fit together; was it written by a newer version?")
		}
		if err != nil {
			return fmt.Errorf("decode store key %q: %w", kv.Key, err)
		}
		c.Revision = uint64(kv.ModRevision)
		to.Identities[model.IdentityName(customer, endpoint)] = c
	}
	for _, kv := range authorities {
		if err := json.Unmarshal(kv.Value, &to.Authorities); err != nil {
			return fmt.Errorf("decode store key %q: %w", kv.Key, err)
		}
	}
	to.Settled = make(map[string]model.Settled, len(settled))
	for _, kv := range settled {
		was := model.Settled{}
		if err := json.Unmarshal(kv.Value, &was); err != nil {
			return fmt.Errorf("decode store key %q: %w", kv.Key, err)
		}
		was.Revision = uint64(kv.ModRevision)
		to.Settled[strings.TrimPrefix(string(kv.Key), settledRoot)] = was
	}
	return nil
}
