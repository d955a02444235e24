package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/circuitseal/circuitseal/testlab/netns"
	"github.com/circuitseal/circuitseal/testlab/rig"
	"github.com/circuitseal/circuitseal/testlab/tenancy"
)

func tenants(ctx context.Context, args []string) error {
	if why := netns.Missing(); why != "" {
		return errors.New(why)
	}
	c := tenancy.Config{Log: slog.New(slog.NewTextHandler(os.Stderr, nil))}
	f := flag.NewFlagSet("bench tenancy", flag.ContinueOnError)
	f.IntVar(&c.Customers, "customers", 200, "customers on both nodes")
	f.IntVar(&c.Sample, "sample", 4, "customers with hosts at both ends")
	changes := f.Int("changes", 9, "changes with one customer, and with all")
	fuzz := f.Int("fuzz", 1000, "packets that each host sends anywhere")
	bin := f.String("bin", "", "directory with the binaries; default $"+rig.BinEnv+", or where this program lies")
	out := f.String("out", "build/bench/tenancy.json", "where the result goes")
	logs := f.String("logs", "build/bench/tenancy-logs", "directory for the logs of all processes")
	if err := f.Parse(args); err != nil {
		return err
	}
	if *changes < 1 || *fuzz < 1 {
		return errors.New("--changes and --fuzz: want at least 1")
	}
	var errs [2]error
	c.Bin, errs[0] = rig.Bin(*bin)
	c.Logs, errs[1] = filepath.Abs(*logs)
	if err := errors.Join(errs[:]...); err != nil {
		return err
	}
	if err := os.RemoveAll(c.Logs); err != nil {
		return fmt.Errorf("remove old logs: %w", err)
	}
	r, err := tenancy.Measure(ctx, c, *changes, *fuzz, os.Stdout)
	if err != nil {
		return err
	}
	return errors.Join(write(*out, r), r.Print(os.Stdout))
}
