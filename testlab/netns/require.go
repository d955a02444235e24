package netns

import (
	"os"
	"os/exec"
	"testing"
)

// RequireEnv is set to "1" where skipping for want of privilege must count as
// a failure.
const RequireEnv = "CIRCUITSEAL_REQUIRE_PRIVILEGE"

// Missing says in a sentence what keeps this process from building a lab, or
// is empty.
func Missing() string {
	if os.Geteuid() != 0 {
		return "the lab needs root"
	}
	for _, tool := range []string{"ip", "nft"} {
		if _, err := exec.LookPath(tool); err != nil {
			return "the lab needs the program " + tool + " (Debian packages iproute2, nftables)"
		}
	}
	return ""
}

// Require skips a test that needs a lab and cannot have one; with RequireEnv
// set it fails instead.
func Require(tb testing.TB) {
	tb.Helper()
	why := Missing()
	if why == "" {
		return
	}
	if os.Getenv(RequireEnv) == "1" {
		tb.Fatal(why)
	}
	tb.Skip(why)
}
