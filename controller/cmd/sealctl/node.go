package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	v1 "github.com/circuitseal/circuitseal/proto/circuitseal/v1"
	"github.com/circuitseal/circuitseal/proto/circuitseal/v1/circuitsealv1connect"
)

func nodeCommand(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "node",
		Short: "Look after nodes as identities: list, revoke, decommission",
		Example: `  sealctl node list
  sealctl node revoke prem-1 --reason 'appliance stolen'`,
		Args: noSubcommand,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(nodeListCommand(o), nodeRevokeCommand(o), nodeDecommissionCommand(o))
	return cmd
}

func nodeListCommand(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "list",
		Short: "Show the identity of every node",
		Long: `Show the identity of every node: its certificate and when that ends, the
fingerprint of its key, and when it was last seen. Agents renew certificates
daily by themselves.`,
		Example: `  sealctl node list
  sealctl node list -o json`,
		Args: arguments(0, 0, "none"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := o.connect()
			if err != nil {
				return err
			}
			defer c.close()
			service := circuitsealv1connect.NewNodeServiceClient(c.client, c.server, limits())
			answer, err := call(cmd.Context(), o, service.ListNodes, &v1.ListNodesRequest{})
			if err != nil {
				return err
			}
			if o.structured() {
				return o.print(cmd.OutOrStdout(), answer)
			}
			return printNodes(cmd.OutOrStdout(), o, answer)
		},
	}
	return formats(cmd, "json", "yaml")
}

func printNodes(w io.Writer, o *options, answer *v1.ListNodesResponse) error {
	t := newTable("NODE", "IDENTITY", "CONNECTED", "ADDRESS", "LAST SEEN", "EXPIRES", "SERIAL", "FINGERPRINT").paint(o.palette(w))
	var problems []string
	for _, n := range answer.GetNodes() {
		identity, cert := "enrolled", n.GetCertificate()
		switch {
		case cert == nil:
			identity = "not enrolled"
		case n.GetRevocation() != nil:
			identity = "revoked"
		}
		seen, expires := "", ""
		if n.GetLastSeen() != nil {
			seen = n.GetLastSeen().AsTime().UTC().Format(time.RFC3339)
		}
		if cert != nil {
			expires = cert.GetExpires().AsTime().UTC().Format(time.RFC3339)
		}
		t.add(n.GetNode(), identity, yes(n.GetConnected()), n.GetAddress(), seen, expires, cert.GetSerial(), cert.GetFingerprint())
		problems = append(problems, n.GetProblems()...)
	}
	if err := t.print(w); err != nil {
		return err
	}
	if len(problems) == 0 {
		return nil
	}
	var b strings.Builder
	b.WriteString("\nPROBLEMS\n")
	for _, p := range problems {
		b.WriteString(line(p) + "\n")
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func nodeRevokeCommand(o *options) *cobra.Command {
	var (
		reason string
		yes    bool
	)
	cmd := &cobra.Command{
		Use:   "revoke NODE",
		Short: "End a node's identity at once",
		Long: `End a node's identity at once, such as when its host or its key was stolen: its
session is cut, its peers drop its tunnels within seconds, what was to go through
them is blocked and not sent in clear, and its key is never accepted again. An
enrolment token of the node that was not used is void.

The node's documents stay. To have the node back, make a token and enrol a host
anew, which takes another key; a host whose keys others may have is to be purged
before, with 'circuitseal-agent remove --purge'.

On a terminal it says what will be cut and asks; elsewhere it needs --yes.`,
		Example: `  sealctl node revoke prem-1 --reason 'appliance stolen'
  sealctl node revoke prem-1 --reason 'appliance stolen' --yes
  sealctl token create prem-1 --out prem-1.token`,
		Args:              arguments(1, 1, "the name of a node"),
		ValidArgsFunction: completeNodes(o),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := o.connect()
			if err != nil {
				return err
			}
			defer c.close()
			if err := confirmNode(cmd, o, c, args[0], "revoking node "+args[0]+" ends its identity and cuts", yes); err != nil {
				return err
			}
			service := circuitsealv1connect.NewNodeServiceClient(c.client, c.server, limits())
			answer, err := call(cmd.Context(), o, service.Revoke, &v1.RevokeRequest{Node: args[0], Reason: reason})
			if err != nil {
				return usage(err)
			}
			if o.structured() {
				return o.print(cmd.OutOrStdout(), answer)
			}
			text := fmt.Sprintf("node %s was not enrolled; an unused token of it is void now\n", line(args[0]))
			if r := answer.GetRevocation(); r != nil {
				text = fmt.Sprintf("node %s is revoked since %s by %s: %s; key %s\n", line(args[0]),
					r.GetTime().AsTime().UTC().Format(time.RFC3339), line(r.GetBy()), line(r.GetReason()), line(answer.GetFingerprint()))
			}
			_, err = io.WriteString(cmd.OutOrStdout(), text)
			return err
		},
	}
	cmd.Flags().StringVar(&reason, "reason", "", "why, for the log and for whoever looks at the node")
	registerYes(cmd, &yes)
	return formats(cmd, "json", "yaml")
}

// confirmNode asks before a node is cut off. Of one that does not exist the
// controller says so.
func confirmNode(cmd *cobra.Command, o *options, c connection, node, doing string, yes bool) error {
	if yes {
		return nil
	}
	cuts, known, err := nodeCuts(cmd, o, c, node)
	if err != nil || !known {
		return err
	}
	return confirm(cmd, doing, cuts)
}

func nodeDecommissionCommand(o *options) *cobra.Command {
	var (
		reason    string
		with, yes bool
	)
	cmd := &cobra.Command{
		Use:   "decommission NODE",
		Short: "Take a node out of service for good",
		Long: `Take a node out of service for good, in one step: its document is deleted, its
identity is revoked and an unused token of it is void. It is refused while
endpoints are on the node, unless these and their connections go along with
--with-endpoints.

The agent is told, says so in its status, and keeps the circuit interfaces closed
until 'circuitseal-agent remove' takes it off the host.

On a terminal it says what will be cut and asks; elsewhere it needs --yes.`,
		Example:           `  sealctl node decommission prem-1 --reason 'site closed'`,
		Args:              arguments(1, 1, "the name of a node"),
		ValidArgsFunction: completeNodes(o),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := o.connect()
			if err != nil {
				return err
			}
			defer c.close()
			if err := confirmNode(cmd, o, c, args[0], "decommissioning node "+args[0]+" ends its identity and cuts", yes); err != nil {
				return err
			}
			service := circuitsealv1connect.NewNodeServiceClient(c.client, c.server, limits())
			answer, err := call(cmd.Context(), o, service.Decommission, &v1.DecommissionRequest{Node: args[0], Reason: reason, WithEndpoints: with})
			if err != nil {
				return usage(err)
			}
			if o.structured() {
				return o.print(cmd.OutOrStdout(), answer)
			}
			for _, d := range answer.GetDeleted() {
				if _, err := fmt.Fprintf(cmd.OutOrStdout(), "%s deleted\n", line(d)); err != nil {
					return err
				}
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "node %s is decommissioned; take the agent off its host with `circuitseal-agent remove`\n", line(args[0]))
			return err
		},
	}
	cmd.Flags().StringVar(&reason, "reason", "", "why, for the log and for whoever looks at the node")
	registerYes(cmd, &yes)
	cmd.Flags().BoolVar(&with, "with-endpoints", false, "delete the endpoints on the node and the connections that use them, too")
	return formats(cmd, "json", "yaml")
}
