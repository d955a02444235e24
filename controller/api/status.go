package api

import (
	"context"
	"fmt"
	"time"

	"connectrpc.com/connect"

	"github.com/circuitseal/circuitseal/controller/model"
	v1 "github.com/circuitseal/circuitseal/proto/circuitseal/v1"
	"github.com/circuitseal/circuitseal/proto/desired"
)

// status is the StatusService.
type status struct {
	store    Store
	sessions Sessions
	handover Handover
	now      func() time.Time
}

// Handover says what connections that change their protocol wait for; handover.Mover
// has it.
type Handover interface {
	Waiting(s *model.Snapshot) map[string]string
}

// report is a node as the controller sees it, for a connection's ends.
type report struct {
	exists, enrolled, revoked, connected bool
	wanted                               desired.Position
	status                               *desired.Status
	tunnels                              map[string]desired.TunnelStatus
}

// GetStatus implements circuitsealv1connect.StatusServiceHandler. What nodes want
// in the answer is no older than its revision: who has applied documents and asks
// then sees what became of them.
func (s *status) GetStatus(ctx context.Context, _ *connect.Request[v1.GetStatusRequest]) (*connect.Response[v1.GetStatusResponse], error) {
	now, err := s.store.Snapshot(ctx)
	if err != nil {
		return nil, storeError(err)
	}
	if err := s.sessions.Reached(ctx, now.Revision); err != nil {
		return nil, connect.NewError(connect.CodeUnavailable, err)
	}
	answer := &v1.GetStatusResponse{Revision: now.Revision}
	reports := map[string]report{}
	for _, k := range selected(now.Documents, model.KindNode, "") {
		r := s.report(now, k.Name)
		reports[k.Name] = r
		w := &v1.NodeReport{Node: k.Name, Enrolled: r.enrolled, Connected: r.connected,
			Problems: identityProblems(now, k.Name, s.sessions.Presence(k.Name), s.now())}
		if r.wanted != (desired.Position{}) {
			w.Wanted = r.wanted.ToWire()
		}
		if r.status != nil {
			w.Status = r.status.ToWire()
		}
		answer.Nodes = append(answer.Nodes, w)
	}
	changing := s.handover.Waiting(now)
	// What a plan would refuse, had the nodes said by then what they have.
	incapable := map[string][]string{}
	for _, p := range newCharons(s.sessions).judge(now.Documents) {
		incapable[p.Document] = append(incapable[p.Document], p.Message+"; it takes "+p.Hint)
	}
	for _, k := range selected(now.Documents, model.KindConnection, "") {
		w := connection(now, k, reports)
		w.Problems = append(incapable[k.String()], w.Problems...)
		if waits, ok := changing[model.GroupID(k.Customer, k.Name)]; ok {
			want, retiring, _ := now.Protocols(k)
			sentence := fmt.Sprintf("tunnels change from %s to %s and have both", retiring.Protocol, want.Protocol)
			if waits != "" {
				sentence += ": it " + waits
			}
			w.Problems = append(w.Problems, sentence)
		}
		answer.Connections = append(answer.Connections, w)
	}
	advise(answer)
	return connect.NewResponse(answer), nil
}

func (s *status) report(now *model.Snapshot, name string) report {
	r := report{exists: true}
	_, r.enrolled = now.Enrolments[name]
	_, r.revoked = now.Revoked(name)
	r.connected, r.wanted, r.status = s.sessions.Report(name)
	if r.status != nil {
		r.tunnels = make(map[string]desired.TunnelStatus, len(r.status.Tunnels))
		for _, t := range r.status.Tunnels {
			// While its protocol changes a tunnel has two entries: it is as well as the
			// better of them.
			if have, ok := r.tunnels[t.ID]; !ok || have.Phase != desired.PhaseUp && (t.Phase == desired.PhaseUp || !t.Retiring) {
				r.tunnels[t.ID] = t
			}
		}
	}
	return r
}

// connection joins what both ends say. A tunnel is up when both ends, connected
// now, say so: what a node said before it went away is no evidence. Sentences
// name what concerns the connection's customer only; what else is wrong with a
// node, which may serve others too, is in the node's own report.
func connection(now *model.Snapshot, k model.Key, reports map[string]report) *v1.ConnectionReport {
	w := &v1.ConnectionReport{Customer: k.Customer, Connection: k.Name}
	tunnels, _ := model.Tunnels(now.Documents, k)
	w.TunnelsTotal = uint32(len(tunnels))
	if len(tunnels) == 0 {
		w.Problems = []string{"no tunnel can be derived from the documents"}
		return w
	}
	for _, e := range tunnels[0].Ends {
		if e.External() {
			continue
		}
		if sentence := nodeProblem(e.Node, reports[e.Node]); sentence != "" {
			w.Problems = append(w.Problems, sentence)
		}
	}
	policy, _, _ := now.Protocols(k)
	wireguard := policy != nil && policy.Protocol == model.ProtocolWireGuard
	for _, t := range tunnels {
		up := 0
		for _, e := range t.Ends {
			if e.External() {
				// Nobody there tells us anything: our own end decides.
				up++
				continue
			}
			r := reports[e.Node]
			have, told := r.tunnels[t.ID]
			sentence := ""
			switch _, key := now.Keys[model.TunnelEnd{Tunnel: t.ID, Node: e.Node}]; {
			case wireguard && !key:
				sentence = fmt.Sprintf("tunnel %s is pending: node %s has not reported its key", t.ID, e.Node)
			case !r.connected:
				// Said of the node already.
			case !told:
				sentence = fmt.Sprintf("tunnel %s: node %s has not reported it yet", t.ID, e.Node)
			case have.Phase == desired.PhaseUp:
				up++
			default:
				sentence = fmt.Sprintf("tunnel %s is %s at node %s", t.ID, have.Phase, e.Node)
			}
			if told && have.Problem != "" && r.connected {
				if sentence == "" {
					sentence = fmt.Sprintf("tunnel %s at node %s", t.ID, e.Node)
				}
				sentence += ": " + have.Problem
			}
			if sentence != "" {
				w.Problems = append(w.Problems, sentence)
			}
		}
		if up == len(t.Ends) {
			w.TunnelsUp++
		}
	}
	return w
}

// nodeProblem is what keeps a node from having its newest state.
func nodeProblem(name string, r report) string {
	switch {
	case !r.exists:
		return fmt.Sprintf("there is no node %s", name)
	case !r.enrolled:
		return fmt.Sprintf("node %s is not enrolled: make a token with `sealctl token create %s`", name, name)
	case r.revoked:
		return fmt.Sprintf("node %s is revoked: nothing is encrypted to it, and nothing goes to it in clear", name)
	case !r.connected && r.status == nil:
		return fmt.Sprintf("node %s is not connected, and was not since the controller started", name)
	case !r.connected:
		return fmt.Sprintf("node %s is not connected; it last reported at %s", name, r.status.Time.UTC().Format("2006-01-02 15:04:05Z"))
	case r.status != nil && r.status.Rejection != nil:
		return fmt.Sprintf("node %s has refused state %s", name, r.status.Rejection.Position)
	case r.status != nil && r.status.Applied.Compare(r.wanted) < 0:
		return fmt.Sprintf("node %s has not applied state %s yet", name, r.wanted)
	}
	return ""
}
