package ipsec

import (
	"fmt"
	"os"
	"testing"

	"github.com/circuitseal/circuitseal/agent/instance"
)

// TestMain makes the test binary stand for the agent's: `charon --instance X` is
// the process that the driver starts.
func TestMain(m *testing.M) {
	if len(os.Args) == 4 && os.Args[1] == "charon" {
		fmt.Fprintln(os.Stderr, Serve(instance.Instance(os.Args[3])))
		os.Exit(1)
	}
	os.Exit(m.Run())
}
