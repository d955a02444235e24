package tenancy

import (
	"log/slog"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/circuitseal/circuitseal/testlab/netns"
	"github.com/circuitseal/circuitseal/testlab/rig"
)

// TestTenantsStayApart is the benchmark at a small size, without its clock: all
// have the same prefixes, nobody receives what is another's, and a change for
// one is written to its own objects only.
func TestTenantsStayApart(t *testing.T) {
	netns.Require(t)
	bin := os.Getenv(rig.BinEnv)
	if bin == "" {
		bin = t.TempDir()
		cmd := exec.CommandContext(t.Context(), "go", "build", "-o", bin+"/", "../../agent/cmd/circuitseal-agent",
			"../../controller/cmd/circuitseal-controller", "../../controller/cmd/sealctl", "../cmd/tap", "../cmd/traffic")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("build the programs: %v: %s", err, out)
		}
	}
	x, err := New(t.Context(), Config{Log: slog.New(slog.DiscardHandler), Bin: bin, Logs: t.TempDir(), Customers: 10, Sample: 3})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := x.Close(); err != nil {
			t.Error(err)
		}
	}()
	if _, err := x.Connect(t.Context(), 120*time.Second); err != nil {
		t.Fatal(err)
	}
	crossed, err := x.Fuzz(t.Context(), 1, 400)
	if err != nil || crossed.Crossed != 0 {
		t.Errorf("fuzz: %+v, %v", crossed, err)
	}
	c := x.Sample[1]
	all, err := x.Touched(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	for node, w := range all {
		if w.Others != 0 || w.Rest != 0 || w.Kernel != 0 {
			t.Errorf("a prefix of one customer's: %s writes what is another's: %+v", node, w)
		}
		if w.Maps != 1 {
			t.Errorf("a prefix of one customer's: %s writes %d entries of the classifier's maps, want 1", node, w.Maps)
		}
	}
	if w := all["premises"]; w.Tunnels != 2 {
		t.Errorf("a prefix in Azure: the node on premises makes %d writes to tunnels, want one to each of two: %+v", w.Tunnels, all)
	}
	if err := x.Apart(t.Context(), c); err != nil {
		t.Error(err)
	}
}
