package api

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"

	"connectrpc.com/connect"

	"github.com/circuitseal/circuitseal/controller/compile"
	"github.com/circuitseal/circuitseal/controller/document"
	"github.com/circuitseal/circuitseal/controller/model"
	"github.com/circuitseal/circuitseal/controller/preview"
	v1 "github.com/circuitseal/circuitseal/proto/circuitseal/v1"
)

const (
	// maxPlanFlows and maxPlanList bound a plan's lists: of flows, and of
	// prefixes and the like in each thing that it tells, unless it is to be full.
	maxPlanFlows = 1000
	maxPlanList  = 100
	// maxDeletes is how many documents a plan may delete.
	maxDeletes = 4096
)

// plans is the PlanService.
type plans struct {
	store    Store
	sessions Sessions
	uploads  *uploads
	log      *slog.Logger
}

// Plan implements circuitsealv1connect.PlanServiceHandler.
func (p *plans) Plan(ctx context.Context, q *connect.Request[v1.PlanRequest]) (*connect.Response[v1.PlanResponse], error) {
	answer, err := p.plan(ctx, q.Msg)
	audit(ctx, p.log, "plan", err, "sources", len(q.Msg.GetSources()), "deletes", len(q.Msg.GetDeletes()),
		"documents", len(answer.GetDocuments()), "revision", answer.GetBaseRevision())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(answer), nil
}

func (p *plans) plan(ctx context.Context, q *v1.PlanRequest) (*v1.PlanResponse, error) {
	sources, release, err := p.uploads.sources(ctx, q.GetSources())
	if err != nil {
		return nil, err
	}
	defer release()
	deletes, err := deletable(q.GetDeletes())
	if err != nil {
		return nil, err
	}
	if len(sources) == 0 && len(deletes) == 0 {
		return nil, connect.NewError(connect.CodeInvalidArgument, errors.New("there are neither sources nor deletes: name what to plan"))
	}
	docs, where, malformed := document.Decode(sources)
	if len(sources) > 0 && len(docs) == 0 && len(malformed) == 0 {
		return nil, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("there is no document in %s", sourceNames(sources)))
	}
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
	applied := make(map[model.Key]bool, len(docs))
	for _, d := range docs {
		applied[d.Key] = true
	}
	for _, k := range deletes {
		if _, ok := s.Documents[k]; !ok {
			return nil, notFound(s, k, false)
		}
		if applied[k] {
			return nil, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("deletes: %s is in the sources, too; want it in one of them", k))
		}
		delete(all, k)
	}
	if err := judge(s, all, where, malformed, deletes); err != nil {
		return nil, err
	}
	if problems := where.Merge(nil, incapable(p.sessions, s.Documents, all)); len(problems) > 0 {
		return nil, invalid(problems)
	}
	most := maxPlanList
	if q.GetFull() {
		most = math.MaxInt
	}
	after := *s
	after.Documents = all
	if after.Numbers, err = compile.Number(all, s.Numbers); err != nil {
		return nil, connect.NewError(connect.CodeResourceExhausted, err)
	}
	after.Settled = model.Settle(s.Documents, all, s.Settled)
	return planToWire(s.Revision, preview.Compare(s, &after).Bounded(maxPlanFlows, maxPlanList, most)), nil
}

// judge says what is wrong with a planned set of documents. As with a delete,
// what was wrong before is not the caller's fault where nothing is applied.
func judge(s *model.Snapshot, all map[model.Key]model.Document, where *document.Text, malformed []model.Problem, deletes []model.Key) error {
	problems := model.ValidateBut(all, where.Told)
	if len(deletes) > 0 {
		problems = newProblems(model.Validate(s.Documents), problems)
	}
	if problems = where.Merge(malformed, problems); len(problems) > 0 {
		return invalid(problems)
	}
	return nil
}

// deletable are keys of documents that may exist.
func deletable(wire []*v1.PlannedDelete) ([]model.Key, error) {
	if n := len(wire); n > maxDeletes {
		return nil, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("deletes: %d are more than the %d that are taken", n, maxDeletes))
	}
	keys := make([]model.Key, len(wire))
	for i, d := range wire {
		key, err := parseKey(fmt.Sprintf("deletes[%d].", i), d.GetKind(), d.GetCustomer(), d.GetName())
		if err != nil {
			return nil, err
		}
		keys[i] = key
	}
	return keys, nil
}
