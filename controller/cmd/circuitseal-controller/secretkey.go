package main

import (
	"cmp"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/circuitseal/circuitseal/proto/sealed"
)

// secretKeyFile is where the key is that encrypts secrets at rest: the
// credential that a service manager passes, else a file.
func secretKeyFile() string {
	return cmp.Or(sealed.Credential("secret-key"), "/etc/circuitseal/controller.key")
}

func secretKeyCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "secret-key",
		Short: "Make or rotate the key that encrypts secrets at rest",
		Args:  one,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	act := func(use, short, done string, do func(path string, now time.Time) error) {
		cmd.AddCommand(&cobra.Command{
			Use: use, Short: short, Args: one,
			RunE: func(cmd *cobra.Command, args []string) error {
				if err := do(args[0], time.Now()); err != nil {
					return err
				}
				_, err := fmt.Fprintf(cmd.OutOrStdout(), done+"\n", args[0])
				return err
			},
		})
	}
	act("generate FILE", "Make a new key in a file that is not there yet",
		"%s holds a new key; keep a copy, apart from backups of the data directory: without it they are of no use", sealed.Generate)
	act("rotate FILE", "Put a new key before the others of a file",
		"%s begins with a new key; restart the controller with it, and when it runs take the lines after the first key out", sealed.Rotate)
	return cmd
}

func one(cmd *cobra.Command, args []string) error {
	if cmd.HasSubCommands() && len(args) > 0 {
		return fmt.Errorf("%w: there is no command %q; want generate or rotate", errUsage, args[0])
	}
	if !cmd.HasSubCommands() && len(args) != 1 {
		return fmt.Errorf("%w: got %d arguments, want the file", errUsage, len(args))
	}
	return nil
}
