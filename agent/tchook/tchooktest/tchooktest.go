// Package tchooktest runs a package's tests with every way of attaching that
// the kernel has: one with tcx has clsact, too.
package tchooktest

import (
	"flag"
	"fmt"
	"os"
	"testing"

	"github.com/circuitseal/circuitseal/agent/tchook"
)

// Main runs all tests once for each way, and sets way to it. It is for a
// TestMain, and returns the code to exit with. Fuzzing takes the first way only.
func Main(m *testing.M, way *tchook.Way) (code int) {
	for _, *way = range ways() {
		fmt.Println("programs attached by", *way)
		code = max(code, m.Run())
	}
	return code
}

func ways() []tchook.Way {
	if os.Getuid() != 0 {
		return []tchook.Way{tchook.TCX}
	}
	best, err := tchook.Probe()
	flag.Parse()
	fuzz := flag.Lookup("test.fuzz")
	switch {
	case err != nil:
		panic(err)
	case best == tchook.Clsact, fuzz != nil && fuzz.Value.String() != "":
		return []tchook.Way{best}
	}
	return []tchook.Way{best, tchook.Clsact}
}
