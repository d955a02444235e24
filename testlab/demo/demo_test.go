package demo

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestMedian(t *testing.T) {
	tests := []struct {
		values []float64
		want   float64
	}{{nil, 0}, {[]float64{3}, 3}, {[]float64{3, 1}, 2}, {[]float64{9, 1, 2}, 2}}
	for _, tt := range tests {
		if got := median(tt.values); got != tt.want {
			t.Errorf("median(%v) = %g, want %g", tt.values, got, tt.want)
		}
	}
}

// TestMissedFiguresAreSaidAndFailNothing: figures are reported, checks decide.
func TestMissedFiguresAreSaidAndFailNothing(t *testing.T) {
	var out strings.Builder
	s := &story{out: &out, start: time.Now()}
	s.check("good", nil, "seen %d", 3)
	s.check("bad", errors.New("broken\nin two lines"), "")
	s.figure("slow", 3, "s", 2, "")
	s.figure("fast", 1, "s", 2, "")
	want := []Figure{{Name: "slow", Value: 3, Unit: "s", AtMost: 2}, {Name: "fast", Value: 1, Unit: "s", AtMost: 2, Met: true}}
	if diff := cmp.Diff(want, s.report.Figures); diff != "" {
		t.Errorf("figures (-want +got):\n%s", diff)
	}
	out.Reset()
	if err := s.report.Print(&out); err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"MISSED", "FAIL", "FAILED", "broken"} {
		if !strings.Contains(out.String(), text) {
			t.Errorf("the table does not say %q:\n%s", text, out.String())
		}
	}
}
