package store

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/circuitseal/circuitseal/controller/document"
	"github.com/circuitseal/circuitseal/controller/model"
	"github.com/circuitseal/circuitseal/proto/chunk"
	"github.com/circuitseal/circuitseal/proto/desired"
)

// view is a snapshot and what the store itself has to know of it. It is never
// changed once made.
type view struct {
	snapshot *model.Snapshot
	// changed and written are the revisions of the keys of these names.
	changed, written int64
	// seen is the etcd revision up to which the snapshot is the newest. It
	// runs ahead of changed, since tokens are no part of a snapshot.
	seen int64
	// chunks are those that documents need.
	chunks map[chunk.Sum]bool
}

// Snapshot is the whole model as it is now, consistent. It is shared: callers
// must not change it, nor anything that it refers to. While nothing changes,
// every call returns the same pointer. When the engine has died, of its disk
// for example, it is the last one: reading goes on.
func (s *Store) Snapshot(ctx context.Context) (*model.Snapshot, error) {
	v, err := s.read(ctx)
	if err != nil {
		return nil, err
	}
	return v.snapshot, nil
}

// unreadable is an error that reading again does not mend: what is stored is
// not what this version writes.
type unreadable struct{ error }

func (u unreadable) Unwrap() error { return u.error }

func (s *Store) read(ctx context.Context) (*view, error) {
	s.reading.Lock()
	defer s.reading.Unlock()
	v, err := s.readNow(ctx)
	if err != nil && s.last != nil && s.dead() {
		return s.last, nil
	}
	return v, err
}

func (s *Store) readNow(ctx context.Context) (*view, error) {
	r, err := s.get(ctx, changedKey, clientv3.WithKeysOnly())
	if err != nil {
		return nil, fmt.Errorf("read store: %w", err)
	}
	if s.last != nil && len(r.Kvs) == 1 && r.Kvs[0].ModRevision == s.last.changed {
		v := *s.last
		v.seen = r.Header.Revision
		return &v, nil
	}
	t, err := s.txn(ctx, nil, []clientv3.Op{
		clientv3.OpGet(changedKey),
		clientv3.OpGet(writtenKey),
		clientv3.OpGet(documentsRoot, clientv3.WithPrefix()),
		clientv3.OpGet(numbersRoot, clientv3.WithPrefix()),
		clientv3.OpGet(keysRoot, clientv3.WithPrefix()),
		clientv3.OpGet(enrolmentRoot, clientv3.WithPrefix()),
		clientv3.OpGet(revokedRoot, clientv3.WithPrefix()),
		clientv3.OpGet(presharedRoot, clientv3.WithPrefix()),
		clientv3.OpGet(certificatesRoot, clientv3.WithPrefix()),
		clientv3.OpGet(authoritiesKey),
		clientv3.OpGet(settledRoot, clientv3.WithPrefix()),
	}, nil)
	if err != nil {
		return nil, fmt.Errorf("read store: %w", err)
	}
	answers := make([][]*mvccpb.KeyValue, len(t.Responses))
	for i, a := range t.Responses {
		answers[i] = a.GetResponseRange().Kvs
	}
	if len(answers[0]) != 1 || len(answers[1]) != 1 {
		return nil, unreadable{fmt.Errorf("read store: its key %s or %s is missing", changedKey, writtenKey)}
	}
	v := &view{
		changed: answers[0][0].ModRevision,
		written: answers[1][0].ModRevision,
		seen:    t.Header.Revision,
	}
	var old map[model.Key]model.Document
	if s.last != nil {
		old = s.last.snapshot.Documents
	}
	docs, chunks, err := s.decodeDocuments(ctx, answers[2], old, v.seen)
	if err != nil {
		return nil, fmt.Errorf("read store: %w", err)
	}
	v.chunks = chunks
	v.snapshot, err = s.decode(docs, answers[3], answers[4])
	if err == nil {
		err = decodeIdentities(v.snapshot, answers[5], answers[6])
	}
	if err == nil {
		err = readCertificates(v.snapshot, answers[8], answers[9], answers[10])
	}
	if err == nil {
		v.snapshot.PresharedKeys, err = s.readPreshared(answers[7])
	}
	if err != nil {
		return nil, unreadable{fmt.Errorf("read store: %w", err)}
	}
	v.snapshot.Revision = uint64(v.changed)
	s.last = v
	return v, nil
}

// decodeDocuments decodes documents as they were at an etcd revision, and says
// which chunks they need. Those that have not changed are taken from old. What
// cannot be read is an error and never left out: a state compiled without it
// would take tunnels down.
func (s *Store) decodeDocuments(ctx context.Context, kvs []*mvccpb.KeyValue, old map[model.Key]model.Document, revision int64) (map[model.Key]model.Document, map[chunk.Sum]bool, error) {
	docs := make(map[model.Key]model.Document, len(kvs))
	chunks := map[chunk.Sum]bool{}
	for _, kv := range kvs {
		k, err := parseDocumentKey(string(kv.Key))
		if err != nil {
			return nil, nil, unreadable{err}
		}
		value := kv.Value
		size, sums, long, err := parseRoot(value)
		if err != nil {
			return nil, nil, unreadable{fmt.Errorf("decode %s: %w", k, err)}
		}
		for _, sum := range sums {
			chunks[sum] = true
		}
		changed := uint64(kv.ModRevision)
		if d, ok := old[k]; ok && d.Revision == changed {
			docs[k] = d
			continue
		}
		if long {
			if value, err = s.assemble(ctx, size, sums, revision); err != nil {
				return nil, nil, fmt.Errorf("decode %s: %w", k, err)
			}
		}
		spec, err := document.DecodeSpec(string(k.Kind), value)
		if err != nil {
			return nil, nil, unreadable{fmt.Errorf("decode %s: %w", k, err)}
		}
		docs[k] = model.Document{Key: k, Spec: spec, Revision: changed}
	}
	return docs, chunks, nil
}

// decode makes a snapshot.
func (s *Store) decode(docs map[model.Key]model.Document, numbers, keys []*mvccpb.KeyValue) (*model.Snapshot, error) {
	m := &model.Snapshot{
		Epoch:     s.epoch,
		Documents: docs,
		Numbers: model.Numbers{
			Tenants: map[string]uint32{}, Links: map[string]uint16{},
			Groups: map[string]uint32{}, Tunnels: map[string]uint16{},
		},
		Keys: make(map[model.TunnelEnd]desired.PublicKey, len(keys)),
	}
	for _, kv := range numbers {
		if err := decodeNumber(&m.Numbers, kv); err != nil {
			return nil, err
		}
	}
	for _, kv := range keys {
		node, tunnel, _ := strings.Cut(strings.TrimPrefix(string(kv.Key), keysRoot), "/")
		key, err := desired.PublicKeyFromBytes(kv.Value)
		if err != nil || key.IsZero() {
			return nil, fmt.Errorf("decode store key %q: it holds no public key", kv.Key)
		}
		m.Keys[model.TunnelEnd{Tunnel: tunnel, Node: node}] = key
	}
	return m, nil
}

// decodeIdentities adds who nodes are, and who nobody may be any more.
func decodeIdentities(to *model.Snapshot, enrolments, revocations []*mvccpb.KeyValue) error {
	to.Enrolments = make(map[string]model.Enrolment, len(enrolments))
	for _, kv := range enrolments {
		var e model.Enrolment
		if err := json.Unmarshal(kv.Value, &e); err != nil {
			return fmt.Errorf("decode store key %q: %w", kv.Key, err)
		}
		to.Enrolments[strings.TrimPrefix(string(kv.Key), enrolmentRoot)] = e
	}
	to.Revocations = make(map[model.Fingerprint]model.Revocation, len(revocations))
	for _, kv := range revocations {
		var r model.Revocation
		if err := json.Unmarshal(kv.Value, &r); err != nil {
			return fmt.Errorf("decode store key %q: %w", kv.Key, err)
		}
		to.Revocations[model.Fingerprint(strings.TrimPrefix(string(kv.Key), revokedRoot))] = r
	}
	return nil
}

func decodeNumber(to *model.Numbers, kv *mvccpb.KeyValue) error {
	class, name, _ := strings.Cut(strings.TrimPrefix(string(kv.Key), numbersRoot), "/")
	kind, ok := classes[class]
	if !ok {
		return fmt.Errorf("store key %q is no number's; was it written by a newer version?", kv.Key)
	}
	n, err := parseNumber(string(kv.Value), kind.bits)
	if err != nil {
		return fmt.Errorf("decode store key %q: %w", kv.Key, err)
	}
	switch class {
	case tenantClass:
		to.Tenants[name] = uint32(n)
	case linkClass:
		to.Links[name] = uint16(n)
	case groupClass:
		to.Groups[name] = uint32(n)
	case tunnelClass:
		to.Tunnels[name] = uint16(n)
	}
	return nil
}
