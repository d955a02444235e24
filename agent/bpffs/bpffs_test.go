package bpffs

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/circuitseal/circuitseal/agent/netns/netnstest"
)

func TestEnsure(t *testing.T) {
	netnstest.RequireRoot(t)
	dir := filepath.Join(t.TempDir(), "a", "bpf")
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	for range 2 {
		if err := Ensure(dir); err != nil {
			t.Fatal(err)
		}
	}
	info, err := os.Stat(dir)
	if err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("mode %v with error %v, want 0700", info.Mode(), err)
	}
	if err := unix.Unmount(dir, 0); err != nil {
		t.Fatal(err)
	}
	if mounted, err := Mounted(dir); mounted || err != nil {
		t.Errorf("mounted %t with error %v: a second mount was stacked", mounted, err)
	}
	if err := Ensure(dir); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Ensure(file); err == nil {
		t.Error("a file for a directory: no error")
	}
}
