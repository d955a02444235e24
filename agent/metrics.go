package agent

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/circuitseal/circuitseal/agent/report"
	"github.com/circuitseal/circuitseal/proto/desired"
)

// scrapes is the address at which Prometheus may scrape, in clear. Nothing else
// of the agent depends on it: where it cannot be had, the agent says so and goes
// on.
type scrapes struct {
	address string
	log     *slog.Logger

	mu  sync.Mutex
	err error
}

// scrapesRetry is how long a port that is taken is left alone.
const scrapesRetry = 10 * time.Second

// problem is why nobody can scrape.
func (s *scrapes) problem() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// run serves metrics until ctx ends.
func (s *scrapes) run(ctx context.Context, status func(context.Context) desired.Status) error {
	for ctx.Err() == nil && s.address != "" {
		err := s.serve(ctx, status)
		if ctx.Err() != nil {
			break
		}
		s.log.Error("metrics cannot be scraped", "retry_in", scrapesRetry, "error", err)
		s.mu.Lock()
		s.err = err
		s.mu.Unlock()
		select {
		case <-ctx.Done():
		case <-time.After(scrapesRetry):
		}
	}
	<-ctx.Done()
	return ctx.Err()
}

// serve answers at /metrics with the status, the process and the Go runtime.
func (s *scrapes) serve(ctx context.Context, status func(context.Context) desired.Status) error {
	from := prometheus.NewRegistry()
	for _, c := range []prometheus.Collector{
		report.NewMetrics(status), collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	} {
		if err := from.Register(c); err != nil {
			return err
		}
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", s.address)
	if err != nil {
		return fmt.Errorf("%w; name an address of this host and a free port with --metrics-listen", err)
	}
	s.mu.Lock()
	s.err = nil
	s.mu.Unlock()
	mux := http.NewServeMux()
	// A scrape reads the drivers: two at once are a scraper that did not wait.
	mux.Handle("GET /metrics", promhttp.HandlerFor(from, promhttp.HandlerOpts{
		MaxRequestsInFlight: 2, ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelWarn),
	}))
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		// Who does not wait for the answer does not want it.
		_, _ = io.WriteString(w, `<!doctype html><title>circuitseal agent</title><p>circuitseal agent: <a href="/metrics">metrics</a></p>`+"\n")
	})
	server := &http.Server{
		Handler: mux, ReadHeaderTimeout: 5 * time.Second, WriteTimeout: 30 * time.Second, IdleTimeout: 2 * time.Minute,
		MaxHeaderBytes: 8 << 10, ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
	defer context.AfterFunc(ctx, func() { _ = server.Close() })()
	return server.Serve(l)
}
