package store

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/circuitseal/circuitseal/controller/model"
	"github.com/circuitseal/circuitseal/proto/chunk"
)

// A spec that is longer than LongSpec is kept as chunks, by the SHA-256 of what
// they hold, and the document's key has a root that names them. Chunks are
// written first. The transaction that writes a root asks that all of its chunks
// be there, and the one that removes chunks that no root names asks that no root
// have changed since it looked: whichever comes first, no root ever lacks one.

const (
	// LongSpec is the longest spec in bytes that is not kept as chunks.
	LongSpec = 256 << 10
	// rootPrefix begins a root; canonical JSON begins with a brace.
	rootPrefix = "chunks/1 "
	// maxChunked is the longest spec in bytes.
	maxChunked = 64 << 20
	// collectAtOnce is how many chunks one transaction removes.
	collectAtOnce = 1000
)

// piece is a chunk and its name.
type piece struct {
	sum  chunk.Sum
	data []byte
}

func chunkKey(s chunk.Sum) string { return chunksRoot + s.String() }

// pieces are the chunks of a spec, nil where it is short enough to be kept whole.
func pieces(spec []byte) []piece {
	if len(spec) <= LongSpec {
		return nil
	}
	var all []piece
	for b := range chunk.Split(spec) {
		all = append(all, piece{chunk.Of(b), b})
	}
	return all
}

// rootOf is what the key of a document holds whose spec has these pieces.
func rootOf(spec []byte, all []piece) string {
	var b strings.Builder
	b.WriteString(rootPrefix + strconv.Itoa(len(spec)) + "\n")
	for _, p := range all {
		b.WriteString(p.sum.String() + "\n")
	}
	return b.String()
}

// parseRoot reads what rootOf has written; long is false for a spec that is kept
// whole.
func parseRoot(value []byte) (size int, sums []chunk.Sum, long bool, err error) {
	rest, long := bytes.CutPrefix(value, []byte(rootPrefix))
	if !long {
		return 0, nil, false, nil
	}
	first := true
	for line := range strings.Lines(string(rest)) {
		line = strings.TrimSuffix(line, "\n")
		if first {
			first = false
			if size, err = strconv.Atoi(line); err != nil || size <= 0 || size > maxChunked {
				return 0, nil, true, fmt.Errorf("its root has no size that can be")
			}
			continue
		}
		sum, err := chunk.ParseSum(line)
		if err != nil {
			return 0, nil, true, fmt.Errorf("its root: %w", err)
		}
		sums = append(sums, sum)
	}
	if len(sums) == 0 || len(sums) > maxChunked/chunk.Least+1 {
		return 0, nil, true, fmt.Errorf("its root names %d chunks", len(sums))
	}
	return size, sums, true, nil
}

// assemble reads the spec of a root as it was at an etcd revision, and checks
// every chunk by its name.
func (s *Store) assemble(ctx context.Context, size int, sums []chunk.Sum, revision int64) ([]byte, error) {
	spec := make([]byte, 0, size)
	for _, sum := range sums {
		r, err := s.get(ctx, chunkKey(sum), clientv3.WithRev(revision))
		if err != nil {
			return nil, fmt.Errorf("read chunk %s: %w", sum, err)
		}
		if len(r.Kvs) != 1 {
			return nil, unreadable{fmt.Errorf("chunk %s is missing", sum)}
		}
		data := r.Kvs[0].Value
		if chunk.Of(data) != sum {
			return nil, unreadable{fmt.Errorf("chunk %s holds something else", sum)}
		}
		if len(spec)+len(data) > size {
			return nil, unreadable{fmt.Errorf("its chunks have more than the %d bytes of its root", size)}
		}
		spec = append(spec, data...)
	}
	if len(spec) != size {
		return nil, unreadable{fmt.Errorf("its chunks have %d bytes, and its root says %d", len(spec), size)}
	}
	return spec, nil
}

// putChunks writes those of some chunks that are not there. Until done is called,
// this store does not collect them.
func (s *Store) putChunks(ctx context.Context, all []piece) (done func(), err error) {
	s.flight.Lock()
	for _, p := range all {
		s.inFlight[p.sum]++
	}
	s.flight.Unlock()
	done = func() {
		s.flight.Lock()
		defer s.flight.Unlock()
		for _, p := range all {
			if s.inFlight[p.sum]--; s.inFlight[p.sum] == 0 {
				delete(s.inFlight, p.sum)
			}
		}
	}
	for _, p := range all {
		key := chunkKey(p.sum)
		r, err := s.get(ctx, key, clientv3.WithKeysOnly())
		if err == nil && len(r.Kvs) == 0 {
			_, err = s.txn(ctx, []clientv3.Cmp{absent(key)}, []clientv3.Op{clientv3.OpPut(key, string(p.data))}, nil)
		}
		if err != nil {
			done()
			return nil, fmt.Errorf("write chunk %s: %w", p.sum, err)
		}
	}
	return done, nil
}

// collectChunks removes the chunks that no document needs.
func (s *Store) collectChunks(ctx context.Context) error {
	for {
		have, err := s.get(ctx, chunksRoot, clientv3.WithPrefix(), clientv3.WithKeysOnly())
		if err != nil {
			return fmt.Errorf("collect chunks: %w", err)
		}
		if len(have.Kvs) == 0 {
			return nil
		}
		v, err := s.read(ctx)
		if err != nil {
			return fmt.Errorf("collect chunks: %w", err)
		}
		var ops []clientv3.Op
		s.flight.Lock()
		for _, kv := range have.Kvs {
			sum, err := chunk.ParseSum(strings.TrimPrefix(string(kv.Key), chunksRoot))
			if err == nil && (v.chunks[sum] || s.inFlight[sum] > 0) {
				continue
			}
			if ops = append(ops, clientv3.OpDelete(string(kv.Key))); len(ops) == collectAtOnce {
				break
			}
		}
		s.flight.Unlock()
		if len(ops) == 0 {
			return nil
		}
		// Where a document has changed since, the next turn sees that.
		if _, err := s.txn(ctx, []clientv3.Cmp{unchanged(writtenKey, v.written)}, ops, nil); err != nil {
			return fmt.Errorf("collect chunks: %w", err)
		}
	}
}

// Chunk is a part of the spec of a document at the revision of its last change.
// ErrNoChunk when the document is at another one, or has no such part.
func (s *Store) Chunk(ctx context.Context, k model.Key, revision uint64, sum chunk.Sum) ([]byte, error) {
	key, err := documentKey(k)
	if err != nil {
		return nil, fmt.Errorf("read chunk %s: %w", sum, err)
	}
	r, err := s.txn(ctx, []clientv3.Cmp{unchanged(key, int64(revision))}, []clientv3.Op{clientv3.OpGet(key), clientv3.OpGet(chunkKey(sum))}, nil)
	if err != nil {
		return nil, fmt.Errorf("read chunk %s: %w", sum, err)
	}
	if !r.Succeeded || revision == 0 {
		return nil, fmt.Errorf("read chunk %s: %w", sum, ErrNoChunk)
	}
	roots, chunks := r.Responses[0].GetResponseRange().Kvs, r.Responses[1].GetResponseRange().Kvs
	if len(roots) != 1 || len(chunks) != 1 {
		return nil, fmt.Errorf("read chunk %s: %w", sum, ErrNoChunk)
	}
	if _, sums, _, err := parseRoot(roots[0].Value); err != nil || !slices.Contains(sums, sum) {
		return nil, fmt.Errorf("read chunk %s: %w", sum, ErrNoChunk)
	}
	if chunk.Of(chunks[0].Value) != sum {
		return nil, fmt.Errorf("read chunk %s: it holds something else", sum)
	}
	return chunks[0].Value, nil
}

// DocumentsAt are the documents as they were in the snapshot of an earlier
// revision. ErrCompacted when that is not kept any more, or never was.
func (s *Store) DocumentsAt(ctx context.Context, revision uint64) (map[model.Key]model.Document, error) {
	v, err := s.read(ctx)
	if err != nil {
		return nil, err
	}
	if uint64(v.changed) == revision {
		return v.snapshot.Documents, nil
	}
	if revision == 0 || revision > uint64(v.changed) {
		return nil, fmt.Errorf("read documents at revision %d: %w", revision, ErrCompacted)
	}
	s.past.Lock()
	defer s.past.Unlock()
	if s.pastRevision == revision {
		return s.pastDocuments, nil
	}
	r, err := s.get(ctx, documentsRoot, clientv3.WithPrefix(), clientv3.WithRev(int64(revision)))
	if err != nil {
		return nil, fmt.Errorf("read documents at revision %d: %w", revision, err)
	}
	docs, _, err := s.decodeDocuments(ctx, r.Kvs, v.snapshot.Documents, int64(revision))
	if err != nil {
		return nil, fmt.Errorf("read documents at revision %d: %w", revision, err)
	}
	s.pastRevision, s.pastDocuments = revision, docs
	return docs, nil
}

// chunksOf are the chunks of several documents, each once.
func (e encoded) chunksOf(keys []string) []piece {
	all := map[chunk.Sum]piece{}
	for _, key := range keys {
		for _, p := range e.pieces[key] {
			all[p.sum] = p
		}
	}
	return slices.SortedFunc(maps.Values(all), func(a, b piece) int { return bytes.Compare(a.sum[:], b.sum[:]) })
}
