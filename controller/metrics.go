package controller

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/circuitseal/circuitseal/controller/session"
)

// newMetrics is a registry with the version, the process and the Go runtime.
func newMetrics(version string) *prometheus.Registry {
	r := prometheus.NewRegistry()
	r.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	promauto.With(r).NewGauge(prometheus.GaugeOpts{
		Name: "circuitseal_controller_info", Help: "The controller's version; always 1.",
		ConstLabels: prometheus.Labels{"version": version},
	}).Set(1)
	return r
}

// countWork shows what following the store has cost.
func countWork(r prometheus.Registerer, work func() session.Work) {
	count := func(name, help string, value func(session.Work) uint64) {
		promauto.With(r).NewCounterFunc(prometheus.CounterOpts{Name: "circuitseal_controller_" + name, Help: help},
			func() float64 { return float64(value(work())) })
	}
	count("compiled_snapshots_total", "Snapshots of the documents that were compiled.", func(w session.Work) uint64 { return w.Snapshots })
	count("compiled_nodes_total", "Nodes that were compiled, since a change could touch them.", func(w session.Work) uint64 { return w.Nodes })
	count("changed_states_total", "Compiled nodes whose state was another one.", func(w session.Work) uint64 { return w.States })
}

// serveMetrics answers scrapes at /metrics until ctx is done, which is no error.
func serveMetrics(ctx context.Context, l net.Listener, from prometheus.Gatherer, log *slog.Logger) error {
	mux := http.NewServeMux()
	// A scrape reads the store: two at once are a scraper that did not wait.
	mux.Handle("GET /metrics", promhttp.HandlerFor(from, promhttp.HandlerOpts{
		MaxRequestsInFlight: 2, ErrorHandling: promhttp.ContinueOnError,
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}))
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		// Who does not wait for the answer does not want it.
		_, _ = io.WriteString(w, `<!doctype html><title>circuitseal controller</title><p>circuitseal controller: <a href="/metrics">metrics</a></p>`+"\n")
	})
	server := &http.Server{
		Handler: mux, ReadHeaderTimeout: headerTimeout, WriteTimeout: 30 * time.Second, IdleTimeout: 2 * time.Minute,
		MaxHeaderBytes: maxHeaderBytes, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	defer context.AfterFunc(ctx, func() { _ = server.Close() })()
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve metrics on %s: %w", l.Addr(), err)
	}
	return nil
}
