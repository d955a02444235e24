package main

import (
	"fmt"
	"regexp"
	"strings"
	"testing"

	v1 "github.com/circuitseal/circuitseal/proto/circuitseal/v1"
	"google.golang.org/protobuf/encoding/protojson"
)

// badSet is a rule set of n rules with one name and one priority.
func badSet(n int) string {
	var b strings.Builder
	b.WriteString("apiVersion: circuitseal.io/v1\nkind: SecurityRuleSet\nmetadata: {customer: contoso, name: web}\nspec:\n  direction: inbound\n  rules:\n")
	for range n {
		b.WriteString("    - {name: a, priority: 1, action: drop}\n")
	}
	return b.String()
}

// What is wrong and not printed is counted, in text and for programs.
func TestProblemsThatAreNotShown(t *testing.T) {
	start(t)
	must(t, "", "apply", "-f", samples)
	var sites, rules strings.Builder
	for i := range 4000 {
		fmt.Fprintf(&sites, "---\napiVersion: circuitseal.io/v1\nkind: Site\nmetadata: {customer: contoso, name: s%d}\nspec: {type: moon, prefixes: [x]}\n", i)
	}
	for range 20_000 {
		rules.WriteString("    - {name: a, priority: one, action: drop}\n")
	}
	undecided := strings.Replace(badSet(0), "  rules:\n", "  rules:\n"+rules.String(), 1)
	for _, tt := range []struct {
		name, text   string
		shown, total int
	}{
		{"of one document", badSet(20_000), 200, 39_998},
		{"of a long document", badSet(30_000), 200, 59_998},
		{"that cannot be read", undecided, 1000, 39_999},
		{"of many documents", sites.String(), 1000, 8000},
		{"none", badSet(2), 2, 2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			code, _, stderr := sealctl(t, tt.text, "apply", "-f", "-")
			want := fmt.Sprintf("\n%d problems; nothing was changed\n", tt.total)
			if tt.total > tt.shown {
				want = fmt.Sprintf("\n%d problems, of which %d are shown and %d are not; nothing was changed\n", tt.total, tt.shown, tt.total-tt.shown)
			}
			if code != exitRefused || strings.Count(stderr, "\n") != tt.shown+1 || !strings.HasSuffix(stderr, want) {
				t.Errorf("exit code %d, %d lines, the end %q, want %q", code, strings.Count(stderr, "\n"), stderr[max(0, len(stderr)-120):], want)
			}
			_, stdout, _ := sealctl(t, tt.text, "apply", "-f", "-", "-o", "json")
			var told v1.InvalidDocuments
			if err := protojson.Unmarshal([]byte(stdout), &told); err != nil {
				t.Fatal(err)
			}
			if len(told.GetProblems()) != tt.shown || int(told.GetLeftOut()) != tt.total-tt.shown {
				t.Errorf("JSON has %d problems and leaves out %d, want %d and %d", len(told.GetProblems()), told.GetLeftOut(), tt.shown, tt.total-tt.shown)
			}
		})
	}
}

// Why a text was not read to its end is told, however much else is wrong.
func TestTooMuchIsToldAmongMany(t *testing.T) {
	start(t)
	one := "---\napiVersion: circuitseal.io/v1\nkind: Site\nmetadata: {customer: contoso}\nspec: {type: moon, prefixes: [x]}\n"
	_, _, stderr := sealctl(t, strings.Repeat(one, 10_001), "apply", "-f", "-")
	if !regexp.MustCompile(`\n-:50001: there are more than 10000 documents, .*several smaller applies\n\d+ problems, of which 1000 are shown`).MatchString(stderr) {
		t.Errorf("the end is %q", stderr[max(0, len(stderr)-300):])
	}
}
