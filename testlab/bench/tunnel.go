package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
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
	// Protocol is wireguard or ipsec.
	Protocol string
	// KernelESP and KernelWireGuard tell what this kernel has.
	KernelESP, KernelWireGuard bool
	// Pairs of measurements, each of so long.
	Pairs    int
	Duration time.Duration
	// Flows is the number of TCP streams.
	Flows int
	// InnerMTU is that of WireGuard by hand, the product's default.
	InnerMTU int
	// Slow is of this machine.
	Slow rig.Slow
}

// Tunnel compares goodput host to host through both agents with that through
// the same WireGuard or strongSwan configured by hand. Both topologies stand at
// the same time; the lab's own TCP sender measures them in turns.
func Tunnel(ctx context.Context, c Config, out io.Writer) (result Comparison, err error) {
	ours, err := rig.New(ctx, rig.Config{Log: c.Log, Bin: c.Bin, Slow: c.Slow, Dir: filepath.Join(c.Logs, c.Protocol, "ours")})
	if err != nil {
		return Comparison{}, err
	}
	defer func() { err = errors.Join(err, ours.Close()) }()
	backend, err := product(ctx, ours, c)
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

// ByHand builds the lab with a tunnel configured by hand and waits until it
// carries. The caller must Close it.
func ByHand(ctx context.Context, c Config) (*rig.Rig, error) {
	r, err := rig.New(ctx, rig.Config{Log: c.Log, Bin: c.Bin, Slow: c.Slow, Dir: filepath.Join(c.Logs, c.Protocol, "byhand")})
	if err != nil {
		return nil, err
	}
	if c.Protocol == IPsec {
		err = ipsecByHand(ctx, r, c)
	} else {
		err = byHand(ctx, r, c)
	}
	if err == nil {
		_, err = r.Reach(ctx, rig.Probe{From: netns.HQ, To: netns.VNet, Deadline: c.Slow.Longer(15 * time.Second)})
	}
	if err != nil {
		return nil, errors.Join(err, r.Close())
	}
	return r, nil
}

// The protocols.
const (
	WireGuard = "wireguard"
	IPsec     = "ipsec"
)

// tunnels is how many the product has of a protocol: libipsec carries one.
func (c Config) tunnels() int {
	if c.Protocol == IPsec && !c.KernelESP {
		return 1
	}
	return 2
}

// documents are the sample with this protocol.
func (c Config) documents(r *rig.Rig) (string, error) {
	sample := filepath.Join(c.Samples, "20-contoso.yaml")
	if c.Protocol != IPsec {
		return sample, nil
	}
	b, err := os.ReadFile(sample)
	if err != nil {
		return "", fmt.Errorf("read the sample: %w", err)
	}
	const was = "  protocol: wireguard\n"
	if strings.Count(string(b), was) != 1 {
		return "", fmt.Errorf("%s: want one policy with %q", sample, was)
	}
	// libipsec has no extended sequence numbers, and this profile wants none.
	profile := "azure-vpngw"
	if c.KernelESP {
		profile = "cnsa1"
	}
	path := filepath.Join(r.Lab.Dir(), "policy.yaml")
	text := strings.Replace(string(b), was, "  protocol: ipsec\n  cryptoProfile: "+profile+"\n", 1)
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		return "", fmt.Errorf("write the policy: %w", err)
	}
	return path, nil
}

// product brings the product up and says what encrypts.
func product(ctx context.Context, r *rig.Rig, c Config) (string, error) {
	documents, err := c.documents(r)
	if err != nil {
		return "", err
	}
	if err := r.StartController(ctx); err != nil {
		return "", err
	}
	if err := r.Apply(ctx, filepath.Join(c.Samples, "10-nodes.yaml")); err != nil {
		return "", err
	}
	ends := []netns.Host{netns.Prem, netns.NVA}
	for _, h := range ends {
		if err := r.Enrol(ctx, h); err != nil {
			return "", err
		}
		if err := r.StartAgent(h); err != nil {
			return "", err
		}
	}
	if err := r.Apply(ctx, documents); err != nil {
		return "", err
	}
	for _, h := range ends {
		if err := r.TunnelsUp(ctx, h, c.tunnels(), c.Slow.Longer(20*time.Second)); err != nil {
			return "", err
		}
	}
	s, err := r.Status(ctx, netns.Prem)
	if err != nil {
		return "", err
	}
	for _, t := range s.Tunnels {
		if t.Up() {
			return t.Backend, nil
		}
	}
	return "", errors.New("no tunnel is up any more")
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
