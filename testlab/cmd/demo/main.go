// Demo runs the product for real in network namespaces of its own, checks what
// it promises and measures it: two nodes, tunnels over both links of a
// circuit, an independent tap, and one fault after the other.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/circuitseal/circuitseal/testlab/demo"
	"github.com/circuitseal/circuitseal/testlab/netns"
	"github.com/circuitseal/circuitseal/testlab/rig"
)

func main() {
	bin := flag.String("bin", "", "directory with the binaries; default $"+rig.BinEnv+", or where this program lies")
	samples := flag.String("samples", "deploy/samples", "directory with the sample documents")
	out := flag.String("out", "build/bench/demo.json", "where the report goes")
	logs := flag.String("logs", "build/demo", "directory for the logs of all processes")
	repeats := flag.Int("repeats", 10, "how often each timing is measured")
	flag.Parse()
	if flag.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "demo: there are no arguments, got %q; --help lists the flags\n", flag.Args())
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	err := run(ctx, *bin, *samples, *out, *logs, *repeats)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, bin, samples, out, logs string, repeats int) error {
	if why := netns.Missing(); why != "" {
		return errors.New(why)
	}
	if repeats < 1 {
		return fmt.Errorf("--repeats %d: want at least 1", repeats)
	}
	c := demo.Config{Log: slog.New(slog.NewTextHandler(os.Stderr, nil)), Repeats: repeats}
	var errs [3]error
	c.Bin, errs[0] = rig.Bin(bin)
	c.Samples, errs[1] = filepath.Abs(samples)
	c.Logs, errs[2] = filepath.Abs(logs)
	if err := errors.Join(errs[:]...); err != nil {
		return err
	}
	// Logs of an earlier run would only mislead.
	if err := os.RemoveAll(c.Logs); err != nil {
		return fmt.Errorf("remove old logs: %w", err)
	}
	report, err := demo.Run(ctx, c, os.Stdout)
	errPrint := report.Print(os.Stdout)
	if err != nil {
		err = fmt.Errorf("%w; logs are in %s", err, c.Logs)
	}
	errWrite := report.Write(out)
	if err == nil && errWrite == nil {
		fmt.Printf("The report is in %s, the logs of all processes are below %s.\n", out, logs)
	}
	return errors.Join(err, errPrint, errWrite)
}
