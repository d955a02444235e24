package main

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/circuitseal/circuitseal/testlab/scenario"
)

// The lines of the page between which the matrix stands.
const (
	matrixBegin = "<!-- matrix: `make lab-matrix` writes what follows -->\n"
	matrixEnd   = "<!-- end of matrix -->\n"
)

func matrixCommand() *cobra.Command {
	var page string
	c := &cobra.Command{
		Use:   "matrix FILE...",
		Short: "Write what host.json, kernel.json and kernel-test.json say into docs/lab.md",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(_ *cobra.Command, files []string) error {
			var tables []string
			var all []scenario.Result
			for _, f := range files {
				results, err := scenario.ReadResults(f)
				if err != nil {
					return err
				}
				all = append(all, results...)
			}
			scenarios, packages := split(all)
			for _, results := range [][]scenario.Result{scenarios, packages} {
				if len(results) > 0 {
					tables = append(tables, scenario.Matrix(results))
				}
			}
			return rewrite(page, strings.Join(tables, "\n"))
		},
	}
	c.Flags().StringVar(&page, "page", "docs/lab.md", "the page")
	return c
}

// split tells scenarios from packages with tests, whose names are paths.
func split(all []scenario.Result) (scenarios, packages []scenario.Result) {
	for _, r := range all {
		if strings.Contains(r.Scenario, "/") {
			packages = append(packages, r)
		} else {
			scenarios = append(scenarios, r)
		}
	}
	return scenarios, packages
}

func rewrite(page, matrix string) error {
	b, err := os.ReadFile(page)
	if err != nil {
		return fmt.Errorf("write the matrix: %w", err)
	}
	before, rest, ok := strings.Cut(string(b), matrixBegin)
	_, after, okEnd := strings.Cut(rest, matrixEnd)
	if !ok || !okEnd {
		return errors.New("write the matrix: " + page + " has no place for it: want the lines\n" + matrixBegin + matrixEnd)
	}
	if err := os.WriteFile(page, []byte(before+matrixBegin+"\n"+matrix+"\n"+matrixEnd+after), 0o644); err != nil {
		return fmt.Errorf("write the matrix: %w", err)
	}
	return nil
}
