package scenario

import (
	"os/exec"
	"strings"
	"testing"
)

func TestOneProcessor(t *testing.T) {
	// A process that is started from any thread counts what it may use.
	count := func() string {
		t.Helper()
		out, err := exec.CommandContext(t.Context(), "nproc").Output()
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(out))
	}
	x := &session{}
	before := count()
	if err := x.allProcessors(); err != nil || count() != before {
		t.Fatalf("with nothing to give back: %v, %s processors", err, count())
	}
	for range 2 {
		if err := x.oneProcessor(nil, []string{"1"}); err != nil {
			t.Fatal(err)
		}
		if got := count(); got != "1" {
			t.Errorf("bound to one processor, %s may be used", got)
		}
	}
	if err := x.allProcessors(); err != nil {
		t.Fatal(err)
	}
	if got := count(); got != before {
		t.Errorf("%s processors are given back, of %s", got, before)
	}
}
