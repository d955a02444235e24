package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/circuitseal/circuitseal/proto/sealed"
)

func secretKeyCommand() *cobra.Command {
	group := &cobra.Command{
		Use:   "secret-key",
		Short: "Make or rotate the key that encrypts this node's secrets at rest",
		Args:  noSubcommand,
		RunE:  func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	act := func(use, short, done string, do func(path string, now time.Time) error) {
		group.AddCommand(&cobra.Command{
			Use: use, Short: short,
			Args: func(_ *cobra.Command, args []string) error {
				if len(args) != 1 {
					return fmt.Errorf("%w: got %d arguments, want the file", errUsage, len(args))
				}
				return nil
			},
			RunE: func(c *cobra.Command, args []string) error {
				if err := do(args[0], time.Now()); err != nil {
					return err
				}
				_, err := fmt.Fprintf(c.OutOrStdout(), done+"\n", args[0])
				return err
			},
		})
	}
	act("generate FILE", "Make a new key in a file that is not there yet",
		"%s holds a new key", sealed.Generate)
	act("rotate FILE", "Put a new key before the others of a file",
		"%s begins with a new key; restart the agent with it, and when it runs take the lines after the first key out", sealed.Rotate)
	return group
}
