package controller_test

import (
	"strings"
	"testing"

	"connectrpc.com/connect"

	v1 "github.com/circuitseal/circuitseal/proto/circuitseal/v1"
	"github.com/circuitseal/circuitseal/proto/circuitseal/v1/circuitsealv1connect"
)

// A plan tells what is different, changes nothing, and refuses what apply and
// delete would refuse.
func TestPlan(t *testing.T) {
	t.Parallel()
	r := start(t, t.TempDir()+"/data")
	o := r.operator()
	plans := circuitsealv1connect.NewPlanServiceClient(r.client(r.admin()), r.url)
	plan := func(q *v1.PlanRequest) (*v1.PlanResponse, error) {
		a, err := plans.Plan(t.Context(), connect.NewRequest(q))
		if err != nil {
			return nil, err
		}
		return a.Msg, nil
	}

	fresh, err := plan(&v1.PlanRequest{Sources: samples(t)})
	if err != nil || len(fresh.GetDocuments()) != 10 || len(fresh.GetNodes()) != 2 || len(fresh.GetFlows()) == 0 {
		t.Fatalf("a plan of everything: %v, %v", fresh, err)
	}
	all, err := o.policy.Get(t.Context(), connect.NewRequest(&v1.GetRequest{Kind: "all"}))
	if err != nil || len(all.Msg.GetDocuments()) != 0 {
		t.Fatalf("after a plan there are %d documents, %v", len(all.Msg.GetDocuments()), err)
	}
	applied := o.apply(t, samples(t)...)
	nothing, err := plan(&v1.PlanRequest{Sources: samples(t)})
	// Pre-shared keys of the new tunnels may have come meanwhile.
	if err != nil || nothing.GetBaseRevision() < applied.GetRevision() ||
		len(nothing.GetDocuments())+len(nothing.GetNodes())+len(nothing.GetFlows())+len(nothing.GetFlowCounts()) != 0 {
		t.Errorf("a plan of what is there: %v, %v", nothing, err)
	}

	connection := &v1.PlannedDelete{Kind: "connections", Customer: "contoso", Name: "hq-weu"}
	gone, err := plan(&v1.PlanRequest{Deletes: []*v1.PlannedDelete{connection}})
	if err != nil || len(gone.GetDocuments()) != 1 || gone.GetDocuments()[0].GetAction() != v1.PlanAction_PLAN_ACTION_DELETED || len(gone.GetNodes()) != 2 {
		t.Fatalf("a plan of a delete: %v, %v", gone, err)
	}
	// No node is enrolled, so nothing was encrypted.
	for _, f := range gone.GetFlows() {
		if f.GetBefore().GetVerdict() != v1.Verdict_VERDICT_UNREACHABLE || f.GetBefore().GetConnection() != "contoso/hq-weu" || f.GetAfter().GetVerdict() != v1.Verdict_VERDICT_BLOCKED {
			t.Errorf("flow %v", f)
		}
	}
	if c := gone.GetFlowCounts(); len(c) != 1 || c[0].GetVerdict() != v1.Verdict_VERDICT_BLOCKED || int(c[0].GetFlows()) != len(gone.GetFlows()) || len(gone.GetFlows()) == 0 {
		t.Errorf("counts %v of %d flows", c, len(gone.GetFlows()))
	}

	for _, tt := range []struct {
		name string
		q    *v1.PlanRequest
		code connect.Code
		text string
	}{
		{"nothing", &v1.PlanRequest{}, connect.CodeInvalidArgument, "name what to plan"},
		{"no document", &v1.PlanRequest{Sources: []*v1.Source{{Name: "empty.yaml"}}}, connect.CodeInvalidArgument, "empty.yaml"},
		{"a delete of what others name", &v1.PlanRequest{Deletes: []*v1.PlannedDelete{{Kind: "site", Customer: "contoso", Name: "hq"}}}, connect.CodeInvalidArgument, "problem"},
		{"a delete of what is not there", &v1.PlanRequest{Deletes: []*v1.PlannedDelete{{Kind: "site", Customer: "contoso", Name: "moon"}}}, connect.CodeNotFound, "moon"},
		{"a delete without a customer", &v1.PlanRequest{Deletes: []*v1.PlannedDelete{{Kind: "site", Name: "hq"}}}, connect.CodeInvalidArgument, "customer is required"},
		{"applied and deleted", &v1.PlanRequest{Sources: samples(t), Deletes: []*v1.PlannedDelete{connection}}, connect.CodeInvalidArgument, "in the sources, too"},
		{"malformed", &v1.PlanRequest{Sources: []*v1.Source{{Name: "bad.yaml", Text: "kind: Planet\n"}}}, connect.CodeInvalidArgument, "not valid"},
	} {
		if _, err := plan(tt.q); connect.CodeOf(err) != tt.code || !strings.Contains(err.Error(), tt.text) {
			t.Errorf("%s: %v, want %s with %q", tt.name, err, tt.code, tt.text)
		}
	}
	_, err = plan(&v1.PlanRequest{Deletes: []*v1.PlannedDelete{{Kind: "site", Customer: "contoso", Name: "hq"}}})
	if p := problems(t, err); len(p) == 0 || p[0].GetDocument() != "Endpoint/contoso/hq" {
		t.Errorf("a delete of what others name does not say who: %v", p)
	}
	if !strings.Contains(r.log.String(), "msg=plan") {
		t.Error("the log does not say that somebody planned")
	}
}
