package api

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"strings"

	"connectrpc.com/connect"

	"github.com/circuitseal/circuitseal/controller/compile"
	"github.com/circuitseal/circuitseal/controller/document"
	"github.com/circuitseal/circuitseal/controller/model"
	"github.com/circuitseal/circuitseal/controller/store"
	v1 "github.com/circuitseal/circuitseal/proto/circuitseal/v1"
)

const (
	// writeAttempts is how often a change is judged anew when another one came
	// between its judgement and its writing.
	writeAttempts = 8
	// maxSourceName is the longest name of a source in bytes: problems repeat it.
	maxSourceName = 1024
	// maxSources is how many sources an apply may have: each costs much more
	// than its bytes.
	maxSources = 4096
)

// policy is the PolicyService.
type policy struct {
	store Store
	log   *slog.Logger
}

// Apply implements circuitsealv1connect.PolicyServiceHandler.
func (p *policy) Apply(ctx context.Context, q *connect.Request[v1.ApplyRequest]) (*connect.Response[v1.ApplyResponse], error) {
	answer, err := p.apply(ctx, q.Msg)
	changed := 0
	for _, c := range answer.GetChanges() {
		if c.GetAction() != v1.ChangeAction_CHANGE_ACTION_UNCHANGED {
			changed++
		}
	}
	if err != nil {
		audit(ctx, p.log, "apply", err, "sources", len(q.Msg.GetSources()), "dry_run", q.Msg.GetDryRun())
		return nil, err
	}
	audit(ctx, p.log, "apply", nil, "documents", len(answer.GetChanges()), "changed", changed,
		"dry_run", q.Msg.GetDryRun(), "revision", answer.GetRevision())
	return connect.NewResponse(answer), nil
}

func (p *policy) apply(ctx context.Context, q *v1.ApplyRequest) (*v1.ApplyResponse, error) {
	if n := len(q.GetSources()); n > maxSources {
		return nil, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("sources: %d are more than the %d that are taken; put several documents into one", n, maxSources))
	}
	sources := make([]document.Source, len(q.GetSources()))
	for i, s := range q.GetSources() {
		if n := len(s.GetName()); n > maxSourceName {
			return nil, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("sources[%d].name has %d bytes; at most %d are taken", i, n, maxSourceName))
		}
		sources[i] = document.Source{Name: s.GetName(), Text: s.GetText()}
	}
	docs, where, malformed := document.Decode(sources)
	if len(docs) == 0 && len(malformed) == 0 {
		return nil, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("there is no document in %s", sourceNames(sources)))
	}
	for range writeAttempts {
		s, err := p.store.Snapshot(ctx)
		if err != nil {
			return nil, storeError(err)
		}
		all, changes, err := overlay(s.Documents, docs)
		if err != nil {
			return nil, connect.NewError(connect.CodeInternal, err)
		}
		if problems := where.Merge(malformed, model.Validate(all)); len(problems) > 0 {
			return nil, invalid(problems)
		}
		numbers, err := compile.Number(all, s.Numbers)
		if err != nil {
			return nil, connect.NewError(connect.CodeResourceExhausted, err)
		}
		if q.GetDryRun() {
			return &v1.ApplyResponse{Revision: s.Revision, Changes: changes}, nil
		}
		revision, err := p.store.Write(ctx, s.Revision, store.Change{Put: docs, Numbers: numbers})
		if errors.Is(err, store.ErrConflict) {
			continue
		}
		if err != nil {
			return nil, writeError(err)
		}
		return &v1.ApplyResponse{Revision: revision, Changes: changes}, nil
	}
	return nil, errBusy
}

// sourceNames names sources, or says that there are none.
func sourceNames(sources []document.Source) string {
	if len(sources) == 0 {
		return "what was sent: there are no sources"
	}
	var names []string
	for _, s := range sources[:min(len(sources), maxNamed)] {
		names = append(names, model.Shorten(s.Name))
	}
	text := strings.Join(names, ", ")
	if n := len(sources) - maxNamed; n > 0 {
		text += fmt.Sprintf(" and %d more", n)
	}
	return text
}

var errBusy = connect.NewError(connect.CodeAborted, errors.New("others change documents at the same time; nothing was changed; try again"))

// overlay lays documents over those that are stored and says what that changes.
// A stored document that stays as it is keeps its revision, which tells
// validation that it is not new.
func overlay(stored map[model.Key]model.Document, docs []model.Document) (map[model.Key]model.Document, []*v1.Change, error) {
	all := maps.Clone(stored)
	if all == nil {
		all = make(map[model.Key]model.Document, len(docs))
	}
	changes := make([]*v1.Change, len(docs))
	for i, d := range docs {
		action := v1.ChangeAction_CHANGE_ACTION_CREATED
		if old, ok := stored[d.Key]; ok {
			same, err := equalSpecs(old.Spec, d.Spec)
			if err != nil {
				return nil, nil, err
			}
			action = v1.ChangeAction_CHANGE_ACTION_CONFIGURED
			if same {
				action = v1.ChangeAction_CHANGE_ACTION_UNCHANGED
			}
		}
		if action != v1.ChangeAction_CHANGE_ACTION_UNCHANGED {
			all[d.Key] = model.Document{Key: d.Key, Spec: d.Spec}
		}
		changes[i] = &v1.Change{Kind: string(d.Key.Kind), Customer: d.Key.Customer, Name: d.Key.Name, Action: action}
	}
	return all, changes, nil
}

func equalSpecs(a, b model.Spec) (bool, error) {
	x, err := document.Encode(a)
	if err != nil {
		return false, err
	}
	y, err := document.Encode(b)
	return bytes.Equal(x, y), err
}

// Get implements circuitsealv1connect.PolicyServiceHandler.
func (p *policy) Get(ctx context.Context, q *connect.Request[v1.GetRequest]) (*connect.Response[v1.GetResponse], error) {
	kinds := model.Kinds()
	if !strings.EqualFold(q.Msg.GetKind(), "all") {
		kind, err := parseKind(q.Msg.GetKind())
		if err != nil {
			return nil, err
		}
		kinds = []model.Kind{kind}
	}
	if err := validNames(field{"customer", q.Msg.GetCustomer(), false}, field{"name", q.Msg.GetName(), false}); err != nil {
		return nil, err
	}
	s, err := p.store.Snapshot(ctx)
	if err != nil {
		return nil, storeError(err)
	}
	if name := q.Msg.GetCustomer(); name != "" {
		key := model.Key{Kind: model.KindCustomer, Name: name}
		if _, ok := s.Documents[key]; !ok {
			return nil, notFound(s, key, false)
		}
	}
	answer := &v1.GetResponse{Revision: s.Revision}
	for _, k := range selected(s.Documents, kinds, q.Msg.GetCustomer(), q.Msg.GetName()) {
		d, err := documentToWire(s.Documents[k])
		if err != nil {
			return nil, connect.NewError(connect.CodeInternal, err)
		}
		answer.Documents = append(answer.Documents, d)
	}
	if q.Msg.GetName() != "" && len(answer.Documents) == 0 {
		return nil, notFound(s, model.Key{Kind: kinds[0], Customer: q.Msg.GetCustomer(), Name: q.Msg.GetName()}, len(kinds) > 1)
	}
	return connect.NewResponse(answer), nil
}

// Delete implements circuitsealv1connect.PolicyServiceHandler.
func (p *policy) Delete(ctx context.Context, q *connect.Request[v1.DeleteRequest]) (*connect.Response[v1.DeleteResponse], error) {
	revision, err := p.delete(ctx, q.Msg)
	audit(ctx, p.log, "delete", err, "kind", model.Shorten(q.Msg.GetKind()), "customer", model.Shorten(q.Msg.GetCustomer()),
		"name", model.Shorten(q.Msg.GetName()))
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&v1.DeleteResponse{Revision: revision}), nil
}

func (p *policy) delete(ctx context.Context, q *v1.DeleteRequest) (uint64, error) {
	kind, err := parseKind(q.GetKind())
	if err != nil {
		return 0, err
	}
	key := model.Key{Kind: kind, Customer: q.GetCustomer(), Name: q.GetName()}
	if kind.HasCustomer() && key.Customer == "" {
		return 0, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("customer is required: documents of kind %s belong to a customer", kind))
	}
	if err := validNames(field{"customer", key.Customer, false}, field{"name", key.Name, true}); err != nil {
		return 0, err
	}
	if !kind.HasCustomer() && key.Customer != "" {
		return 0, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("customer: documents of kind %s belong to the provider and have no customer; leave it out", kind))
	}
	for range writeAttempts {
		s, err := p.store.Snapshot(ctx)
		if err != nil {
			return 0, storeError(err)
		}
		if _, ok := s.Documents[key]; !ok {
			return 0, notFound(s, key, false)
		}
		rest := maps.Clone(s.Documents)
		delete(rest, key)
		if broken := newProblems(model.Validate(s.Documents), model.Validate(rest)); len(broken) > 0 {
			return 0, referenced(key, broken)
		}
		numbers, err := compile.Number(rest, s.Numbers)
		if err != nil {
			return 0, connect.NewError(connect.CodeResourceExhausted, err)
		}
		revision, err := p.store.Write(ctx, s.Revision, store.Change{Delete: []model.Key{key}, Numbers: numbers})
		if errors.Is(err, store.ErrConflict) {
			continue
		}
		if err != nil {
			return 0, writeError(err)
		}
		return revision, nil
	}
	return 0, errBusy
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
