package controller_test

import (
	"strings"
	"testing"

	"connectrpc.com/connect"

	v1 "github.com/circuitseal/circuitseal/proto/circuitseal/v1"
	"github.com/circuitseal/circuitseal/proto/circuitseal/v1/circuitsealv1connect"
)

// Fault 1: a node that asks for, or speaks of, what is another customer's learns
// no more than of what does not exist, and changes nothing.
func TestNodeReachesNothingOfAnother(t *testing.T) {
	t.Parallel()
	r := start(t, t.TempDir()+"/data")
	o := r.operator()
	o.apply(t, samples(t)...)
	// tailspin has a node of its own, which serves nobody else.
	o.apply(t, &v1.Source{Name: "x", Text: `apiVersion: circuitseal.io/v1
kind: Customer
metadata: {name: tailspin}
spec: {model: connect-to}
---
apiVersion: circuitseal.io/v1
kind: Node
metadata: {name: tail-1}
spec: {owner: tailspin, interfaces: [{name: lan0, role: lan}]}
`})
	cert := r.enrol("tail-1")

	// Its state has nothing of others.
	a := r.session(t, "tail-1", cert)
	a.report(&v1.NodeStatus{})
	if s := a.next(); len(s.state.Sections)+len(s.state.Links)+len(s.state.Interfaces) != 0 {
		t.Errorf("its state has %+v", s.state)
	}
	nva := r.session(t, "nva-1", r.enrol("nva-1"))
	nva.report(&v1.NodeStatus{})
	nva.next()

	// By name, of others and of nothing: one answer.
	c := r.client(cert)
	policy := circuitsealv1connect.NewPolicyServiceClient(c, r.url)
	nodes := circuitsealv1connect.NewNodeServiceClient(c, r.url)
	for _, name := range []string{"nva-1", "nothing"} {
		_, get := policy.Get(t.Context(), connect.NewRequest(&v1.GetRequest{Kind: "node", Name: name}))
		_, list := policy.Get(t.Context(), connect.NewRequest(&v1.GetRequest{Kind: "all", Customer: name}))
		_, revoke := nodes.Revoke(t.Context(), connect.NewRequest(&v1.RevokeRequest{Node: name}))
		for what, err := range map[string]error{"get": get, "list": list, "revoke": revoke} {
			const answer = `permission_denied: the certificate of node "tail-1" reaches the agent service only; present an administrator's`
			if err == nil || err.Error() != answer {
				t.Errorf("%s %s: %v, want %s", what, name, err, answer)
			}
		}
	}
	if n := strings.Count(r.log.String(), "caller=node/tail-1"); n != 6 {
		t.Errorf("%d refusals of it are in the log, want 6", n)
	}

	// Keys and acknowledgements for others' tunnels, and for ones that do not
	// exist, are taken alike, and go nowhere.
	for _, tunnel := range []string{primary, "tailspin/none/er/primary"} {
		a.report(&v1.NodeStatus{Acknowledged: &v1.Position{Epoch: 1, Revision: 1}, Tunnels: []*v1.TunnelStatus{tunnelUp(tunnel, key(9))}})
	}
	a.report(&v1.NodeStatus{Version: "said all"})
	eventually(t, "what it says has arrived", func() bool {
		for _, n := range o.getStatus(t).GetNodes() {
			if n.GetNode() == "tail-1" {
				return n.GetStatus().GetVersion() == "said all"
			}
		}
		return false
	})
	s := o.getStatus(t)
	if !said(s, "tunnel "+primary+" is pending: node nva-1 has not reported its key") || s.GetConnections()[0].GetTunnelsUp() != 0 {
		t.Errorf("the tunnel of another is %v", s.GetConnections()[0])
	}
	select {
	case s := <-nva.states:
		t.Errorf("another node got state %s by it", s.header.Position)
	default:
	}
}
