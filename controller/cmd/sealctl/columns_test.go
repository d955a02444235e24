package main

import (
	"bytes"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// Every kind has columns of its own, and no column is of a kind that is gone.
func TestColumnsOfEveryKind(t *testing.T) {
	for _, kind := range kindNames() {
		if len(columns[kind]) == 0 {
			t.Errorf("kind %s has no columns", kind)
		}
	}
	if len(columns) != len(kindNames()) {
		t.Errorf("there are columns of %d kinds, want %d", len(columns), len(kindNames()))
	}
}

// What the samples hold is shown: a column that reads a field which is not there
// would be empty in every row.
func TestColumnsShowTheSamples(t *testing.T) {
	start(t)
	must(t, "", "apply", "-f", samples)
	must(t, "", "apply", "-f", samples+"/kinds")
	// Fields that no sample has.
	empty := map[string]bool{
		"encryptionpolicies PATH MTU": true, "encryptionpolicies PSK ROTATION": true,
		"encryptionpolicies MAX OFFLINE": true, "appliances INSIDE": true, "appliances OUTSIDE": true, "exemptions HOST PORT": true,
	}
	for _, kind := range kindNames() {
		many := strings.ToLower(plural(kind))
		lines := strings.Split(strings.TrimSuffix(must(t, "", "get", many), "\n"), "\n")
		var heads []string
		for _, c := range columns[kind] {
			heads = append(heads, c.head)
		}
		for _, h := range heads {
			at := strings.Index(lines[0], h)
			if at < 0 {
				t.Errorf("%s: there is no column %s in %s", many, h, lines[0])
				continue
			}
			filled := false
			for _, l := range lines[1:] {
				filled = filled || !strings.HasPrefix(string([]rune(l)[at:]), "- ")
			}
			if filled == empty[many+" "+h] {
				t.Errorf("%s: column %s is filled: %t", many, h, filled)
			}
		}
	}
}

// Documents by name mean the same in every format.
func TestGetFormatsAgree(t *testing.T) {
	start(t)
	must(t, "", "apply", "-f", samples)
	names := must(t, "", "get", "all", "-o", "name")
	var again bytes.Buffer
	for n := range strings.Lines(names) {
		again.WriteString(must(t, "", "get", strings.TrimSpace(n), "-o", "name"))
	}
	if diff := cmp.Diff(names, again.String()); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}
