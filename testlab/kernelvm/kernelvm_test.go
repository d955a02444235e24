package kernelvm

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestPickTakesTheNewestOfTheLine(t *testing.T) {
	list := []byte(strings.Join([]string{
		"linux-image-6.12.99+deb12-amd64-unsigned - Linux 6.12 for 64-bit PCs",
		"linux-image-6.12.117+deb12-amd64-unsigned - Linux 6.12 for 64-bit PCs",
		"linux-image-6.12.118+deb12-cloud-amd64-unsigned - Linux 6.12 for x86-64 cloud",
		"linux-image-6.12.118+deb12-rt-amd64-unsigned - Linux 6.12, PREEMPT_RT",
		"linux-image-6.12.118+deb12-amd64-dbg - Debug symbols",
		"linux-image-6.1.0-9-amd64-unsigned - Linux 6.1 for 64-bit PCs",
		"linux-image-6.1.0-56-amd64-unsigned - Linux 6.1 for 64-bit PCs",
		"linux-image-6.1.0-56-amd64 - Linux 6.1 for 64-bit PCs (signed)",
	}, "\n"))
	for line, want := range map[string]string{
		"6.12": "linux-image-6.12.117+deb12-amd64-unsigned",
		"6.1":  "linux-image-6.1.0-56-amd64-unsigned",
		"6.6":  "",
	} {
		if got := pick(line, list); got != want {
			t.Errorf("pick(%s) = %q, want %q", line, got, want)
		}
	}
}

func TestFetchRefusesAnotherLine(t *testing.T) {
	if _, err := Fetch(t.Context(), "5.15", t.TempDir(), func(string) {}); err == nil || !strings.Contains(err.Error(), "6.12, 6.1") {
		t.Errorf("Fetch(5.15) = %v, want the lines that there are", err)
	}
}

// A package that was fetched today is used without asking anybody.
func TestFetchTakesAFreshKernelFromTheCache(t *testing.T) {
	cache := t.TempDir()
	tree := filepath.Join(cache, "6.1", "linux-image-6.1.0-56-amd64-unsigned")
	for _, f := range []string{"boot/vmlinuz-6.1.0-56-amd64", "lib/modules/6.1.0-56-amd64/modules.dep", stamp} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(tree, f)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(tree, f), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", t.TempDir())
	k, err := Fetch(t.Context(), "6.1", cache, func(string) {})
	if err != nil || k.Release != "6.1.0-56-amd64" {
		t.Fatalf("Fetch = %+v, %v", k, err)
	}
	// An older one is kept to when nobody can be asked.
	old := time.Now().Add(-2 * fresh)
	if err := os.Chtimes(filepath.Join(tree, stamp), old, old); err != nil {
		t.Fatal(err)
	}
	var said []string
	if k, err = Fetch(t.Context(), "6.1", cache, func(s string) { said = append(said, s) }); err != nil || k.Release != "6.1.0-56-amd64" {
		t.Errorf("Fetch without apt = %+v, %v", k, err)
	}
	if len(said) == 0 || !strings.Contains(said[len(said)-1], "keep to") {
		t.Errorf("said %q", said)
	}
}

func TestOrderModulesPutsNeedsFirst(t *testing.T) {
	const index = `kernel/net/9p/9pnet.ko.xz: kernel/fs/netfs/netfs.ko.xz
kernel/net/9p/9pnet_virtio.ko.xz: kernel/net/9p/9pnet.ko.xz kernel/fs/netfs/netfs.ko.xz
kernel/fs/netfs/netfs.ko.xz:
kernel/fs/9p/9p.ko.xz: kernel/net/9p/9pnet.ko.xz kernel/fs/netfs/netfs.ko.xz
`
	got, err := orderModules(index, "kernel/drivers/virtio/virtio_pci.ko\n", []string{"virtio_pci", "9pnet_virtio", "9p"})
	want := []string{"kernel/fs/netfs/netfs.ko.xz", "kernel/net/9p/9pnet.ko.xz", "kernel/net/9p/9pnet_virtio.ko.xz", "kernel/fs/9p/9p.ko.xz"}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("order = %q, %v; want %q", got, err, want)
	}
	if _, err := orderModules(index, "", []string{"overlay"}); err == nil {
		t.Error("a module that is not there is no error")
	}
}

// fakeQEMU puts a script in the place of QEMU, so that what guests do wrong can
// be had at will; real ones are booted by `make lab-kernel`.
func fakeQEMU(t *testing.T, script string) Config {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "qemu-system-x86_64"), []byte("#!/bin/sh\n"+script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	init := filepath.Join(dir, "vminit")
	modules := filepath.Join(dir, "modules", "6.9.9")
	if err := os.MkdirAll(modules, 0o755); err != nil {
		t.Fatal(err)
	}
	for path, text := range map[string]string{
		init:                                  "",
		filepath.Join(modules, "modules.dep"): "",
		filepath.Join(modules, "modules.builtin"): "virtio_pci.ko\n9pnet_virtio.ko\n9p.ko\noverlay.ko\n",
	} {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	share := filepath.Join(dir, "share")
	t.Setenv("SHARE", share)
	return Config{
		Kernel: Kernel{Line: "6.12", Release: "6.9.9", Image: "bzImage", Modules: filepath.Dir(modules)},
		Init:   init, Share: share, Accel: "tcg", Limit: time.Minute, Output: new(strings.Builder),
	}
}

func TestRunTellsHowAGuestEnded(t *testing.T) {
	tests := []struct {
		name, script, reason string
		exits                int
	}{
		{"done", `echo '{"name":"a","code":3,"seconds":1}' >$SHARE/exits.jsonl; touch $SHARE/done`, "", 1},
		{"panic", `echo 'Kernel panic - not syncing: lost' >$SHARE/console.log`, "panicked", 0},
		{"power off", `echo '{"name":"a","code":0,"seconds":1}' >$SHARE/exits.jsonl; echo last words >$SHARE/console.log`, "ended before its order was done", 1},
		{"no machine", `echo no such accelerator >&2; exit 1`, "no such accelerator", 0},
		{"out of time", `exec sleep 60`, "had not ended within", 0},
		{"hang", `touch $SHARE/beat; exec sleep 60`, "no sign of life", 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := fakeQEMU(t, tt.script)
			switch tt.name {
			case "out of time":
				c.Limit = 200 * time.Millisecond
			case "hang":
				c.Dead = 300 * time.Millisecond
			}
			exits, err := Run(t.Context(), c, []Job{{Name: "a", Dir: "/", Args: []string{"true"}}})
			if len(exits) != tt.exits {
				t.Errorf("%d exits, want %d", len(exits), tt.exits)
			}
			var guest *GuestError
			switch {
			case tt.reason == "" && err != nil:
				t.Errorf("Run = %v", err)
			case tt.reason != "" && (!errors.As(err, &guest) || !strings.Contains(guest.Reason, tt.reason)):
				t.Errorf("Run = %v, want a GuestError with %q", err, tt.reason)
			}
			if tt.name == "power off" && !strings.Contains(err.Error(), "last words") {
				t.Errorf("the error has no console: %v", err)
			}
		})
	}
}

func TestRunEndsWithItsCaller(t *testing.T) {
	c := fakeQEMU(t, "exec sleep 60")
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(100*time.Millisecond, cancel)
	var guest *GuestError
	if _, err := Run(ctx, c, nil); !errors.Is(err, context.Canceled) || errors.As(err, &guest) {
		t.Errorf("Run = %v, want the context's error", err)
	}
}

func TestRunEmptiesTheShare(t *testing.T) {
	c := fakeQEMU(t, "true")
	if err := os.MkdirAll(c.Share, 0o755); err != nil {
		t.Fatal(err)
	}
	stale := filepath.Join(c.Share, DoneFile)
	if err := os.WriteFile(stale, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Run(t.Context(), c, nil); err == nil {
		t.Error("what an earlier guest had done was taken for this one's work")
	}
}
