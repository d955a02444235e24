package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"

	"github.com/circuitseal/circuitseal/testlab/netns"
	"github.com/circuitseal/circuitseal/testlab/rig"
)

// Config says where things are.
type Config struct {
	Log *slog.Logger
	// Bin holds the binaries, Samples the sample documents.
	Bin, Samples string
	// Logs takes the logs of the run's processes.
	Logs string
	// Repeats of each timing.
	Repeats int
}

// ErrFailed means that a check did not hold, or that the story broke off.
var ErrFailed = errors.New("the demo failed")

// Run tells the whole story and prints it to out. The report is complete as
// far as the story came, also when there is an error.
func Run(ctx context.Context, c Config, out io.Writer) (Report, error) {
	s := &story{config: c, out: out, start: time.Now()}
	s.report = Report{Kernel: kernel(), Started: s.start, Checks: []Check{}, Figures: []Figure{}}
	err := s.tell(ctx)
	if err != nil && ctx.Err() != nil {
		// What broke then broke because of that.
		err = context.Cause(ctx)
	}
	s.report.Seconds = time.Since(s.start).Seconds()
	s.report.Passed = err == nil
	for _, c := range s.report.Checks {
		s.report.Passed = s.report.Passed && c.Passed
	}
	if err == nil && !s.report.Passed {
		err = ErrFailed
	}
	return s.report, err
}

// tell runs the control and the real part. Each cleans up behind itself.
func (s *story) tell(ctx context.Context) error {
	if err := s.control(ctx); err != nil {
		return err
	}
	return s.real(ctx)
}

// real is the story with agents. What later steps build on ends it when it
// fails; everything else is noted and goes on.
func (s *story) real(ctx context.Context) (err error) {
	r, err := rig.New(ctx, rig.Config{Log: s.config.Log, Bin: s.config.Bin, Dir: filepath.Join(s.config.Logs, "real")})
	if err != nil {
		return err
	}
	s.rig = r
	defer func() {
		err = errors.Join(err, r.Close())
		s.say("cleaned up")
	}()
	if s.tap, err = r.StartTap(nil); err != nil {
		return err
	}
	steps := []struct {
		name string
		do   func(context.Context) error
		// must: without it nothing later makes sense.
		must bool
	}{
		{"bring up", s.bringUp, true},
		{"reach", s.reach, true},
		{"idle memory", s.idleMemory, false},
		{"both links", s.bothLinks, false},
		{"TCP rate and memory under load", s.load, false},
		{"forged LAN host", s.forged, false},
		{"time from apply to first packet", s.applyTimes, false},
		{"controller stopped", s.controllerStopped, false},
		{"agent killed", s.agentKilled, false},
		{"start from last good state", s.startTimes, false},
		{"link cut", s.linkCut, false},
	}
	for _, step := range steps {
		if err := step.do(ctx); err != nil {
			if ctx.Err() != nil {
				return fmt.Errorf("%s: %w", step.name, context.Cause(ctx))
			}
			s.check(step.name, err, "")
			if step.must {
				break
			}
		}
	}
	sum, err := s.tap.Stop(context.WithoutCancel(ctx))
	if err == nil && sum.InClear > 0 {
		err = errors.New(rig.Describe(sum))
	}
	if err == nil && sum.Frames == 0 {
		err = errors.New("the tap saw no frame at all")
	}
	s.check("tap at the end: nothing in clear", err, "0 of %d frames on both links", sum.Frames)
	return nil
}

// Print writes the final table.
func (r Report) Print(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
	_, _ = fmt.Fprintln(w, "\nCHECKED\t\t")
	for _, c := range r.Checks {
		word := "ok"
		if !c.Passed {
			word = "FAIL"
		}
		_, _ = fmt.Fprintf(w, "%s\t%s\t%.100s\n", c.Name, word, firstLine(c.Detail))
	}
	_, _ = fmt.Fprintln(w, "\nMEASURED\tVALUE\tTARGET\t")
	for _, f := range r.Figures {
		asked := "-"
		if f.AtMost > 0 {
			asked = fmt.Sprintf("at most %g %s", f.AtMost, f.Unit)
			if !f.Met {
				asked += ": MISSED"
			}
		}
		_, _ = fmt.Fprintf(w, "%s\t%.3g %s\t%s\t%s\n", f.Name, f.Value, f.Unit, asked, f.Detail)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	verdict := "passed"
	if !r.Passed {
		verdict = "FAILED"
	}
	_, err := fmt.Fprintf(out, "\nThe demo %s after %.0f s on Linux %s.\n", verdict, r.Seconds, r.Kernel)
	return err
}

// Write keeps the report as JSON.
func (r Report) Write(path string) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("encode report: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("write report: %w", err)
	}
	if err := os.WriteFile(path, append(b, '\n'), 0o644); err != nil {
		return fmt.Errorf("write report: %w", err)
	}
	return nil
}

func firstLine(s string) string {
	for i, c := range s {
		if c == '\n' {
			return s[:i]
		}
	}
	return s
}

func kernel() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "unknown"
	}
	return unix.ByteSliceToString(u.Release[:])
}

// both are the appliances.
var both = []netns.Host{netns.Prem, netns.NVA}
