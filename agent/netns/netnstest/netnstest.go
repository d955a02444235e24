// Package netnstest gives tests network namespaces of their own. It knows when
// a test may skip for want of privilege; nothing but tests imports it.
package netnstest

import (
	"fmt"
	"os"
	"sync/atomic"
	"testing"

	"github.com/circuitseal/circuitseal/agent/netns"
)

// RequireEnv is the variable that turns skips into failures.
const RequireEnv = "CIRCUITSEAL_REQUIRE_PRIVILEGE"

var serial atomic.Uint32

// RequireRoot skips the test without root; with RequireEnv=1 it fails instead.
func RequireRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv(RequireEnv) == "1" {
		t.Fatalf("%s=1, but this is not root", RequireEnv)
	}
	t.Skip("needs root to make network namespaces")
}

// Name is a name for a namespace that no other test or process uses.
func Name() string {
	return fmt.Sprintf("cst-%d-%d", os.Getpid(), serial.Add(1))
}

// New makes a namespace and removes it after the test.
func New(t testing.TB) (name string, n netns.Namespace) {
	t.Helper()
	RequireRoot(t)
	name = Name()
	n, _, err := netns.Ensure(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
		if err := netns.Remove(name); err != nil {
			t.Error(err)
		}
	})
	return name, n
}
