package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"
	"pgregory.net/rapid"
)

// Whatever JSON says, its YAML says: text that looks like a number, a date or
// true stays text.
func TestYAMLSaysWhatJSONSays(t *testing.T) {
	awkward := []string{"", "true", "no", "null", "~", "1", "1e3", "0x10", "1:20", "2026-01-02", "- a", "a: b", "#", "fd00::/48", "\u2028", "\ttab", "a\nb\n", " ", "'", `"`, "😀", "\u0085", "<<", "=", "!!str x", "&a", "*a", "10.1.0.0/16"}
	word := rapid.OneOf(rapid.SampledFrom(awkward), rapid.String())
	var value func(depth int) *rapid.Generator[any]
	value = func(depth int) *rapid.Generator[any] {
		leaves := []*rapid.Generator[any]{
			rapid.Map(word, func(s string) any { return s }), rapid.Map(rapid.Bool(), func(b bool) any { return b }),
			rapid.Map(rapid.IntRange(-1<<40, 1<<40), func(n int) any { return float64(n) }), rapid.Just[any](nil),
			rapid.Just[any](1.5),
		}
		if depth > 0 {
			leaves = append(leaves,
				rapid.Map(rapid.SliceOfN(value(depth-1), 0, 3), func(l []any) any { return append([]any{}, l...) }),
				rapid.Map(rapid.MapOfN(word, value(depth-1), 0, 3), func(m map[string]any) any { return m }))
		}
		return rapid.OneOf(leaves...)
	}
	rapid.Check(t, func(t *rapid.T) {
		want := value(3).Draw(t, "value")
		b, err := json.Marshal(want)
		if err != nil {
			t.Skip(err)
		}
		if err := json.Unmarshal(b, &want); err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		if err := printYAML(&out, b); err != nil {
			t.Fatal(err)
		}
		var got any
		if err := yaml.Unmarshal(out.Bytes(), &got); err != nil {
			t.Fatalf("%v in\n%s", err, &out)
		}
		// Through JSON, where numbers have one type.
		again, err := json.Marshal(got)
		if err != nil {
			t.Fatal(err)
		}
		var back any
		if err := json.Unmarshal(again, &back); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, back); diff != "" {
			t.Fatalf("(-want +got)\n%s\nin\n%s", diff, &out)
		}
	})
}

// What get prints as YAML, apply takes and finds unchanged.
func TestGetRoundTrips(t *testing.T) {
	start(t)
	must(t, "", "apply", "-f", samples)
	all := must(t, "", "get", "all", "-o", "yaml")
	if n := strings.Count(all, "\n---\n"); n != 9 {
		t.Errorf("%d separators in\n%s", n, all)
	}
	changes := must(t, all, "apply", "-f", "-")
	if n := strings.Count(changes, " unchanged\n"); n != 10 || n != strings.Count(changes, "\n") {
		t.Errorf("applied again:\n%s", changes)
	}
	// And onto nothing.
	must(t, all, "delete", "--yes", "-f", "-")
	if got := must(t, all, "apply", "-f", "-"); strings.Count(got, " created\n") != 10 {
		t.Errorf("applied onto nothing:\n%s", got)
	}
	if got := must(t, "", "get", "all", "-o", "yaml"); got != all {
		t.Errorf("want\n%s\ngot\n%s", all, got)
	}
}

func TestDirectories(t *testing.T) {
	dir := t.TempDir()
	write := func(path, text string) {
		p := filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("b.yaml", "b")
	write("a.yml", "a")
	write("c.JSON", "c")
	write("README.md", "no")
	write(".hidden.yaml", "no")
	write("sub/d.yaml", "d")
	write("sub/deep/e.yaml", "e")
	write(".git/f.yaml", "no")
	write("empty/README", "no")
	names := func(recursive bool, args ...string) (string, error) {
		for i := range args {
			if args[i] != "-" {
				args[i] = filepath.Join(dir, args[i])
			}
		}
		sources, err := readSources(args, recursive, strings.NewReader("stdin"))
		var all []string
		for _, s := range sources {
			all = append(all, s.GetText())
		}
		return strings.Join(all, " "), err
	}
	for _, tt := range []struct {
		recursive bool
		args      []string
		want      string
	}{
		{false, []string{"."}, "a b c"},
		{true, []string{"."}, "a b c d e"},
		{false, []string{"sub", "-", "b.yaml"}, "d stdin b"},
		{true, []string{"sub"}, "d e"},
	} {
		if got, err := names(tt.recursive, tt.args...); err != nil || got != tt.want {
			t.Errorf("%v, recursive %v: %q, %v; want %q", tt.args, tt.recursive, got, err, tt.want)
		}
	}
	for _, tt := range []struct {
		recursive bool
		args      []string
		says      string
	}{
		{false, []string{"empty"}, "holds no *.yaml, *.yml or *.json; -R looks deeper"},
		{true, []string{"empty"}, "holds no *.yaml, *.yml or *.json"},
		{false, []string{"-", "-"}, "twice"},
		{false, []string{"moon"}, "there is no file or directory"},
	} {
		if _, err := names(tt.recursive, tt.args...); err == nil || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%v: %v, want %q", tt.args, err, tt.says)
		}
	}
	for i := range 3 {
		write("large/"+string(rune('a'+i))+".yaml", strings.Repeat("#", maxTotal/3+1))
	}
	if _, err := names(false, "large"); err == nil || !strings.Contains(err.Error(), "bytes together; apply them in several steps") {
		t.Errorf("too much at once: %v", err)
	}
	write("huge/a.yaml", strings.Repeat("#", maxSource+1))
	if _, err := names(false, "huge"); err == nil || !strings.Contains(err.Error(), "has more than") {
		t.Errorf("one that is too large: %v", err)
	}
}
