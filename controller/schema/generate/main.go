// Command generate writes what controller/schema says to where it is read:
// sealctl's explain, and docs/documents.md. It runs in controller/schema, by
// go generate.
package main

import (
	"fmt"
	"os"

	"github.com/circuitseal/circuitseal/controller/schema"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintf(os.Stderr, "generate: %v\n", err)
		os.Exit(1)
	}
}

func run() error {
	files, err := schema.Files(".")
	if err != nil {
		return err
	}
	for path, b := range files {
		if err := os.WriteFile(path, b, 0o644); err != nil { //nolint:gosec // these are sources, which everybody reads
			return err
		}
	}
	return nil
}
