package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/circuitseal/circuitseal/proto/desired"
)

// PutKeys keeps the public keys that a node reports for its ends of tunnels, by
// tunnel ID. Nothing is written for keys that are there already, for zero keys,
// and for tunnels that have no number: a node may lag behind. Keys that the
// node does not mention stay; they go with their tunnel or their node, see
// Change. ErrUnknownNode when there is no such node. That a tunnel is the
// node's own is for the caller to know.
func (s *Store) PutKeys(ctx context.Context, node string, keys map[string]desired.PublicKey) error {
	if err := checkNames("node", node, 1); err != nil {
		return fmt.Errorf("write keys: %w", err)
	}
	var errs []error
	for tunnel := range keys {
		if err := checkNames("tunnel", tunnel, classes[tunnelClass].names); err != nil {
			errs = append(errs, err)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("write keys of node %s: %w", node, err)
	}
	prefix := tunnelKey(node, "")
	r, err := s.get(ctx, prefix, clientv3.WithPrefix())
	if err != nil {
		return fmt.Errorf("write keys of node %s: %w", node, err)
	}
	news := maps.Clone(keys)
	maps.DeleteFunc(news, func(_ string, k desired.PublicKey) bool { return k.IsZero() })
	for _, kv := range r.Kvs {
		tunnel := strings.TrimPrefix(string(kv.Key), prefix)
		if k := news[tunnel]; bytes.Equal(kv.Value, k[:]) {
			delete(news, tunnel)
		}
	}
	for len(news) > 0 {
		done, err := s.tryKeys(ctx, node, news)
		if err != nil {
			return fmt.Errorf("write keys of node %s: %w", node, err)
		}
		if done {
			return nil
		}
	}
	return nil
}

// tryKeys writes keys if all their tunnels have numbers; else it drops those
// that have none from the map.
func (s *Store) tryKeys(ctx context.Context, node string, keys map[string]desired.PublicKey) (bool, error) {
	tunnels := slices.Sorted(maps.Keys(keys))
	when := []clientv3.Cmp{exists(nodeKey(node))}
	then := []clientv3.Op{clientv3.OpPut(changedKey, "")}
	otherwise := []clientv3.Op{clientv3.OpGet(nodeKey(node), clientv3.WithCountOnly())}
	for _, t := range tunnels {
		number, err := numberKey(tunnelClass, t)
		if err != nil {
			return false, err
		}
		k := keys[t]
		when = append(when, exists(number))
		then = append(then, clientv3.OpPut(tunnelKey(node, t), string(k[:])))
		otherwise = append(otherwise, clientv3.OpGet(number, clientv3.WithCountOnly()))
	}
	r, err := s.txn(ctx, when, then, otherwise)
	if err != nil || r.Succeeded {
		return true, err
	}
	if r.Responses[0].GetResponseRange().Count == 0 {
		return false, ErrUnknownNode
	}
	for i, t := range tunnels {
		if r.Responses[i+1].GetResponseRange().Count == 0 {
			delete(keys, t)
		}
	}
	return false, nil
}
