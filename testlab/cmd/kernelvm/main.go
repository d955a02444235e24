// Kernelvm runs the lab's scenarios, the project's own tests, or any program of
// this checkout under another kernel, in a virtual machine.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/circuitseal/circuitseal/testlab/kernelvm"
	"github.com/circuitseal/circuitseal/testlab/rig"
	"github.com/circuitseal/circuitseal/testlab/scenario"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	err := command(os.Stdout).ExecuteContext(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "kernelvm:", err)
		if ended, ok := errors.AsType[*programError](err); ok {
			os.Exit(ended.code)
		}
		os.Exit(1)
	}
}

// options are what all commands take.
type options struct {
	kernels           []string
	accel, cache, out string
	bin               string
	limit             time.Duration
	slow              float64
	root              string
	// banner gets what kernelvm itself says of guests.
	say, banner io.Writer
}

func command(w io.Writer) *cobra.Command {
	o := &options{say: w, banner: w}
	c := &cobra.Command{
		Use:           "kernelvm",
		Short:         "Run scenarios, tests or programs of this checkout under another kernel",
		SilenceUsage:  true,
		SilenceErrors: true,
		PersistentPreRunE: func(*cobra.Command, []string) (err error) {
			return o.complete()
		},
	}
	f := c.PersistentFlags()
	f.StringSliceVar(&o.kernels, "kernel", kernelvm.Lines[:1], "kernel lines, of "+strings.Join(kernelvm.Lines, ", ")+", or all")
	f.StringVar(&o.accel, "accel", "tcg", "QEMU's accelerator: tcg, which works everywhere, or kvm")
	f.StringVar(&o.cache, "cache", "", "directory for kernels; default circuitseal/kernels in the user's cache")
	f.StringVar(&o.out, "out", "build/lab", "directory for results and logs")
	f.StringVar(&o.bin, "bin", "", "directory with the binaries; default $"+rig.BinEnv+", or where this program lies")
	f.DurationVar(&o.limit, "limit", 90*time.Minute, "the longest that one kernel may take")
	f.Float64Var(&o.slow, "slow", 0, "how many times longer than on a usual machine things may take; default 4 under tcg, else 1")
	c.AddCommand(labCommand(o), testCommand(o), runCommand(o))
	return c
}

func (o *options) complete() (err error) {
	if o.bin, err = rig.Bin(o.bin); err != nil {
		return err
	}
	if o.root, err = os.Getwd(); err != nil {
		return err
	}
	if o.cache == "" {
		// Without a home the build's directory does.
		base, err := os.UserCacheDir()
		if err != nil {
			base = "build"
		}
		if o.cache, err = filepath.Abs(filepath.Join(base, "circuitseal", "kernels")); err != nil {
			return err
		}
	}
	if slices.Equal(o.kernels, []string{"all"}) {
		o.kernels = kernelvm.Lines
	}
	for _, k := range o.kernels {
		if !slices.Contains(kernelvm.Lines, k) {
			return fmt.Errorf("there is no kernel line %q; there are: %s, or all", k, strings.Join(kernelvm.Lines, ", "))
		}
	}
	if o.out, err = filepath.Abs(o.out); err != nil {
		return err
	}
	if o.slow == 0 {
		o.slow = 1
		if o.accel == "tcg" {
			o.slow = 4
		}
	}
	return nil
}

// share is the directory by which host and guest exchange files.
func (o *options) share(line string) string { return filepath.Join(o.out, "kernel-"+line) }

func (o *options) fetch(ctx context.Context, line string) (kernelvm.Kernel, error) {
	return kernelvm.Fetch(ctx, line, o.cache, func(s string) { _, _ = fmt.Fprintln(o.banner, s) })
}

// boot runs jobs in one guest. What they write goes to the share's path with
// .log, too.
func (o *options) boot(ctx context.Context, k kernelvm.Kernel, share string, limit time.Duration, jobs []kernelvm.Job, dirs []string) (exits []kernelvm.Exit, err error) {
	if err := os.MkdirAll(filepath.Dir(share), 0o755); err != nil {
		return nil, fmt.Errorf("make the log: %w", err)
	}
	log, err := os.Create(share + ".log")
	if err != nil {
		return nil, fmt.Errorf("make the log: %w", err)
	}
	defer func() { err = errors.Join(err, log.Close()) }()
	_, _ = fmt.Fprintf(o.banner, "== Linux %s (%s)\n", k.Release, o.accel)
	return kernelvm.Run(ctx, kernelvm.Config{
		Kernel: k, Init: filepath.Join(o.bin, "vminit"), Share: share, Dirs: dirs, Accel: o.accel, Limit: limit,
		Output: io.MultiWriter(o.say, log),
	}, jobs)
}

// runCommand is for looking into things by hand.
func runCommand(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "run -- PROGRAM [ARGS...]",
		Short: "Run a program in the virtual machine, in this directory",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return errors.New("run what? Such as: kernelvm run --kernel 6.1 -- uname -r")
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			// What the program writes is all that there is on standard output.
			o.banner = os.Stderr
			var errs []error
			for _, line := range o.kernels {
				k, err := o.fetch(c.Context(), line)
				if err != nil {
					return err
				}
				exits, err := o.boot(c.Context(), k, o.share(line)+"-run", o.limit, []kernelvm.Job{{Name: args[0], Dir: o.root, Args: args, Env: o.environment()}}, nil)
				errs = append(errs, err)
				for _, e := range exits {
					errs = append(errs, failure(e))
				}
			}
			return errors.Join(errs...)
		},
	}
}

// environment is what jobs get of this process's, beside where the binaries are.
func (o *options) environment() []string {
	env := []string{rig.BinEnv + "=" + o.bin}
	if n, ok := os.LookupEnv(scenario.RekeysEnv); ok {
		env = append(env, scenario.RekeysEnv+"="+n)
	}
	return env
}

// failure says in what way a job failed, if it did.
func failure(e kernelvm.Exit) error {
	switch {
	case e.Code == 0:
		return nil
	case e.Problem != "":
		return fmt.Errorf("%s: %s", e.Name, e.Problem)
	default:
		return &programError{e.Name, e.Code}
	}
}

// programError is a program's own failure, whose exit code is handed on.
type programError struct {
	name string
	code int
}

func (e *programError) Error() string { return fmt.Sprintf("%s: exit code %d", e.name, e.code) }
