package main

import (
	"fmt"
	"strings"
	"time"

	v1 "github.com/circuitseal/circuitseal/proto/circuitseal/v1"
)

// finding is something wrong, in a sentence, and what to do next.
type finding struct{ what, next string }

// findings is everything wrong that a status tells of, nodes first.
func findings(s *v1.GetStatusResponse) []finding {
	var all []finding
	told := map[string]bool{}
	for _, n := range s.GetNodes() {
		f := nodeFindings(n)
		told[n.GetNode()] = len(f) > 0
		all = append(all, f...)
	}
	for _, c := range s.GetConnections() {
		for _, p := range c.GetProblems() {
			// What is wrong with a node is told once, and not for each of its
			// connections.
			if word, rest, ok := strings.Cut(p, " "); ok && word == "node" {
				node, _, _ := strings.Cut(rest, " ")
				if told[node] {
					continue
				}
			}
			all = append(all, finding{
				fmt.Sprintf("connection %s/%s: %s", c.GetCustomer(), c.GetConnection(), p),
				connectionAdvice(s, c),
			})
		}
	}
	return all
}

// onNode is how to look at a node's agent.
const onNode = "on it, `circuitseal-agent status` and `journalctl -u 'circuitseal-agent@*'` say more"

func nodeFindings(n *v1.NodeReport) []finding {
	var all []finding
	name, st := n.GetNode(), n.GetStatus()
	add := func(next, format string, a ...any) {
		all = append(all, finding{fmt.Sprintf("node %s"+format, append([]any{name}, a...)...), next})
	}
	switch {
	case !n.GetEnrolled():
		add(fmt.Sprintf("`sealctl token create %s`, which prints what to run on the host", name), " is not enrolled")
	case !n.GetConnected() && st == nil:
		add("start its agent (`systemctl start circuitseal-agent@main`), and see that it reaches the controller",
			" is not connected, and was not since the controller started")
	case !n.GetConnected():
		add("see that the host and its agent run and reach the controller; tunnels go on meanwhile as they were",
			" is not connected; it last reported at %s", st.GetTime().AsTime().UTC().Format(time.RFC3339))
	case st.GetRejection() != nil:
		add("the state before stays in force; "+onNode, " refused state %s: %s", position(st.GetRejection().GetPosition()), st.GetRejection().GetReason())
	case compare(st.GetApplied(), n.GetWanted()) < 0:
		add("it is tried again every second; "+onNode, " has not applied state %s yet", position(n.GetWanted()))
	}
	for _, g := range st.GetGuards() {
		if !g.GetAlive() {
			add("the agent puts it back; if it stays away something on the host takes it off: "+onNode,
				": the %s guard of %s is not alive", g.GetLayer(), g.GetInterface())
		}
	}
	for _, p := range st.GetProblems() {
		add(onNode, ": %s", p)
	}
	return all
}

// connectionAdvice is what to do about a connection's tunnels: about the worst
// that an end of one says.
func connectionAdvice(s *v1.GetStatusResponse, c *v1.ConnectionReport) string {
	describe := fmt.Sprintf("`sealctl describe connection/%s/%s` shows both ends", c.GetCustomer(), c.GetConnection())
	if c.GetTunnelsTotal() == 0 {
		return describe
	}
	pending, silent, deaf := false, false, false
	for _, n := range s.GetNodes() {
		for _, t := range n.GetStatus().GetTunnels() {
			if !strings.HasPrefix(t.GetId(), c.GetCustomer()+"/"+c.GetConnection()+"/") {
				continue
			}
			switch t.GetPhase() {
			case v1.TunnelPhase_TUNNEL_PHASE_PENDING:
				pending = true
			case v1.TunnelPhase_TUNNEL_PHASE_DOWN:
				silent = silent || t.GetLastHandshake() == nil
				deaf = deaf || t.GetLastHandshake() != nil
			default:
			}
		}
	}
	switch {
	case silent:
		return "no handshake has succeeded: see that UDP passes both ways between the underlay addresses (link, provider, Azure's route tables and security groups); " + describe
	case deaf:
		return "it was up and is not answered now: see the link and the far node; " + describe
	case pending:
		return "keys are made on nodes: it goes on when both of its nodes are enrolled and connected; " + describe
	}
	return describe
}

// writeFindings writes the section PROBLEMS where there are some.
func writeFindings(b *strings.Builder, colours palette, all []finding) {
	if len(all) == 0 {
		return
	}
	b.WriteString("\n" + colours.paint(toneHead, "PROBLEMS") + "\n")
	for _, f := range all {
		b.WriteString(colours.paint(toneBad, line(f.what)) + "\n")
		if f.next != "" {
			b.WriteString("    next: " + line(f.next) + "\n")
		}
	}
}
