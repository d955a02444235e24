package main

import (
	"fmt"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"

	v1 "github.com/circuitseal/circuitseal/proto/circuitseal/v1"
	"github.com/circuitseal/circuitseal/proto/circuitseal/v1/circuitsealv1connect"
)

func getCommand(o *options) *cobra.Command {
	var customer string
	cmd := &cobra.Command{
		Use:   "get KIND [NAME]",
		Short: "Show documents of a kind, or of all",
		Long: `Show documents of a kind (any case, singular or plural), or of all kinds.

The kinds are customers, circuits, sites, nodes, endpoints, encryptionpolicies
and connections.`,
		Example: `  sealctl get all
  sealctl get connections --customer contoso
  sealctl get site hq --customer contoso -o json`,
		Args: arguments(1, 2, "a kind (or all) and maybe a name"),
		RunE: func(cmd *cobra.Command, args []string) error {
			q := &v1.GetRequest{Kind: args[0], Customer: customer}
			if len(args) == 2 {
				q.Name = args[1]
			}
			c, err := o.connect()
			if err != nil {
				return err
			}
			defer c.close()
			service := circuitsealv1connect.NewPolicyServiceClient(c.client, c.server, limits())
			answer, err := call(cmd.Context(), o, service.Get, q)
			if err != nil {
				return usage(err)
			}
			if o.json() {
				return printJSON(cmd.OutOrStdout(), answer)
			}
			t := newTable("KIND", "CUSTOMER", "NAME", "REVISION", "SPEC")
			for _, d := range answer.GetDocuments() {
				t.add(d.GetKind(), d.GetCustomer(), d.GetName(), fmt.Sprint(d.GetRevision()), summary(d))
			}
			return t.print(cmd.OutOrStdout())
		},
	}
	cmd.Flags().StringVar(&customer, "customer", "", "documents of this `customer` only")
	return cmd
}

// maxSummary is how much of a spec a line shows, in characters.
const maxSummary = 80

// summary is the start of a document's spec; -o json shows all of it.
func summary(d *v1.Document) string {
	b, err := protojson.MarshalOptions{}.Marshal(d.GetSpec())
	if err != nil {
		return ""
	}
	r := []rune(string(b))
	if len(r) <= maxSummary {
		return string(r)
	}
	return string(r[:maxSummary-1]) + "…"
}
