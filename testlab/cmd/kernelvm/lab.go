package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/circuitseal/circuitseal/testlab/kernelvm"
	"github.com/circuitseal/circuitseal/testlab/scenario"
)

// scripts is where the scenarios are, below the checkout.
const scripts = "testlab/scenario/testdata"

func labCommand(o *options) *cobra.Command {
	var only string
	var fast bool
	c := &cobra.Command{
		Use:   "lab",
		Short: "Run the scenarios; what came out is in kernel.json",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			all, err := scenario.Load(os.DirFS(scripts))
			if err != nil {
				return err
			}
			least := scenario.Nowhere
			if fast {
				least = scenario.Everywhere
			}
			chosen, err := scenario.Choose(all, only, least)
			if err != nil {
				return err
			}
			return o.lab(c.Context(), chosen)
		},
	}
	c.Flags().StringVar(&only, "scenario", "", "run these only, separated by commas")
	c.Flags().BoolVar(&fast, "fast", false, "run only those marked fast")
	return c
}

// lab runs scenarios under each kernel and writes what came out, also when it
// is interrupted.
func (o *options) lab(ctx context.Context, chosen []scenario.Scenario) error {
	var results []scenario.Result
	var errs []error
	for _, line := range o.kernels {
		k, err := o.fetch(ctx, line)
		if err != nil {
			return errors.Join(append(errs, err)...)
		}
		some, err := o.labUnder(ctx, k, chosen)
		results = append(results, some...)
		errs = append(errs, err, scenario.WriteResults(filepath.Join(o.out, "kernel.json"), results))
		if ctx.Err() != nil {
			break
		}
	}
	failed := 0
	for _, r := range results {
		if r.Result == scenario.Fail {
			failed++
		}
	}
	if failed > 0 {
		errs = append(errs, fmt.Errorf("%d of %d scenarios failed; logs are below %s", failed, len(results), o.share("*")))
	}
	return errors.Join(errs...)
}

// labUnder runs scenarios under one kernel, a job each. A guest that dies takes
// only the scenario with it that ran: another is booted for the others.
func (o *options) labUnder(ctx context.Context, k kernelvm.Kernel, chosen []scenario.Scenario) ([]scenario.Result, error) {
	var results []scenario.Result
	for boot := 1; len(chosen) > 0; boot++ {
		share := o.share(k.Line)
		if boot > 1 {
			share = fmt.Sprintf("%s-boot%d", share, boot)
		}
		exits, err := o.boot(ctx, k, share, o.scenarioJobs(share, chosen))
		for i, e := range exits {
			results = append(results, outcome(share, k, chosen[i], e))
		}
		chosen = chosen[len(exits):]
		if _, died := errors.AsType[*kernelvm.GuestError](err); !died {
			return results, err
		}
		if len(chosen) == 0 {
			return results, err
		}
		_, _ = fmt.Fprintf(o.say, "%-20s fail  %v\n", chosen[0].Name, err)
		results = append(results, scenario.Result{
			Scenario: chosen[0].Name, Result: scenario.Fail, Kernel: k.Release, Backends: []string{}, Reason: err.Error(),
		})
		if len(exits) == 0 && boot > 1 {
			return results, fmt.Errorf("two guests in a row ended in their first scenario: %w", err)
		}
		chosen = chosen[1:]
	}
	return results, nil
}

func (o *options) scenarioJobs(share string, chosen []scenario.Scenario) []kernelvm.Job {
	var jobs []kernelvm.Job
	for _, s := range chosen {
		jobs = append(jobs, kernelvm.Job{
			Name: s.Name, Dir: o.root, Env: o.environment(),
			Args: []string{
				filepath.Join(o.bin, "lab"), "--scenario", s.Name, "--out", filepath.Join(share, s.Name), "--slow", strconv.FormatFloat(o.slow, 'g', -1, 64),
			},
		})
	}
	return jobs
}

// outcome is what the guest's lab wrote, or why it wrote nothing.
func outcome(share string, k kernelvm.Kernel, s scenario.Scenario, e kernelvm.Exit) scenario.Result {
	r := scenario.Result{Scenario: s.Name, Result: scenario.Fail, Seconds: e.Seconds, Kernel: k.Release, Backends: []string{}}
	results, err := scenario.ReadResults(filepath.Join(share, s.Name, "host.json"))
	switch {
	case err != nil:
		r.Reason = errors.Join(failure(e), err).Error()
	case len(results) != 1:
		r.Reason = fmt.Sprintf("the guest's lab has %d results, want 1", len(results))
	case results[0].Result != scenario.Fail && e.Code != 0:
		r.Reason = failure(e).Error()
	case results[0].Result == scenario.Skip:
		r.Reason = results[0].Reason + "; the lab's own kernels have to have everything that a scenario may need"
	default:
		return results[0]
	}
	return r
}
