package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestRewriteTouchesOnlyItsPlace(t *testing.T) {
	page := filepath.Join(t.TempDir(), "lab.md")
	text := "before\n" + matrixBegin + "old\n" + matrixEnd + "after\n"
	if err := os.WriteFile(page, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := rewrite(page, "| new |\n"); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(page)
		if want := "before\n" + matrixBegin + "\n| new |\n\n" + matrixEnd + "after\n"; err != nil || string(got) != want {
			t.Errorf("page is %q, %v; want %q", got, err, want)
		}
	}
	if err := os.WriteFile(page, []byte("nothing here\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := rewrite(page, "x"); err == nil || !strings.Contains(err.Error(), "no place for it") {
		t.Errorf("a page without a place: %v", err)
	}
}
