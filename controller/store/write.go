package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/circuitseal/circuitseal/controller/document"
	"github.com/circuitseal/circuitseal/controller/model"
)

// Change is what one transaction does.
type Change struct {
	// Put creates or replaces documents. Their revisions are ignored. One that
	// is equal to what is stored keeps its revision.
	Put []model.Document
	// Delete removes documents; one that is not there is none the less gone.
	// With a Node go its enrolment, its unused token and its keys, and the key of
	// its identity is revoked; with an Endpoint go its certificates.
	Delete []model.Key
	// Revocation is what is kept of the identities of deleted Nodes.
	Revocation model.Revocation
	// Numbers are all numbers after the change. With a tunnel that has no
	// number any more go the keys that nodes have reported for it and its
	// pre-shared keys, and with an endpoint that moves to another node that of
	// the old one, and the pre-shared keys that it knows.
	Numbers model.Numbers
	// Settled is what is known to work of all connections after the change; nil
	// leaves that as it is.
	Settled map[string]model.Settled
}

// Write makes a change in one transaction, all or nothing, and returns when it
// is on disk. The revision is that of the first snapshot that shows it; a
// change that changes nothing writes nothing and returns the present revision.
//
// The base is the revision of the snapshot on which the change was judged:
// ErrConflict when any document or number has changed since, because a set is
// valid only as a whole. Keys and enrolments that nodes bring meanwhile are no
// conflict. ErrTooLarge when the change does not fit into a transaction, which
// takes several thousand documents.
func (s *Store) Write(ctx context.Context, base uint64, c Change) (uint64, error) {
	want, err := c.encode()
	if err != nil {
		return 0, fmt.Errorf("write documents: %w", err)
	}
	for {
		v, err := s.read(ctx)
		if err != nil {
			return 0, fmt.Errorf("write documents: %w", err)
		}
		if uint64(v.written) > base {
			return 0, fmt.Errorf("write documents: %w: base revision %d, changed in %d", ErrConflict, base, v.written)
		}
		if uint64(v.changed) < base {
			return 0, fmt.Errorf("write documents: %w: base revision %d is newer than the store's %d", ErrConflict, base, v.changed)
		}
		revision, done, err := s.attempt(ctx, v, want)
		if err != nil {
			return 0, fmt.Errorf("write documents: %w", err)
		}
		if done {
			if err := s.collectChunks(ctx); err != nil {
				s.log.Warn("what no document needs any more stays in the store until the next start", "error", err)
			}
			return revision, nil
		}
		// Something changed since the view was read; if it was a document, the
		// next turn sees that.
	}
}

// attempt writes a change on top of a view; it is not done when something has
// changed since.
func (s *Store) attempt(ctx context.Context, v *view, want encoded) (revision uint64, done bool, err error) {
	ops, changed, err := want.difference(v.snapshot)
	if err != nil {
		return 0, false, err
	}
	if len(ops) == 0 {
		return uint64(v.changed), true, nil
	}
	chunks := want.chunksOf(changed)
	release, err := s.putChunks(ctx, chunks)
	if err != nil {
		return 0, false, err
	}
	defer release()
	when := []clientv3.Cmp{unchanged(changedKey, v.changed)}
	for _, p := range chunks {
		when = append(when, exists(chunkKey(p.sum)))
	}
	ops = append(ops, clientv3.OpPut(changedKey, ""), clientv3.OpPut(writtenKey, ""))
	r, err := s.txn(ctx, when, ops, nil)
	if err != nil {
		return 0, false, err
	}
	if r.Succeeded {
		// What was acknowledged is shown even when the engine dies next.
		_, _ = s.read(ctx)
	}
	return uint64(r.Header.Revision), r.Succeeded, nil
}

// encoded is a Change whose names were checked, by store key.
type encoded struct {
	put map[string][]byte
	// pieces are the chunks of those that are too long to be kept whole.
	pieces  map[string][]piece
	docs    map[string]model.Document
	delete  map[string]model.Key
	numbers map[string]string
	tunnels map[string]uint16
	settled map[string]model.Settled
	revoke  model.Revocation
}

func (c Change) encode() (encoded, error) {
	e := encoded{
		put: map[string][]byte{}, pieces: map[string][]piece{}, docs: map[string]model.Document{}, delete: map[string]model.Key{},
		numbers: map[string]string{}, tunnels: c.Numbers.Tunnels, settled: c.Settled, revoke: c.Revocation,
	}
	var errs []error
	for _, d := range c.Put {
		key, err := documentKey(d.Key)
		if err == nil && model.KindOf(d.Spec) != d.Key.Kind {
			err = fmt.Errorf("%s: its spec is of kind %q", d.Key, model.KindOf(d.Spec))
		}
		if _, twice := e.put[key]; err == nil && twice {
			err = fmt.Errorf("%s is there twice", d.Key)
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if e.put[key], err = document.Encode(d.Spec); err != nil {
			errs = append(errs, fmt.Errorf("encode %s: %w", d.Key, err))
		}
		if n := len(e.put[key]); n > maxChunked {
			errs = append(errs, fmt.Errorf("%w: %s has %d bytes; at most %d are kept", ErrTooLarge, d.Key, n, maxChunked))
		}
		e.pieces[key] = pieces(e.put[key])
		e.docs[key] = d
	}
	for _, k := range c.Delete {
		key, err := documentKey(k)
		if _, both := e.put[key]; err == nil && both {
			err = fmt.Errorf("%s is both put and deleted", k)
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		e.delete[key] = k
	}
	errs = append(errs, encodeNumbers(e.numbers, c.Numbers)...)
	return e, errors.Join(errs...)
}

func encodeNumbers(to map[string]string, n model.Numbers) []error {
	return slices.Concat(
		encodeClass(to, tenantClass, n.Tenants),
		encodeClass(to, linkClass, n.Links),
		encodeClass(to, groupClass, n.Groups),
		encodeClass(to, tunnelClass, n.Tunnels),
	)
}

func encodeClass[N uint16 | uint32](to map[string]string, class string, numbers map[string]N) []error {
	var errs []error
	for name, n := range numbers {
		key, err := numberKey(class, name)
		if err == nil && n == 0 {
			err = fmt.Errorf("number 0 for %s %q", class, name)
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		to[key] = strconv.FormatUint(uint64(n), 10)
	}
	return errs
}

// difference is what leads from a snapshot to the change, sorted by key, and the
// keys of the documents that it puts.
func (e encoded) difference(have *model.Snapshot) (ops []clientv3.Op, changed []string, err error) {
	for _, key := range slices.Sorted(maps.Keys(e.put)) {
		if old, ok := have.Documents[e.docs[key].Key]; ok {
			b, err := document.Encode(old.Spec)
			if err != nil {
				return nil, nil, fmt.Errorf("encode %s: %w", old.Key, err)
			}
			if bytes.Equal(b, e.put[key]) {
				continue
			}
		}
		value := string(e.put[key])
		if parts := e.pieces[key]; parts != nil {
			value = rootOf(e.put[key], parts)
		}
		ops, changed = append(ops, clientv3.OpPut(key, value)), append(changed, key)
	}
	gone := map[string]bool{}
	for _, key := range slices.Sorted(maps.Keys(e.delete)) {
		k := e.delete[key]
		if _, ok := have.Documents[k]; !ok {
			continue
		}
		ops = append(ops, clientv3.OpDelete(key))
		if k.Kind == model.KindNode {
			gone[k.Name] = true
			ended, err := ending(have, k.Name, e.revoke)
			if err != nil {
				return nil, nil, err
			}
			ops = append(ops, ended...)
			ops = append(ops,
				clientv3.OpDelete(keysRoot+k.Name+"/", clientv3.WithPrefix()),
				clientv3.OpDelete(enrolmentRoot+k.Name),
				clientv3.OpDelete(redeemRoot+k.Name))
		}
	}
	old := map[string]string{}
	if errs := encodeNumbers(old, have.Numbers); len(errs) > 0 {
		return nil, nil, errors.Join(errs...)
	}
	for _, key := range slices.Sorted(maps.Keys(e.numbers)) {
		if old[key] != e.numbers[key] {
			ops = append(ops, clientv3.OpPut(key, e.numbers[key]))
		}
	}
	for _, key := range slices.Sorted(maps.Keys(old)) {
		if _, ok := e.numbers[key]; !ok {
			ops = append(ops, clientv3.OpDelete(key))
		}
	}
	ends := e.ends(have)
	known := map[string]bool{}
	before := endsOf(have.Documents)
	for tunnel := range have.PresharedKeys {
		_, numbered := e.tunnels[tunnel]
		// A tunnel by IPsec has no key that its nodes have reported.
		was, is := before[tunnel], ends[tunnel]
		moved := was != is && is != [2]string{} && was != [2]string{} && was != [2]string{is[1], is[0]}
		if !numbered || moved {
			known[tunnel] = true
		}
	}
	for end := range have.Keys {
		_, numbered := e.tunnels[end.Tunnel]
		nodes, derived := ends[end.Tunnel]
		if stale := !numbered || derived && !slices.Contains(nodes[:], end.Node); stale {
			known[end.Tunnel] = true
			if !gone[end.Node] {
				ops = append(ops, clientv3.OpDelete(tunnelKey(end.Node, end.Tunnel)))
			}
		}
	}
	for _, tunnel := range slices.Sorted(maps.Keys(known)) {
		if _, ok := have.PresharedKeys[tunnel]; ok {
			ops = append(ops, clientv3.OpDelete(presharedKey(tunnel)))
		}
	}
	settled, err := settledOps(have.Settled, e.settled)
	if err != nil {
		return nil, nil, err
	}
	ops = append(ops, settled...)
	for _, name := range slices.Sorted(maps.Keys(have.Identities)) {
		k, ok := model.EndpointOfIdentity(name)
		if !ok {
			continue
		}
		key, endpoint, err := certificateKey(name)
		if err != nil {
			return nil, nil, err
		}
		if _, deleted := e.delete[endpoint]; deleted {
			if _, there := have.Documents[k]; there {
				ops = append(ops, clientv3.OpDelete(key))
			}
		}
	}
	return ops, changed, nil
}

// ends are the nodes at both ends of every tunnel after the change.
func (e encoded) ends(have *model.Snapshot) map[string][2]string {
	docs := maps.Clone(have.Documents)
	for _, k := range e.delete {
		delete(docs, k)
	}
	for _, d := range e.docs {
		docs[d.Key] = d
	}
	return endsOf(docs)
}

// endsOf are the nodes at both ends of every tunnel of documents, "" for a gateway
// without our agent.
func endsOf(docs map[model.Key]model.Document) map[string][2]string {
	ends := map[string][2]string{}
	for k := range docs {
		if k.Kind != model.KindConnection {
			continue
		}
		tunnels, _ := model.Tunnels(docs, k)
		for _, t := range tunnels {
			ends[t.ID] = [2]string{t.Ends[0].Node, t.Ends[1].Node}
		}
	}
	return ends
}
