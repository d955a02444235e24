package outlive

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

var quiet = slog.New(slog.DiscardHandler)

func TestStart(t *testing.T) {
	t.Setenv("CIRCUITSEAL_TEST_KEPT", "kept")
	t.Setenv("CIRCUITSEAL_TEST_DROPPED", "dropped")
	t.Setenv("NOTIFY_SOCKET", "/nowhere")
	dir := t.TempDir()
	p := Process{
		Name: "the test's process", Command: []string{"sh", "-c", "pwd; env; readlink /proc/self/fd/3; touch " + dir + "/up"},
		Log: filepath.Join(dir, "log"), Timeout: 10 * time.Second,
		Answers: func(context.Context) error {
			_, err := os.Stat(filepath.Join(dir, "up"))
			return err
		},
	}
	if err := p.Start(t.Context(), quiet, "CIRCUITSEAL_TEST_DROPPED"); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(p.Log)
	if err != nil {
		t.Fatal(err)
	}
	log := string(b)
	if !strings.HasPrefix(log, "/\n") || !strings.Contains(log, "CIRCUITSEAL_TEST_KEPT=kept") || strings.Contains(log, "dropped") || strings.Contains(log, "NOTIFY_SOCKET") {
		t.Errorf("it has:\n%s", log)
	}
}

// What ends is told with its last words, at once.
func TestStartOfWhatEnds(t *testing.T) {
	p := Process{
		Name: "the test's process", Command: []string{"sh", "-c", "echo first; echo last words; exit 3"},
		Log: filepath.Join(t.TempDir(), "log"), Timeout: time.Hour, Answers: func(context.Context) error { return errors.New("nobody") },
	}
	err := p.Start(t.Context(), quiet)
	if err == nil || !strings.Contains(err.Error(), "last words") || !strings.Contains(err.Error(), "exit status 3") || strings.Contains(err.Error(), "first") {
		t.Errorf("error %v", err)
	}
}

func TestTrimLog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	if err := TrimLog(path); err != nil {
		t.Error(err)
	}
	for _, n := range []int{logLimit, logLimit + 1} {
		if err := os.WriteFile(path, make([]byte, n), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := TrimLog(path); err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(path)
		if err != nil || (info.Size() == 0) != (n > logLimit) {
			t.Errorf("of %d bytes %d are left, %v", n, info.Size(), err)
		}
	}
	if b, err := os.ReadFile(path + ".old"); err != nil || len(b) != logLimit+1 {
		t.Errorf("%d bytes are kept of the long log, %v", len(b), err)
	}
}
