package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A file that no message holds goes in parts and comes back whole; problems in
// it have their line.
func TestLongFile(t *testing.T) {
	start(t)
	const rules = 20_000
	var b strings.Builder
	b.WriteString("apiVersion: circuitseal.io/v1\nkind: Customer\nmetadata: {name: c}\nspec: {model: connect-to}\n---\n" +
		"apiVersion: circuitseal.io/v1\nkind: SecurityRuleSet\nmetadata: {name: long, customer: c}\nspec:\n  direction: inbound\n  rules:\n")
	for i := range rules {
		fmt.Fprintf(&b, "    - name: rule-%d\n      priority: %d\n      sourceAddressPrefixes: [10.%d.%d.0/24]\n      action: drop\n", i, i+1, i/256, i%256)
	}
	file := filepath.Join(t.TempDir(), "long.yaml")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(strings.Replace(b.String(), "priority: 15000\n", "priority: 1\n", 1))
	code, out, stderr := sealctl(t, "", "apply", "-f", file)
	// Rule i begins in line 12 + 4 i, and what a rule says wrong is told there.
	if want := fmt.Sprintf("long.yaml:%d: spec.rules[14999].priority: is the priority of spec.rules[0]", 12+4*14999); code != 3 || !strings.Contains(stderr, want) {
		t.Errorf("exit code %d, %s%s, want %q", code, out, stderr, want)
	}
	write(b.String())
	if code, out, stderr := sealctl(t, "", "apply", "-f", file); code != 0 || out != "customer/c created\nsecurityruleset/c/long created\n" {
		t.Fatalf("apply: exit code %d, %s%s", code, out, stderr)
	}
	if code, out, stderr := sealctl(t, "", "get", "securityrulesets"); code != 0 || !strings.Contains(out, "(long: ") {
		t.Errorf("get: exit code %d, %s%s", code, out, stderr)
	}
	if code, out, stderr := sealctl(t, "", "get", "securityruleset", "long", "--customer", "c", "-o", "json"); code != 0 || strings.Count(out, `"rule-`) != rules {
		t.Errorf("get -o json: exit code %d, %d rules, %s", code, strings.Count(out, `"rule-`), stderr)
	}
	stale := "apiVersion: circuitseal.io/v1\nkind: Customer\nmetadata:\n  name: c\n  revision: 1\nspec: {model: connect-through}\n"
	if code, _, stderr := sealctl(t, stale, "apply", "-f", "-"); code != 3 || !strings.Contains(stderr, "-:5: metadata.revision: was made from revision 1, and the document is at revision ") {
		t.Errorf("from an old revision: exit code %d, %s", code, stderr)
	}
	if code, out, stderr := sealctl(t, "", "delete", "-f", file); code != 0 || out != "securityruleset/c/long deleted\ncustomer/c deleted\n" {
		t.Errorf("delete: exit code %d, %s%s", code, out, stderr)
	}
}

// What get --revisions prints is refused once somebody else was faster.
func TestRevisionsInYAML(t *testing.T) {
	start(t)
	must(t, "", "apply", "-f", samples)
	mine := must(t, "", "get", "site/contoso/hq", "-o", "yaml", "--revisions")
	if !strings.Contains(mine, "revision: ") {
		t.Fatalf("no revision in\n%s", mine)
	}
	changed := func(text string) string { return strings.Replace(text, "10.1.0.0/16", "10.9.0.0/16", 1) }
	if code, _, stderr := sealctl(t, changed(mine), "apply", "-f", "-"); code != 0 {
		t.Fatalf("apply what was just read: exit code %d, %s", code, stderr)
	}
	if code, _, stderr := sealctl(t, strings.Replace(mine, "10.1.0.0/16", "10.8.0.0/16", 1), "apply", "-f", "-"); code != exitRefused || !strings.Contains(stderr, "metadata.revision") {
		t.Errorf("apply what is old: exit code %d, %s", code, stderr)
	}
	if code, _, stderr := sealctl(t, changed(mine), "apply", "-f", "-"); code != 0 {
		t.Errorf("apply what is there already: exit code %d, %s", code, stderr)
	}
}
