package api

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"connectrpc.com/connect"

	"github.com/circuitseal/circuitseal/controller/compile"
	"github.com/circuitseal/circuitseal/controller/document"
	"github.com/circuitseal/circuitseal/controller/model"
	"github.com/circuitseal/circuitseal/controller/store"
	v1 "github.com/circuitseal/circuitseal/proto/circuitseal/v1"
)

// Delete implements circuitsealv1connect.PolicyServiceHandler.
func (p *policy) Delete(ctx context.Context, q *connect.Request[v1.DeleteRequest]) (*connect.Response[v1.DeleteResponse], error) {
	answer, err := p.delete(ctx, q.Msg)
	audited := []any{"kind", model.Shorten(q.Msg.GetKind()), "customer", model.Shorten(q.Msg.GetCustomer()), "name", model.Shorten(q.Msg.GetName())}
	if len(q.Msg.GetKeys()) > 0 {
		audited = []any{"documents", list(q.Msg.GetKeys(), func(k *v1.DocumentKey) string {
			return keyFromWire(k).String()
		})}
	}
	audit(ctx, p.log, "delete", err, audited...)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(answer), nil
}

// doomed is a document that is to be deleted.
type doomed struct {
	key model.Key
	// revision is the one that is wanted, 0 for any.
	revision uint64
}

// doomedOf checks what a request names.
func doomedOf(q *v1.DeleteRequest) ([]doomed, error) {
	keys := q.GetKeys()
	single := len(keys) == 0
	switch {
	case single:
		keys = []*v1.DocumentKey{{Kind: q.GetKind(), Customer: q.GetCustomer(), Name: q.GetName()}}
	case q.GetKind() != "" || q.GetCustomer() != "" || q.GetName() != "":
		return nil, connect.NewError(connect.CodeInvalidArgument, errors.New("keys: stand beside kind, customer or name: want one or the other"))
	case len(keys) > document.MaxDocuments:
		return nil, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("keys: %d are more than the %d that are taken; delete in several steps", len(keys), document.MaxDocuments))
	}
	all := make([]doomed, len(keys))
	for i, k := range keys {
		prefix := ""
		if !single {
			prefix = fmt.Sprintf("keys[%d].", i)
		}
		key, err := parseKey(prefix, k.GetKind(), k.GetCustomer(), k.GetName())
		if err != nil {
			return nil, err
		}
		all[i] = doomed{key, k.GetRevision()}
	}
	return all, nil
}

func (p *policy) delete(ctx context.Context, q *v1.DeleteRequest) (*v1.DeleteResponse, error) {
	all, err := doomedOf(q)
	if err != nil {
		return nil, err
	}
	for range writeAttempts {
		s, err := p.store.Snapshot(ctx)
		if err != nil {
			return nil, storeError(err)
		}
		targets := map[model.Key]bool{}
		answer := &v1.DeleteResponse{}
		var old []model.Problem
		for _, d := range all {
			have, ok := s.Documents[d.key]
			switch {
			case targets[d.key]:
				continue
			case !ok && q.GetMissingOk():
				continue
			case !ok:
				return nil, notFound(s, d.key, false)
			case d.revision != 0 && d.revision != have.Revision:
				old = append(old, model.Problem{
					Document: d.key.String(), Message: fmt.Sprintf("was to be deleted at revision %d, and is at revision %d by now", d.revision, have.Revision),
				})
			}
			targets[d.key] = true
			answer.Deleted = append(answer.Deleted, keyToWire(d.key))
		}
		if len(old) > 0 {
			return nil, outdated(old)
		}
		kinds := model.Kinds()
		slices.SortFunc(answer.Deleted, func(a, b *v1.DocumentKey) int { return compareKeys(kinds, keyFromWire(b), keyFromWire(a)) })
		answer.Revision, err = remove(ctx, p.store, s, targets, deletion(ctx))
		if errors.Is(err, store.ErrConflict) {
			continue
		}
		if err != nil {
			return nil, err
		}
		return answer, nil
	}
	return nil, errBusy
}

// remove deletes documents on top of a snapshot, unless something that stays
// needs them. The identities of nodes among them are revoked. An error that is
// ErrConflict says that the snapshot is old.
func remove(ctx context.Context, to Store, s *model.Snapshot, targets map[model.Key]bool, r model.Revocation) (uint64, error) {
	if uses := model.Uses(s.Documents, targets); len(uses) > 0 {
		return 0, inUse(uses)
	}
	rest := maps.Clone(s.Documents)
	change := store.Change{Revocation: r}
	for k := range targets {
		delete(rest, k)
		change.Delete = append(change.Delete, k)
	}
	if news := newProblems(model.Validate(s.Documents), model.Validate(rest)); len(news) > 0 {
		return 0, broken(news)
	}
	numbers, err := compile.Number(rest, s.Numbers)
	if err != nil {
		return 0, connect.NewError(connect.CodeResourceExhausted, err)
	}
	change.Numbers, change.Settled = numbers, model.Settle(s.Documents, rest, s.Settled)
	revision, err := to.Write(ctx, s.Revision, change)
	if err != nil && !errors.Is(err, store.ErrConflict) {
		return 0, writeError(err)
	}
	return revision, err
}

// newProblems are those of after that before does not have: a set that was
// stored by an older version is not the caller's fault.
func newProblems(before, after []model.Problem) []model.Problem {
	old := make(map[model.Problem]bool, len(before))
	for _, p := range before {
		old[p] = true
	}
	var news []model.Problem
	for _, p := range after {
		if !old[p] {
			news = append(news, p)
		}
	}
	return news
}
