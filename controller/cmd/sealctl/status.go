package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	v1 "github.com/circuitseal/circuitseal/proto/circuitseal/v1"
	"github.com/circuitseal/circuitseal/proto/circuitseal/v1/circuitsealv1connect"
)

func statusCommand(o *options) *cobra.Command {
	var (
		f            statusFilter
		watch, check bool
	)
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show what nodes report, which connections are encrypted, and what to do",
		Long: `Show what nodes report and which connections are encrypted; under PROBLEMS, what is
wrong and what to do next. A tunnel is up when both of its ends say so now.

-o wide adds every tunnel with its age, bytes, loss and delay. --check makes the
exit code 6 where there are problems. --watch goes on, as sealctl watch does.`,
		Example: `  sealctl status
  sealctl status --customer contoso -o wide
  sealctl status --node prem-1 --check`,
		Args: arguments(0, 0, "none"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if watch && check {
				return fmt.Errorf("%w: --watch and --check: want one of them", errUsage)
			}
			c, err := o.connect()
			if err != nil {
				return err
			}
			defer c.close()
			if watch {
				return watchStatus(cmd, o, func() (*v1.GetStatusResponse, error) { return askStatus(cmd.Context(), o, c, f) })
			}
			answer, err := askStatus(cmd.Context(), o, c, f)
			if err != nil {
				return err
			}
			if o.structured() {
				err = o.print(cmd.OutOrStdout(), answer)
			} else {
				err = printStatus(cmd.OutOrStdout(), o, answer, time.Now())
			}
			if err == nil && check && len(findings(answer)) > 0 {
				return withCode(exitNotYet, errTold)
			}
			return err
		},
	}
	f.register(cmd)
	cmd.Flags().BoolVarP(&watch, "watch", "w", false, "go on until interrupted")
	cmd.Flags().BoolVar(&check, "check", false, "exit code 6 when there are problems")
	return formats(cmd, "wide", "json", "yaml")
}

// statusFilter is what of the status somebody wants to see.
type statusFilter struct{ node, customer string }

func (f *statusFilter) register(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.node, "node", "", "this `node` and its connections only")
	cmd.Flags().StringVar(&f.customer, "customer", "", "this `customer`'s connections, and the nodes that carry them, only")
}

// askStatus gets the status and keeps what is asked for. Which node carries
// what is said by documents: a node that never reported is shown as well.
func askStatus(ctx context.Context, o *options, c connection, f statusFilter) (*v1.GetStatusResponse, error) {
	service := circuitsealv1connect.NewStatusServiceClient(c.client, c.server, limits())
	answer, err := call(ctx, o, service.GetStatus, &v1.GetStatusRequest{})
	if err != nil || f == (statusFilter{}) {
		return answer, err
	}
	policy := newPolicyClient(c, o)
	var documents []*v1.Document
	for _, kind := range []string{"Endpoint", "Connection"} {
		got, err := policy.get(ctx, &v1.GetRequest{Kind: kind, Customer: f.customer})
		if err != nil {
			return nil, usage(err)
		}
		documents = append(documents, got.GetDocuments()...)
	}
	if f.node != "" && !slices.ContainsFunc(answer.GetNodes(), func(n *v1.NodeReport) bool { return n.GetNode() == f.node }) {
		return nil, fmt.Errorf("there is no node %q; `sealctl get nodes` lists them", f.node)
	}
	return f.apply(answer, documents), nil
}

// apply keeps of a status what the filter asks for; documents are endpoints and
// connections.
func (f statusFilter) apply(s *v1.GetStatusResponse, documents []*v1.Document) *v1.GetStatusResponse {
	carries, nodes := map[string]string{}, map[string]bool{}
	connections := map[string]bool{}
	for _, d := range documents {
		if d.GetKind() == "Endpoint" {
			node := d.GetSpec().GetFields()["node"].GetStringValue()
			carries[d.GetCustomer()+"/"+d.GetName()] = node
			nodes[node] = true
		}
	}
	for _, d := range documents {
		if d.GetKind() != "Connection" {
			continue
		}
		for _, e := range d.GetSpec().GetFields()["endpoints"].GetListValue().GetValues() {
			if f.node == "" || carries[d.GetCustomer()+"/"+e.GetStringValue()] == f.node {
				connections[d.GetCustomer()+"/"+d.GetName()] = true
			}
		}
	}
	kept := &v1.GetStatusResponse{Revision: s.GetRevision()}
	for _, n := range s.GetNodes() {
		if f.node != "" && n.GetNode() != f.node || f.customer != "" && !nodes[n.GetNode()] {
			continue
		}
		if st := n.GetStatus(); st != nil && f.customer != "" {
			st.Tunnels = slices.DeleteFunc(st.GetTunnels(), func(t *v1.TunnelStatus) bool {
				return !strings.HasPrefix(t.GetId(), f.customer+"/")
			})
		}
		kept.Nodes = append(kept.Nodes, n)
	}
	for _, c := range s.GetConnections() {
		if connections[c.GetCustomer()+"/"+c.GetConnection()] {
			kept.Connections = append(kept.Connections, c)
		}
	}
	return kept
}

func printStatus(w io.Writer, o *options, s *v1.GetStatusResponse, now time.Time) error {
	colours := o.palette(w)
	var b strings.Builder
	head := []string{"NODE", "ENROLLED", "CONNECTED", "WANTED", "APPLIED", "TUNNELS UP", "GUARDS", "VERSION"}
	if o.wide() {
		head = append(head, "ACKNOWLEDGED", "KERNEL", "REPORTED")
	}
	nodes := newTable(head...).paint(colours)
	tunnels, associations := newTunnelTable(colours), newAssociationTable(colours)
	for _, n := range s.GetNodes() {
		addNode(nodes, n, o.wide(), now)
		for _, t := range n.GetStatus().GetTunnels() {
			tunnels.add(n, t, now)
			associations.add(n, t)
		}
	}
	connections := newTable("CUSTOMER", "CONNECTION", "TUNNELS UP").paint(colours)
	for _, c := range s.GetConnections() {
		addConnection(connections, c)
	}
	tables := []*table{nodes, connections}
	if o.wide() {
		tables = append(tables, tunnels.table)
		if !associations.empty() {
			tables = append(tables, associations.table)
		}
	}
	for i, t := range tables {
		if i > 0 {
			b.WriteByte('\n')
		}
		if err := t.print(&b); err != nil {
			return err
		}
	}
	writeFindings(&b, colours, findings(s), false)
	_, err := io.WriteString(w, b.String())
	return err
}

func addNode(t *table, n *v1.NodeReport, wide bool, now time.Time) {
	st := n.GetStatus()
	up, alive := 0, 0
	for _, t := range st.GetTunnels() {
		if t.GetPhase() == v1.TunnelPhase_TUNNEL_PHASE_UP {
			up++
		}
	}
	for _, g := range st.GetGuards() {
		if g.GetAlive() {
			alive++
		}
	}
	cells := []string{n.GetNode(), yes(n.GetEnrolled()), yes(n.GetConnected()), position(n.GetWanted()), position(st.GetApplied()),
		of(up, len(st.GetTunnels())), of(alive, len(st.GetGuards())), st.GetVersion()}
	if wide {
		reported := ""
		if at := st.GetTime(); at != nil {
			reported = ago(at.AsTime(), now)
		}
		cells = append(cells, position(st.GetAcknowledged()), st.GetKernel(), reported)
	}
	t.add(cells...)
	t.mark(1, toneOf(n.GetEnrolled(), toneWarn))
	t.mark(2, toneOf(n.GetConnected(), toneWarn))
	if compare(st.GetApplied(), n.GetWanted()) < 0 {
		t.mark(4, toneWarn)
	}
	t.mark(5, toneOf(up == len(st.GetTunnels()), toneBad))
	t.mark(6, toneOf(alive == len(st.GetGuards()), toneBad))
}

func addConnection(t *table, c *v1.ConnectionReport) {
	t.add(c.GetCustomer(), c.GetConnection(), of(int(c.GetTunnelsUp()), int(c.GetTunnelsTotal())))
	t.mark(2, toneOf(c.GetTunnelsTotal() > 0 && c.GetTunnelsUp() == c.GetTunnelsTotal(), toneBad))
}

// tunnelTable is one row for each end of a tunnel.
type tunnelTable struct{ *table }

func newTunnelTable(p palette) tunnelTable {
	return tunnelTable{newTable("TUNNEL", "NODE", "PHASE", "BACKEND", "HANDSHAKE", "RECEIVED", "SENT", "PROBES LOST", "ROUND TRIP", "PROBLEM").paint(p)}
}

func (t tunnelTable) add(n *v1.NodeReport, s *v1.TunnelStatus, now time.Time) {
	handshake, trip := "never", ""
	if at := s.GetLastHandshake(); at != nil {
		handshake = ago(at.AsTime(), now)
	}
	if d := s.GetRoundTrip(); d != nil {
		trip = d.AsDuration().Round(10 * time.Microsecond).String()
	}
	told := phase(s.GetPhase())
	if s.GetRetiring() {
		told += " (retiring)"
	}
	if !n.GetConnected() {
		told += " when last heard"
	}
	t.table.add(s.GetId(), n.GetNode(), told, s.GetBackend(), handshake, size(s.GetReceivedBytes()), size(s.GetSentBytes()),
		fmt.Sprintf("%d of %d", s.GetProbesLost(), s.GetProbesSent()), trip, s.GetProblem())
	t.mark(2, toneOf(n.GetConnected() && s.GetPhase() == v1.TunnelPhase_TUNNEL_PHASE_UP, toneBad))
}

func toneOf(good bool, otherwise tone) tone {
	if good {
		return toneGood
	}
	return otherwise
}

func phase(p v1.TunnelPhase) string {
	return strings.ToLower(strings.TrimPrefix(p.String(), "TUNNEL_PHASE_"))
}

// ago is how long ago something was.
func ago(then, now time.Time) string {
	return max(0, now.Sub(then).Round(time.Second)).String() + " ago"
}

// size is a number of bytes for people.
func size(n uint64) string {
	const step = 1024
	if n < step {
		return fmt.Sprintf("%d B", n)
	}
	f, unit := float64(n)/step, 0
	for f >= step && unit < len("KMGTPE")-1 {
		f /= step
		unit++
	}
	return fmt.Sprintf("%.1f %ciB", f, "KMGTPE"[unit])
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

func of(n, total int) string { return fmt.Sprintf("%d/%d", n, total) }

func position(p *v1.Position) string {
	if p == nil || (p.GetEpoch() == 0 && p.GetRevision() == 0) {
		return ""
	}
	return fmt.Sprintf("%d.%d", p.GetEpoch(), p.GetRevision())
}

// compare orders positions.
func compare(a, b *v1.Position) int {
	return cmp.Or(cmp.Compare(a.GetEpoch(), b.GetEpoch()), cmp.Compare(a.GetRevision(), b.GetRevision()))
}
