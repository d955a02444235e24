package api

import (
	"fmt"
	"strings"
	"time"

	v1 "github.com/circuitseal/circuitseal/proto/circuitseal/v1"
	"github.com/circuitseal/circuitseal/proto/desired"
)

// onNode is how to look at a node's agent.
const onNode = "on it, `circuitseal-agent status` and `journalctl -u 'circuitseal-agent@*'` say more"

// advise says in the reports of an answer what is wrong and what to do next.
func advise(s *v1.GetStatusResponse) {
	for _, n := range s.GetNodes() {
		adviseNode(n)
	}
	ends := map[string]tunnelEnds{}
	for _, n := range s.GetNodes() {
		for _, t := range n.GetStatus().GetTunnels() {
			// customer/connection/circuit/link
			if id := strings.Split(t.GetId(), "/"); len(id) == 4 {
				of := id[0] + "/" + id[1]
				ends[of] = ends[of].with(t)
			}
		}
	}
	for _, c := range s.GetConnections() {
		name := c.GetCustomer() + "/" + c.GetConnection()
		next := connectionAdvice(c, ends[name])
		for _, p := range c.GetProblems() {
			c.Findings = append(c.Findings, &v1.Finding{
				What: "connection " + name + ": " + p, Next: next, See: "`sealctl describe connection/" + name + "` shows both ends",
			})
		}
	}
}

// adviseNode completes a node's report, whose problems are those of its identity.
func adviseNode(n *v1.NodeReport) {
	name, st := n.GetNode(), n.GetStatus()
	identity := n.GetProblems()
	n.Problems = nil
	add := func(next, format string, a ...any) {
		n.Findings = append(n.Findings, &v1.Finding{What: "node " + name + fmt.Sprintf(format, a...), Next: next})
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
	case position(st.GetApplied()).Compare(position(n.GetWanted())) < 0:
		add("it is tried again every second; "+onNode, " has not applied state %s yet", position(n.GetWanted()))
	}
	for _, p := range identity {
		n.Findings = append(n.Findings, &v1.Finding{What: p, See: "`sealctl node list` shows identities"})
	}
	for _, g := range st.GetGuards() {
		if !g.GetAlive() {
			add("the agent puts it back; if it stays away something on the host takes it off: "+onNode,
				": the %s guard of %s is not alive", g.GetLayer(), g.GetInterface())
		}
	}
	for _, f := range n.GetFindings() {
		n.Problems = append(n.Problems, f.GetWhat())
	}
	for _, p := range st.GetProblems() {
		add(onNode, ": %s", p)
	}
}

// position is one on the wire as a value; the zero value where there is none.
func position(p *v1.Position) desired.Position {
	return desired.Position{Epoch: p.GetEpoch(), Revision: p.GetRevision()}
}

// tunnelEnds is what both ends of a connection's tunnels say, summed up.
type tunnelEnds struct {
	reported int
	// silent is set when one never had a handshake, unkeyed when one by IPsec has no SA,
	// deaf when one is out that had.
	silent, unkeyed, deaf bool
}

func (e tunnelEnds) with(t *v1.TunnelStatus) tunnelEnds {
	switch t.GetPhase() {
	case v1.TunnelPhase_TUNNEL_PHASE_UP:
		e.reported++
	case v1.TunnelPhase_TUNNEL_PHASE_DOWN:
		e.reported++
		unkeyed := t.GetLastHandshake() == nil
		e.silent = e.silent || unkeyed && t.GetProtocol() != v1.TunnelProtocol_TUNNEL_PROTOCOL_IPSEC
		e.unkeyed = e.unkeyed || unkeyed && t.GetProtocol() == v1.TunnelProtocol_TUNNEL_PROTOCOL_IPSEC
		e.deaf = e.deaf || t.GetLastHandshake() != nil
	default:
	}
	return e
}

// connectionAdvice is what to do about a connection's tunnels: about the worst
// that an end of one says.
func connectionAdvice(c *v1.ConnectionReport, ends tunnelEnds) string {
	switch {
	case c.GetTunnelsTotal() == 0:
		return "see what its documents say: `sealctl explain connection`"
	case ends.silent:
		return "no handshake has succeeded: see that UDP passes both ways between the underlay addresses (link, provider, Azure's route tables and security groups)"
	case ends.unkeyed:
		return "where nothing answers, see that UDP 500 and 4500 and ESP pass both ways between the underlay addresses (link, provider, Azure's route tables and security groups); else compare what both ends are set to, of a gateway with `sealctl describe endpoint`"
	case ends.deaf:
		return "it was up and is not answered now: see the link and the far node"
	case ends.reported < 2*int(c.GetTunnelsTotal()):
		return "it goes on when its nodes, which make its keys, are enrolled and connected"
	}
	return ""
}
