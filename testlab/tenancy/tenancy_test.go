package tenancy

import (
	"log/slog"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/circuitseal/circuitseal/testlab/netns"
	"github.com/circuitseal/circuitseal/testlab/rig"
)

func TestTenants(t *testing.T) {
	netns.Require(t)
	bin, err := rig.Bin("")
	if err != nil {
		t.Skip(err)
	}
	n, _ := strconv.Atoi(os.Getenv("N"))
	if n == 0 {
		n = 20
	}
	start := time.Now()
	x, err := New(t.Context(), Config{Log: slog.New(slog.NewTextHandler(os.Stderr, nil)), Bin: bin, Logs: os.Getenv("LOGS"), Customers: n, Sample: min(n, 3)})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := x.Close(); err != nil {
			t.Error(err)
		}
	}()
	t.Log("built", time.Since(start))
	took, err := x.Connect(t.Context(), 120*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	t.Log("all up", took)
	for range 5 {
		took, err := x.AddPrefix(t.Context(), x.Sample[0])
		if err != nil {
			t.Fatal(err)
		}
		t.Log("change", took)
	}
	if os.Getenv("WAIT") != "" {
		time.Sleep(20 * time.Second)
	}
}
