package powercut_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/circuitseal/circuitseal/agent/durable"
	"github.com/circuitseal/circuitseal/testlab/netns"
	"github.com/circuitseal/circuitseal/testlab/powercut"
)

func mount(t *testing.T) *powercut.Disk {
	t.Helper()
	netns.Require(t)
	dir := t.TempDir()
	path, backing := filepath.Join(dir, "disk"), filepath.Join(dir, "backing")
	for _, d := range []string{path, backing} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	d, err := powercut.Mount(path, backing)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		d.Fail(nil)
		if err := d.Unmount(); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	return d
}

// promise is what was said to be kept after so many operations.
type promise struct {
	after int
	value int
}

// atEveryCut lays out what each power cut leaves, and hands it to look with the
// last value that was promised by then and the last that was begun.
func atEveryCut(t *testing.T, d *powercut.Disk, begun, kept []promise, every int, look func(dir string, kept, begun int) error) (bad int) {
	t.Helper()
	last := func(all []promise, n int) (value int) {
		for _, p := range all {
			if p.after <= n {
				value = p.value
			}
		}
		return value
	}
	scratch := t.TempDir()
	for how, s := range powercut.Survivals() {
		for n := 0; n <= d.Mark(); n += every {
			dir := filepath.Join(scratch, fmt.Sprintf("%s-%d", how, n))
			if err := d.Layout(n, s, dir); err != nil {
				t.Fatal(err)
			}
			if err := look(dir, last(kept, n), last(begun, n)); err != nil {
				bad++
				if bad <= 5 {
					t.Logf("cut after %d operations, %s survives: %v", n, how, err)
				}
			}
			if err := os.RemoveAll(dir); err != nil {
				t.Fatal(err)
			}
		}
	}
	return bad
}

// number reads the value that a writer below has kept; none is 0.
func number(path string) (n int, err error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	if _, err := fmt.Sscanf(string(b), "number %d\n", &n); err != nil {
		return 0, fmt.Errorf("torn: %q", b)
	}
	return n, nil
}

// The disk proves that it finds what is wrong, before anything is judged by it.
func TestPowerCut(t *testing.T) {
	writers := []struct {
		name  string
		write func(path string, text []byte) error
		sound bool
	}{
		{"in place", func(path string, text []byte) error { return os.WriteFile(path, text, 0o600) }, false},
		{"renamed, not synced", func(path string, text []byte) error {
			return errors.Join(os.WriteFile(path+".new", text, 0o600), os.Rename(path+".new", path))
		}, false},
		{"synced, renamed, directory not synced", func(path string, text []byte) error {
			f, err := os.Create(path + ".new")
			if err != nil {
				return err
			}
			_, err = f.Write(text)
			return errors.Join(err, f.Sync(), f.Close(), os.Rename(path+".new", path))
		}, false},
		{"durable", func(path string, text []byte) error { return durable.WriteFile(path, text, 0o600) }, true},
	}
	for _, w := range writers {
		t.Run(w.name, func(t *testing.T) {
			d := mount(t)
			path := filepath.Join(d.Path, "file")
			var begun, kept []promise
			for i := 1; i <= 4; i++ {
				begun = append(begun, promise{d.Mark(), i})
				if err := w.write(path, fmt.Appendf(nil, "number %d\n", i)); err != nil {
					t.Fatal(err)
				}
				kept = append(kept, promise{d.Mark(), i})
			}
			bad := atEveryCut(t, d, begun, kept, 1, func(dir string, kept, begun int) error {
				n, err := number(filepath.Join(dir, "file"))
				if err == nil && (n < kept || n > begun) {
					err = fmt.Errorf("read %d, promised %d, begun %d", n, kept, begun)
				}
				return err
			})
			if w.sound != (bad == 0) {
				t.Errorf("%d bad cuts after %d operations", bad, d.Mark())
			}
		})
	}
}

func faults() map[string]func(powercut.Operation) syscall.Errno {
	return map[string]func(powercut.Operation) syscall.Errno{
		"full": powercut.Full, "read-only": powercut.ReadOnly, "broken": powercut.Broken,
	}
}

func TestFail(t *testing.T) {
	d := mount(t)
	path := filepath.Join(d.Path, "file")
	if err := durable.WriteFile(path, []byte("number 1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name  string
		fault func(powercut.Operation) syscall.Errno
		want  syscall.Errno
	}{
		{"full", powercut.Full, syscall.ENOSPC},
		{"read-only", powercut.ReadOnly, syscall.EROFS},
		{"broken", powercut.Broken, syscall.EIO},
	} {
		d.Fail(tt.fault)
		if err := durable.WriteFile(path, []byte("number 2\n"), 0o600); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v", tt.name, err)
		}
		if n, err := number(path); n != 1 || err != nil {
			t.Errorf("%s: read %d, %v", tt.name, n, err)
		}
		d.Fail(nil)
		entries, err := os.ReadDir(d.Path)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if e.Name() != "file" && tt.want != syscall.EROFS {
				t.Errorf("%s: %s is left", tt.name, e.Name())
			}
		}
	}
}
