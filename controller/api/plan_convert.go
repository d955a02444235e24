package api

import (
	"net/netip"

	"github.com/circuitseal/circuitseal/controller/preview"
	v1 "github.com/circuitseal/circuitseal/proto/circuitseal/v1"
)

func planToWire(base uint64, r preview.Report) *v1.PlanResponse {
	w := &v1.PlanResponse{BaseRevision: base, FlowsLeftOut: uint32(r.FlowsLeftOut), FlowsMoved: uint32(r.Moved)}
	for _, d := range r.Documents {
		w.Documents = append(w.Documents, &v1.DocumentChange{
			Kind: string(d.Key.Kind), Customer: d.Key.Customer, Name: d.Key.Name,
			Action: actionToWire(d.Action), Fields: fieldsToWire(d.Fields),
		})
	}
	for _, n := range r.Nodes {
		node := &v1.NodeChange{Node: n.Name, Action: actionToWire(n.Action)}
		for _, o := range n.Objects {
			node.Objects = append(node.Objects, &v1.ObjectChange{
				Kind: o.Kind, Name: o.Name, Action: actionToWire(o.Action), What: o.What, Fields: fieldsToWire(o.Fields),
			})
		}
		w.Nodes = append(w.Nodes, node)
	}
	for _, f := range r.Flows {
		w.Flows = append(w.Flows, &v1.FlowChange{
			Node: f.Node, Interface: f.Interface, Customer: f.Customer,
			Before: outcomeToWire(f.Before), After: outcomeToWire(f.After),
			Source: regionToWire(f.Source), Destination: regionToWire(f.Destination), Why: f.Why,
		})
	}
	for _, v := range preview.Verdicts() {
		if n := r.Become[v]; n > 0 {
			w.FlowCounts = append(w.FlowCounts, &v1.FlowCount{Verdict: verdictToWire(v), Flows: uint32(n)})
		}
	}
	return w
}

func fieldsToWire(fields []preview.Field) []*v1.FieldChange {
	var w []*v1.FieldChange
	for _, f := range fields {
		w = append(w, &v1.FieldChange{
			Path: f.Path, Old: f.Old, New: f.New, Lost: f.Lost, Gained: f.Gained, LeftOut: uint32(f.LeftOut),
		})
	}
	return w
}

func actionToWire(a preview.Action) v1.PlanAction {
	switch a {
	case preview.Created:
		return v1.PlanAction_PLAN_ACTION_CREATED
	case preview.Changed:
		return v1.PlanAction_PLAN_ACTION_CHANGED
	case preview.Deleted:
		return v1.PlanAction_PLAN_ACTION_DELETED
	}
	return v1.PlanAction_PLAN_ACTION_UNSPECIFIED
}

func verdictToWire(v preview.Verdict) v1.Verdict {
	switch v {
	case preview.VerdictClear:
		return v1.Verdict_VERDICT_CLEAR
	case preview.VerdictBlocked:
		return v1.Verdict_VERDICT_BLOCKED
	case preview.VerdictUnreachable:
		return v1.Verdict_VERDICT_UNREACHABLE
	case preview.VerdictEncrypted:
		return v1.Verdict_VERDICT_ENCRYPTED
	}
	return v1.Verdict_VERDICT_UNSPECIFIED
}

func outcomeToWire(o preview.Outcome) *v1.FlowOutcome {
	return &v1.FlowOutcome{Verdict: verdictToWire(o.Verdict), Connection: o.Connection}
}

func regionToWire(r preview.Region) *v1.FlowRegion {
	return &v1.FlowRegion{Prefixes: texts(r.Prefixes), Except: texts(r.Except), LeftOut: uint32(r.LeftOut)}
}

func texts(prefixes []netip.Prefix) []string {
	var all []string
	for _, p := range prefixes {
		all = append(all, p.String())
	}
	return all
}
