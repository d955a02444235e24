package main

import (
	"fmt"
	"strings"
	"testing"
)

// rules is a long rule set whose rules have an action.
func rules(action string) string {
	var b strings.Builder
	b.WriteString("apiVersion: circuitseal.io/v1\nkind: SecurityRuleSet\nmetadata: {customer: contoso, name: big}\nspec:\n  direction: inbound\n  rules:\n")
	for i := range 20_000 {
		fmt.Fprintf(&b, "    - {name: r%d, priority: %d, action: %s}\n", i, i+1, action)
	}
	return b.String()
}

// Long lists are begun and counted, and shown to their end where that is asked for.
func TestPlanOfLongLists(t *testing.T) {
	start(t)
	must(t, "", "apply", "-f", samples)
	plan := func(text string, args ...string) string {
		t.Helper()
		code, stdout, stderr := sealctl(t, text, append([]string{"plan", "-f", "-"}, args...)...)
		if code != exitNotYet {
			t.Fatalf("exit code %d: %s", code, stderr)
		}
		return stdout
	}
	if got := plan(rules("drop")); strings.Count(got, "\n") > 20 || !strings.Contains(got, "\n        … and 19992 more (--full shows them)\n") {
		t.Errorf("created:\n%.2000s", got)
	}
	if got := plan(rules("drop"), "--full"); strings.Count(got, "action drop\n") != 20_000 || strings.Contains(got, " more") {
		t.Errorf("created, in full: %d lines\n%.2000s", strings.Count(got, "\n"), got)
	}
	if got := plan(rules("drop"), "-o", "json"); strings.Count(got, "action drop\"") != 20_000 || !strings.Contains(got, `"leftOut": 0`) {
		t.Errorf("created, as JSON: %d lines", strings.Count(got, "\n"))
	}
	must(t, rules("drop"), "apply", "-f", "-")
	if got := plan(rules("reject")); strings.Count(got, "drop -> reject\n") != maxShownFields || !strings.Contains(got, "\n      … and 19980 more fields (--full shows them)\n") {
		t.Errorf("changed: %d lines\n%.2000s", strings.Count(got, "\n"), got)
	}
	for _, args := range [][]string{{"--full"}, {"-o", "json"}} {
		if got := plan(rules("reject"), args...); strings.Count(got, "].action") != 20_000 {
			t.Errorf("changed, with %v: %d lines", args, strings.Count(got, "].action"))
		}
	}
}
