package rcu

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// settings is a directory with a knob and the markers of two owners.
func settings(t *testing.T, before string) (read func() string, a, b string) {
	t.Helper()
	dir := t.TempDir()
	was := knob
	knob = filepath.Join(dir, "knob")
	t.Cleanup(func() { knob = was })
	if err := os.WriteFile(knob, []byte(before+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return func() string {
		v, err := os.ReadFile(knob)
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(v))
	}, filepath.Join(dir, "a"), filepath.Join(dir, "b")
}

func end(t *testing.T, h *Hurry) {
	t.Helper()
	if err := h.End(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(h.marker); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("marker %s stays: %v", h.marker, err)
	}
}

func TestHurry(t *testing.T) {
	read, marker, _ := settings(t, "0")
	h := Begin(marker)
	if got := read(); got != "1" {
		t.Errorf("%s while it lasts, want 1", got)
	}
	end(t, h)
	if got := read(); got != "0" {
		t.Errorf("%s after the end, want 0", got)
	}
	end(t, h)
}

func TestAdministratorsSettingStays(t *testing.T) {
	read, marker, _ := settings(t, "1")
	h := Begin(marker)
	end(t, h)
	if err := Recover(marker); err != nil {
		t.Error(err)
	}
	if got := read(); got != "1" {
		t.Errorf("%s after the end, want what was there before", got)
	}
}

func TestOwnersOverlap(t *testing.T) {
	read, one, two := settings(t, "0")
	a, b := Begin(one), Begin(two)
	end(t, a)
	b.Again()
	if got := read(); got != "1" {
		t.Errorf("%s while one of two lasts, want 1", got)
	}
	end(t, b)
	if got := read(); got != "0" {
		t.Errorf("%s after both, want 0", got)
	}
}

func TestRecover(t *testing.T) {
	read, marker, _ := settings(t, "0")
	Begin(marker)
	if err := Recover(marker); err != nil {
		t.Fatal(err)
	}
	if got := read(); got != "0" {
		t.Errorf("%s after the next start, want 0", got)
	}
}

// A host that has no such setting, or gives nobody leave to change it, only takes
// longer.
func TestWithoutSetting(t *testing.T) {
	_, marker, _ := settings(t, "0")
	knob = filepath.Join(t.TempDir(), "none")
	end(t, Begin(marker))
}
