package durable

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestWriteFileReplacesWholeAndKeepsPermissions(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	for _, text := range []string{"one", "two, which is longer", ""} {
		if err := WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := ReadFile(path, 100, true)
		if err != nil || string(got) != text {
			t.Errorf("got %q, %v; want %q", got, err, text)
		}
	}
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(entries) != 1 {
		t.Errorf("leftovers: %v, %v", entries, err)
	}
}

func TestWriteFileLeavesTheOldContentWhenItCannotFinish(t *testing.T) {
	dir := t.TempDir()
	// The target is a directory: the rename is refused after the write.
	target := filepath.Join(dir, "d")
	if err := os.MkdirAll(filepath.Join(target, "x"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := WriteFile(target, []byte("new"), 0o600); err == nil {
		t.Fatal("a directory was replaced")
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("leftovers: %v, %v", entries, err)
	}
}

func TestReadFileRefuses(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	if err := WriteFile(path, []byte("secret"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadFile(path, 100, true); err == nil || !strings.Contains(err.Error(), "0644") {
		t.Errorf("world-readable: %v", err)
	}
	if _, err := ReadFile(path, 3, false); err == nil || !strings.Contains(err.Error(), "at most 3") {
		t.Errorf("too large: %v", err)
	}
	if _, err := ReadFile(filepath.Dir(path), 100, false); err == nil {
		t.Error("a directory was read")
	}
}
