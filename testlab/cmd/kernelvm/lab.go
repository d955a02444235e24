package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

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

// lab runs scenarios under each kernel, a job each, and writes what came out,
// also when it is interrupted.
func (o *options) lab(ctx context.Context, chosen []scenario.Scenario) error {
	found := results{path: filepath.Join(o.out, "kernel.json")}
	if err := found.write(); err != nil {
		return err
	}
	var errs []error
	for _, line := range o.kernels {
		k, err := o.fetch(ctx, line)
		if err != nil {
			return errors.Join(append(errs, err)...)
		}
		jobs := func(share string) []kernelvm.Job { return o.scenarioJobs(share, chosen) }
		errs = append(errs, o.each(ctx, k, o.share(line), jobs, nil, func(share string, e kernelvm.Exit) error {
			return found.add(outcome(share, k, e))
		}))
		if ctx.Err() != nil {
			break
		}
	}
	if n := found.failed(); n > 0 {
		errs = append(errs, fmt.Errorf("%d of %d scenarios failed; logs are below %s", n, len(found.all), o.share("*")))
	}
	return errors.Join(errs...)
}

// results are kept in a file while they come in.
type results struct {
	path string
	all  []scenario.Result
}

func (r *results) add(x scenario.Result) error {
	r.all = append(r.all, x)
	return r.write()
}

func (r *results) write() error { return scenario.WriteResults(r.path, r.all) }

func (r *results) failed() (n int) {
	for _, x := range r.all {
		if x.Result == scenario.Fail {
			n++
		}
	}
	return n
}

// cleaningUp is what a scenario may take beside its own limit.
const cleaningUp = 2 * time.Minute

func (o *options) scenarioJobs(share string, chosen []scenario.Scenario) []kernelvm.Job {
	var jobs []kernelvm.Job
	for _, s := range chosen {
		jobs = append(jobs, kernelvm.Job{
			Name: s.Name, Dir: o.root, Env: o.environment(), LimitSeconds: o.slow * (s.Limit + cleaningUp).Seconds(),
			Args: []string{
				filepath.Join(o.bin, "lab"), "--scenario", s.Name, "--out", filepath.Join(share, s.Name), "--require-all",
				"--slow", strconv.FormatFloat(o.slow, 'g', -1, 64),
			},
		})
	}
	return jobs
}

// outcome is what the guest's lab wrote, if that and its end agree that it is a
// pass; else it is a failure, a scenario that was skipped too.
func outcome(share string, k kernelvm.Kernel, e kernelvm.Exit) scenario.Result {
	r := scenario.Result{Scenario: e.Name, Result: scenario.Fail, Seconds: e.Seconds, Kernel: k.Release, Backends: []string{}}
	found, err := scenario.ReadResults(filepath.Join(share, e.Name, "host.json"))
	switch ended := failure(e); {
	case err != nil:
		r.Reason = errors.Join(ended, err).Error()
	case len(found) != 1 || found[0].Scenario != e.Name || found[0].Kernel != k.Release:
		r.Reason = errors.Join(ended, fmt.Errorf("the guest's lab wrote no result of %s under %s", e.Name, k.Release)).Error()
	case found[0].Result == scenario.Skip:
		r.Reason = found[0].Reason + "; the lab's own kernels have to have everything that a scenario may need"
	case found[0].Result == scenario.Pass && ended != nil:
		r.Reason = ended.Error()
	default:
		return found[0]
	}
	return r
}
