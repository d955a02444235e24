package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	v1 "github.com/circuitseal/circuitseal/proto/circuitseal/v1"
)

// watchEvery is how often watch asks.
const watchEvery = 2 * time.Second

func watchCommand(o *options) *cobra.Command {
	var f statusFilter
	cmd := &cobra.Command{
		Use:   "watch",
		Short: "Show status until interrupted: what changes, as it changes",
		Long: `Show status until interrupted, every two seconds. On a terminal the tables of
sealctl status are drawn anew; else, one line is written for everything that is there
at first and then for every change:

  2026-01-02T15:04:05Z tunnel contoso/hq-weu/er-ams/primary at node prem-1: up -> down

-o json prints all of the status on one line at first, then for every change a line
with only the nodes and connections that have changed, counters and times apart; one
that is gone has a finding that says so. -o yaml prints the same, a document each. A
controller that is away for a moment does not end it.`,
		Example: `  sealctl watch
  sealctl watch --node prem-1 | tee -a prem-1.log
  sealctl watch -o json | jq .connections`,
		Args: arguments(0, 0, "none"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := o.connect()
			if err != nil {
				return err
			}
			defer c.close()
			return watchStatus(cmd, o, func() (*v1.GetStatusResponse, error) { return askStatus(cmd.Context(), o, c, f) })
		},
	}
	f.register(cmd)
	return formats(cmd, "wide", "json", "yaml")
}

// watchStatus shows status until the command is interrupted, which is no error.
func watchStatus(cmd *cobra.Command, o *options, ask func() (*v1.GetStatusResponse, error)) error {
	ctx := cmd.Context()
	v := &viewer{w: cmd.OutOrStdout(), stderr: cmd.ErrOrStderr(), o: o}
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	for {
		answer, err := ask()
		if ctx.Err() != nil {
			return nil
		}
		if err := v.show(answer, err, time.Now()); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// viewer shows one answer after the other.
type viewer struct {
	w, stderr io.Writer
	o         *options
	// before is what was said last, and failed the last failure.
	before map[string]string
	failed string
	// reports are the facts of nodes and connections that programs were told.
	reports map[string]map[string]string
}

func (v *viewer) show(answer *v1.GetStatusResponse, failed error, now time.Time) error {
	switch {
	case v.o.structured():
		return v.structured(answer, failed)
	case isTerminal(v.w):
		return v.redraw(answer, failed, now)
	}
	return v.lines(answer, failed, now)
}

func (v *viewer) structured(answer *v1.GetStatusResponse, failed error) error {
	if failed != nil {
		text := explain(failed)
		if text == v.failed {
			return nil
		}
		v.failed = text
		_, err := fmt.Fprintf(v.stderr, "sealctl: %s\n", clean(text))
		return err
	}
	v.failed = ""
	if answer = v.news(answer); answer == nil {
		return nil
	}
	if v.o.json() {
		return printJSONLine(v.w, answer)
	}
	if _, err := io.WriteString(v.w, "---\n"); err != nil {
		return err
	}
	return v.o.print(v.w, answer)
}

// news is what of an answer has changed since the last one: all of the first, nil
// for nothing.
func (v *viewer) news(s *v1.GetStatusResponse) *v1.GetStatusResponse {
	first, before := v.reports == nil, v.reports
	v.reports = map[string]map[string]string{}
	part := &v1.GetStatusResponse{Revision: s.GetRevision()}
	differs := func(name string, report *v1.GetStatusResponse) bool {
		now := facts(report)
		v.reports[name] = now
		old, was := before[name]
		return !was || !maps.Equal(old, now)
	}
	for _, n := range s.GetNodes() {
		if differs("node "+n.GetNode(), &v1.GetStatusResponse{Nodes: []*v1.NodeReport{n}}) {
			part.Nodes = append(part.Nodes, n)
		}
	}
	for _, c := range s.GetConnections() {
		if differs("connection "+c.GetCustomer()+"/"+c.GetConnection(), &v1.GetStatusResponse{Connections: []*v1.ConnectionReport{c}}) {
			part.Connections = append(part.Connections, c)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(before)) {
		if _, is := v.reports[name]; is {
			continue
		}
		gone := []*v1.Finding{{What: name + " is gone: its document was deleted"}}
		if node, ok := strings.CutPrefix(name, "node "); ok {
			part.Nodes = append(part.Nodes, &v1.NodeReport{Node: node, Findings: gone})
			continue
		}
		customer, connection, _ := strings.Cut(strings.TrimPrefix(name, "connection "), "/")
		part.Connections = append(part.Connections, &v1.ConnectionReport{Customer: customer, Connection: connection, Findings: gone})
	}
	if !first && len(part.GetNodes())+len(part.GetConnections()) == 0 {
		return nil
	}
	return part
}

func (v *viewer) redraw(answer *v1.GetStatusResponse, failed error, now time.Time) error {
	if _, err := fmt.Fprintf(v.w, "%s%s\n", clearScreen, now.UTC().Format(time.RFC3339)); err != nil {
		return err
	}
	if failed != nil {
		_, err := fmt.Fprintln(v.w, clean(explain(failed)))
		return err
	}
	return printStatus(v.w, v.o, answer, now)
}

func (v *viewer) lines(answer *v1.GetStatusResponse, failed error, now time.Time) error {
	var news []string
	if failed != nil {
		if text := explain(failed); text != v.failed {
			v.failed = text
			news = append(news, "no answer: "+text)
		}
	} else {
		if v.failed != "" {
			v.failed = ""
			news = append(news, "the controller answers again")
		}
		after := facts(answer)
		news = append(news, changes(v.before, after)...)
		v.before = after
	}
	for _, n := range news {
		if _, err := fmt.Fprintf(v.w, "%s %s\n", now.UTC().Format(time.RFC3339), line(n)); err != nil {
			return err
		}
	}
	return nil
}

// facts is what a status says that can change at a moment: not counters.
func facts(s *v1.GetStatusResponse) map[string]string {
	all := map[string]string{}
	for _, n := range s.GetNodes() {
		st := n.GetStatus()
		state := "not enrolled"
		switch {
		case n.GetEnrolled() && n.GetConnected():
			state = "connected"
		case n.GetEnrolled():
			state = "not connected"
		}
		all["node "+n.GetNode()] = state
		if p := position(n.GetWanted()); p != "" {
			all["node "+n.GetNode()+", wanted state"] = p
		}
		if p := position(st.GetApplied()); p != "" {
			all["node "+n.GetNode()+", applied state"] = p
		}
		for _, t := range st.GetTunnels() {
			all["tunnel "+t.GetId()+" at node "+n.GetNode()] = phase(t.GetPhase())
		}
		for _, g := range st.GetGuards() {
			state := "not alive"
			if g.GetAlive() {
				state = "alive"
			}
			all[g.GetLayer()+" guard of "+g.GetInterface()+" at node "+n.GetNode()] = state
		}
	}
	for _, c := range s.GetConnections() {
		all["connection "+c.GetCustomer()+"/"+c.GetConnection()] = of(int(c.GetTunnelsUp()), int(c.GetTunnelsTotal())) + " tunnels up"
	}
	for _, f := range findings(s) {
		all["problem: "+f.GetWhat()] = ""
	}
	return all
}

// changes is a line for everything that differs, sorted.
func changes(before, after map[string]string) []string {
	var all []string
	for _, k := range slices.Sorted(maps.Keys(after)) {
		old, was := before[k]
		switch now := after[k]; {
		case !was && now == "":
			all = append(all, k)
		case !was:
			all = append(all, k+": "+now)
		case old != now:
			all = append(all, k+": "+old+" -> "+now)
		}
	}
	for _, k := range slices.Sorted(maps.Keys(before)) {
		if _, is := after[k]; !is {
			all = append(all, "gone: "+k)
		}
	}
	return all
}
