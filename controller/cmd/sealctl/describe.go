package main

import (
	"bytes"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/structpb"

	v1 "github.com/circuitseal/circuitseal/proto/circuitseal/v1"
)

func describeCommand(o *options) *cobra.Command {
	var (
		customer string
		reveal   bool
	)
	cmd := &cobra.Command{
		Use:   "describe KIND [CUSTOMER/]NAME | KIND/CUSTOMER/NAME",
		Short: "Show a document, what names it, and the status of what it stands for",
		Long: `Show a document, which other documents name it, and the status of what it stands
for: a node's interfaces, guards and tunnels; both ends of each tunnel of a
connection, or of what belongs to a circuit, a site, an endpoint or a customer; what
is wrong, and what to do next. Of an endpoint that is a gateway without our agent: how
that is to be set, ready to use (for an Azure VPN Gateway commands of the Azure CLI, for
others strongSwan's swanctl.conf), with its pre-shared keys if --reveal-psk asks for them.

-o json has a gateway's settings, and is for these only: of all else sealctl get -o json
and sealctl status -o json say the same to programs.`,
		Example: `  sealctl describe node prem-1
  sealctl describe connection contoso/hq-weu
  sealctl describe connection/contoso/hq-weu
  sealctl describe endpoint contoso/vpngw-uks --reveal-psk
  sealctl describe endpoint contoso/vpngw-uks -o json`,
		Args: func(_ *cobra.Command, args []string) error {
			q, err := parseReference(args, customer)
			if err == nil && q.name == "" {
				err = fmt.Errorf("%w: got %d arguments, want a kind and a name", errUsage, len(args))
			}
			return err
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			q, err := parseReference(args, customer)
			if err != nil {
				return err
			}
			c, err := o.connect()
			if err != nil {
				return err
			}
			defer c.close()
			d, err := ask(cmd, o, c, q)
			if err != nil {
				return err
			}
			if d.gateway, err = askGateway(cmd.Context(), o, c, d.document, reveal); err != nil {
				return err
			}
			switch {
			case o.structured() && d.gateway == nil:
				return fmt.Errorf("%w: -o %s: %s is no gateway without our agent; sealctl get and sealctl status say to programs what is to be said of it", errUsage, o.output, name(d.document))
			case o.structured():
				return o.print(cmd.OutOrStdout(), d.gateway)
			}
			return d.print(cmd.OutOrStdout(), o.palette(cmd.OutOrStdout()))
		},
		ValidArgsFunction: completeDocuments(o, &customer),
	}
	cmd.Flags().StringVar(&customer, "customer", "", "the document's `customer`, unless its kind has none")
	cmd.Flags().BoolVar(&reveal, "reveal-psk", false, "show the pre-shared keys of a gateway; the controller logs who has asked")
	return formats(cmd, "json", "yaml")
}

// description is a document in its surroundings.
type description struct {
	document *v1.Document
	all      []*v1.Document
	status   *v1.GetStatusResponse
	// gateway is how the other side is to be set, nil for what is no gateway.
	gateway *v1.DescribeGatewayResponse
	now     time.Time
}

func ask(cmd *cobra.Command, o *options, c connection, q reference) (*description, error) {
	policy := newPolicyClient(c, o)
	one, err := policy.get(cmd.Context(), &v1.GetRequest{Kind: q.kind, Customer: q.customer, Name: q.name})
	if err != nil {
		return nil, usage(err)
	}
	if n := len(one.GetDocuments()); n != 1 {
		var have []string
		for _, d := range one.GetDocuments() {
			have = append(have, name(d))
		}
		return nil, fmt.Errorf("%w: %d documents have that name, want one of them: %s", errUsage, n, or(have))
	}
	if err := policy.fill(cmd.Context(), one.GetDocuments()); err != nil {
		return nil, err
	}
	// Whatever names it, and whatever these lead to.
	all, err := policy.get(cmd.Context(), &v1.GetRequest{Kind: "all"})
	if err != nil {
		return nil, usage(err)
	}
	status, err := askStatus(cmd.Context(), o, c, statusFilter{})
	if err != nil {
		return nil, err
	}
	return &description{document: one.GetDocuments()[0], all: all.GetDocuments(), status: status, now: time.Now()}, nil
}

func (d *description) print(w io.Writer, colours palette) error {
	var b strings.Builder
	doc := d.document
	fmt.Fprintf(&b, "%s\n", colours.paint(toneHead, line(name(doc))))
	fmt.Fprintf(&b, "revision %d\n", doc.GetRevision())
	if err := d.writeSpec(&b, colours); err != nil {
		return err
	}
	named := newTable("NAMED BY", "FIELD").paint(colours)
	for _, r := range references(d.all) {
		if r.to == keyOf(doc) {
			named.add(name(r.from), r.field)
		}
	}
	if named.empty() {
		named.add("nothing", "")
	}
	b.WriteByte('\n')
	if err := named.print(&b); err != nil {
		return err
	}
	if err := d.writeStatus(&b, colours); err != nil {
		return err
	}
	if err := writeGateway(&b, colours, d.gateway); err != nil {
		return err
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func (d *description) writeSpec(b *strings.Builder, colours palette) error {
	n, err := specNode(d.document)
	if err != nil {
		return err
	}
	var spec bytes.Buffer
	if err := printNode(&spec, n); err != nil {
		return err
	}
	b.WriteString("\n" + colours.paint(toneHead, "SPEC") + "\n")
	for l := range strings.Lines(spec.String()) {
		b.WriteString("  " + line(strings.TrimSuffix(l, "\n")) + "\n")
	}
	return nil
}

// writeStatus shows what of the status belongs to the document.
func (d *description) writeStatus(b *strings.Builder, colours palette) error {
	var tables []*table
	about := d.concerns()
	part := &v1.GetStatusResponse{}
	tunnels, associations := newTunnelTable(colours), newAssociationTable(colours)
	for _, n := range d.status.GetNodes() {
		isIt := d.document.GetKind() == "Node" && n.GetNode() == d.document.GetName()
		if isIt {
			t := newTable("NODE", "ENROLLED", "CONNECTED", "WANTED", "APPLIED", "TUNNELS UP", "GUARDS", "VERSION", "ACKNOWLEDGED", "KERNEL", "REPORTED").paint(colours)
			addNode(t, n, true, d.now)
			tables = append(tables, t, interfaceTable(d.document, n, colours), charonTable(n, colours))
			part.Nodes = append(part.Nodes, n)
		}
		for _, t := range n.GetStatus().GetTunnels() {
			if isIt || about(t.GetId()) {
				tunnels.add(n, t, d.now)
				associations.add(n, t)
			}
		}
	}
	connections := newTable("CUSTOMER", "CONNECTION", "TUNNELS UP").paint(colours)
	for _, c := range d.status.GetConnections() {
		if about(c.GetCustomer() + "/" + c.GetConnection() + "/") {
			addConnection(connections, c)
			part.Connections = append(part.Connections, c)
		}
	}
	tables = append(tables, connections, tunnels.table, associations.table)
	for _, t := range tables {
		if t.empty() {
			continue
		}
		b.WriteByte('\n')
		if err := t.print(b); err != nil {
			return err
		}
	}
	if d.document.GetKind() != "Node" {
		nodes := d.carriers(part.GetConnections())
		for _, n := range d.status.GetNodes() {
			if nodes[n.GetNode()] {
				part.Nodes = append(part.Nodes, n)
			}
		}
	}
	writeFindings(b, colours, findings(part), true)
	return nil
}

// carriers are the nodes that carry a connection of reports.
func (d *description) carriers(connections []*v1.ConnectionReport) map[string]bool {
	all := references(d.all)
	nodes := map[string]bool{}
	for _, c := range connections {
		for _, r := range all {
			if r.to.kind != "Endpoint" || keyOf(r.from) != (key{"Connection", c.GetCustomer(), c.GetConnection()}) {
				continue
			}
			for _, e := range all {
				if keyOf(e.from) == r.to && e.to.kind == "Node" {
					nodes[e.to.name] = true
				}
			}
		}
	}
	return nodes
}

// concerns says whether a tunnel, customer/connection/circuit/link, has to do
// with the document. What is shorter is tried as the beginning of one.
func (d *description) concerns() func(tunnel string) bool {
	doc := d.document
	connections := map[string]bool{}
	if doc.GetKind() == "Connection" {
		connections[doc.GetCustomer()+"/"+doc.GetName()] = true
	}
	// What names it, and what names that, up to connections: a node's endpoints'
	// connections, a policy's connections.
	reached := map[key]bool{keyOf(doc): true}
	for range d.all {
		more := false
		for _, r := range references(d.all) {
			if !reached[r.to] || reached[keyOf(r.from)] || r.from.GetKind() == "Node" {
				continue
			}
			reached[keyOf(r.from)], more = true, true
			if r.from.GetKind() == "Connection" {
				connections[r.from.GetCustomer()+"/"+r.from.GetName()] = true
			}
		}
		if !more {
			break
		}
	}
	return func(tunnel string) bool {
		parts := strings.Split(tunnel, "/")
		if len(parts) < 2 {
			return false
		}
		switch doc.GetKind() {
		case "Customer":
			return parts[0] == doc.GetName()
		case "Circuit":
			if len(parts) == 4 {
				return parts[0] == doc.GetCustomer() && parts[2] == doc.GetName()
			}
		}
		return connections[parts[0]+"/"+parts[1]]
	}
}

// interfaceTable is what a node's document says of its interfaces, and the
// guards that it reports there.
func interfaceTable(doc *v1.Document, n *v1.NodeReport, colours palette) *table {
	t := newTable("INTERFACE", "ROLE", "FOR", "GUARDS").paint(colours)
	for _, v := range doc.GetSpec().GetFields()["interfaces"].GetListValue().GetValues() {
		f := v.GetStructValue().GetFields()
		var alive, dead []string
		for _, g := range n.GetStatus().GetGuards() {
			switch {
			case g.GetInterface() != f["name"].GetStringValue():
			case g.GetAlive():
				alive = append(alive, g.GetLayer())
			default:
				dead = append(dead, g.GetLayer()+" NOT ALIVE")
			}
		}
		slices.Sort(alive)
		t.add(f["name"].GetStringValue(), f["role"].GetStringValue(), purpose(f), strings.Join(append(dead, alive...), ", "))
		t.mark(3, toneOf(len(dead) == 0, toneBad))
	}
	return t
}

// purpose is the link or the customer of an interface.
func purpose(f map[string]*structpb.Value) string {
	if l := f["link"].GetStructValue().GetFields(); len(l) > 0 {
		return l["customer"].GetStringValue() + "/" + l["circuit"].GetStringValue() + "/" + l["link"].GetStringValue()
	}
	return f["customer"].GetStringValue()
}
