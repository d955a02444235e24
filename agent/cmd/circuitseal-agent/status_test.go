package main

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/circuitseal/circuitseal/proto/desired"
)

// Status says what was repaired, and has no table for it when nothing was.
func TestStatusShowsRepairs(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	var none, some bytes.Buffer
	if err := writeStatus(&none, desired.Status{}, now); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(none.String(), "REPAIRED") {
		t.Errorf("without repairs:\n%s", none.String())
	}
	s := desired.Status{Drift: []desired.Drift{{What: "link/rule", Count: 3, Last: now.Add(-90 * time.Second), Detail: "rule add x"}}}
	if err := writeStatus(&some, s, now); err != nil {
		t.Fatal(err)
	}
	want := "REPAIRED   TIMES  LAST       BY\nlink/rule  3      1m30s ago  rule add x\n"
	if !strings.Contains(some.String(), want) {
		t.Errorf("status:\n%swant\n%s", some.String(), want)
	}
}
