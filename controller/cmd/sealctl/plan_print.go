package main

import (
	"fmt"
	"io"
	"math"
	"strings"

	v1 "github.com/circuitseal/circuitseal/proto/circuitseal/v1"
)

const (
	// maxShownFlows, maxShownFields and maxShownList bound what is printed of a plan,
	// of one document or object, and of one list; --full and -o json have all of it.
	maxShownFlows  = 50
	maxShownFields = 20
	maxShownList   = 8
)

// printPlan prints a plan: + is created, ~ changed, - deleted.
func printPlan(w io.Writer, p *v1.PlanResponse, full bool) error {
	b := planText{most: func(n int) int { return n }}
	if full {
		b.most = func(int) int { return math.MaxInt }
	}
	if len(p.GetDocuments()) > 0 {
		b.line("Documents")
	}
	for _, d := range p.GetDocuments() {
		b.line("  %s %s", sign(d.GetAction()), name(d))
		b.fields("      ", d.GetAction(), d.GetFields())
	}
	if len(p.GetNodes()) > 0 {
		b.line("Nodes")
	}
	for _, n := range p.GetNodes() {
		b.line("  %s %s", sign(n.GetAction()), n.GetNode())
		for _, o := range n.GetObjects() {
			b.line("      %s %s: %s", sign(o.GetAction()), strings.TrimSuffix(o.GetKind()+" "+o.GetName(), " "), o.GetWhat())
			// What is created or deleted has been said in whole by the documents.
			if o.GetAction() == v1.PlanAction_PLAN_ACTION_CHANGED {
				b.fields("          ", o.GetAction(), o.GetFields())
			}
		}
	}
	b.flows(p)
	b.line("%s", planSummary(p))
	_, err := io.WriteString(w, b.String())
	return err
}

type planText struct {
	strings.Builder
	// most is how many things are printed where n are by default.
	most func(n int) int
}

// line appends a line; what it says is foreign text.
func (b *planText) line(format string, args ...any) {
	b.WriteString(line(fmt.Sprintf(format, args...)) + "\n")
}

func (b *planText) fields(indent string, action v1.PlanAction, fields []*v1.FieldChange) {
	for i, f := range fields {
		if i == b.most(maxShownFields) {
			b.line("%s… and %d more fields (--full shows them)", indent, len(fields)-i)
			return
		}
		if len(f.GetLost()) == 0 && len(f.GetGained()) == 0 {
			text := values(f)
			if action == v1.PlanAction_PLAN_ACTION_DELETED {
				text = f.GetOld()
			}
			b.line("%s%s: %s", indent, f.GetPath(), text)
			continue
		}
		b.line("%s%s:", indent, f.GetPath())
		hidden := int(f.GetLeftOut())
		for _, part := range []struct {
			sign string
			list []string
		}{{"-", f.GetLost()}, {"+", f.GetGained()}} {
			shown := part.list[:min(len(part.list), b.most(maxShownList))]
			for _, x := range shown {
				b.line("%s  %s %s", indent, part.sign, x)
			}
			hidden += len(part.list) - len(shown)
		}
		if hidden > 0 {
			b.line("%s  … and %d more (--full shows them)", indent, hidden)
		}
	}
}

// values are old and new, or the one of them that there is.
func values(f *v1.FieldChange) string {
	switch {
	case f.GetOld() == f.GetNew():
		return "changed " + f.GetNew()
	case f.GetOld() == "":
		return f.GetNew()
	case f.GetNew() == "":
		return f.GetOld() + " -> nothing"
	}
	return f.GetOld() + " -> " + f.GetNew()
}

// flows prints flows under what becomes of them. They come in that order.
func (b *planText) flows(p *v1.PlanResponse) {
	head := ""
	for i, f := range p.GetFlows() {
		if i == b.most(maxShownFlows) {
			break
		}
		h := "Flows that become " + verdict(f.GetAfter())
		if f.GetBefore().GetVerdict() == f.GetAfter().GetVerdict() {
			h = "Flows that move to another connection"
		}
		if h != head {
			b.line("%s", h)
			head = h
		}
		by := ""
		if c := f.GetAfter().GetConnection(); c != "" {
			by = " for " + c
		}
		was := verdict(f.GetBefore())
		if c := f.GetBefore().GetConnection(); c != "" {
			was += " for " + c
		}
		if f.GetWhy() != "" {
			was += "; " + f.GetWhy()
		}
		b.line("  %s %s (%s): %s -> %s%s, was %s", f.GetNode(), f.GetInterface(), f.GetCustomer(),
			addresses(f.GetSource()), addresses(f.GetDestination()), by, was)
	}
	if more := max(0, len(p.GetFlows())-b.most(maxShownFlows)) + int(p.GetFlowsLeftOut()); more > 0 {
		b.line("  … and %d more", more)
	}
}

func verdict(o *v1.FlowOutcome) string { return verdictWord(o.GetVerdict()) }

func verdictWord(v v1.Verdict) string {
	return strings.ToLower(strings.TrimPrefix(v.String(), "VERDICT_"))
}

// addresses is a region in words.
func addresses(r *v1.FlowRegion) string {
	text := list(r.GetPrefixes())
	switch text {
	case "0.0.0.0/0":
		text = "any IPv4"
	case "::/0":
		text = "any IPv6"
	}
	if len(r.GetExcept()) > 0 {
		text += " but " + list(r.GetExcept())
	}
	if n := r.GetLeftOut(); n > 0 {
		text += fmt.Sprintf(" and %d more", n)
	}
	return text
}

func list(all []string) string {
	text := strings.Join(all[:min(len(all), maxShownList)], ", ")
	if n := len(all) - maxShownList; n > 0 {
		text += fmt.Sprintf(" and %d more", n)
	}
	return text
}

func sign(a v1.PlanAction) string {
	switch a {
	case v1.PlanAction_PLAN_ACTION_CREATED:
		return "+"
	case v1.PlanAction_PLAN_ACTION_DELETED:
		return "-"
	case v1.PlanAction_PLAN_ACTION_CHANGED, v1.PlanAction_PLAN_ACTION_UNSPECIFIED:
	}
	return "~"
}

// planSummary is one sentence.
func planSummary(p *v1.PlanResponse) string {
	if !planned(p) {
		return fmt.Sprintf("No changes: everything is at revision %d as it was planned.", p.GetBaseRevision())
	}
	counts := map[v1.PlanAction]int{}
	for _, d := range p.GetDocuments() {
		counts[d.GetAction()]++
	}
	s := fmt.Sprintf("Plan at revision %d: %d to create, %d to change, %d to delete", p.GetBaseRevision(),
		counts[v1.PlanAction_PLAN_ACTION_CREATED], counts[v1.PlanAction_PLAN_ACTION_CHANGED], counts[v1.PlanAction_PLAN_ACTION_DELETED])
	if len(p.GetNodes()) == 0 && len(p.GetFlows()) == 0 {
		return s + "; nothing changes on the wire."
	}
	s += fmt.Sprintf("; %s", count(len(p.GetNodes()), "node changes", "nodes change"))
	for _, c := range p.GetFlowCounts() {
		s += fmt.Sprintf("; %s %s", count(int(c.GetFlows()), "flow becomes", "flows become"), verdictWord(c.GetVerdict()))
	}
	if n := int(p.GetFlowsMoved()); n > 0 {
		s += "; " + count(n, "flow moves", "flows move")
	}
	if len(p.GetFlows()) == 0 {
		s += "; no flow changes"
	}
	return s + "."
}

func count(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}
