package netns

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
)

// Config says what kind of lab to build.
type Config struct {
	Log *slog.Logger
	// Dir takes the logs of the lab's processes and is kept; empty for a
	// temporary directory that goes with the lab.
	Dir string
	// Control builds the lab without agents: circuit interfaces stay in the
	// appliances' main namespaces with kernel routes, so that packets cross in
	// clear. It is how a test proves that the tap can fire.
	Control bool
	// IPv6 gives the provider's routers Underlay6 besides.
	IPv6 bool
}

// Lab is one lab. Several may exist at once, in one process or in many. Its
// methods may be called from several goroutines.
type Lab struct {
	id   string
	dir  string
	log  *slog.Logger
	lock *os.File

	mu        sync.Mutex
	record    record
	instances map[Host]string
	processes []*Process
	closed    bool
}

// New sweeps leftovers of killed runs and builds a lab. The caller must Close
// it; when New fails nothing is left.
func New(ctx context.Context, cfg Config) (*Lab, error) {
	if why := Missing(); why != "" {
		return nil, errors.New(why)
	}
	if err := os.MkdirAll(recordDir, 0o700); err != nil {
		return nil, fmt.Errorf("make a place for the lab's record: %w", err)
	}
	if err := Sweep(); err != nil {
		cfg.Log.Warn("leftovers of an earlier lab remain", "error", err)
	}
	l := &Lab{log: cfg.Log, dir: cfg.Dir}
	if err := l.reserve(); err != nil {
		return nil, err
	}
	if err := l.make(ctx, cfg); err != nil {
		return nil, errors.Join(fmt.Errorf("build lab %s: %w", l.id, err), l.Close())
	}
	return l, nil
}

// reserve takes a free id and its lock.
func (l *Lab) reserve() error {
	for range 100 {
		// Three characters of base32 leave room in names of 6 and 15 characters.
		id := strings.ToLower(rand.Text()[:3])
		f, ok, err := lock(id, os.O_CREATE|os.O_EXCL)
		if errors.Is(err, os.ErrExist) || err == nil && !ok {
			continue
		}
		if err != nil {
			return err
		}
		l.id, l.lock = id, f
		return nil
	}
	return fmt.Errorf("no free lab name in %s: remove what is stale there", recordDir)
}

func (l *Lab) make(ctx context.Context, cfg Config) error {
	if l.dir == "" {
		d, err := os.MkdirTemp("", "circuitseal-lab-"+l.id+"-")
		if err != nil {
			return fmt.Errorf("make the lab's directory: %w", err)
		}
		l.dir, l.record.Dirs = d, []string{d}
	} else if err := os.MkdirAll(l.dir, 0o755); err != nil {
		return fmt.Errorf("make the lab's directory: %w", err)
	}
	l.instances = map[Host]string{Prem: "p" + l.id, NVA: "n" + l.id}
	l.record.Instances = []string{l.Instance(Prem), l.Instance(NVA)}
	for _, h := range Hosts() {
		l.record.Namespaces = append(l.record.Namespaces, l.Namespace(h))
	}
	if err := l.record.save(l.id); err != nil {
		return err
	}
	for _, h := range Hosts() {
		if err := batch(ctx, "", "netns add "+l.Namespace(h)); err != nil {
			return err
		}
	}
	return l.build(ctx, cfg)
}

// Close ends every process of the lab and removes all that it and the agents
// in it made. Repeats are free.
func (l *Lab) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil
	}
	l.closed = true
	for _, p := range l.processes {
		p.kill()
	}
	err := l.record.clean()
	if err == nil {
		err = errors.Join(removeIfThere(recordPath(l.id)), removeIfThere(lockPath(l.id)))
	}
	_ = l.lock.Close()
	if err != nil {
		return fmt.Errorf("clean up lab %s: %w", l.id, err)
	}
	return nil
}

// ID is unique among the labs of this machine.
func (l *Lab) ID() string { return l.id }

// Dir is where logs are.
func (l *Lab) Dir() string { return l.dir }

// Namespace is the name of a host's namespace.
func (l *Lab) Namespace(h Host) string { return "lab" + l.id + "-" + string(h) }

// Instance is the agent instance of an appliance, unique on this machine; empty
// for a machine that is none.
func (l *Lab) Instance(appliance Host) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.instances[appliance]
}

// Do runs f on a thread inside a host's namespace; see the function Do.
func (l *Lab) Do(h Host, f func() error) error { return Do(l.Namespace(h), f) }

// IP runs lines of `ip -batch` on a host.
func (l *Lab) IP(ctx context.Context, h Host, lines ...string) error {
	return batch(ctx, l.Namespace(h), lines...)
}

// Residents lists the processes that live in a host's namespace, and in the
// circuit namespace of the host's agent.
func (l *Lab) Residents(h Host) []int {
	namespaces := []string{l.Namespace(h)}
	if i := l.Instance(h); i != "" {
		namespaces = append(namespaces, CircuitNamespace(i))
	}
	return residents(namespaces)
}

// Adopt makes the lab remove dir when it is closed or swept.
func (l *Lab) Adopt(dir string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	abs, err := filepath.Abs(dir)
	if err != nil {
		return fmt.Errorf("adopt %s: %w", dir, err)
	}
	l.record.Dirs = append(l.record.Dirs, abs)
	return l.record.save(l.id)
}

// NFT loads an nftables ruleset on a host.
func (l *Lab) NFT(ctx context.Context, h Host, rules string) error {
	return nft(ctx, l.Namespace(h), rules)
}
