package scenario

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"log/slog"

	"github.com/circuitseal/circuitseal/testlab/netns"
	"github.com/circuitseal/circuitseal/testlab/rig"
	"github.com/circuitseal/circuitseal/testlab/traffic"
)

// TestFast runs the scenarios marked fast over the binaries in CIRCUITSEAL_BIN.
func TestFast(t *testing.T) {
	netns.Require(t)
	bin := os.Getenv(rig.BinEnv)
	if bin == "" {
		if os.Getenv("CI") == "true" {
			t.Fatal("no binaries: set " + rig.BinEnv + ", as `make test` does")
		}
		t.Skip("no binaries: set " + rig.BinEnv + ", as `make test` does")
	}
	samples, err := filepath.Abs("../../deploy/samples")
	if err != nil {
		t.Fatal(err)
	}
	all, err := Load(os.DirFS("testdata"))
	if err != nil {
		t.Fatal(err)
	}
	have, err := Facilities(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	c := Config{Log: slog.New(slog.DiscardHandler), Bin: bin, Samples: samples, Have: have}
	for _, s := range all {
		if !s.Fast {
			continue
		}
		t.Run(s.Name, func(t *testing.T) {
			var log strings.Builder
			switch r := Run(t.Context(), c, s, &log); r.Result {
			case Fail:
				t.Errorf("%s\n%s", r.Reason, log.String())
			case Skip:
				t.Skip(r.Reason)
			}
		})
	}
}

func TestParseReadsTheHead(t *testing.T) {
	s := parse("x", []byte("# What it shows.\n# fast\n# needs: kernel-esp vrf\nlab\n# needs: nothing\n"))
	if !s.Fast || len(s.Needs) != 2 || s.Needs[0] != "kernel-esp" || s.Needs[1] != "vrf" {
		t.Errorf("parsed %+v", s)
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
	r := traffic.DatagramReport{Sent: 10, Received: 8, Lost: 2, OutageSeconds: 1.5}
	tests := []struct {
		conditions string
		ok         bool
	}{
		{"", true}, {"lost<=2 outage<=1.5s received>=8", true},
		{"lost<=1", false}, {"outage<=1s", false}, {"received>=9", false},
		{"lost=2", false}, {"gold<=1", false}, {"lost<=few", false},
	}
	for _, tt := range tests {
		if err := check(r, strings.Fields(tt.conditions), 1); (err == nil) != tt.ok {
			t.Errorf("check(%q) = %v, want ok %t", tt.conditions, err, tt.ok)
		}
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
