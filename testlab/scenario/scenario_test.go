package scenario

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/circuitseal/circuitseal/testlab/rig"
	"github.com/circuitseal/circuitseal/testlab/traffic"
)

func TestParseReadsTheHead(t *testing.T) {
	s, err := parse("x", []byte("# What it shows.\n# fast\n# needs: kernel-esp vrf\nlab\n# needs: nothing\n"))
	if err != nil || s.Fast != Everywhere || len(s.Needs) != 2 || s.Needs[0] != "kernel-esp" || s.Needs[1] != "vrf" {
		t.Errorf("parsed %+v", s)
	}
	for _, wrong := range []string{"# fast:host\nlab\n", "# need: vrf\nlab\n"} {
		if _, err := parse("x", []byte(wrong)); err == nil {
			t.Errorf("%q is taken for a comment", wrong)
		}
	}
	if err := unknown(s.Needs); err != nil {
		t.Error(err)
	}
	if err := unknown([]string{"vrf", "warp-drive"}); err == nil || !strings.Contains(err.Error(), "warp-drive") {
		t.Errorf("a facility that does not exist: %v", err)
	}
	if got := missing(s.Needs, []string{"vrf"}); len(got) != 1 || got[0] != "kernel-esp" {
		t.Errorf("missing = %q", got)
	}
}

func TestCheckHoldsFiguresAgainstConditions(t *testing.T) {
	r := traffic.DatagramReport{Sent: 10, Received: 8, Lost: 2, OutageSeconds: 1.5, Seconds: 4}
	tests := []struct {
		conditions string
		slow       rig.Slow
		ok         bool
	}{
		{"", 1, true}, {"lost<=2 outage<=1.5s received>=8", 1, true},
		{"lost<=1", 1, false}, {"outage<=1s", 1, false}, {"received>=9", 1, false},
		{"lost=2", 1, false}, {"gold<=1", 1, false}, {"lost<=few", 1, false},
		{"outage<=0.5s received>=30", 4, true}, {"outage<=0.3s", 4, false}, {"outage<=4s", 1, false}, {"outage<=1s", 4, false}, {"gap<=1.5s", 4, true}, {"gap<=1.4s", 4, false}, {"gap<=4s", 4, false}, {"received>=33", 4, false}, {"lost<=1", 4, false},
		{"ended<=1s", 1, true}, {"ended<=0.9s", 1, false}, {"ended<=0.3s", 4, true}, {"ended<=0.2s", 4, false}, {"ended<=6s", 1, false}, {"ended<=2s", 4, false},
	}
	for _, tt := range tests {
		if err := check(r, sinceAsked{answered: 1, flowed: 6}, strings.Fields(tt.conditions), tt.slow); (err == nil) != tt.ok {
			t.Errorf("check(%q, %g) = %v, want ok %t", tt.conditions, tt.slow, err, tt.ok)
		}
	}
	if err := check(r, sinceAsked{answered: -1, flowed: 6}, []string{"ended<=1s"}, 1); err == nil {
		t.Error("traffic that ended before anything was asked has ended in time")
	}
}

func TestSplitRefusesWhatItDoesNotKnow(t *testing.T) {
	if o, err := split([]string{"hq", "-6", "vnet", "within=2s"}, 2, "-6", "within="); err != nil || !o.has("-6") || o.settings["within"] != "2s" {
		t.Errorf("split = %+v, %v", o, err)
	}
	for _, args := range [][]string{{"hq"}, {"hq", "vnet", "-4"}, {"hq", "vnet", "for=1s"}} {
		if _, err := split(args, 2, "-6", "within="); err == nil {
			t.Errorf("split(%q) is accepted", args)
		}
	}
}

func TestChooseRefusesNamesThatNobodyHas(t *testing.T) {
	all := []Scenario{{Name: "a", Fast: Everywhere}, {Name: "b"}, {Name: "c", Fast: OnHost}}
	tests := []struct {
		names string
		fast  Fast
		want  string
		ok    bool
	}{
		{"", Nowhere, "abc", true}, {"", OnHost, "ac", true}, {"", Everywhere, "a", true}, {"c, a", Nowhere, "ac", true},
		{"b", OnHost, "", false}, {"c", Everywhere, "", false}, {"a,x", Nowhere, "", false},
	}
	for _, tt := range tests {
		chosen, err := Choose(all, tt.names, tt.fast)
		var got string
		for _, s := range chosen {
			got += s.Name
		}
		if (err == nil) != tt.ok || got != tt.want {
			t.Errorf("Choose(%q, %d) = %q, %v; want %q, ok %t", tt.names, tt.fast, got, err, tt.want, tt.ok)
		}
	}
}

// What ships is what the language can read.
func TestScriptsLoad(t *testing.T) {
	all, err := Load(os.DirFS("testdata"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Choose(all, "", Nowhere); err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile(filepath.Join("..", "..", "docs", "lab.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range all {
		_, row, _ := strings.Cut(string(page), "| `"+s.Name+"` |")
		row, _, _ = strings.Cut(row, "\n")
		if row == "" || strings.Contains(row, "not run") || strings.Contains(row, Fail) {
			t.Errorf("docs/lab.md says of %s %q, want where it passed: run `make lab-matrix`", s.Name, row)
		}
	}
}

func TestResultsComeBackAsWritten(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lab", "host.json")
	none := uint64(0)
	want := []Result{
		{Scenario: "a", Result: Pass, Seconds: 1.5, FramesInClear: &none, Kernel: "6.12.1-x", Backends: []string{"wireguard-kernel"}},
		{Scenario: "b", Result: Skip, Kernel: "6.12.1-x", Backends: []string{}, Reason: "why", Lacks: []string{"vrf"}},
	}
	if err := WriteResults(path, want); err != nil {
		t.Fatal(err)
	}
	got, err := ReadResults(path)
	if d := cmp.Diff(want, got); err != nil || d != "" {
		t.Errorf("results: %v (-want +got):\n%s", err, d)
	}
}

func TestMatrix(t *testing.T) {
	none, some := uint64(0), uint64(7)
	got := Matrix([]Result{
		{Scenario: "b", Result: Pass, Kernel: "6.1.0-56-amd64", FramesInClear: &none, Backends: []string{"wireguard-kernel"}},
		{Scenario: "a", Result: Pass, Kernel: "6.18.44", FramesInClear: &some},
		{Scenario: "b", Result: Skip, Kernel: "6.18.44", Lacks: []string{"netem"}},
		{Scenario: "a", Result: Fail, Kernel: "6.12.117+deb12-amd64"},
	})
	const want = "| | 6.18 | 6.12 | 6.1 |\n|---|---|---|---|\n" +
		"| `a` | pass, 7 in clear | fail | not run |\n" +
		"| `b` | no netem | not run | pass, kernel, 0 in clear |\n"
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("matrix (-want +got):\n%s", d)
	}
}
