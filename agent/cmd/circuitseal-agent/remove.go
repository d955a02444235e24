package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/circuitseal/circuitseal/agent"
)

func removeCommand(o *options) *cobra.Command {
	var yes, purge bool
	c := &cobra.Command{
		Use:   "remove",
		Short: "Take everything of this agent off the host, and its protection with it",
		Long: `Ends what outlives the agent: tunnels and the WireGuard process, the classifier
and the guard. Circuit interfaces return to the main namespace, down and without
addresses: from then on nothing guards them. Stop the agent first, and disable
its units. It can be repeated after an error.

The node's identity, keys and last good state stay, so that the agent can be run
again, unless --purge is given: then the node has to be enrolled anew.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			i, log, err := o.parse()
			if err != nil {
				return err
			}
			if !yes {
				return fmt.Errorf("%w: this ends tunnels and takes the guard off the circuit interfaces: say --yes if that is meant", errUsage)
			}
			if err := agent.Remove(c.Context(), agent.Config{Instance: i, Version: version, Log: log}, purge); err != nil {
				return err
			}
			_, err = fmt.Fprintf(c.OutOrStdout(), "instance %s is off this host; its circuit interfaces are in the main namespace, down and unguarded\n", i)
			return err
		},
	}
	c.Flags().BoolVar(&yes, "yes", false, "yes, end tunnels and protection")
	c.Flags().BoolVar(&purge, "purge", false, "remove identity, keys and last good state too")
	return c
}
