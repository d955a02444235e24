package bench

import (
	"log/slog"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/circuitseal/circuitseal/testlab/netns"
)

func TestCompare(t *testing.T) {
	ours, byHand := []float64{0.9, 1.0, 1.1, 1.0}, []float64{1, 1, 1, 1}
	c := Compare("x", ours, byHand)
	if c.Ratio != 1 || c.Pairs != 4 || c.Interval[0] > c.Ratio || c.Interval[1] < c.Ratio || c.Interval[0] < 0.9 || c.Interval[1] > 1.1 {
		t.Errorf("comparison %+v", c)
	}
	if again := Compare("x", ours, byHand); again.Interval != c.Interval {
		t.Errorf("another interval from the same measurements: %v and %v", c.Interval, again.Interval)
	}
	if c := Compare("x", nil, nil); c.Pairs != 0 {
		t.Errorf("comparison of nothing: %+v", c)
	}
}

// TestByHandCarries runs the side of the benchmark that needs no product.
func TestByHandCarries(t *testing.T) {
	netns.Require(t)
	bin := t.TempDir()
	cmd := exec.CommandContext(t.Context(), "go", "build", "-o", bin+"/", "../cmd/tap", "../cmd/traffic", "../cmd/bench")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the lab's programs: %v: %s", err, out)
	}
	c := Config{Log: slog.New(slog.DiscardHandler), Bin: bin, Self: filepath.Join(bin, "bench"), Logs: t.TempDir(), Duration: 300 * time.Millisecond, Flows: 1}
	for _, c.Protocol = range []string{WireGuard, IPsec} {
		t.Run(c.Protocol, func(t *testing.T) {
			r, err := ByHand(t.Context(), c)
			if err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := r.Close(); err != nil {
					t.Error(err)
				}
			}()
			if g, err := goodput(t.Context(), r, c); err != nil || g == 0 {
				t.Errorf("goodput %g, %v", g, err)
			}
		})
	}
}
