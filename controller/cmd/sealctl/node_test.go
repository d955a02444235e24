package main

import (
	"bytes"
	"context"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	v1 "github.com/circuitseal/circuitseal/proto/circuitseal/v1"
)

// soleNode is a customer with a node.
const soleNode = `apiVersion: circuitseal.io/v1
kind: Customer
metadata: {name: contoso}
spec: {displayName: One, model: connect-to}
---
apiVersion: circuitseal.io/v1
kind: Node
metadata: {name: prem-1}
spec:
  owner: contoso
  interfaces:
    - {name: lan0, role: lan, customer: contoso}
    - {name: mgmt0, role: mgmt}
`

// Nodes that it concerns are waited for, connected or not, and no others.
func TestApplyWaits(t *testing.T) {
	dir := start(t)
	must(t, "", "apply", "-f", samples)
	n := enrol(t, dir, "prem-1")
	n.apply()
	eventually(t, "prem-1  yes       yes", "status")
	// A node that carries nothing of contoso's has no part in this.
	must(t, strings.NewReplacer("contoso", "fabrikam", "prem-1", "prem-2").Replace(soleNode), "apply", "-f", "-")
	code, _, stderr := sealctl(t, "", "apply", "-f", samples, "--wait", "--wait-timeout", "100ms")
	if code != exitNotYet || !strings.Contains(stderr, "after 100ms: node nva-1 is not enrolled") || strings.Contains(stderr, "prem") {
		t.Errorf("with nva-1 not enrolled: exit code %d: %s", code, stderr)
	}
	far := enrol(t, dir, "nva-1")
	far.apply()
	eventually(t, "nva-1   yes       yes", "status")
	policy := "apiVersion: circuitseal.io/v1\nkind: EncryptionPolicy\nmetadata: {customer: contoso, name: standard}\nspec: {protocol: wireguard, pathMTU: 1380}\n"
	type result struct {
		code           int
		stdout, stderr string
	}
	ended := make(chan result, 1)
	go func() {
		var out, e bytes.Buffer
		code := run(t.Context(), []string{"apply", "-f", "-", "--wait"}, strings.NewReader(policy), &out, &e)
		ended <- result{code, out.String(), e.String()}
	}()
	// The state comes, and as long as it is not applied the command waits.
	p, q := n.next(), far.next()
	far.report(func(s *v1.NodeStatus) { s.Acknowledged, s.Applied = q, q })
	select {
	case r := <-ended:
		t.Fatalf("it did not wait: %+v", r)
	case <-time.After(3 * waitEvery):
	}
	n.report(func(s *v1.NodeStatus) { s.Acknowledged, s.Applied = p, p })
	r := <-ended
	if r.code != exitOK || r.stdout != "encryptionpolicy/contoso/standard configured\n" || r.stderr != "2 nodes have applied it\n" {
		t.Errorf("got %+v", r)
	}
	// One that takes too long is named; what was applied stays.
	far.leave()
	eventually(t, "nva-1   yes       no", "status")
	code, _, stderr = sealctl(t, strings.Replace(policy, "1380", "1360", 1), "apply", "-f", "-", "--wait", "--wait-timeout", "100ms")
	if code != exitNotYet || !strings.Contains(stderr, "node nva-1 is not connected; node prem-1 wants state ") || !strings.Contains(stderr, "what was applied stays applied") {
		t.Errorf("exit code %d: %s", code, stderr)
	}
	// One that refuses is not waited for.
	p = n.next()
	n.report(func(s *v1.NodeStatus) { s.Rejection = &v1.Rejection{Position: p, Reason: "I do not like it"} })
	eventually(t, "I do not like it", "status")
	code, _, stderr = sealctl(t, strings.Replace(policy, "1380", "1360", 1), "apply", "-f", "-", "--wait")
	if code != exitNotYet || !strings.Contains(stderr, "node prem-1 refused state") || !strings.Contains(stderr, "I do not like it") {
		t.Errorf("exit code %d: %s", code, stderr)
	}
}

func TestStatusOfNodes(t *testing.T) {
	dir := start(t)
	must(t, "", "apply", "-f", samples)
	n := enrol(t, dir, "prem-1")
	p := n.next()
	n.report(func(s *v1.NodeStatus) {
		s.Version, s.Kernel, s.Applied, s.Acknowledged = "v1", "6.12", p, p
		s.Problems = []string{"route \x1b[2J is missing"}
		s.Guards = []*v1.GuardStatus{{Interface: "circ0", Layer: "nftables", Alive: true}, {Interface: "circ0", Layer: "ebpf"}}
		s.Tunnels = []*v1.TunnelStatus{
			{Id: "contoso/hq-weu/er-ams/primary", Phase: v1.TunnelPhase_TUNNEL_PHASE_UP, Backend: "wireguard-kernel", LastHandshake: timestamppb.Now(),
				ReceivedBytes: 5 << 20, SentBytes: 12, ProbesSent: 9, ProbesLost: 1, RoundTrip: durationpb.New(1234567)},
			{Id: "contoso/hq-weu/er-ams/secondary", Phase: v1.TunnelPhase_TUNNEL_PHASE_DOWN, Backend: "wireguard-kernel"},
		}
	})
	eventually(t, "route", "status")
	for _, tt := range []struct {
		args []string
		says []string
	}{
		{[]string{"status"}, []string{
			"prem-1  yes       yes", " 1/2         1/2     v1",
			"node prem-1: the ebpf guard of circ0 is not alive\n    next: ", `node prem-1: route \u001b[2J is missing` + "\n    next: on it, ",
			"node nva-1 is not enrolled\n    next: `sealctl token create nva-1`",
			"connection contoso/hq-weu: tunnel contoso/hq-weu/er-ams/secondary", "    next: no handshake has succeeded",
		}},
		{[]string{"status", "-o", "wide"}, []string{"6.12", "0s ago", "contoso/hq-weu/er-ams/primary    prem-1  up     wireguard-kernel  ", "5.0 MiB", "12 B", "1 of 9", "1.23ms", "never"}},
		{[]string{"describe", "node/prem-1"}, []string{"circ0      circuit  contoso/er-ams/primary    ebpf NOT ALIVE, nftables", "er-ams/primary    prem-1  up", "PROBLEMS\nnode prem-1: the ebpf"}},
		{[]string{"describe", "connection/contoso/hq-weu"}, []string{"NAMED BY  FIELD\nnothing   -", "er-ams/secondary  prem-1  down", "node nva-1 is not enrolled"}},
		{[]string{"describe", "circuit/contoso/er-ams"}, []string{"er-ams/primary    prem-1  up"}},
		{[]string{"describe", "encryptionpolicy/contoso/standard"}, []string{"connection/contoso/hq-weu  spec.encryptionPolicy", "contoso   hq-weu      0/2"}},
		{[]string{"describe", "customer", "contoso"}, []string{"contoso   hq-weu      0/2", "er-ams/primary    prem-1  up", "site/contoso/hq "}},
	} {
		got := must(t, "", tt.args...)
		for _, s := range tt.says {
			if !strings.Contains(got, s) {
				t.Errorf("%v does not say %q:\n%s", tt.args, s, got)
			}
		}
	}
	if got := must(t, "", "status", "--node", "nva-1", "-o", "wide"); strings.Contains(got, "prem-1") && !strings.Contains(got, "connection contoso/hq-weu") {
		t.Errorf("of nva-1:\n%s", got)
	}
}

// Programs get every state once, and of a change what has changed.
func TestWatchTellsProgramsChanges(t *testing.T) {
	node := func(name string, connected bool, sent uint64) *v1.NodeReport {
		return &v1.NodeReport{Node: name, Enrolled: true, Connected: connected, Status: &v1.NodeStatus{
			Time:    timestamppb.New(time.Unix(int64(sent), 0)),
			Tunnels: []*v1.TunnelStatus{{Id: "c/x/y/primary", Phase: v1.TunnelPhase_TUNNEL_PHASE_UP, SentBytes: sent}},
		}}
	}
	up := []*v1.ConnectionReport{{Customer: "c", Connection: "x", TunnelsUp: 1, TunnelsTotal: 1}}
	var out bytes.Buffer
	v := &viewer{w: &out, stderr: &out, o: &options{output: "json"}}
	away := atServer{"https://x", "", context.DeadlineExceeded}
	for _, s := range []struct {
		answer *v1.GetStatusResponse
		err    error
		want   []string // of the names in the line, "" for no line
	}{
		{&v1.GetStatusResponse{Nodes: []*v1.NodeReport{node("a", true, 1), node("b", true, 1)}, Connections: up}, nil, []string{"a", "b", "c/x"}},
		{&v1.GetStatusResponse{Nodes: []*v1.NodeReport{node("a", true, 2), node("b", true, 2)}, Connections: up}, nil, nil},
		{nil, away, []string{"did not answer"}},
		{nil, away, nil},
		{&v1.GetStatusResponse{Nodes: []*v1.NodeReport{node("a", true, 3), node("b", false, 3)}, Connections: up}, nil, []string{"b"}},
		{&v1.GetStatusResponse{Nodes: []*v1.NodeReport{node("a", true, 4)}}, nil, []string{"b is gone", "c/x is gone"}},
		{&v1.GetStatusResponse{Nodes: []*v1.NodeReport{node("a", true, 4)}}, nil, nil},
	} {
		out.Reset()
		if err := v.show(s.answer, s.err, time.Now()); err != nil {
			t.Fatal(err)
		}
		var told []string
		var line v1.GetStatusResponse
		if s.err == nil && out.Len() > 0 {
			if err := protojson.Unmarshal(out.Bytes(), &line); err != nil {
				t.Fatal(err)
			}
		} else if out.Len() > 0 && strings.Contains(out.String(), "did not answer") {
			told = append(told, "did not answer")
		}
		for _, n := range line.GetNodes() {
			name := n.GetNode()
			if len(n.GetFindings()) > 0 {
				name += " is gone"
			}
			told = append(told, name)
		}
		for _, c := range line.GetConnections() {
			name := c.GetCustomer() + "/" + c.GetConnection()
			if len(c.GetFindings()) > 0 {
				name += " is gone"
			}
			told = append(told, name)
		}
		if diff := cmp.Diff(s.want, told); diff != "" {
			t.Errorf("(-want +got)\n%s", diff)
		}
	}
}

func TestWatchWritesChanges(t *testing.T) {
	before := &v1.GetStatusResponse{
		Nodes: []*v1.NodeReport{{Node: "a", Enrolled: true, Connected: true, Wanted: &v1.Position{Epoch: 1, Revision: 2}, Status: &v1.NodeStatus{
			Applied: &v1.Position{Epoch: 1, Revision: 2},
			Tunnels: []*v1.TunnelStatus{{Id: "c/x/y/primary", Phase: v1.TunnelPhase_TUNNEL_PHASE_UP, SentBytes: 1}},
			Guards:  []*v1.GuardStatus{{Interface: "circ0", Layer: "ebpf", Alive: true}},
		}}},
		Connections: []*v1.ConnectionReport{{Customer: "c", Connection: "x", TunnelsUp: 1, TunnelsTotal: 1}},
	}
	after := &v1.GetStatusResponse{
		Nodes: []*v1.NodeReport{{Node: "a", Enrolled: true, Connected: true, Wanted: &v1.Position{Epoch: 1, Revision: 2}, Status: &v1.NodeStatus{
			Applied:  &v1.Position{Epoch: 1, Revision: 2},
			Tunnels:  []*v1.TunnelStatus{{Id: "c/x/y/primary", Phase: v1.TunnelPhase_TUNNEL_PHASE_DOWN, SentBytes: 9}},
			Problems: []string{"it rains"},
		}, Findings: []*v1.Finding{{What: "node a: it rains"}}}},
		Connections: []*v1.ConnectionReport{{Customer: "c", Connection: "x", TunnelsTotal: 1}},
	}
	var out bytes.Buffer
	v := &viewer{w: &out, stderr: &out, o: &options{output: "table"}}
	now := time.Date(2026, 1, 2, 15, 4, 5, 0, time.UTC)
	away := atServer{"https://x", "", context.DeadlineExceeded}
	for _, s := range []struct {
		answer *v1.GetStatusResponse
		err    error
	}{{before, nil}, {before, nil}, {nil, away}, {nil, away}, {after, nil}} {
		if err := v.show(s.answer, s.err, now); err != nil {
			t.Fatal(err)
		}
		now = now.Add(time.Second)
	}
	want := `2026-01-02T15:04:05Z connection c/x: 1/1 tunnels up
2026-01-02T15:04:05Z ebpf guard of circ0 at node a: alive
2026-01-02T15:04:05Z node a: connected
2026-01-02T15:04:05Z node a, applied state: 1.2
2026-01-02T15:04:05Z node a, wanted state: 1.2
2026-01-02T15:04:05Z tunnel c/x/y/primary at node a: up
2026-01-02T15:04:07Z no answer: https://x did not answer in time; --timeout gives it longer
2026-01-02T15:04:09Z the controller answers again
2026-01-02T15:04:09Z connection c/x: 1/1 tunnels up -> 0/1 tunnels up
2026-01-02T15:04:09Z problem: node a: it rains
2026-01-02T15:04:09Z tunnel c/x/y/primary at node a: up -> down
2026-01-02T15:04:09Z gone: ebpf guard of circ0 at node a
`
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}
