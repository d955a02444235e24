package kernelvm

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// requireGuest is set to "1" where guests are to be booted: it takes QEMU, a
// kernel and seconds.
const requireGuest = "CIRCUITSEAL_REQUIRE_GUEST"

func TestGuestRunsAnOrder(t *testing.T) {
	c, out := guest(t)
	exits, err := Run(t.Context(), c, []Job{
		{Name: "fine", Announce: true, Dir: "/", Args: []string{"sh", "-c", "uname -r; touch " + c.Share + "/proof; touch /root/elsewhere"}},
		{Name: "wrong", Dir: "/", Args: []string{"sh", "-c", "exit 3"}},
		{Name: "late", Dir: "/", Args: []string{"sleep", "60"}, LimitSeconds: 0.5},
		{Name: "missing", Dir: "/", Args: []string{"/no/such/program"}},
		{Name: "devices", Dir: "/", Args: []string{"sh", "-ec", "for t in wireguard vrf; do ip link add t-$t type $t $(test $t != vrf || echo table 10); done; test -c /dev/net/tun"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]int{"fine": 0, "wrong": 3, "late": -1, "missing": -1, "devices": 0}
	for _, e := range exits {
		if e.Code != want[e.Name] || (e.Code < 0) != (e.Problem != "") {
			t.Errorf("%+v, want code %d", e, want[e.Name])
		}
		delete(want, e.Name)
	}
	if len(want) > 0 {
		t.Errorf("never ended: %v", want)
	}
	if got := out.String(); !strings.Contains(got, "-- fine\n"+c.Kernel.Release+"\n") {
		t.Errorf("output is %q", got)
	}
	if _, err := os.Stat(filepath.Join(c.Share, "proof")); err != nil {
		t.Errorf("what was written into the share: %v", err)
	}
	if _, err := os.Stat("/root/elsewhere"); err == nil {
		t.Error("what was written elsewhere reached the host")
	}
}

func TestGuestThatPanicsIsAFailure(t *testing.T) {
	c, _ := guest(t)
	var died *GuestError
	exits, err := Run(t.Context(), c, []Job{
		{Name: "fine", Dir: "/", Args: []string{"true"}},
		{Name: "crash", Dir: "/", Args: []string{"sh", "-c", "echo c >/proc/sysrq-trigger"}},
	})
	if !errors.As(err, &died) || died.Reason != "panicked" || !strings.Contains(died.Console, "sysrq") {
		t.Errorf("Run = %v, want a panic with its console", err)
	}
	if len(exits) != 1 {
		t.Errorf("exits %+v, want the one that ended before", exits)
	}
}

// guest is a configuration for the older kernel.
func guest(t *testing.T) (Config, *strings.Builder) {
	t.Helper()
	if os.Getenv(requireGuest) != "1" {
		t.Skip("boots a virtual machine: set " + requireGuest + "=1, as `make lab-ci` does")
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	k, err := Fetch(t.Context(), "6.1", filepath.Join(cache, "circuitseal", "kernels"), func(s string) { t.Log(s) })
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	return Config{
		Kernel: k, Init: filepath.Join(os.Getenv("CIRCUITSEAL_BIN"), "vminit"), Share: filepath.Join(t.TempDir(), "share"),
		Accel: "tcg", Limit: 2 * time.Minute, Output: &out,
	}, &out
}
