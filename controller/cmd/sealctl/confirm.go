package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	v1 "github.com/circuitseal/circuitseal/proto/circuitseal/v1"
)

// errNotConfirmed ends a command whose question was answered with no.
var errNotConfirmed = errors.New("nothing was done")

// maxPlanned is how many deletes a plan may have.
const maxPlanned = 4096

// maxCuts is how many things that are cut are named.
const maxCuts = 20

// confirm asks whether to go on with what cuts traffic, on a terminal; where there
// is none nobody can be asked, and --yes has to say so.
func confirm(cmd *cobra.Command, doing string, cuts []string) error {
	shown := cuts[:min(len(cuts), maxCuts)]
	if n := len(cuts) - len(shown); n > 0 {
		shown = append(shown[:maxCuts:maxCuts], fmt.Sprintf("and %d more", n))
	}
	in, isFile := cmd.InOrStdin().(io.Writer)
	if !isFile || !isTerminal(in) || !isTerminal(cmd.ErrOrStderr()) {
		return fmt.Errorf("%w: %s: %s; nobody can be asked here: --yes goes on all the same", errUsage, doing, strings.Join(shown, "; "))
	}
	var text strings.Builder
	text.WriteString(line(doing) + ":\n")
	for _, c := range shown {
		text.WriteString("  " + line(c) + "\n")
	}
	text.WriteString("Go on? Type yes: ")
	if _, err := io.WriteString(cmd.ErrOrStderr(), text.String()); err != nil {
		return err
	}
	answer, err := bufio.NewReader(io.LimitReader(cmd.InOrStdin(), 1<<10)).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if strings.TrimSpace(answer) != "yes" {
		return errNotConfirmed
	}
	return nil
}

// registerYes adds the flag with which nobody is asked.
func registerYes(cmd *cobra.Command, yes *bool) {
	cmd.Flags().BoolVarP(yes, "yes", "y", false, "do not ask; needed where there is no terminal")
}

// nodeCuts are sentences about what goes down with a node: its tunnels, and which
// nodes are at their other ends. There is no node where known is false.
func nodeCuts(cmd *cobra.Command, o *options, c connection, node string) (cuts []string, known bool, err error) {
	all, err := newPolicyClient(c, o).get(cmd.Context(), &v1.GetRequest{Kind: "all"})
	if err != nil {
		return nil, false, err
	}
	status, err := askStatus(cmd.Context(), o, c, statusFilter{})
	if err != nil {
		return nil, false, err
	}
	state := "it is not enrolled"
	for _, n := range status.GetNodes() {
		if n.GetNode() != node {
			continue
		}
		known = true
		switch {
		case n.GetConnected():
			state = "its agent is connected now"
		case n.GetEnrolled():
			state = "its agent is enrolled, and not connected now"
		}
	}
	if !known {
		return nil, false, nil
	}
	cuts = append(cuts, "node "+node+": "+state)
	d := &description{all: all.GetDocuments(), status: status}
	for _, r := range status.GetConnections() {
		nodes := d.carriers([]*v1.ConnectionReport{r})
		if !nodes[node] {
			continue
		}
		delete(nodes, node)
		peers := "with no other node"
		if len(nodes) > 0 {
			peers = "to " + strings.Join(slices.Sorted(maps.Keys(nodes)), " and ")
		}
		cuts = append(cuts, fmt.Sprintf("connection %s/%s %s: %s, of which %d up now", r.GetCustomer(), r.GetConnection(), peers,
			count(int(r.GetTunnelsTotal()), "tunnel", "tunnels"), r.GetTunnelsUp()))
	}
	return cuts, true, nil
}

// deleteCuts are sentences about what deleting documents changes on the wire.
// What the controller would refuse to delete cuts nothing.
func deleteCuts(cmd *cobra.Command, o *options, c connection, keys []*v1.DocumentKey) ([]string, error) {
	policy := newPolicyClient(c, o)
	all, err := policy.get(cmd.Context(), &v1.GetRequest{Kind: "all"})
	if err != nil {
		return nil, err
	}
	there := map[key]bool{}
	for _, d := range all.GetDocuments() {
		there[keyOf(d)] = true
	}
	q := &v1.PlanRequest{}
	for _, k := range keys {
		kind, ok := findKind(k.GetKind())
		if ok && there[key{kind.Kind, k.GetCustomer(), k.GetName()}] {
			q.Deletes = append(q.Deletes, &v1.PlannedDelete{Kind: kind.Kind, Customer: k.GetCustomer(), Name: k.GetName()})
		}
	}
	if len(q.GetDeletes()) == 0 {
		return nil, nil
	}
	if n := len(q.GetDeletes()); n > maxPlanned {
		return []string{fmt.Sprintf("%d documents, more than the %d that can be planned at once", n, maxPlanned)}, nil
	}
	answer, err := policy.plan(cmd.Context(), q)
	if problemsOf(err) != nil {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var cuts, objects, tunnels []string
	for _, n := range answer.GetNodes() {
		if n.GetAction() == v1.PlanAction_PLAN_ACTION_DELETED {
			cuts = append(cuts, "node "+n.GetNode()+" loses its state: it closes its circuits")
		}
		for _, object := range n.GetObjects() {
			if object.GetAction() != v1.PlanAction_PLAN_ACTION_DELETED {
				continue
			}
			text := fmt.Sprintf("node %s loses %s: %s", n.GetNode(), strings.TrimSuffix(object.GetKind()+" "+object.GetName(), " "), object.GetWhat())
			if object.GetKind() == "tunnel" {
				tunnels = append(tunnels, text)
			}
			objects = append(objects, text)
		}
	}
	// What goes with tunnels is no news beside them.
	if tunnels != nil {
		objects = tunnels
	}
	cuts = append(cuts, objects...)
	for _, f := range answer.GetFlowCounts() {
		cuts = append(cuts, count(int(f.GetFlows()), "flow becomes ", "flows become ")+verdictWord(f.GetVerdict()))
	}
	return cuts, nil
}
