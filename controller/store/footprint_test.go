package store

import (
	"fmt"
	"log/slog"
	"runtime/debug"
	"testing"

	"github.com/circuitseal/circuitseal/controller/model"
)

// BenchmarkFootprint applies changes of 30 KB for as long as it is told to and
// reports what stays resident: entries of the log must not pile up in memory.
func BenchmarkFootprint(b *testing.B) {
	s, err := Open(b.Context(), Config{Dir: b.TempDir() + "/data", Log: slog.New(slog.DiscardHandler), Secrets: ring})
	if err != nil {
		b.Fatal(err)
	}
	idle := residentMiB(b)
	m, err := s.Snapshot(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	revision := m.Revision
	for n := 0; b.Loop(); n++ {
		var c Change
		for i := range 200 {
			c.Put = append(c.Put, site(fmt.Sprintf("site-%d", i), fmt.Sprintf("10.%d.%d.0/24", n%256, i)))
		}
		c.Numbers.Tenants = map[string]uint32{"contoso": 1}
		if revision, err = s.Write(b.Context(), revision, c); err != nil {
			b.Fatal(err)
		}
	}
	if m, err = s.Snapshot(b.Context()); err != nil {
		b.Fatal(err)
	}
	if _, ok := m.Documents[model.Key{Kind: model.KindSite, Customer: "contoso", Name: "site-0"}]; !ok {
		b.Fatal("site-0 is missing")
	}
	b.ReportMetric(idle, "idle-MiB")
	b.ReportMetric(residentMiB(b), "busy-MiB")
	debug.FreeOSMemory()
	b.ReportMetric(residentMiB(b), "after-MiB")
	if err := s.Close(); err != nil {
		b.Fatal(err)
	}
}
