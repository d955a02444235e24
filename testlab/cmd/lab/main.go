// Lab runs the scenarios of testlab/scenario on this kernel and writes what
// came out to build/lab/host.json.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/circuitseal/circuitseal/testlab/netns"
	"github.com/circuitseal/circuitseal/testlab/rig"
	"github.com/circuitseal/circuitseal/testlab/scenario"
)

func main() {
	var o options
	flag.StringVar(&o.only, "scenario", "", "run this one only")
	flag.StringVar(&o.scripts, "scripts", "testlab/scenario/testdata", "directory with the scripts")
	flag.StringVar(&o.samples, "samples", "deploy/samples", "directory with the sample documents")
	flag.StringVar(&o.out, "out", "build/lab", "directory for host.json and logs")
	flag.StringVar(&o.bin, "bin", "", "directory with the binaries; default $"+rig.BinEnv+", or where this program lies")
	flag.BoolVar(&o.fast, "fast", false, "run only those marked fast")
	flag.BoolVar(&o.verbose, "v", false, "print every transcript, not only of failures")
	flag.Parse()
	if flag.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "lab: there are no arguments, got %q; --scenario NAME runs one; --help lists the flags\n", flag.Args())
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	err := run(ctx, o, os.Stdout)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "lab:", err)
		os.Exit(1)
	}
}

type options struct {
	only, scripts, samples, out, bin string
	fast, verbose                    bool
}

func run(ctx context.Context, o options, w io.Writer) error {
	if why := netns.Missing(); why != "" {
		return errors.New(why)
	}
	bin, err := rig.Bin(o.bin)
	if err != nil {
		return err
	}
	samples, err := filepath.Abs(o.samples)
	if err != nil {
		return err
	}
	all, err := choose(o)
	if err != nil {
		return err
	}
	have, err := scenario.Facilities(ctx)
	if err != nil {
		return err
	}
	c := scenario.Config{Log: slog.New(slog.NewTextHandler(os.Stderr, nil)), Bin: bin, Samples: samples, Dir: filepath.Join(o.out, "host"), Have: have}
	results := []scenario.Result{}
	failed := 0
	for _, s := range all {
		if ctx.Err() != nil {
			break
		}
		_, _ = fmt.Fprintf(w, "%-20s ", s.Name)
		var transcript bytes.Buffer
		r := scenario.Run(ctx, c, s, &transcript)
		if ctx.Err() != nil {
			_, _ = fmt.Fprintln(w, "interrupted")
			break
		}
		results = append(results, r)
		watched := "no tap"
		if r.FramesInClear != nil {
			watched = fmt.Sprintf("%d frames in clear", *r.FramesInClear)
		}
		_, _ = fmt.Fprintf(w, "%s  %5.1f s  %s\n", r.Result, r.Seconds, watched)
		switch {
		case r.Result == scenario.Fail:
			failed++
			_, _ = fmt.Fprintf(w, "%s\n%s\n", transcript.String(), r.Reason)
		case r.Result == scenario.Skip:
			_, _ = fmt.Fprintf(w, "    %s\n", r.Reason)
		case o.verbose:
			_, _ = fmt.Fprintln(w, transcript.String())
		}
	}
	if err := write(filepath.Join(o.out, "host.json"), results); err != nil {
		return err
	}
	if failed > 0 {
		return fmt.Errorf("%d of %d scenarios failed; logs are below %s", failed, len(results), c.Dir)
	}
	return ctx.Err()
}

// choose picks the scenarios to run.
func choose(o options) ([]scenario.Scenario, error) {
	if _, err := os.Stat(o.scripts); err != nil {
		return nil, fmt.Errorf("--scripts: %w", err)
	}
	all, err := scenario.Load(os.DirFS(o.scripts))
	if err != nil {
		return nil, err
	}
	var names []string
	for _, s := range all {
		names = append(names, s.Name)
	}
	all = slices.DeleteFunc(all, func(s scenario.Scenario) bool { return o.only != "" && s.Name != o.only || o.fast && !s.Fast })
	if len(all) == 0 {
		return nil, fmt.Errorf("no scenario in %s fits --scenario %q; there are: %s", o.scripts, o.only, strings.Join(names, ", "))
	}
	return all, nil
}

func write(path string, results []scenario.Result) error {
	b, err := json.MarshalIndent(results, "", "  ")
	if err != nil {
		return fmt.Errorf("encode results: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("write results: %w", err)
	}
	if err := os.WriteFile(path, append(b, '\n'), 0o644); err != nil {
		return fmt.Errorf("write results: %w", err)
	}
	return nil
}
