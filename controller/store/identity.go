package store

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/circuitseal/circuitseal/controller/model"
)

// Issued is a node's newest certificate. It is stored as it is here.
type Issued struct {
	// Enrolment's key is for the store to fill in.
	model.Enrolment
	// Certificates in DER, leaf first.
	Certificates [][]byte `json:"certificates"`
}

// renewedAgain is how long after a renewal the same certificate is given again:
// its answer may have been lost, and no node makes the store write for nothing.
const renewedAgain = time.Hour

// present is a node's identity as it is now.
type present struct {
	issued   Issued
	revision int64
}

// identity reads the identity of a node, if it has this key and may keep it:
// else ErrRevoked, ErrUnknownNode or ErrNotEnrolled.
func (s *Store) identity(ctx context.Context, node string, key model.Fingerprint) (present, error) {
	r, err := s.txn(ctx, nil, []clientv3.Op{
		clientv3.OpGet(revokedRoot+string(key), clientv3.WithCountOnly()),
		clientv3.OpGet(nodeKey(node), clientv3.WithCountOnly()),
		clientv3.OpGet(enrolmentRoot + node),
	}, nil)
	if err != nil {
		return present{}, err
	}
	kvs := r.Responses[2].GetResponseRange().Kvs
	switch {
	case r.Responses[0].GetResponseRange().Count > 0:
		return present{}, ErrRevoked
	case r.Responses[1].GetResponseRange().Count == 0:
		return present{}, ErrUnknownNode
	case len(kvs) == 0:
		return present{}, ErrNotEnrolled
	}
	p := present{revision: kvs[0].ModRevision}
	if err := json.Unmarshal(kvs[0].Value, &p.issued); err != nil {
		return present{}, fmt.Errorf("decode enrolment of node %s: %w", node, err)
	}
	if p.issued.Key == "" || p.issued.Key != key {
		return present{}, ErrNotEnrolled
	}
	return p, nil
}

// Renew keeps a new certificate, which issue makes, for a node over the key
// that it has. Within an hour of the last one that one is given again and
// nothing is written. ErrRevoked, ErrUnknownNode or ErrNotEnrolled when the
// node may not have one.
func (s *Store) Renew(ctx context.Context, node string, spki [32]byte, now time.Time, issue func() (Issued, error)) (Issued, error) {
	if err := checkNames("node", node, 1); err != nil {
		return Issued{}, fmt.Errorf("renew certificate: %w", err)
	}
	key := model.FingerprintOf(spki)
	for {
		have, err := s.identity(ctx, node, key)
		if err != nil {
			return Issued{}, fmt.Errorf("renew certificate of node %s: %w", node, err)
		}
		// A certificate from the future is one of a clock that was wrong.
		if age := now.Sub(have.issued.Issued); age >= 0 && age < renewedAgain && now.Before(have.issued.Expires) {
			return have.issued, nil
		}
		got, err := issue()
		if err != nil {
			return Issued{}, fmt.Errorf("renew certificate of node %s: %w", node, err)
		}
		got.Key = key
		value, err := json.Marshal(got)
		if err != nil {
			return Issued{}, fmt.Errorf("renew certificate of node %s: %w", node, err)
		}
		done, err := s.txn(ctx,
			[]clientv3.Cmp{unchanged(enrolmentRoot+node, have.revision), absent(revokedRoot + string(key)), exists(nodeKey(node))},
			[]clientv3.Op{clientv3.OpPut(enrolmentRoot+node, string(value)), clientv3.OpPut(changedKey, "")}, nil)
		if err != nil {
			return Issued{}, fmt.Errorf("renew certificate of node %s: %w", node, err)
		}
		if done.Succeeded {
			return got, nil
		}
		// The identity changed between look and leap; look again.
	}
}

// Revoke revokes the key of a node for ever, voids the node's unused token and
// forgets the public keys that it has reported and the pre-shared keys that it
// knows, since whoever has the one may have the others. It returns the key and how it is revoked, which is what it
// was when it was revoked already; "" for a node that is not enrolled, whose
// token is void none the less. ErrUnknownNode when there is no such node.
func (s *Store) Revoke(ctx context.Context, node string, r model.Revocation) (model.Fingerprint, model.Revocation, error) {
	fail := func(err error) (model.Fingerprint, model.Revocation, error) {
		return "", model.Revocation{}, fmt.Errorf("revoke node %s: %w", model.Shorten(node), err)
	}
	if err := checkNames("node", node, 1); err != nil {
		return fail(err)
	}
	for {
		v, err := s.read(ctx)
		if err != nil {
			return fail(err)
		}
		if _, ok := v.snapshot.Documents[model.Key{Kind: model.KindNode, Name: node}]; !ok {
			return fail(ErrUnknownNode)
		}
		key := v.snapshot.Enrolments[node].Key
		kept, already := v.snapshot.Revocations[key]
		ops := []clientv3.Op{clientv3.OpDelete(redeemRoot + node)}
		if key != "" && !already {
			kept = r
			kept.Node = node
			put, err := putRevocation(key, kept)
			if err != nil {
				return fail(err)
			}
			ops = append(ops, put, clientv3.OpDelete(keysRoot+node+"/", clientv3.WithPrefix()), clientv3.OpPut(changedKey, ""))
			for tunnel, nodes := range endsOf(v.snapshot.Documents) {
				if _, ok := v.snapshot.PresharedKeys[tunnel]; ok && slices.Contains(nodes[:], node) {
					ops = append(ops, clientv3.OpDelete(presharedKey(tunnel)))
				}
			}
		}
		done, err := s.txn(ctx, []clientv3.Cmp{unchanged(changedKey, v.changed)}, ops, nil)
		if err != nil {
			return fail(err)
		}
		if done.Succeeded {
			return key, kept, nil
		}
	}
}

// ending is what becomes of the identity of a node whose document goes, if it
// has one: it is revoked, and was earlier if it was.
func ending(have *model.Snapshot, node string, r model.Revocation) ([]clientv3.Op, error) {
	key := have.Enrolments[node].Key
	if key == "" {
		return nil, nil
	}
	if before, ok := have.Revocations[key]; ok {
		r = before
	}
	r.Node, r.Decommissioned = node, true
	put, err := putRevocation(key, r)
	return []clientv3.Op{put}, err
}

func putRevocation(key model.Fingerprint, r model.Revocation) (clientv3.Op, error) {
	value, err := json.Marshal(r)
	if err != nil {
		return clientv3.Op{}, fmt.Errorf("encode revocation of node %s: %w", r.Node, err)
	}
	return clientv3.OpPut(revokedRoot+string(key), string(value)), nil
}
