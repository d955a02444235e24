package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"time"

	"github.com/circuitseal/circuitseal/testlab/netns"
	"github.com/circuitseal/circuitseal/testlab/rig"
)

// Config of a tunnel benchmark.
type Config struct {
	Log *slog.Logger
	// Bin holds the binaries, Samples the sample documents; Self is the program
	// whose `wireguard` command is ServeWireGuard.
	Bin, Samples, Self string
	// Logs takes the logs of all processes.
	Logs string
	// Pairs of measurements, each of so long.
	Pairs    int
	Duration time.Duration
	// Flows is the number of TCP streams.
	Flows int
}

// Tunnel compares goodput host to host through both agents with that through
// the same user-space WireGuard configured by hand. Both topologies stand at
// the same time; the lab's own TCP sender measures them in turns.
func Tunnel(ctx context.Context, c Config, out io.Writer) (result Comparison, err error) {
	ours, err := rig.New(ctx, rig.Config{Log: c.Log, Bin: c.Bin, Dir: filepath.Join(c.Logs, "ours")})
	if err != nil {
		return Comparison{}, err
	}
	defer func() { err = errors.Join(err, ours.Close()) }()
	backend, err := product(ctx, ours, c.Samples)
	if err != nil {
		return Comparison{}, err
	}
	hand, err := ByHand(ctx, c)
	if err != nil {
		return Comparison{}, err
	}
	defer func() { err = errors.Join(err, hand.Close()) }()

	var a, b []float64
	// One round warms both up and is not counted.
	for i := range c.Pairs + 1 {
		x, err := goodput(ctx, ours, c)
		if err != nil {
			return Comparison{}, fmt.Errorf("measure ours: %w", err)
		}
		y, err := goodput(ctx, hand, c)
		if err != nil {
			return Comparison{}, fmt.Errorf("measure by hand: %w", err)
		}
		if i == 0 {
			continue
		}
		a, b = append(a, x), append(b, y)
		_, _ = fmt.Fprintf(out, "pair %2d  ours %.3f Gb/s  by hand %.3f Gb/s  ratio %.3f\n", i, x, y, x/y)
	}
	return Compare(backend, a, b), nil
}

// ByHand builds the lab with WireGuard configured by hand and waits until it
// carries. The caller must Close it.
func ByHand(ctx context.Context, c Config) (*rig.Rig, error) {
	r, err := rig.New(ctx, rig.Config{Log: c.Log, Bin: c.Bin, Dir: filepath.Join(c.Logs, "byhand")})
	if err != nil {
		return nil, err
	}
	err = byHand(ctx, r, c.Self)
	if err == nil {
		_, err = r.Reach(ctx, rig.Probe{From: netns.HQ, To: netns.VNet, Deadline: 15 * time.Second})
	}
	if err != nil {
		return nil, errors.Join(err, r.Close())
	}
	return r, nil
}

// product brings the product up and says what encrypts.
func product(ctx context.Context, r *rig.Rig, samples string) (string, error) {
	if err := r.StartController(ctx); err != nil {
		return "", err
	}
	if err := r.Apply(ctx, filepath.Join(samples, "10-nodes.yaml")); err != nil {
		return "", err
	}
	for _, h := range []netns.Host{netns.Prem, netns.NVA} {
		if err := r.Enrol(ctx, h); err != nil {
			return "", err
		}
		if err := r.StartAgent(h); err != nil {
			return "", err
		}
	}
	if err := r.Apply(ctx, filepath.Join(samples, "20-contoso.yaml")); err != nil {
		return "", err
	}
	for _, h := range []netns.Host{netns.Prem, netns.NVA} {
		if err := r.TunnelsUp(ctx, h, 2, 20*time.Second); err != nil {
			return "", err
		}
	}
	s, err := r.Status(ctx, netns.Prem)
	if err != nil {
		return "", err
	}
	return s.Tunnels[0].Backend, nil
}

func goodput(ctx context.Context, r *rig.Rig, c Config) (float64, error) {
	s, err := r.Streams(ctx, netns.HQ, netns.VNet, c.Flows, c.Duration, false)
	return s.Gbps, err
}

// Print writes the table.
func (c Comparison) Print(out io.Writer) error {
	_, err := fmt.Fprintf(out, `
backend               %s
ours, median          %.3f Gb/s
by hand, median       %.3f Gb/s
ratio of medians      %.3f  (95 %%: %.3f to %.3f; asked: at least 0.95)
pairs                 %d
`, c.Backend, c.Ours, c.ByHand, c.Ratio, c.Interval[0], c.Interval[1], c.Pairs)
	return err
}
