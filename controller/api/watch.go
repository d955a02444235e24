package api

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"connectrpc.com/connect"

	"github.com/circuitseal/circuitseal/controller/model"
	v1 "github.com/circuitseal/circuitseal/proto/circuitseal/v1"
)

// maxWatches is how many callers may watch at once.
const maxWatches = 64

// takeTimeout is how long a watcher may take over one message; tests have less.
var takeTimeout = 30 * time.Second

// Watch implements circuitsealv1connect.PolicyServiceHandler. Nothing is queued
// for a watcher: it gets the difference between what it has and the newest
// snapshot, so that a slow one costs no more than a quick one.
func (p *policy) Watch(ctx context.Context, q *connect.Request[v1.WatchRequest], stream *connect.ServerStream[v1.WatchResponse]) error {
	f, err := newFilter(q.Msg.GetKind(), q.Msg.GetCustomer(), q.Msg.GetName())
	if err != nil {
		return err
	}
	select {
	case p.watches <- struct{}{}:
		defer func() { <-p.watches }()
	default:
		return connect.NewError(connect.CodeResourceExhausted, fmt.Errorf("%d callers watch already, and more are not served: end one of them", maxWatches))
	}
	var seen map[model.Key]model.Document
	if from := q.Msg.GetFromRevision(); from > 0 {
		if seen, err = p.documentsAt(ctx, from, "from_revision: what has changed since then is not known any more; begin anew with 0, and forget what is not sent again"); err != nil {
			return err
		}
	}
	deadlines := callOf(ctx).deadlines
	// The call lives as long as its caller wants.
	if err := deadlines.SetReadDeadline(time.Time{}); err != nil {
		return connect.NewError(connect.CodeInternal, err)
	}
	send := func(m *v1.WatchResponse) error {
		if err := deadlines.SetWriteDeadline(time.Now().Add(takeTimeout)); err != nil {
			return err
		}
		return stream.Send(m)
	}
	watching, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(p.stopping, cancel)()
	for s, err := range p.store.Watch(watching) {
		if err != nil {
			return storeError(err)
		}
		events := changes(f, seen, s.Documents)
		seen = s.Documents
		for _, e := range events {
			m, err := e.toWire()
			if err != nil {
				return connect.NewError(connect.CodeInternal, err)
			}
			m.Revision = s.Revision
			if err := send(m); err != nil {
				return err
			}
		}
		if err := send(&v1.WatchResponse{Event: v1.WatchEvent_WATCH_EVENT_BOOKMARK, Revision: s.Revision}); err != nil {
			return err
		}
		// Nobody is hurried while there is nothing to take.
		if err := deadlines.SetWriteDeadline(time.Time{}); err != nil {
			return connect.NewError(connect.CodeInternal, err)
		}
	}
	if p.stopping.Err() != nil {
		return connect.NewError(connect.CodeUnavailable, errors.New("the controller is stopping; watch again from the last bookmark"))
	}
	return ctx.Err()
}

// event is one thing that a watcher is told.
type event struct {
	kind v1.WatchEvent
	doc  model.Document
}

func (e event) toWire() (*v1.WatchResponse, error) {
	if e.kind == v1.WatchEvent_WATCH_EVENT_DELETED {
		return &v1.WatchResponse{Event: e.kind, Document: identityToWire(e.doc)}, nil
	}
	d, _, err := documentToWire(e.doc)
	return &v1.WatchResponse{Event: e.kind, Document: d}, err
}

// changes lead from one set of documents to another, as far as a filter lets
// them pass: what is new or changed in the order of kinds, so that most come
// after what they name, then what is gone in the other order.
func changes(f filter, before, after map[model.Key]model.Document) []event {
	var events []event
	for k, d := range after {
		if !f.passes(k) {
			continue
		}
		switch old, ok := before[k]; {
		case !ok:
			events = append(events, event{v1.WatchEvent_WATCH_EVENT_CREATED, d})
		case old.Revision != d.Revision:
			events = append(events, event{v1.WatchEvent_WATCH_EVENT_CHANGED, d})
		}
	}
	byKey := func(a, b event) int { return compareKeys(f.kinds, a.doc.Key, b.doc.Key) }
	slices.SortFunc(events, byKey)
	var gone []event
	for k, d := range before {
		if _, ok := after[k]; !ok && f.passes(k) {
			gone = append(gone, event{v1.WatchEvent_WATCH_EVENT_DELETED, d})
		}
	}
	slices.SortFunc(gone, func(a, b event) int { return byKey(b, a) })
	return append(events, gone...)
}
