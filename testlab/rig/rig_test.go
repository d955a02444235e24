package rig

import (
	"log/slog"
	"os/exec"
	"testing"
	"time"

	"github.com/circuitseal/circuitseal/testlab/netns"
)

// tools builds the lab's own programs, which need nothing of the product.
func tools(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	cmd := exec.CommandContext(t.Context(), "go", "build", "-o", dir+"/", "../cmd/tap", "../cmd/traffic")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the lab's programs: %v: %s", err, out)
	}
	return dir
}

func newRig(t *testing.T, control bool) *Rig {
	t.Helper()
	netns.Require(t)
	r, err := New(t.Context(), Config{Log: slog.New(slog.DiscardHandler), Bin: tools(t), Dir: t.TempDir(), Control: control})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

// TestTapFires is the control run: without agents the hosts reach each other
// in clear, and the tap says so, with the canary, on both links.
func TestTapFires(t *testing.T) {
	r := newRig(t, true)
	tap, err := r.StartTap(nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, v6 := range []bool{false, true} {
		if _, err := r.Reach(t.Context(), Probe{From: netns.HQ, To: netns.VNet, V6: v6, Deadline: 5 * time.Second}); err != nil {
			t.Error(err)
		}
	}
	d, err := r.StartDatagrams(netns.HQ, netns.VNet, false, 16, 5*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	// Paced: TCP that nobody encrypts outruns a tap that judges each frame.
	time.Sleep(300 * time.Millisecond)
	count, err := d.Stop()
	if err != nil || count.Sent == 0 || count.FlowsAnswered != 16 {
		t.Errorf("datagrams %+v, %v", count, err)
	}
	s, err := tap.Stop(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range s.Interfaces {
		if i.InClear == 0 || i.Canaries == 0 {
			t.Errorf("the tap at %s saw %d frames, %d in clear, %d with the canary; want some of each", i.Label, i.Frames, i.InClear, i.Canaries)
		}
	}
}

// TestTapStaysSilent: a lab in which nothing is sent over the links.
func TestTapStaysSilent(t *testing.T) {
	r := newRig(t, false)
	tap, err := r.StartTap(nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Unreachable(t.Context(), Probe{From: netns.HQ, To: netns.VNet, Deadline: 500 * time.Millisecond}); err != nil {
		t.Error(err)
	}
	s, err := tap.Report()
	if err != nil || s.InClear != 0 {
		t.Errorf("%s, %v", Describe(s), err)
	}
	if s, err = tap.Stop(t.Context()); err != nil || s.InClear != 0 {
		t.Errorf("%s, %v", Describe(s), err)
	}
}
