// Lab runs the scenarios of testlab/scenario on this kernel and writes what
// came out to build/lab/host.json.
package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/circuitseal/circuitseal/testlab/netns"
	"github.com/circuitseal/circuitseal/testlab/rig"
	"github.com/circuitseal/circuitseal/testlab/scenario"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	err := command(os.Stdout).ExecuteContext(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "lab:", err)
		os.Exit(1)
	}
}

type options struct {
	only, scripts, samples, out, bin string
	fast, verbose                    bool
	requireAll                       bool
	slow                             float64
}

func command(w io.Writer) *cobra.Command {
	var o options
	c := &cobra.Command{
		Use:           "lab",
		Short:         "Run the scenarios on this kernel; what came out is in host.json",
		Args:          cobra.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE:          func(c *cobra.Command, _ []string) error { return run(c.Context(), o, w) },
	}
	f := c.Flags()
	f.StringVar(&o.only, "scenario", "", "run these only, separated by commas")
	f.StringVar(&o.scripts, "scripts", "testlab/scenario/testdata", "directory with the scripts")
	f.StringVar(&o.samples, "samples", "deploy/samples", "directory with the sample documents")
	f.StringVar(&o.out, "out", "build/lab", "directory for host.json and logs")
	f.StringVar(&o.bin, "bin", "", "directory with the binaries; default $"+rig.BinEnv+", or where this program lies")
	f.BoolVar(&o.fast, "fast", false, "run only those marked fast")
	f.Float64Var(&o.slow, "slow", 1, "how many times longer than on a usual machine things may take")
	f.BoolVar(&o.requireAll, "require-all", false, "fail if the kernel lacks anything that scenarios may need, rather than skip them")
	f.BoolVarP(&o.verbose, "verbose", "v", false, "print every transcript, not only of failures")
	c.AddCommand(matrixCommand())
	return c
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
	// What an earlier run found must not pass for this one's.
	found := filepath.Join(o.out, "host.json")
	if err := scenario.WriteResults(found, []scenario.Result{}); err != nil {
		return err
	}
	have, err := scenario.Facilities(ctx, o.requireAll)
	if err != nil {
		return err
	}
	c := scenario.Config{Log: slog.New(slog.NewTextHandler(os.Stderr, nil)), Bin: bin, Samples: samples, Dir: filepath.Join(o.out, "host"), Have: have, Slow: rig.Slow(o.slow)}
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
			r.Result, r.Reason = scenario.Fail, "interrupted"
			results = append(results, r)
			if err := scenario.WriteResults(found, results); err != nil {
				return err
			}
			break
		}
		results = append(results, r)
		// Each time, so that what ends the lab does not take away what it had found.
		if err := scenario.WriteResults(found, results); err != nil {
			return err
		}
		watched := "no tap"
		if r.Result == scenario.Skip {
			watched = ""
		}
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
	least := scenario.Nowhere
	if o.fast {
		least = scenario.OnHost
	}
	return scenario.Choose(all, o.only, least)
}
