package netns

import (
	"context"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"
)

func newLab(t *testing.T, control bool) *Lab {
	t.Helper()
	Require(t)
	l, err := New(t.Context(), Config{Log: slog.New(slog.DiscardHandler), Control: control, Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

func ping(ctx context.Context, l *Lab, from Host, to string) error {
	_, err := l.Run(ctx, from, Spec{Path: "ping", Args: []string{"-c", "1", "-W", "2", to}})
	return err
}

func TestControlLabCarriesPacketsInClear(t *testing.T) {
	l := newLab(t, true)
	for _, to := range []string{VNetAddress.String(), VNetAddress6.String()} {
		if err := ping(t.Context(), l, HQ, to); err != nil {
			t.Error(err)
		}
	}
	if err := ping(t.Context(), l, Prem, NVASecond.String()); err != nil {
		t.Error(err)
	}
	if err := ping(t.Context(), l, NVA, ControllerAddress.String()); err != nil {
		t.Error(err)
	}
}

func TestLabWithoutAgentsCarriesNothing(t *testing.T) {
	l := newLab(t, false)
	if err := ping(t.Context(), l, HQ, VNetAddress.String()); err == nil {
		t.Error("hq reaches vnet without any agent")
	}
	if err := ping(t.Context(), l, HQ, "10.1.0.1"); err != nil {
		t.Error(err)
	}
	out, err := l.Run(t.Context(), Prem, Spec{Path: "ip", Args: []string{"-br", "addr", "show", "dev", "circ0"}})
	if err != nil {
		t.Fatal(err)
	}
	if f := strings.Fields(out.Stdout); len(f) != 2 || f[1] != "DOWN" {
		t.Errorf("circ0 = %q, want it down and without addresses", out.Stdout)
	}
}

func TestCutAndRestore(t *testing.T) {
	l := newLab(t, true)
	for _, how := range []Cut{Silent, Carrier} {
		if err := l.CutLink(t.Context(), Primary, how); err != nil {
			t.Fatal(err)
		}
		if err := ping(t.Context(), l, Prem, NVAFirst.String()); err == nil {
			t.Errorf("%s: the primary link still carries", how)
		}
		if err := ping(t.Context(), l, Prem, NVASecond.String()); err != nil {
			t.Errorf("%s: the secondary link does not carry: %v", how, err)
		}
		if err := l.RestoreLink(t.Context(), Primary); err != nil {
			t.Fatal(err)
		}
		// The kernel takes up to a second to believe in a carrier again.
		if err := eventually(5, func() error { return ping(t.Context(), l, Prem, NVAFirst.String()) }); err != nil {
			t.Errorf("%s: %v", how, err)
		}
	}
}

// eventually tries f, which brings its own patience, n times.
func eventually(n int, f func() error) (err error) {
	for range n {
		if err = f(); err == nil {
			return nil
		}
	}
	return err
}

// TestSweepRemovesLeftovers abandons a lab as a killed process would, with a
// process in it, and expects the next sweep to remove all of it.
func TestSweepRemovesLeftovers(t *testing.T) {
	l := newLab(t, false)
	p, err := l.Start(HQ, Spec{Name: "sleep", Path: "sleep", Args: []string{"600"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := Sweep(); err != nil {
		t.Fatal(err)
	}
	if !p.Alive() {
		t.Fatal("a sweep ended a process of a living lab")
	}
	// The lock goes with the process that holds it.
	if err := l.lock.Close(); err != nil {
		t.Fatal(err)
	}
	if err := Sweep(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-p.Done():
	case <-time.After(5 * time.Second):
		t.Error("the process survived the sweep")
	}
	for _, path := range []string{Path(l.Namespace(HQ)), recordPath(l.ID()), lockPath(l.ID())} {
		if _, err := os.Lstat(path); err == nil {
			t.Errorf("%s survived the sweep", path)
		}
	}
}

func TestProcessesRunWhereTheyWereStarted(t *testing.T) {
	l := newLab(t, false)
	p, err := l.Start(Ctl, Spec{Name: "sleep", Path: "sleep", Args: []string{"600"}})
	if err != nil {
		t.Fatal(err)
	}
	if got := l.Residents(Ctl); len(got) != 1 || got[0] != p.PID() {
		t.Errorf("residents of ctl = %v, want %d", got, p.PID())
	}
	if err := p.Stop(time.Second); err != nil {
		t.Error(err)
	}
	if got := l.Residents(Ctl); len(got) != 0 {
		t.Errorf("residents after the stop = %v", got)
	}
}
