// Package tenancy stands many customers with the very same prefixes on two nodes
// of the provider's, one on premises and one in Azure, with the product's real
// programs: each has a circuit, two tunnels and a LAN of its own at both ends. It
// asks the nodes and measures what crosses; it knows neither how agents nor how
// controllers work.
package tenancy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/circuitseal/circuitseal/testlab/netns"
	"github.com/circuitseal/circuitseal/testlab/rig"
)

// Config says how many customers there are.
type Config struct {
	Log *slog.Logger
	// Bin holds the binaries, Logs takes the logs of all processes.
	Bin, Logs string
	Customers int
	// Sample is how many of them have hosts of their own at both ends.
	Sample int
}

// Tenants is a lab with many customers. Its methods are for one goroutine.
type Tenants struct {
	Rig         *rig.Rig
	All, Sample []Customer
	dir         string
	// added counts the prefixes that were added.
	added int
}

// New builds the network, starts controller and agents, and returns when both
// agents have taken up their interfaces: nobody's traffic is asked for yet. The
// caller must Close it.
func New(ctx context.Context, c Config) (t *Tenants, err error) {
	if c.Customers < 1 || c.Customers > 400 || c.Sample < 1 || c.Sample > c.Customers {
		return nil, fmt.Errorf("%d customers, of which %d are sampled: want 1 to 400, and no more than there are", c.Customers, c.Sample)
	}
	r, err := rig.New(ctx, rig.Config{Log: c.Log, Bin: c.Bin, Dir: c.Logs, Debug: true})
	if err != nil {
		return nil, err
	}
	t = &Tenants{Rig: r, dir: r.Lab.Dir()}
	defer func() {
		if err != nil {
			err = errors.Join(err, t.Close())
		}
	}()
	for i := range c.Customers {
		t.All = append(t.All, Customer(i+1))
	}
	// Spread over all, the first and the last among them.
	for i := range c.Sample {
		t.Sample = append(t.Sample, t.All[i*(c.Customers-1)/max(c.Sample-1, 1)])
	}
	if err := t.network(ctx); err != nil {
		return t, err
	}
	if err := r.StartController(ctx); err != nil {
		return t, err
	}
	if err := t.apply(ctx, "providers.yaml", providers(t.All)); err != nil {
		return t, err
	}
	for _, h := range []netns.Host{Premises, Azure} {
		if err := r.Enrol(ctx, h); err != nil {
			return t, err
		}
		if err := r.StartAgent(h); err != nil {
			return t, err
		}
	}
	for h, circuits := range map[netns.Host]int{Premises: 2 * c.Customers, Azure: 1} {
		if err := t.guarded(ctx, h, circuits); err != nil {
			return t, err
		}
	}
	return t, nil
}

// Close ends everything.
func (t *Tenants) Close() error { return t.Rig.Close() }

func (t *Tenants) apply(ctx context.Context, name, text string) error {
	path := filepath.Join(t.dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		return fmt.Errorf("write documents: %w", err)
	}
	return t.Rig.Apply(ctx, path)
}

// guarded waits until a node has its circuit interfaces.
func (t *Tenants) guarded(ctx context.Context, h netns.Host, circuits int) error {
	return t.await(ctx, h, 120*time.Second, func(s rig.AgentStatus) error {
		alive := map[string]int{}
		for _, g := range s.Guards {
			if g.Alive {
				alive[g.Interface]++
			}
		}
		if len(alive) != circuits || len(s.Problems) > 0 {
			return fmt.Errorf("%d of %d circuit interfaces are guarded, problems %.500q", len(alive), circuits, s.Problems)
		}
		return nil
	})
}

// await asks a node until f is content.
func (t *Tenants) await(ctx context.Context, h netns.Host, limit time.Duration, f func(rig.AgentStatus) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		s, err := t.Rig.Status(ctx, h)
		if err == nil {
			err = f(s)
		}
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: not within %s: %w", h, limit, err)
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// Connect applies what all customers want, in one transaction, and returns how
// long it took until every tunnel was up at both ends, from the start of
// `sealctl apply`.
func (t *Tenants) Connect(ctx context.Context, limit time.Duration) (time.Duration, error) {
	var texts []string
	for _, c := range t.All {
		texts = append(texts, policy(c))
	}
	start := time.Now()
	if err := t.apply(ctx, "customers.yaml", strings.Join(texts, "---\n")); err != nil {
		return 0, err
	}
	for _, h := range []netns.Host{Premises, Azure} {
		err := t.await(ctx, h, limit-time.Since(start), func(s rig.AgentStatus) error {
			up := 0
			for _, x := range s.Tunnels {
				if x.Up() {
					up++
				}
			}
			if up != 2*len(t.All) {
				return fmt.Errorf("%d of %d tunnels are up, problems %.500q", up, 2*len(t.All), s.Problems)
			}
			return nil
		})
		if err != nil {
			return 0, err
		}
	}
	return time.Since(start), nil
}

// processors is the processor time that all daemons have had.
func (t *Tenants) processors() (sum time.Duration, err error) {
	pids := []int{t.Rig.ControllerPID()}
	for _, h := range []netns.Host{Premises, Azure} {
		pids = append(append(pids, t.Rig.Agent(h).PID()), t.Rig.WireGuardPIDs(h)...)
	}
	for _, pid := range pids {
		p, err := processor(pid)
		if err != nil {
			return 0, err
		}
		sum += p
	}
	return sum, nil
}

// Change is how long a change took, from the start of `sealctl apply`: until that
// returned, until both nodes had written it, as their logs tell, and until a host
// on premises was answered by one that the change is about. Processor is what
// controller, agents and WireGuard processes took of all processors meanwhile.
type Change struct {
	Applied, Written, Carried, Processor time.Duration
}

// AddPrefix adds one more prefix to a customer's site in Azure, in the place of
// the one that was added before.
func (t *Tenants) AddPrefix(ctx context.Context, c Customer) (Change, error) {
	i := t.added % extras
	t.added++
	asked := make(chan error, 1)
	before, err := t.processors()
	if err != nil {
		return Change{}, err
	}
	start := time.Now()
	go func() {
		asked <- t.Rig.ReachAddress(ctx, c.HQ(), extraHost(i), 60*time.Second, 60*time.Millisecond)
	}()
	err = t.apply(ctx, "change.yaml", azureSite(c, extraPrefix(i).String()))
	x := Change{Applied: time.Since(start)}
	err = errors.Join(err, <-asked)
	x.Carried = time.Since(start)
	after, e := t.processors()
	err = errors.Join(err, e)
	x.Processor = after - before
	for _, h := range []netns.Host{Premises, Azure} {
		log, e := t.log(h, start)
		err = errors.Join(err, e)
		for _, entry := range log {
			if entry.Message == "prefixes before the pass" {
				x.Written = max(x.Written, entry.Time.Sub(start))
			}
		}
	}
	return x, err
}
