package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/circuitseal/circuitseal/testlab/kernelvm"
	"github.com/circuitseal/circuitseal/testlab/scenario"
)

// kernelPackages are those whose tests say something about a kernel.
var kernelPackages = []string{
	"./agent/bpffs", "./agent/classifier", "./agent/guard", "./agent/ipsec", "./agent/link", "./agent/liveness", "./agent/netns",
	"./agent/slowpath", "./agent/tchook", "./agent/wireguard", "./testlab/netns", "./testlab/tap",
}

// fastPackages are those of them that show most of what only this line does:
// WireGuard and VLAN devices in the kernel, and the programs of the fast path by clsact under an
// older verifier.
var fastPackages = map[string][]string{
	"6.12": {"./agent/link", "./agent/slowpath", "./agent/tchook", "./agent/wireguard"},
	"6.1":  {"./agent/classifier", "./agent/guard", "./agent/slowpath", "./agent/tchook"},
}

// testEnvironment turns skips into failures: what the lab's kernels have, a
// test may ask for.
var testEnvironment = []string{"CI=true", "CIRCUITSEAL_REQUIRE_PRIVILEGE=1", "CIRCUITSEAL_REQUIRE_KERNEL=1"}

func testCommand(o *options) *cobra.Command {
	var pattern string
	var fast, verbose bool
	c := &cobra.Command{
		Use:   "test [PACKAGE...]",
		Short: "Run Go tests; what came out is in kernel-test.json, their coverage in kernel-cover.txt",
		RunE: func(c *cobra.Command, args []string) error {
			if fast && len(args) > 0 {
				return fmt.Errorf("--fast names the packages itself, got %q", args)
			}
			return o.test(c.Context(), func(line string) []string {
				switch {
				case fast:
					return fastPackages[line]
				case len(args) > 0:
					return args
				default:
					return kernelPackages
				}
			}, pattern, verbose)
		},
	}
	c.Flags().StringVar(&pattern, "run", "", "run only tests that match this expression")
	c.Flags().BoolVar(&fast, "fast", false, "run for each kernel what shows most of it")
	c.Flags().BoolVarP(&verbose, "verbose", "v", false, "name every test")
	return c
}

// coverDir is where the guest counts, in the share.
const coverDir = "cover"

// binary is a package's compiled tests.
type binary struct{ name, dir, path string }

// test runs the packages of each line under it, each a job. A part of the tests
// leaves no results: it says nothing of a package.
func (o *options) test(ctx context.Context, packages func(line string) []string, run string, verbose bool) error {
	compiled := map[string][]binary{}
	for _, line := range o.kernels {
		var err error
		if compiled[line], err = o.compile(ctx, packages(line)); err != nil {
			return err
		}
	}
	found := results{path: filepath.Join(o.out, "kernel-test.json")}
	profile := filepath.Join(o.out, "kernel-cover.txt")
	if err := errors.Join(found.write(), os.RemoveAll(profile)); err != nil {
		return err
	}
	var errs []error
	var covers []string
	for _, line := range o.kernels {
		binaries := compiled[line]
		k, err := o.fetch(ctx, line)
		if err != nil {
			return errors.Join(append(errs, err)...)
		}
		jobs := func(share string) []kernelvm.Job {
			return o.testJobs(binaries, filepath.Join(share, coverDir), run, verbose)
		}
		errs = append(errs, o.each(ctx, k, o.share(line)+"-test", jobs, []string{coverDir}, func(share string, e kernelvm.Exit) error {
			if c := filepath.Join(share, coverDir); !slices.Contains(covers, c) {
				covers = append(covers, c)
			}
			r := testResult(k, e)
			if r.Result == scenario.Fail {
				errs = append(errs, fmt.Errorf("%s under %s: %s", e.Name, k.Release, r.Reason))
			}
			_, _ = fmt.Fprintf(o.say, "%-5s %-60s %6.1f s\n", r.Result, e.Name, e.Seconds)
			if run != "" {
				return nil
			}
			return found.add(r)
		}))
		if ctx.Err() != nil {
			break
		}
	}
	return errors.Join(append(errs, o.coverage(ctx, profile, covers))...)
}

// testResult is a package's line in kernel-test.json.
func testResult(k kernelvm.Kernel, e kernelvm.Exit) scenario.Result {
	r := scenario.Result{Scenario: strings.TrimPrefix(e.Name, module), Result: scenario.Pass, Seconds: e.Seconds, Kernel: k.Release, Backends: []string{}}
	if err := failure(e); err != nil {
		r.Result, r.Reason = scenario.Fail, err.Error()
	}
	return r
}

// module is what every package's path begins with.
const module = "github.com/circuitseal/circuitseal/"

// compile builds the tests of packages that have any.
func (o *options) compile(ctx context.Context, patterns []string) ([]binary, error) {
	out, err := goTool(ctx, append([]string{"list", "-json=ImportPath,Dir,TestGoFiles,XTestGoFiles"}, patterns...)...)
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(o.out, "kernel-tests")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("compile tests: %w", err)
	}
	var all []binary
	for d := json.NewDecoder(strings.NewReader(out)); d.More(); {
		var p struct {
			ImportPath, Dir           string
			TestGoFiles, XTestGoFiles []string
		}
		if err := d.Decode(&p); err != nil {
			return nil, fmt.Errorf("list packages: %w", err)
		}
		if len(p.TestGoFiles)+len(p.XTestGoFiles) == 0 {
			continue
		}
		b := binary{p.ImportPath, p.Dir, filepath.Join(dir, strings.ReplaceAll(p.ImportPath, "/", "_")+".test")}
		if _, err := goTool(ctx, "test", "-c", "-vet=off", "-cover", "-covermode=atomic", "-o", b.path, p.ImportPath); err != nil {
			return nil, err
		}
		all = append(all, b)
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("%s: no package with tests", strings.Join(patterns, " "))
	}
	return all, nil
}

// testLimit is what a package may take; the testing package says where it hangs.
const testLimit = 20 * time.Minute

func (o *options) testJobs(binaries []binary, cover, run string, verbose bool) []kernelvm.Job {
	var jobs []kernelvm.Job
	for _, b := range binaries {
		args := []string{b.path, "-test.count=1", "-test.timeout=" + testLimit.String(), "-test.gocoverdir=" + cover}
		if run != "" {
			args = append(args, "-test.run="+run)
		}
		if verbose {
			args = append(args, "-test.v")
		}
		jobs = append(jobs, kernelvm.Job{Name: b.name, Announce: true, Dir: b.dir, Args: args, Env: append(o.environment(), testEnvironment...),
			LimitSeconds: (testLimit + time.Minute).Seconds()})
	}
	return jobs
}

// coverage brings what the guests counted into one profile.
func (o *options) coverage(ctx context.Context, profile string, dirs []string) error {
	if len(dirs) == 0 {
		return nil
	}
	if _, err := goTool(ctx, "tool", "covdata", "textfmt", "-i="+strings.Join(dirs, ","), "-o="+profile); err != nil {
		return err
	}
	out, err := goTool(ctx, "tool", "covdata", "percent", "-i="+strings.Join(dirs, ","))
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(o.say, "%scoverage: %s\n", out, profile)
	return err
}

func goTool(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "go", args...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("go %s: %w: %s", strings.Join(args[:min(2, len(args))], " "), err, strings.TrimSpace(stderr.String()))
	}
	return string(out), nil
}
