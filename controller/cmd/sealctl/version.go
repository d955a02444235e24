package main

import (
	"fmt"
	"runtime"

	"github.com/spf13/cobra"
)

func versionCommand(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "version",
		Short:   "Show the version of sealctl",
		Example: "  sealctl version -o json",
		Args:    arguments(0, 0, "none"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.structured() {
				return o.printValue(cmd.OutOrStdout(), map[string]string{"version": version, "go": runtime.Version()})
			}
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "sealctl %s, %s, API circuitseal.v1\n", version, runtime.Version())
			return err
		},
	}
	return formats(cmd, "json", "yaml")
}
