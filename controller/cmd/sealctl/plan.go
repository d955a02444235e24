package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	v1 "github.com/circuitseal/circuitseal/proto/circuitseal/v1"
)

// errChanges ends a plan that found something to change.
var errChanges = withCode(exitNotYet, errTold)

func planCommand(o *options) *cobra.Command {
	var (
		files   fileFlags
		deletes []string
		full    bool
	)
	cmd := &cobra.Command{
		Use:   "plan [-f FILE]… [--delete KIND/CUSTOMER/NAME]…",
		Short: "Show what applying or deleting documents would change, and change nothing",
		Long: `Show what applying documents of files and deleting others, both at once, would
change, and change nothing:

  documents  which fields get other values
  nodes      which tunnels, links, interfaces and prefixes come, go or change
  flows      packets from which addresses to which, at which LAN, become
             clear        nothing judges them any more: the host's own routes do
             blocked      dropped, since no connection is for them
             unreachable  dropped, since no tunnel of their connection can carry them
             encrypted    they leave through a tunnel

Flows are found by comparing what is compiled before and after, over all
addresses. The most dangerous come first. A key that an enrolled node has yet to
make for a new tunnel counts as known; a node that is not enrolled carries nothing.

Of long lists the first are printed, and how many more there are; --full prints all
of them, as -o json does.

The exit code is 0 when nothing would change, and 6 when something would.`,
		Example: `  sealctl plan -f policies/
  sealctl plan --delete connection/contoso/hq-weu
  sealctl plan -f new.yaml --delete site/contoso/old -o json`,
		Args: arguments(0, 0, "files with -f, or documents with --delete"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			q := &v1.PlanRequest{Full: full || o.structured()}
			if len(files.names) == 0 && len(deletes) == 0 {
				return fmt.Errorf("%w: name files with -f, or documents with --delete", errUsage)
			}
			for _, d := range deletes {
				key, err := parseDelete(d)
				if err != nil {
					return err
				}
				q.Deletes = append(q.Deletes, key)
			}
			if len(files.names) > 0 {
				sources, err := files.read(cmd.InOrStdin())
				if err != nil {
					return err
				}
				q.Sources = sources
			}
			c, err := o.connect()
			if err != nil {
				return err
			}
			defer c.close()
			answer, err := newPolicyClient(c, o).plan(cmd.Context(), q)
			if problems := problemsOf(err); problems != nil {
				return printProblems(cmd, o, problems)
			}
			if err != nil {
				return err
			}
			if o.structured() {
				err = o.print(cmd.OutOrStdout(), answer)
			} else {
				err = printPlan(cmd.OutOrStdout(), answer, full)
			}
			if err == nil && planned(answer) {
				return errChanges
			}
			return err
		},
	}
	files.register(cmd)
	cmd.Flags().BoolVar(&full, "full", false, "print long lists to their end")
	cmd.Flags().StringArrayVar(&deletes, "delete", nil, "`document` to delete, kind/customer/name, or kind/name where the kind has no customer; repeatable")
	return formats(cmd, "json", "yaml")
}

// planned reports whether anything would change.
func planned(p *v1.PlanResponse) bool {
	return len(p.GetDocuments())+len(p.GetNodes())+len(p.GetFlows()) > 0
}

// parseDelete reads kind/customer/name or kind/name.
func parseDelete(s string) (*v1.PlannedDelete, error) {
	q, err := parseReference(strings.Fields(s), "")
	if err != nil || q.name == "" {
		return nil, fmt.Errorf("%w: --delete %q: want kind/customer/name such as site/contoso/hq, or kind/name such as node/nva-1", errUsage, s)
	}
	return &v1.PlannedDelete{Kind: q.kind, Customer: q.customer, Name: q.name}, nil
}
