package controller_test

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/circuitseal/circuitseal/controller"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m)
}

// Each of these is one sentence that names the thing and what to do.
func TestRunSaysWhatToDo(t *testing.T) {
	t.Parallel()
	r := start(t, t.TempDir()+"/data")
	taken := strings.TrimPrefix(r.url, "https://")
	readOnly := t.TempDir()
	if err := os.Chmod(readOnly, 0o500); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name, dir, listen string
		says              []string
	}{
		{"port in use", t.TempDir() + "/d", taken, []string{taken, "another process", "--listen"}},
		{"no such address", t.TempDir() + "/d", "192.0.2.1:8443", []string{"192.0.2.1:8443", "--listen"}},
		{"malformed address", t.TempDir() + "/d", "eight", []string{"eight", "--listen"}},
		{"directory in use", r.dir, "127.0.0.1:0", []string{r.dir, "in use by pid", "stop that", "--data-dir"}},
		{"directory read-only", readOnly, "127.0.0.1:0", []string{readOnly, "read-only", "--data-dir"}},
		{"directory is a file", file, "127.0.0.1:0", []string{file, "is a file", "--data-dir"}},
		{"no parent", t.TempDir() + "/a/b", "127.0.0.1:0", []string{"/a/b", "--data-dir"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			err := controller.Run(ctx, controller.Config{DataDir: tt.dir, Listen: tt.listen, Log: slog.New(slog.DiscardHandler)})
			if err == nil {
				t.Fatal("it ran")
			}
			for _, s := range tt.says {
				if !strings.Contains(err.Error(), s) {
					t.Errorf("%q does not say %q", err, s)
				}
			}
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("%q is more than one line", err)
			}
		})
	}
}

// Handshakes that never end do not keep out those who are quick.
func TestIdleHandshakes(t *testing.T) {
	if testing.Short() {
		t.Skip("opens many connections")
	}
	r := start(t, t.TempDir()+"/data")
	const idle = 1500
	grown := peakDuring(func() {
		for range idle {
			c, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", strings.TrimPrefix(r.url, "https://"))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = c.Close() })
		}
		if got := call(t, r.client(r.admin()), r.url, "/circuitseal.v1.StatusService/GetStatus", false); got != "" {
			t.Errorf("with %d idle handshakes: %q", idle, got)
		}
	})
	if grown > 64<<20 {
		t.Errorf("the heap grew by %d MiB", grown>>20)
	}
}

// Stopping cuts off whoever does not finish.
func TestStopsInTime(t *testing.T) {
	r := start(t, t.TempDir()+"/data")
	reader, writer := net.Pipe()
	defer func() { _ = writer.Close() }()
	q, err := http.NewRequestWithContext(t.Context(), http.MethodPost, r.url+"/circuitseal.v1.PolicyService/Apply", reader)
	if err != nil {
		t.Fatal(err)
	}
	q.Header.Set("Content-Type", "application/json")
	answered := make(chan struct{})
	go func() {
		defer close(answered)
		if a, err := r.client(r.admin()).Do(q); err == nil {
			_ = a.Body.Close()
		}
	}()
	if _, err := writer.Write([]byte("{")); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if err := r.stop(); err != nil {
		t.Errorf("it stopped with %v", err)
	}
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("it took %s", took)
	}
	<-answered
}
