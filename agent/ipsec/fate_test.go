package ipsec

import (
	"errors"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/circuitseal/circuitseal/agent/outlive"
	"github.com/circuitseal/circuitseal/agent/plan"
	"github.com/circuitseal/circuitseal/proto/desired"
)

// kill ends the end's charon.
func (e *end) kill(t *testing.T, signal unix.Signal) {
	t.Helper()
	e.driver.mu.Lock()
	c, err := e.driver.session(t.Context(), false)
	if err != nil {
		t.Fatal(err)
	}
	pid := c.pid
	e.driver.mu.Unlock()
	if err := unix.Kill(pid, signal); err != nil {
		t.Fatal(err)
	}
	for unix.Kill(pid, 0) == nil {
		time.Sleep(5 * time.Millisecond)
	}
}

func killed(t *testing.T, b Backend, p *pair) {
	p.up(t)
	ends := []*end{p.a, p.b}
	if b != Kernel {
		// What libipsec had is gone with it, and the end that begins finds out when its
		// questions are not answered: half a minute that shows nothing else.
		ends = ends[:1]
	}
	for _, e := range ends {
		t.Run(string(e.inst[0]), func(t *testing.T) {
			before := p.a.one(t)
			e.kill(t, unix.SIGKILL)
			if b == Kernel {
				p.mustCarry(t)
				if s := e.status(t); !s.Up {
					t.Errorf("the kernel still carries, and the tunnel is not up: %+v", s)
				}
			}
			p.a.awaitOther(t, before)
			p.mustCarry(t)
			if b != Kernel {
				return
			}
			p.b.awaitOther(t, before)
			h, err := e.circuit.Netlink(unix.NETLINK_XFRM)
			if err != nil {
				t.Fatal(err)
			}
			defer h.Close()
			for end := time.Now().Add(patience); ; time.Sleep(100 * time.Millisecond) {
				k, err := readKernel(h)
				if err != nil {
					t.Fatal(err)
				}
				if n := len(k[7].states); n == 2 {
					break
				} else if time.Now().After(end) {
					t.Fatalf("the kernel has %d SAs of the tunnel, want 2: orphans stay", n)
				}
			}
			p.mustCarry(t)
		})
	}
}

func stopped(t *testing.T, _ Backend, p *pair) {
	p.up(t)
	out, err := exec.Command(outlive.Self, "charon", "--instance", string(p.a.inst)).CombinedOutput()
	if err == nil || !strings.Contains(string(out), ErrRunning.Error()) {
		t.Errorf("a second charon of the instance: %v, %s", err, out)
	}
	before := p.a.one(t)
	p.a.kill(t, unix.SIGTERM)
	p.a.awaitOther(t, before)
	p.b.await(t, "the tunnel", isUp)
	p.mustCarry(t)
}

func silence(t *testing.T, _ Backend, p *pair) {
	p.up(t)
	before := p.a.one(t)
	p.a.driver.mu.Lock()
	p.a.silent = func(string, time.Time) bool { return true }
	p.a.driver.mu.Unlock()
	for end := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		if s := p.a.sas(t); len(s) > 0 && s[len(s)-1].spis != before.spis {
			break
		} else if time.Now().After(end) {
			t.Fatal("a silent tunnel did not begin anew")
		}
	}
	p.a.driver.mu.Lock()
	p.a.silent = nil
	p.a.driver.mu.Unlock()
	p.awaitUp(t)
}

// goes is a tunnel that goes when the other end does not hear of it any more: the guard
// has closed before.
func goes(t *testing.T, b Backend, p *pair) {
	a, _ := p.up(t)
	p.b.unplug(t)
	p.a.sync(t, plan.IPsec{Identities: a.Identities})
	h, err := p.a.driver.openNetlink()
	if err != nil {
		t.Fatal(err)
	}
	defer h.close()
	have, err := p.a.driver.readDevices(h)
	if err != nil || len(have) != 0 {
		t.Errorf("devices %v are left, %v", have, err)
	}
	if sas := p.a.sas(t); len(sas) > 0 {
		t.Errorf("charon still has SAs: %+v", sas)
	}
	p.a.driver.mu.Lock()
	defer p.a.driver.mu.Unlock()
	left, err := p.a.driver.readHeld(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(left.connections) != 0 || len(left.secrets) != 0 || len(left.keys) != 1 {
		t.Errorf("charon still has %+v", left)
	}
	if b == Kernel {
		x, err := p.a.circuit.Netlink(unix.NETLINK_XFRM)
		if err != nil {
			t.Fatal(err)
		}
		defer x.Close()
		k, err := readKernel(x)
		if err != nil || len(k) != 0 {
			t.Errorf("the kernel still has %v, %v", k, err)
		}
	}
}

func frozen(t *testing.T, _ Backend, p *pair) {
	a, _ := p.up(t)
	before := p.a.one(t)
	p.a.driver.mu.Lock()
	pid := p.a.driver.pid
	p.a.driver.mu.Unlock()
	signal := func(s unix.Signal) {
		if err := unix.Kill(pid, s); err != nil {
			t.Fatal(err)
		}
	}
	signal(unix.SIGSTOP)
	defer signal(unix.SIGCONT)
	if err := p.a.trySync(a); !errors.Is(err, errStands) {
		t.Errorf("error %v", err)
	}
	began := time.Now()
	for range 10 {
		if err := p.a.trySync(a); !errors.Is(err, errStands) {
			t.Errorf("error %v", err)
		}
	}
	if took := time.Since(began); took > aliveTimeout {
		t.Errorf("ten more passes took %s", took)
	}
	signal(unix.SIGCONT)
	for end := time.Now().Add(patience); p.a.trySync(a) != nil; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it was not taken up again")
		}
	}
	p.mustCarry(t)
	if after := p.a.one(t); after.spis != before.spis {
		t.Error("the SA was replaced")
	}
}

func refused(t *testing.T, backend Backend, p *pair) {
	a, b := p.plans(t)
	bad := a.Tunnels[0]
	bad.ID, bad.Number, bad.Device = "customer/connection/circuit/refused", 6, p.a.inst.IPsecDevice(6)
	bad.LocalProbe, bad.RemoteProbe = desired.ProbeAddresses(6)
	bad.Remote, bad.Policy.RemoteID = netip.MustParseAddr("192.0.2.77"), "refused.customer.example"
	bad.Policy.ESPProposals = []string{"nonsense"}
	a.Tunnels = append(a.Tunnels, bad)
	p.a.run(t)
	p.b.run(t)
	p.b.sync(t, b)
	if err := p.a.trySync(a); err == nil || !strings.Contains(err.Error(), "refused: load connection") {
		t.Errorf("error %v", err)
	}
	p.a.driver.mu.Lock()
	open := p.a.driver.open
	p.a.driver.mu.Unlock()
	if open == nil {
		t.Error("the session has ended")
	}
	if backend == Libipsec {
		// It carries one tunnel.
		return
	}
	p.b.await(t, "the other tunnel", isUp)
	p.mustCarry(t)
}

// givenAway is of a tunnel whose number another one gets, which has no certificate yet:
// nothing of the former carries on.
func givenAway(t *testing.T, _ Backend, p *pair) {
	a, _ := p.up(t)
	p.mustCarry(t)
	other := a
	other.Tunnels = slices.Clone(a.Tunnels)
	other.Tunnels[0].ID = "customer/another/circuit/link"
	other.Tunnels[0].Policy.LocalID = "nobody.example"
	if err := p.a.trySync(other); err == nil || !strings.Contains(err.Error(), "there is no certificate of nobody.example yet") {
		t.Fatalf("the tunnel is to be not ready: %v", err)
	}
	// Whatever the far end begins meanwhile.
	for end := time.Now().Add(3 * time.Second); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		for _, s := range p.a.sas(t) {
			if s.up() && s.age > time.Second {
				t.Fatalf("an SA of the former tunnel is up: %+v", s)
			}
		}
	}
	p.a.driver.mu.Lock()
	have, err := p.a.driver.readHeld(t.Context())
	p.a.driver.mu.Unlock()
	if err != nil || len(have.connections)+len(have.secrets) > 0 {
		t.Errorf("charon has %+v of it, %v", have, err)
	}
	if s := p.a.status(t); s.Up {
		t.Errorf("the tunnel that is not ready is up: %+v", s)
	}
	// It has its own place when it is ready.
	p.a.sync(t, a)
	p.awaitUp(t)
	p.mustCarry(t)
}

// distrusts is of a tunnel that has a problem of its own while others come to be trusted
// than its SA is with: that goes in the time of a handover, as it would without the problem,
// and the peer does not come back.
func distrusts(t *testing.T, b Backend, p *pair) {
	a, _ := p.up(t)
	p.mustCarry(t)
	problem := a
	problem.Tunnels = slices.Clone(a.Tunnels)
	problem.Identities = nil
	if err := p.a.trySync(problem); err == nil || !strings.Contains(err.Error(), "there is no certificate of") {
		t.Fatalf("the tunnel is to have a problem: %v", err)
	}
	p.a.longAgo(t)
	time.Sleep(2 * lookUneasy)
	if b == Kernel {
		p.mustCarry(t)
	}
	if s := p.a.status(t); !s.Up || len(s.Associations) != 1 || len(s.Associations[0].PeerCertificates) != 1 {
		t.Errorf("what is trusted is to carry on: %+v", s)
	}
	problem.Tunnels[0].Policy.PeerCertificates = [][]byte{p.a.identity.Certificates[0].Certificate}
	if err := p.a.trySync(problem); err == nil {
		t.Fatal("the tunnel has no problem")
	}
	if s := p.a.status(t); !s.Up || len(s.Associations) != 1 || len(s.Associations[0].PeerCertificates) != 0 {
		t.Errorf("in the time of a handover: %+v", s)
	}
	p.a.longAgo(t)
	p.a.await(t, "the end of what is not trusted", func(s TunnelState) bool { return !s.Up })
	for end := time.Now().Add(3 * time.Second); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		for _, s := range p.a.sas(t) {
			if s.up() {
				t.Fatalf("it has come back: %+v", s)
			}
		}
	}
	p.a.sync(t, a)
	p.awaitUp(t)
	p.mustCarry(t)
}

// longAgo has what was seen of the end's tunnel be so for longer than a handover may take.
func (e *end) longAgo(t *testing.T) {
	t.Helper()
	sas := e.sas(t)
	e.driver.mu.Lock()
	defer e.driver.mu.Unlock()
	x := e.driver.tunnels[7]
	x.observe(sas, time.Now())
	for at, s := range x.seen {
		s.since = s.since.Add(-2 * handover)
		x.seen[at] = s
	}
	e.driver.bereaved, x.changed = e.driver.bereaved.Add(-2*handover), x.changed.Add(-2*handover)
	e.driver.wake()
}

// orphaned is of an SA of a charon that was killed, and the far end does not come back: it
// carries on, but in the time of a handover when the policy has changed, since whom it is
// with and what it was negotiated for cannot be told any more.
func orphaned(t *testing.T, backend Backend, p *pair) {
	if backend != Kernel {
		t.Skip("libipsec takes its SAs with it")
	}
	a, b := p.up(t)
	p.mustCarry(t)
	p.b.driver.mu.Lock()
	pid := p.b.driver.pid
	p.b.driver.mu.Unlock()
	if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = unix.Kill(pid, unix.SIGCONT)
		for end := time.Now().Add(patience); p.b.trySync(b) != nil && time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		}
	}()
	p.a.kill(t, unix.SIGKILL)
	p.mustCarry(t)
	p.a.await(t, "another charon", func(s TunnelState) bool { return s.Up && s.Problem == unknownSA })
	time.Sleep(orphanAge)
	p.a.longAgo(t)
	time.Sleep(2 * lookUneasy)
	p.mustCarry(t)
	changed := a
	changed.Tunnels = slices.Clone(a.Tunnels)
	changed.Tunnels[0].Policy.PeerCertificates = [][]byte{p.a.current()}
	p.a.sync(t, changed)
	time.Sleep(2 * lookUneasy)
	p.mustCarry(t)
	p.a.longAgo(t)
	p.a.await(t, "the end of what nobody knows", func(s TunnelState) bool { return !s.Up })
}
