package api

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"

	"github.com/circuitseal/circuitseal/controller/document"
	"github.com/circuitseal/circuitseal/controller/model"
	"github.com/circuitseal/circuitseal/controller/store"
	"github.com/circuitseal/circuitseal/proto/chunk"
	v1 "github.com/circuitseal/circuitseal/proto/circuitseal/v1"
)

const (
	// maxUploads is how many bytes of texts wait for their Apply, of all callers
	// together: memory.
	maxUploads = document.MaxLong
	// uploadLife is how long one waits after it was last asked for.
	uploadLife = 10 * time.Minute
	// longGCPercent is how much garbage there may be beside what is in use, in
	// percent, while a long text is read.
	longGCPercent = 25
	// longTimeout is how long an Apply of a long text may take.
	longTimeout = 5 * time.Minute
	// maxAsked is how many chunks a caller asks about at once.
	maxAsked = 4096
)

// uploads are parts of texts that wait for the Apply that names them.
type uploads struct {
	now func() time.Time
	// long is held by the one Apply that reads a long text.
	long chan struct{}

	mu     sync.Mutex
	pieces map[chunk.Sum]*upload
	total  int
	// sweeper runs while there is something to forget.
	sweeper *time.Timer
}

type upload struct {
	data []byte
	used time.Time
}

func newUploads(now func() time.Time) *uploads {
	return &uploads{now: now, long: make(chan struct{}, 1), pieces: map[chunk.Sum]*upload{}}
}

// sweep forgets what nobody has asked for in time.
func (u *uploads) sweep() {
	u.mu.Lock()
	defer u.mu.Unlock()
	for sum, p := range u.pieces {
		if u.now().Sub(p.used) >= uploadLife {
			u.drop(sum, p)
		}
	}
	if len(u.pieces) == 0 {
		u.sweeper = nil
		return
	}
	u.sweeper.Reset(uploadLife / 2)
}

// drop forgets a piece. The caller holds mu.
func (u *uploads) drop(sum chunk.Sum, p *upload) {
	delete(u.pieces, sum)
	u.total -= len(p.data)
}

// put keeps a piece.
func (u *uploads) put(data []byte) (chunk.Sum, error) {
	sum := chunk.Of(data)
	u.mu.Lock()
	defer u.mu.Unlock()
	if p := u.pieces[sum]; p != nil {
		p.used = u.now()
		return sum, nil
	}
	if u.total+len(data) > maxUploads {
		return sum, connect.NewError(connect.CodeResourceExhausted, fmt.Errorf(
			"%d bytes of texts wait to be applied, and %d are the most that are kept; what nobody applies is forgotten after %s", u.total, maxUploads, uploadLife))
	}
	u.pieces[sum] = &upload{data, u.now()}
	u.total += len(data)
	if u.sweeper == nil {
		u.sweeper = time.AfterFunc(uploadLife/2, u.sweep)
	}
	return sum, nil
}

// missing are those of some pieces that are not there. The others stay for
// another while.
func (u *uploads) missing(sums [][]byte) ([][]byte, error) {
	if n := len(sums); n > maxAsked {
		return nil, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("chunks: %d are more than the %d that are taken at once", n, maxAsked))
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	var none [][]byte
	for i, b := range sums {
		sum, err := sumOf(fmt.Sprintf("chunks[%d]", i), b)
		if err != nil {
			return nil, err
		}
		if p := u.pieces[sum]; p != nil {
			p.used = u.now()
		} else {
			none = append(none, b)
		}
	}
	return none, nil
}

func sumOf(path string, b []byte) (chunk.Sum, error) {
	if len(b) != len(chunk.Sum{}) {
		return chunk.Sum{}, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("%s has %d bytes; a SHA-256 has %d", path, len(b), len(chunk.Sum{})))
	}
	return chunk.Sum(b), nil
}

// turn waits until no other Apply reads a long text, where sources have one:
// what a long text costs in memory is there once. A long text leaves several
// times its size as garbage, so until release it is collected early, and then
// given back to the system.
func (u *uploads) turn(ctx context.Context, sources []*v1.Source) (release func(), err error) {
	long := false
	for _, s := range sources {
		long = long || len(s.GetChunks()) > 0
	}
	if !long {
		return func() {}, nil
	}
	select {
	case u.long <- struct{}{}:
		if d := callOf(ctx).deadlines; d != nil {
			until := time.Now().Add(longTimeout)
			if err := errors.Join(d.SetReadDeadline(until), d.SetWriteDeadline(until)); err != nil {
				<-u.long
				return nil, connect.NewError(connect.CodeInternal, err)
			}
		}
		percent := debug.SetGCPercent(longGCPercent)
		return func() {
			debug.SetGCPercent(percent)
			debug.FreeOSMemory()
			<-u.long
		}, nil
	case <-ctx.Done():
		return nil, storeError(ctx.Err())
	}
}

// text is that of a source, the one with an index.
func (u *uploads) text(index int, s *v1.Source) (string, error) {
	if len(s.GetChunks()) == 0 {
		return s.GetText(), nil
	}
	path := fmt.Sprintf("sources[%d].chunks", index)
	if s.GetText() != "" {
		return "", connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("%s stands beside text: want one or the other", path))
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	size := 0
	all := make([]*upload, len(s.GetChunks()))
	for i, b := range s.GetChunks() {
		sum, err := sumOf(fmt.Sprintf("%s[%d]", path, i), b)
		if err != nil {
			return "", err
		}
		p := u.pieces[sum]
		if p == nil {
			return "", connect.NewError(connect.CodeFailedPrecondition, fmt.Errorf(
				"%s[%d], %s, is not here (any more): ask with MissingChunks, send with PutChunk, and apply again", path, i, sum))
		}
		p.used = u.now()
		all[i] = p
		// One piece may be named often.
		if size += len(p.data); size > document.MaxLong {
			return "", connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("%s have more than the %d bytes that are read", path, document.MaxLong))
		}
	}
	var text strings.Builder
	text.Grow(size)
	for _, p := range all {
		text.Write(p.data)
	}
	return text.String(), nil
}

// forget drops the pieces of sources that were applied.
func (u *uploads) forget(sources []*v1.Source) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, s := range sources {
		for _, b := range s.GetChunks() {
			if p := u.pieces[chunk.Sum(b)]; p != nil {
				u.drop(chunk.Sum(b), p)
			}
		}
	}
}

// MissingChunks implements circuitsealv1connect.PolicyServiceHandler.
func (p *policy) MissingChunks(_ context.Context, q *connect.Request[v1.MissingChunksRequest]) (*connect.Response[v1.MissingChunksResponse], error) {
	missing, err := p.uploads.missing(q.Msg.GetChunks())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&v1.MissingChunksResponse{Missing: missing}), nil
}

// PutChunk implements circuitsealv1connect.PolicyServiceHandler.
func (p *policy) PutChunk(_ context.Context, q *connect.Request[v1.PutChunkRequest]) (*connect.Response[v1.PutChunkResponse], error) {
	if n := len(q.Msg.GetData()); n == 0 || n > chunk.Max {
		return nil, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("data has %d bytes; a chunk has 1 to %d", n, chunk.Max))
	}
	sum, err := p.uploads.put(q.Msg.GetData())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&v1.PutChunkResponse{Chunk: sum[:]}), nil
}

// GetChunk implements circuitsealv1connect.PolicyServiceHandler.
func (p *policy) GetChunk(ctx context.Context, q *connect.Request[v1.GetChunkRequest]) (*connect.Response[v1.GetChunkResponse], error) {
	k := q.Msg.GetDocument()
	kind, err := parseKind(k.GetKind())
	if err != nil {
		return nil, err
	}
	if err := validNames(field{"document.customer", k.GetCustomer(), kind.HasCustomer()}, field{"document.name", k.GetName(), true}); err != nil {
		return nil, err
	}
	sum, err := sumOf("chunk", q.Msg.GetChunk())
	if err != nil {
		return nil, err
	}
	key := model.Key{Kind: kind, Customer: k.GetCustomer(), Name: k.GetName()}
	data, err := p.store.Chunk(ctx, key, k.GetRevision(), sum)
	if errors.Is(err, store.ErrNoChunk) {
		return nil, connect.NewError(connect.CodeNotFound, fmt.Errorf("%s has no chunk %s at revision %d (any more): get the document again", key, sum, k.GetRevision()))
	}
	if err != nil {
		return nil, storeError(err)
	}
	return connect.NewResponse(&v1.GetChunkResponse{Data: data}), nil
}

// sources are texts as they are decoded, their parts put together. Between this
// and release, which is not nil without an error, no other long text is read.
func (u *uploads) sources(ctx context.Context, wire []*v1.Source) (_ []document.Source, _ func(), err error) {
	if n := len(wire); n > maxSources {
		return nil, nil, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("sources: %d are more than the %d that are taken; put several documents into one", n, maxSources))
	}
	release, err := u.turn(ctx, wire)
	if err != nil {
		return nil, nil, err
	}
	defer func() {
		if err != nil {
			release()
		}
	}()
	sources := make([]document.Source, len(wire))
	for i, s := range wire {
		if n := len(s.GetName()); n > maxSourceName {
			return nil, nil, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("sources[%d].name has %d bytes; at most %d are taken", i, n, maxSourceName))
		}
		text, err := u.text(i, s)
		if err != nil {
			return nil, nil, err
		}
		sources[i] = document.Source{Name: s.GetName(), Text: text}
	}
	return sources, release, nil
}
