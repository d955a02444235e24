// Package liveness finds out whether tunnels carry packets: it sends an ICMPv6
// echo request through each, once a second, to an address that the far kernel
// answers, whether or not an agent runs there. It knows addresses and network
// interfaces. It does not know what protects a tunnel, nor what is done about
// one that is down.
package liveness

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/circuitseal/circuitseal/agent/netns"
	"github.com/circuitseal/circuitseal/proto/desired"
)

// Config is what a Monitor needs.
type Config struct {
	// Namespace is where the tunnel devices are; the zero value is that of the
	// process. The monitor does not close it.
	Namespace netns.Namespace
	// OnChange is told when a tunnel comes up, and when one goes down or does not
	// come up at all. Run calls it, one call at a time and in order, so it must
	// return soon; it may call Set and Snapshot. Nil is allowed.
	OnChange func(tunnel string, up bool)
	Log      *slog.Logger

	// open replaces the socket in tests.
	open func() (transport, error)
}

// Target is a tunnel to watch.
type Target struct {
	// Tunnel names it in Snapshot and OnChange; unique.
	Tunnel string
	// Device carries the probes. Local is its address, Remote the far end's.
	Device        string
	Local, Remote netip.Addr
}

// Health is what is known of one tunnel.
type Health struct {
	// Known is false until the tunnel has come up or has been found not to.
	Known, Up bool
	// Sent and Lost count probes since the tunnel was first set; late ones are
	// lost.
	Sent, Lost uint64
	// RTT is of the last answer, 0 when there was none.
	RTT time.Duration
}

// Monitor probes a set of tunnels with one socket and one timer, whatever
// their number. Methods may be called by several goroutines.
type Monitor struct {
	config Config
	wake   chan struct{}

	mu      sync.Mutex
	targets map[string]*target
	byPath  map[path]*target
	changes []change
	problem string
}

const (
	// leastPause bounds how often the targets are looked through.
	leastPause = 2 * time.Millisecond
	// reopen is how long a socket that failed is let be, and how long a new one
	// must work to be well.
	reopen = time.Second
)

// path is what an answer must have in common with its target.
type path struct {
	device        string
	local, remote netip.Addr
}

func (t Target) path() path { return path{t.Device, t.Local, t.Remote} }

type change struct {
	tunnel string
	up     bool
}

// transport is the socket, as far as Run needs it.
type transport interface {
	// send must not block.
	send(t Target, p probe) error
	// receive blocks until an answer came or the transport is closed, which is
	// os.ErrClosed.
	receive() (answer, error)
	Close() error
}

// answer is an echo reply as it was received.
type answer struct {
	probe
	device      string
	from, local netip.Addr
	at          time.Time
}

// New makes a Monitor without targets; it does nothing until Run.
func New(config Config) *Monitor {
	if config.open == nil {
		config.open = func() (transport, error) { return openSocket(config.Namespace, desired.ProbePrefix) }
	}
	return &Monitor{config: config, wake: make(chan struct{}, 1), targets: map[string]*target{}}
}

// Set replaces the targets. One that is unchanged keeps its health; a new or
// changed one is not up, and is probed at once. One that goes is not reported.
func (m *Monitor) Set(targets []Target) {
	m.mu.Lock()
	now := time.Now()
	next := make(map[string]*target, len(targets))
	byPath := make(map[path]*target, len(targets))
	for _, t := range targets {
		old, ok := m.targets[t.Tunnel]
		switch {
		case ok && old.path() == t.path():
			old.Target = t
			next[t.Tunnel] = old
		default:
			next[t.Tunnel] = newTarget(t, now)
		}
		byPath[t.path()] = next[t.Tunnel]
	}
	m.targets, m.byPath = next, byPath
	m.mu.Unlock()
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// Snapshot is the health of every target, by tunnel.
func (m *Monitor) Snapshot() map[string]Health {
	m.mu.Lock()
	defer m.mu.Unlock()
	all := make(map[string]Health, len(m.targets))
	for id, t := range m.targets {
		all[id] = t.health()
	}
	return all
}

// Silent reports whether nothing that was asked through a tunnel since then has
// been answered. While nothing can be asked, no tunnel is silent.
func (m *Monitor) Silent(tunnel string, since time.Time) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	t, ok := m.targets[tunnel]
	return m.problem == "" && (!ok || !t.asked.After(since))
}

// Unanswered is Silent of a tunnel that has been asked all the time since then: one
// that is not watched yet is not known to be silent.
func (m *Monitor) Unanswered(tunnel string, since time.Time) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	t, ok := m.targets[tunnel]
	return m.problem == "" && ok && t.since.Before(since) && !t.asked.After(since)
}

// Problem is a sentence that says why no tunnel is being probed, and empty when
// tunnels are. Meanwhile Snapshot has what was known before: what could not be
// asked is neither up nor down.
func (m *Monitor) Problem() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.problem
}

// Run probes until ctx ends, and returns its error. It is called once. A socket
// that cannot be opened, or fails, is opened again and again; see Problem.
func (m *Monitor) Run(ctx context.Context) error {
	for {
		err := m.watch(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		m.settle(err)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(reopen):
		}
	}
}

// watch probes with one socket until that fails or ctx ends.
func (m *Monitor) watch(ctx context.Context) error {
	socket, err := m.config.open()
	if err != nil {
		return fmt.Errorf("open probe socket: %w", err)
	}
	m.restart()
	received := make(chan error, 1)
	go func() { received <- m.receive(socket) }()
	timer := time.NewTimer(0)
	defer timer.Stop()
	well := time.NewTimer(reopen)
	defer well.Stop()
	for {
		select {
		case <-ctx.Done():
			return errors.Join(ctx.Err(), socket.Close(), <-received)
		case err := <-received:
			return errors.Join(fmt.Errorf("receive probes: %w", err), socket.Close())
		case <-well.C:
			m.settle(nil)
			continue
		case <-m.wake:
		case <-timer.C:
		}
		m.probe(socket)
		m.report()
		timer.Reset(m.pause())
	}
}

// settle keeps the problem, nil when there is none, and logs it when it is
// another one.
func (m *Monitor) settle(err error) {
	problem := ""
	if err != nil {
		problem = "tunnels are not probed: " + err.Error()
	}
	m.mu.Lock()
	was := m.problem
	m.problem = problem
	m.mu.Unlock()
	switch {
	case problem == was:
	case err == nil:
		m.config.Log.Info("tunnels are probed again")
	default:
		m.config.Log.Error("tunnels are not probed", "error", err)
	}
}

// restart forgets the probes of a socket that is gone: nobody can answer them,
// which says nothing of the tunnels.
func (m *Monitor) restart() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, t := range m.targets {
		t.restart(time.Now())
	}
}

// probe sends what is due. A probe that cannot be sent is one that will be
// lost: an interface that is away for a moment is not an error here.
func (m *Monitor) probe(socket transport) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	for _, t := range m.targets {
		if t.next.After(now) {
			continue
		}
		m.note(t, t.expire(now))
		p := t.begin(now)
		if err := socket.send(t.Target, p); err != nil && t.firstFailure(err) {
			m.config.Log.Debug("send probe", "tunnel", t.Tunnel, "error", err)
		}
	}
}

// pause is how long nothing is due.
func (m *Monitor) pause() time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.changes) > 0 {
		return 0
	}
	wait := interval
	now := time.Now()
	for _, t := range m.targets {
		wait = min(wait, t.next.Sub(now))
	}
	return max(wait, leastPause)
}

func (m *Monitor) receive(socket transport) error {
	for {
		a, err := socket.receive()
		if errors.Is(err, os.ErrClosed) {
			return nil
		}
		if err != nil {
			return err
		}
		m.answered(a)
	}
}

// answered finds the target by the answer's addresses and device, and leaves
// answers to nobody's question alone.
func (m *Monitor) answered(a answer) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if t, ok := m.byPath[path{a.device, a.local, a.from}]; ok {
		m.note(t, t.reply(a.probe, a.at))
	}
	if len(m.changes) > 0 {
		select {
		case m.wake <- struct{}{}:
		default:
		}
	}
}

// note is called with mu held.
func (m *Monitor) note(t *target, changed bool) {
	if changed {
		m.changes = append(m.changes, change{t.Tunnel, t.up})
	}
}

// report tells of changes, except of targets that have gone meanwhile.
func (m *Monitor) report() {
	m.mu.Lock()
	changes := m.changes
	m.changes = nil
	known := make([]bool, len(changes))
	for i, c := range changes {
		_, known[i] = m.targets[c.tunnel]
	}
	m.mu.Unlock()
	for i, c := range changes {
		if !known[i] {
			continue
		}
		m.config.Log.Info("tunnel health changed", "tunnel", c.tunnel, "up", c.up)
		if m.config.OnChange != nil {
			m.config.OnChange(c.tunnel, c.up)
		}
	}
}
