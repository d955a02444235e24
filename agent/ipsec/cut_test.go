package ipsec

import (
	"context"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/strongswan/govici/vici"
	"golang.org/x/sys/unix"

	"github.com/circuitseal/circuitseal/agent/plan"
	"github.com/circuitseal/circuitseal/proto/desired"
)

// cut is a way in which a session ends at a request.
type cut struct {
	do func(c *cutting, request []byte)
	// fatal tells that charon goes with it.
	fatal bool
}

var cuts = map[string]cut{
	// charon never has it.
	"before the request": {do: func(c *cutting, _ []byte) { _ = c.Close() }},
	"within the request": {do: func(c *cutting, request []byte) {
		_, _ = c.Conn.Write(request[:len(request)/2])
		_ = c.Close()
	}},
	// charon may be at it when the next session begins.
	"before the answer": {do: func(c *cutting, request []byte) {
		_, _ = c.Conn.Write(request)
		_ = c.Close()
	}},
	// charon has done it, and nobody knows.
	"within the answer": {do: func(c *cutting, request []byte) {
		_, _ = c.Conn.Write(request)
		<-c.answered
		_ = c.Close()
	}},
	"charon killed": {fatal: true, do: func(c *cutting, request []byte) {
		_ = unix.Kill(c.pid, unix.SIGKILL)
		for unix.Kill(c.pid, 0) == nil {
			time.Sleep(time.Millisecond)
		}
		_, _ = c.Conn.Write(request)
	}},
	// charon does it when nobody waits any more.
	"charon frozen": {do: func(c *cutting, request []byte) {
		_ = unix.Kill(c.pid, unix.SIGSTOP)
		for !stands(c.pid) {
			time.Sleep(time.Millisecond)
		}
		_, _ = c.Conn.Write(request)
		c.giveUp()
	}},
}

// stands reports whether a process was stopped (proc_pid_stat(5)).
func stands(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, rest, _ := strings.Cut(string(b), ") ")
	return err != nil || strings.HasPrefix(rest, "T")
}

// TestCutOff ends charon's session, in each of the ways, at each request in turn of
// a policy that brings a new key, certificate, pre-shared key and connection and takes
// the old ones away (fault 17): what is there carries on, the next pass completes,
// the one after that finds nothing to do, and one SA is left at both ends.
func TestCutOff(t *testing.T) {
	backends(t, func(t *testing.T, b Backend) {
		for name, cut := range cuts {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				p := newPair(t)
				p.b.run(t)
				p.turnPolicy(t, 1)
				p.a.sync(t, p.policy(t, 1))
				p.a.runUntil(t, func() { p.awaitUp(t) })
				requests := 0
				for p.cutAt(t, b, requests, cut) {
					requests++
				}
				// Four questions, a key, a PPK, a connection and its initiation, what takes
				// the old ones' places away, and the list of SAs.
				if requests < 12 {
					t.Errorf("the policy took %d requests, want 12 at least", requests)
				}
				t.Logf("cut off at each of %d requests", requests)
			})
		}
	})
}

// cutAt has the session end at a request of a new policy, counted from 0, and reports
// whether there was one of that number.
func (p *pair) cutAt(t *testing.T, b Backend, request int, cut cut) (fired bool) {
	t.Helper()
	at := fmt.Sprintf("cut at request %d", request)
	before := p.a.one(t)
	generation := uint64(request + 2)
	p.turnPolicy(t, generation)
	want := p.policy(t, generation)
	ctx, giveUp := context.WithTimeout(t.Context(), patience)
	defer giveUp()
	c := p.a.reconnect(t, request, cut.do, giveUp)
	err := p.a.driver.Sync(ctx, want, func([]string) error { return nil })
	if err == nil {
		err = p.a.driver.Sweep(ctx)
	}
	c.disarm()
	// A pass that finds its session dead as it begins opens another.
	if fired = c.fired(); !fired && err != nil {
		t.Fatalf("%s, of which there are fewer: %v", at, err)
	}
	if !cut.fatal {
		_ = unix.Kill(c.pid, unix.SIGCONT)
	}
	// libipsec goes with its charon.
	if b == Kernel || !fired || !cut.fatal {
		p.mustCarry(t)
	}
	if fired {
		p.a.sync(t, want)
	}
	known := p.a.drift.Drift()
	p.a.drift.Begin(true)
	p.a.sync(t, want)
	p.a.drift.End()
	if d := p.a.drift.Drift(); !slices.Equal(d, known) {
		t.Errorf("%s: the pass after the one that completed it has written: %+v", at, d)
	}
	p.a.holdsOnce(t, at)
	ends := []*end{p.a, p.b}
	if cut.fatal {
		// The far end finds out by and by what is dead.
		ends = ends[:1]
	}
	p.a.runUntil(t, func() {
		for _, e := range ends {
			e.awaitBeside(t, before)
		}
	})
	if !fired || !cut.fatal {
		// It would go when the new one has settled, which is not what this is about.
		p.a.end(t, before)
	}
	for _, e := range ends {
		e.awaitOther(t, before)
	}
	if x, y := p.a.one(t), p.b.sas(t); !slices.ContainsFunc(y, func(s namedSA) bool { return s.spis == x.spis }) {
		t.Errorf("%s: the far end does not have SA %v", at, x.spis)
	}
	p.mustCarry(t)
	return fired
}

// awaitBeside waits until there is one SA, and one only, beside that of before, which
// is of the connection as it is to be.
func (e *end) awaitBeside(t *testing.T, before namedSA) {
	t.Helper()
	e.driver.mu.Lock()
	name := e.driver.tunnels[7].connection.name
	e.driver.mu.Unlock()
	e.await(t, "one SA more", func(TunnelState) bool {
		others := slices.DeleteFunc(e.sas(t), func(s namedSA) bool { return s.spis == before.spis })
		return len(others) == 1 && others[0].up() && others[0].connection == name
	})
}

// end ends an SA, if it is still there.
func (e *end) end(t *testing.T, s namedSA) {
	t.Helper()
	e.driver.mu.Lock()
	defer e.driver.mu.Unlock()
	if _, err := e.driver.session(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	if err := e.driver.terminate(t.Context(), termination{id: s.id}); err != nil {
		t.Fatal(err)
	}
}

// turnPolicy gives end a another key and certificate, and tells b of them.
func (p *pair) turnPolicy(t *testing.T, generation uint64) {
	t.Helper()
	p.a.identity.Certificates = []desired.IdentityCertificate{{Generation: generation}}
	keys, err := p.a.keys.Ensure([]desired.Identity{p.a.identity})
	if err != nil {
		t.Fatal(err)
	}
	p.a.identity.Certificates[0].Certificate = p.ca.issue(t, keys[0], time.Now().Add(time.Hour))
	_, b := p.plans(t, func(_, b *plan.IPsecTunnel) { b.PresharedKeys = shared(t, generation) })
	p.b.sync(t, b)
}

func (p *pair) policy(t *testing.T, generation uint64) plan.IPsec {
	t.Helper()
	a, _ := p.plans(t, func(a, _ *plan.IPsecTunnel) { a.PresharedKeys = shared(t, generation) })
	return a
}

// holdsOnce wants charon to have nothing of ours but one connection, one PPK and one
// private key.
func (e *end) holdsOnce(t *testing.T, at string) {
	t.Helper()
	e.driver.mu.Lock()
	defer e.driver.mu.Unlock()
	if _, err := e.driver.session(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	have, err := e.driver.readHeld(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(have.connections) != 1 || len(have.secrets) != 1 || len(have.keys) != 1 || !slices.Contains(have.connections, e.driver.tunnels[7].connection.name.in(e.inst)) {
		t.Errorf("%s: charon has %+v, want one of each", at, have)
	}
}

// runUntil has the driver run until f returns.
func (e *end) runUntil(t *testing.T, f func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = e.driver.Run(ctx, nil)
	}()
	defer func() { cancel(); <-done }()
	f()
}

// reconnect gives the driver a session that ends at a request.
func (e *end) reconnect(t *testing.T, request int, do func(*cutting, []byte), giveUp func()) *cutting {
	t.Helper()
	d := e.driver
	d.mu.Lock()
	defer d.mu.Unlock()
	old, err := d.session(t.Context(), false)
	if err != nil {
		t.Fatal(err)
	}
	pid := old.pid
	d.hangUp()
	conn, err := net.Dial("unix", d.socketPath())
	if err != nil {
		t.Fatal(err)
	}
	c := &cutting{Conn: conn, pid: pid, do: do, giveUp: giveUp, left: request, answered: make(chan struct{})}
	paced := newPacedConn(c)
	session, err := vici.NewSession(dialed(paced))
	if err != nil {
		t.Fatal(err)
	}
	d.open, d.socket = &client{session: session, conn: paced, pid: pid}, d.socketPath()
	return c
}

// cutting is a connection to charon that ends at a request. govici writes each at
// once, and the next one when that was answered.
type cutting struct {
	net.Conn
	pid int
	do  func(*cutting, []byte)
	// giveUp ends the pass that waits for an answer.
	giveUp func()
	// answered is closed when the answer to the last request has begun to come.
	answered chan struct{}

	mu   sync.Mutex
	left int
}

func (c *cutting) Write(b []byte) (int, error) {
	c.mu.Lock()
	c.left--
	now := c.left == -1
	c.mu.Unlock()
	if !now {
		return c.Conn.Write(b)
	}
	c.do(c, b)
	return len(b), nil
}

func (c *cutting) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if n > 0 && c.fired() {
		close(c.answered)
		return 0, io.ErrUnexpectedEOF
	}
	return n, err
}

// disarm leaves it whole from now on.
func (c *cutting) disarm() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.left >= 0 {
		c.left = math.MaxInt
	}
}

// fired tells that it has ended.
func (c *cutting) fired() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.left < 0
}
