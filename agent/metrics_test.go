package agent

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/circuitseal/circuitseal/proto/desired"
)

func TestScrapes(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := taken.Addr().String()
	s := &scrapes{address: address, log: slog.New(slog.DiscardHandler)}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	status := func(context.Context) desired.Status { return desired.Status{Version: "v9"} }

	// A port that is taken is a problem and nothing worse.
	if err := s.serve(ctx, status); err == nil || !strings.Contains(err.Error(), "--metrics-listen") {
		t.Errorf("taken port: %v", err)
	}
	if err := taken.Close(); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.run(ctx, status) }()
	deadline := time.Now().Add(time.Minute)
	var body string
	for time.Now().Before(deadline) && !strings.Contains(body, `version="v9"`) {
		r, err := http.Get("http://" + address + "/metrics")
		if err != nil {
			time.Sleep(10 * time.Millisecond)
			continue
		}
		b, _ := io.ReadAll(r.Body)
		_ = r.Body.Close()
		body = string(b)
	}
	for _, want := range []string{`circuitseal_agent_info{kernel="",version="v9"} 1`, "process_resident_memory_bytes", "go_goroutines"} {
		if !strings.Contains(body, want) {
			t.Errorf("%s is missing in\n%s", want, body)
		}
	}
	// Who opens the port in a browser finds the way.
	r, err := http.Get("http://" + address + "/")
	if err != nil {
		t.Fatal(err)
	}
	b, _ := io.ReadAll(r.Body)
	_ = r.Body.Close()
	if r.StatusCode != http.StatusOK || !strings.Contains(string(b), `href="/metrics"`) {
		t.Errorf("at /: %s\n%s", r.Status, b)
	}
	if err := s.problem(); err != nil {
		t.Errorf("problem: %v", err)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("run: %v", err)
	}
}

func TestNoScrapes(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := (&scrapes{}).run(ctx, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("run: %v", err)
	}
}
