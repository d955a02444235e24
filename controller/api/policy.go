package api

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"strconv"
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
	store    Store
	sessions Sessions
	log      *slog.Logger
	// stopping is done when the controller stops.
	stopping context.Context
	// watches has room for those who watch.
	watches chan struct{}
	uploads *uploads
}

func newPolicy(stopping context.Context, s Store, sessions Sessions, u *uploads, log *slog.Logger) *policy {
	return &policy{store: s, sessions: sessions, log: log, stopping: stopping, watches: make(chan struct{}, maxWatches), uploads: u}
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
	sources, release, err := p.uploads.sources(ctx, q.GetSources())
	if err != nil {
		return nil, err
	}
	defer release()
	docs, where, malformed := document.Decode(sources)
	if len(docs) == 0 && len(malformed) == 0 {
		return nil, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("there is no document in %s", sourceNames(sources)))
	}
	// The text has told all but lines, which where has.
	for i := range sources {
		sources[i].Text = ""
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
		if old := conflicts(s.Documents, docs, changes); len(old) > 0 {
			where.Locate(old)
			return nil, outdated(old)
		}
		if problems := where.Merge(malformed, model.ValidateBut(all, where.Told)); len(problems) > 0 {
			return nil, invalid(problems)
		}
		if problems := where.Merge(nil, incapable(p.sessions, s.Documents, all)); len(problems) > 0 {
			return nil, invalid(problems)
		}
		numbers, err := compile.Number(all, s.Numbers)
		if err != nil {
			return nil, connect.NewError(connect.CodeResourceExhausted, err)
		}
		if q.GetDryRun() {
			return &v1.ApplyResponse{Revision: s.Revision, Changes: changes}, nil
		}
		revision, err := p.store.Write(ctx, s.Revision, store.Change{Put: docs, Numbers: numbers, Settled: model.Settle(s.Documents, all, s.Settled)})
		if errors.Is(err, store.ErrConflict) {
			continue
		}
		if err != nil {
			return nil, writeError(err)
		}
		p.uploads.forget(q.GetSources())
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

// conflicts are the documents whose writer has seen another revision than the
// stored one. What changes nothing is none: an apply may be repeated.
func conflicts(stored map[model.Key]model.Document, docs []model.Document, changes []*v1.Change) []model.Problem {
	var problems []model.Problem
	for i, d := range docs {
		old, ok := stored[d.Key]
		if d.Base == 0 || d.Base == old.Revision || changes[i].GetAction() == v1.ChangeAction_CHANGE_ACTION_UNCHANGED {
			continue
		}
		message := fmt.Sprintf("was made from revision %d, and the document is at revision %d by now", d.Base, old.Revision)
		if !ok {
			message = fmt.Sprintf("was made from revision %d, and there is no such document any more", d.Base)
		}
		problems = append(problems, model.Problem{
			Document: d.Key.String(), Field: "metadata.revision", Value: strconv.FormatUint(d.Base, 10), Message: message,
			Hint: "the document as it is now, with the change made there; without metadata.revision it is replaced whatever it is",
		})
	}
	return problems
}
