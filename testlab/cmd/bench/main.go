// Bench measures the product.
//
//	bench tunnel [--protocol wireguard,ipsec] [--pairs 15] [--duration 3s] [--flows 1]
//	bench tenancy [--customers 200] [--sample 4] [--changes 9] [--fuzz 1000]
//
// The first compares goodput through both agents with that through the same
// WireGuard and strongSwan configured by hand, and writes what came out to
// build/bench/tunnel.json, one line for each of what encrypts. The second
// stands many customers on two nodes, and writes build/bench/tenancy.json. The command
// `bench wireguard NAME` is that WireGuard; the benchmark starts it by itself.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/circuitseal/circuitseal/testlab/bench"
	"github.com/circuitseal/circuitseal/testlab/netns"
	"github.com/circuitseal/circuitseal/testlab/rig"
	"github.com/circuitseal/circuitseal/testlab/scenario"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// wireGuardMTU is the product's default.
const wireGuardMTU = 1328

func run(ctx context.Context, args []string) error {
	switch {
	case len(args) == 2 && args[0] == "wireguard":
		return bench.ServeWireGuard(ctx, args[1], wireGuardMTU, func() {})
	case len(args) > 0 && args[0] == "tunnel":
		return tunnel(ctx, args[1:])
	case len(args) > 0 && args[0] == "tenancy":
		return tenants(ctx, args[1:])
	}
	return errors.New("want: bench tunnel [flags] or bench tenancy [flags]")
}

func tunnel(ctx context.Context, args []string) error {
	if why := netns.Missing(); why != "" {
		return errors.New(why)
	}
	c := bench.Config{Log: slog.New(slog.NewTextHandler(os.Stderr, nil)), InnerMTU: wireGuardMTU}
	f := flag.NewFlagSet("bench tunnel", flag.ContinueOnError)
	protocols := f.String("protocol", bench.WireGuard+","+bench.IPsec, "what to measure")
	slow := f.Float64("slow", 1, "how many times longer than usual things may take")
	f.IntVar(&c.Pairs, "pairs", 15, "pairs of measurements")
	f.DurationVar(&c.Duration, "duration", 3*time.Second, "length of each measurement")
	f.IntVar(&c.Flows, "flows", 1, "TCP streams")
	bin := f.String("bin", "", "directory with the binaries; default $"+rig.BinEnv+", or where this program lies")
	samples := f.String("samples", "deploy/samples", "directory with the sample documents")
	out := f.String("out", "build/bench/tunnel.json", "where the result goes")
	logs := f.String("logs", "build/bench/logs", "directory for the logs of all processes")
	if err := f.Parse(args); err != nil {
		return err
	}
	if c.Pairs < 1 || c.Flows < 1 {
		return errors.New("--pairs and --flows: want at least 1")
	}
	var errs [4]error
	c.Self, errs[0] = os.Executable()
	c.Bin, errs[1] = rig.Bin(*bin)
	c.Samples, errs[2] = filepath.Abs(*samples)
	c.Logs, errs[3] = filepath.Abs(*logs)
	if err := errors.Join(errs[:]...); err != nil {
		return err
	}
	if err := os.RemoveAll(c.Logs); err != nil {
		return fmt.Errorf("remove old logs: %w", err)
	}
	have, err := scenario.Facilities(ctx, false)
	if err != nil {
		return err
	}
	c.KernelESP, c.KernelWireGuard = slices.Contains(have, "kernel-esp"), slices.Contains(have, "kernel-wireguard")
	c.Slow = rig.Slow(*slow)
	for c.Protocol = range strings.SplitSeq(*protocols, ",") {
		if c.Protocol != bench.WireGuard && c.Protocol != bench.IPsec {
			return fmt.Errorf("--protocol %q: want %s, %s or both", c.Protocol, bench.WireGuard, bench.IPsec)
		}
		result, err := bench.Tunnel(ctx, c, os.Stdout)
		if err != nil {
			return err
		}
		if err := errors.Join(keep(*out, result), result.Print(os.Stdout)); err != nil {
			return err
		}
	}
	return nil
}

// keep puts a result into the list in a file, in the place of an earlier one of the
// same backend.
func keep(path string, result bench.Comparison) error {
	var all []bench.Comparison
	b, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return fmt.Errorf("read results before: %w", err)
	default:
		if err := json.Unmarshal(b, &all); err != nil {
			return fmt.Errorf("read results before, in %s: %w", path, err)
		}
	}
	all = slices.DeleteFunc(all, func(c bench.Comparison) bool { return c.Backend == result.Backend })
	return write(path, append(all, result))
}

// write keeps a result as JSON.
func write(path string, result any) error {
	b, err := json.MarshalIndent(result, "", "  ")
	if err != nil {
		return fmt.Errorf("encode result: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("write result: %w", err)
	}
	if err := os.WriteFile(path, append(b, '\n'), 0o644); err != nil {
		return fmt.Errorf("write result: %w", err)
	}
	return nil
}
