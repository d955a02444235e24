package document

import (
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"
	"pgregory.net/rapid"

	"github.com/circuitseal/circuitseal/controller/model"
)

var comparer = cmp.Options{
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
	cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
}

// decodeFrom decodes one source, taking documents of more than long bytes for
// long ones.
func decodeFrom(long int, text string) ([]model.Document, *Text, []model.Problem) {
	d := &decoder{where: &Text{documents: map[string]*positions{}}, seen: map[model.Key]position{}, long: long}
	d.decode([]Source{{Name: "a", Text: text}})
	return d.docs, d.where, d.problems
}

const ruleSet = `# A set.
apiVersion: circuitseal.io/v1
kind: SecurityRuleSet
metadata: {name: web, customer: c}
spec:
  direction: inbound
  rules: # all of them

    # the first
    - name: a
      priority: 1
      description: "- name: x
        # no comment"
      destinationPortRanges: [443, 80-90]
      action: encrypt

    -
      name: b
      priority: 2
      action: drop
  # behind
`

// A long document means what it would mean if it were short.
func TestLongIsLikeShort(t *testing.T) {
	const item = "    - {name: a, priority: 1, action: drop}\n"
	for _, tt := range []struct{ name, text string }{
		{"plain", ruleSet},
		{"list first", "apiVersion: circuitseal.io/v1\nkind: SecurityRuleSet\nspec:\n  rules:\n" + item + "  direction: inbound\nmetadata: {name: a, customer: c}\n"},
		{"not indented", "apiVersion: circuitseal.io/v1\nkind: SecurityRuleSet\nmetadata: {name: a, customer: c}\nspec:\n  rules:\n  - name: a\n    priority: 1\n  - {name: b}\n  direction: inbound\n"},
		{"another document", ruleSet + "---\n" + strings.ReplaceAll(ruleSet, "web", "db")},
		{"wrong field", strings.Replace(ruleSet, "priority: 2", "prio: 2", 1)},
		{"wrong type", strings.Replace(ruleSet, "priority: 2", "priority: two", 1)},
		{"wrong port", strings.Replace(ruleSet, "80-90", "90-80", 1)},
		{"alias", strings.Replace(ruleSet, "name: b", "name: *a", 1)},
		{"item is text", strings.Replace(ruleSet, "    -\n", "    - text\n    -\n", 1)},
		{"carriage returns", strings.ReplaceAll(ruleSet, "\n", "\r\n")},
		{"another kind", strings.Replace(ruleSet, "kind: SecurityRuleSet", "kind: Site", 1)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			short, _, wantProblems := decodeFrom(MaxDocument, tt.text)
			long, _, problems := decodeFrom(0, tt.text)
			if tt.name == "alias" || tt.name == "another kind" {
				// Told otherwise: the parser, or the field, is another.
				if len(problems) == 0 {
					t.Error("no problem is told")
				}
				return
			}
			if diff := cmp.Diff(short, long, comparer); diff != "" {
				t.Errorf("documents (-short +long):\n%s", diff)
			}
			if diff := cmp.Diff(wantProblems, problems); diff != "" {
				t.Errorf("problems (-short +long):\n%s", diff)
			}
		})
	}
}

func TestLongProblems(t *testing.T) {
	huge := "    - name: " + strings.Repeat("x", MaxDocument) + "\n"
	for _, tt := range []struct {
		name, text, want string
		line             int
	}{
		{"no list", "apiVersion: circuitseal.io/v1\nkind: Customer\n", "at most 1048576", 1},
		{"flow list", "spec:\n  rules: []\n", "at most 1048576", 1},
		{"twice", strings.Replace(ruleSet, "  # behind", "  rules: []", 1), "stands in line 21 as well", 7},
		{"between the depths", strings.Replace(ruleSet, "  # behind", "   direction: inbound", 1), "at most 1048576", 1},
		{"unclosed", strings.Replace(ruleSet, "name: b", `name: "b`, 1), "no YAML", 18},
		{"huge item", strings.Replace(ruleSet, "    -\n", huge+"    -\n", 1), "items have at most", 8},
		{"deep", strings.Replace(ruleSet, "name: b", "name: "+strings.Repeat("[", 40)+strings.Repeat("]", 40), 1), "deeper than 32", 18},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, _, problems := decodeFrom(0, tt.text)
			for _, p := range problems {
				if strings.Contains(p.Message, tt.want) && p.Line == tt.line {
					return
				}
			}
			t.Errorf("got %+v, want line %d and %q", problems, tt.line, tt.want)
		})
	}
}

// What validation says about a field of a long list has its item's line.
func TestLongLines(t *testing.T) {
	_, where, problems := decodeFrom(0, ruleSet)
	merged := where.Merge(problems, []model.Problem{{Document: "SecurityRuleSet/c/web", Field: "spec.rules[1].priority", Message: "is wrong"}})
	if len(merged) != 1 || merged[0].Line != 18 {
		t.Errorf("got %+v, want line 18", merged)
	}
}

// Rules as a YAML library writes them are read alike, in one piece and in many.
func TestLongRandom(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var rules []map[string]any
		for i := range rapid.IntRange(1, 600).Draw(t, "rules") {
			rules = append(rules, map[string]any{
				"name": fmt.Sprintf("r%d", i), "priority": i + 1, "action": "drop",
				"description":           rapid.StringMatching(`[a-z#:'"-][ -~]{0,40}\n?[!-~]{1,40}`).Draw(t, "description"),
				"destinationPortRanges": []string{"443", "80-90"}, "icmpType": 0,
			})
		}
		text, err := yaml.Marshal(map[string]any{
			"apiVersion": model.APIVersion, "kind": "SecurityRuleSet", "metadata": map[string]any{"name": "n", "customer": "c"},
			"spec": map[string]any{"direction": "inbound", "rules": rules},
		})
		if err != nil {
			t.Fatal(err)
		}
		short, _, problems := decodeFrom(MaxDocument, string(text))
		if len(problems) > 0 {
			t.Fatalf("%+v\n%s", problems, text)
		}
		long, _, problems := decodeFrom(0, string(text))
		if len(problems) > 0 || !reflect.DeepEqual(short, long) {
			t.Fatalf("%+v (-short +long):\n%s", problems, cmp.Diff(short, long, comparer))
		}
	})
}

// FuzzLong: whatever the text, reading it as a long document ends, and what is
// accepted both ways is the same.
func FuzzLong(f *testing.F) {
	f.Add(ruleSet)
	f.Add("spec:\n rules:\n - - a\n")
	f.Add("spec:\n  rules:\n  - \"a\n  - b\"\n")
	f.Fuzz(func(t *testing.T, text string) {
		long, _, problems := decodeFrom(0, text)
		lines := 1 + strings.Count(text, "\n")
		for _, p := range problems {
			if p.Line < 1 || p.Line > lines {
				t.Errorf("line %d of %d: %+v", p.Line, lines, p)
			}
		}
		short, _, others := decodeFrom(MaxDocument, text)
		if len(problems)+len(others) > 0 {
			return
		}
		if diff := cmp.Diff(short, long, comparer); diff != "" {
			t.Errorf("documents (-short +long):\n%s", diff)
		}
	})
}
