package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	v1 "github.com/circuitseal/circuitseal/proto/circuitseal/v1"
)

// waitEvery is how often --wait asks.
const waitEvery = 500 * time.Millisecond

// waitApplied waits until every node that changes concern has applied its newest
// state. The controller's status is never older than the documents that it was
// asked after.
func waitApplied(cmd *cobra.Command, o *options, c connection, changes []*v1.Change, patient time.Duration) error {
	all, err := newPolicyClient(c, o).get(cmd.Context(), &v1.GetRequest{Kind: "all"})
	if err != nil {
		return err
	}
	var changed []key
	for _, d := range changes {
		changed = append(changed, key{d.GetKind(), d.GetCustomer(), d.GetName()})
	}
	nodes := reach(all.GetDocuments(), changed)
	ctx, cancel := context.WithTimeout(cmd.Context(), patient)
	defer cancel()
	p := startProgress(cmd.ErrOrStderr(), "waiting for nodes")
	missing := []string{"the controller has not said yet which nodes have applied it"}
	// The first answer is not cut short: so much is known whatever the time-out.
	for asking := cmd.Context(); ; asking = ctx {
		s, err := askStatus(asking, o, c, statusFilter{})
		if code := exitCode(err); err != nil && code != exitUnreachable {
			p.end()
			return err
		}
		if err == nil {
			w := waitingFor(s, nodes)
			missing = w.missing
			p.say("waiting for nodes: %d of %d have applied it", w.applied, w.applied+len(w.missing))
			if len(w.missing) == 0 || w.hopeless {
				p.end()
				return w.report(cmd)
			}
		}
		select {
		case <-ctx.Done():
			p.end()
			if cmd.Context().Err() != nil {
				return errors.New("interrupted; what was applied stays applied")
			}
			return withCode(exitNotYet, fmt.Errorf("after %s: %s; what was applied stays applied, and `sealctl status` says more", patient, strings.Join(missing, "; ")))
		case <-time.After(waitEvery):
		}
	}
}

// waiting is how far nodes are.
type waiting struct {
	applied int
	// missing are sentences about nodes that have not.
	missing []string
	// hopeless is set when a node has refused what it should apply.
	hopeless bool
}

func waitingFor(s *v1.GetStatusResponse, nodes map[string]bool) waiting {
	var w waiting
	for _, n := range s.GetNodes() {
		st := n.GetStatus()
		switch rejected := st.GetRejection(); {
		case !nodes[n.GetNode()]:
		case !n.GetEnrolled():
			w.missing = append(w.missing, fmt.Sprintf("node %s is not enrolled (`sealctl token create %s` prints how)", n.GetNode(), n.GetNode()))
		case st != nil && compare(st.GetApplied(), n.GetWanted()) >= 0:
			w.applied++
		case !n.GetConnected():
			w.missing = append(w.missing, fmt.Sprintf("node %s is not connected", n.GetNode()))
		case rejected != nil && compare(rejected.GetPosition(), n.GetWanted()) == 0:
			w.hopeless = true
			w.missing = append(w.missing, fmt.Sprintf("node %s refused state %s: %s", n.GetNode(), position(n.GetWanted()), rejected.GetReason()))
		default:
			have := position(st.GetApplied())
			if have == "" {
				have = "none yet"
			}
			w.missing = append(w.missing, fmt.Sprintf("node %s wants state %s and has applied %s", n.GetNode(), position(n.GetWanted()), have))
		}
	}
	return w
}

// report says on stderr, which leaves stdout to programs, what nodes have.
func (w waiting) report(cmd *cobra.Command) error {
	if len(w.missing) > 0 {
		return withCode(exitNotYet, errors.New(strings.Join(w.missing, "; ")))
	}
	text := count(w.applied, "node has applied it", "nodes have applied it")
	if w.applied == 0 {
		text = "it concerns no node: there is nothing to wait for"
	}
	_, err := fmt.Fprintln(cmd.ErrOrStderr(), text)
	return err
}
