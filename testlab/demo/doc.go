// Package demo runs the product for real, from the first token to a cut link,
// checks what it promises at each step and measures what it is asked to. It
// knows the story and the asked figures; rig knows how to do each thing.
//
// Checks pass or fail. Measured figures are reported beside the asked ones; a
// figure that is missed is said so, and is not a failed check.
package demo

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/circuitseal/circuitseal/testlab/rig"
)

// Check is something that must hold.
type Check struct {
	Name   string `json:"name"`
	Passed bool   `json:"passed"`
	// Detail is what was seen, in a few words.
	Detail string `json:"detail,omitempty"`
}

// Figure is something measured.
type Figure struct {
	Name  string  `json:"name"`
	Value float64 `json:"value"`
	Unit  string  `json:"unit"`
	// AtMost is what is asked for; 0 where nothing is.
	AtMost float64 `json:"atMost,omitempty"`
	Met    bool    `json:"met"`
	Detail string  `json:"detail,omitempty"`
}

// Report is what build/bench/demo.json holds.
type Report struct {
	Kernel  string    `json:"kernel"`
	Seconds float64   `json:"seconds"`
	Passed  bool      `json:"passed"`
	Checks  []Check   `json:"checks"`
	Figures []Figure  `json:"figures"`
	Started time.Time `json:"started"`
}

// story is one run.
type story struct {
	config Config
	out    io.Writer
	start  time.Time
	report Report
	rig    *rig.Rig
	tap    *rig.Tap
}

// say prints a line of progress.
func (s *story) say(format string, args ...any) {
	_, _ = fmt.Fprintf(s.out, "%6.1f s  %s\n", time.Since(s.start).Seconds(), fmt.Sprintf(format, args...))
}

// check notes whether something holds, and says so. It returns whether it did.
func (s *story) check(name string, err error, detail string, args ...any) bool {
	c := Check{Name: name, Passed: err == nil, Detail: fmt.Sprintf(detail, args...)}
	word := "ok  "
	if err != nil {
		c.Detail, word = err.Error(), "FAIL"
	}
	s.report.Checks = append(s.report.Checks, c)
	s.say("%s  %s%s", word, name, dash(c.Detail))
	return c.Passed
}

// figure notes a measured value; atMost is 0 where nothing is asked.
func (s *story) figure(name string, value float64, unit string, atMost float64, detail string, args ...any) {
	f := Figure{Name: name, Value: value, Unit: unit, AtMost: atMost, Met: atMost == 0 || value <= atMost, Detail: fmt.Sprintf(detail, args...)}
	s.report.Figures = append(s.report.Figures, f)
	s.say("      %s: %.3g %s%s", name, value, unit, dash(f.Detail))
}

func dash(detail string) string {
	if detail == "" {
		return ""
	}
	return ": " + detail
}

// pause waits, unless ctx ends.
func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
