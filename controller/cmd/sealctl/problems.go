package main

import (
	"fmt"
	"strings"
	"time"

	v1 "github.com/circuitseal/circuitseal/proto/circuitseal/v1"
)

// finding is something wrong, in a sentence, what to do next, and what shows more.
type finding struct{ what, next, see string }

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
		all = append(all, connectionFindings(s, c, told)...)
	}
	return all
}

// connectionFindings are those of a connection; told are nodes of which it is
// told already what is wrong with them.
func connectionFindings(s *v1.GetStatusResponse, c *v1.ConnectionReport, told map[string]bool) []finding {
	var all []finding
	for _, p := range c.GetProblems() {
		if word, rest, ok := strings.Cut(p, " "); ok && word == "node" {
			if node, _, _ := strings.Cut(rest, " "); told[node] {
				continue
			}
		}
		all = append(all, finding{what: fmt.Sprintf("connection %s/%s: %s", c.GetCustomer(), c.GetConnection(), p)})
	}
	// One cause may well be behind all of them: advice comes once.
	if n := len(all); n > 0 {
		all[n-1].next = connectionAdvice(s, c)
		all[n-1].see = fmt.Sprintf("`sealctl describe connection/%s/%s` shows both ends", c.GetCustomer(), c.GetConnection())
	}
	return all
}

// onNode is how to look at a node's agent.
const onNode = "on it, `circuitseal-agent status` and `journalctl -u 'circuitseal-agent@*'` say more"

func nodeFindings(n *v1.NodeReport) []finding {
	var all []finding
	name, st := n.GetNode(), n.GetStatus()
	add := func(next, format string, a ...any) {
		all = append(all, finding{fmt.Sprintf("node %s"+format, append([]any{name}, a...)...), next, ""})
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
	for _, p := range n.GetProblems() {
		all = append(all, finding{what: p, see: "`sealctl node list` shows identities"})
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
	if c.GetTunnelsTotal() == 0 {
		return "see what its documents say: `sealctl explain connection`"
	}
	silent, deaf, ends := false, false, 0
	for _, n := range s.GetNodes() {
		for _, t := range n.GetStatus().GetTunnels() {
			if !strings.HasPrefix(t.GetId(), c.GetCustomer()+"/"+c.GetConnection()+"/") {
				continue
			}
			switch t.GetPhase() {
			case v1.TunnelPhase_TUNNEL_PHASE_UP:
				ends++
			case v1.TunnelPhase_TUNNEL_PHASE_DOWN:
				ends++
				silent = silent || t.GetLastHandshake() == nil
				deaf = deaf || t.GetLastHandshake() != nil
			default:
			}
		}
	}
	switch {
	case silent:
		return "no handshake has succeeded: see that UDP passes both ways between the underlay addresses (link, provider, Azure's route tables and security groups)"
	case deaf:
		return "it was up and is not answered now: see the link and the far node"
	case ends < 2*int(c.GetTunnelsTotal()):
		return "keys are made on nodes: it goes on when both of its nodes are enrolled and connected"
	}
	return ""
}

// writeFindings writes the section PROBLEMS where there are some. With deep, who
// reads has what shows more before them.
func writeFindings(b *strings.Builder, colours palette, all []finding, deep bool) {
	if len(all) == 0 {
		return
	}
	b.WriteString("\n" + colours.paint(toneHead, "PROBLEMS") + "\n")
	for _, f := range all {
		b.WriteString(colours.paint(toneBad, line(f.what)) + "\n")
		var next []string
		for _, s := range []string{f.next, f.see} {
			if s != "" && (s != f.see || !deep) {
				next = append(next, s)
			}
		}
		if len(next) > 0 {
			b.WriteString("    next: " + line(strings.Join(next, "; ")) + "\n")
		}
	}
}
