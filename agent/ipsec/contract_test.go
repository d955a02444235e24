package ipsec

import (
	"fmt"
	"maps"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/circuitseal/circuitseal/agent/instance"
	"github.com/circuitseal/circuitseal/agent/plan"
	"github.com/circuitseal/circuitseal/proto/desired"
)

// contract is what holds with every backend.
var contract = map[string]func(*testing.T, Backend, *pair){
	"tunnel comes up and says what it is":           comesUp,
	"a repeat writes nothing":                       repeats,
	"a changed policy takes over":                   changes,
	"a changed policy waits for the other end":      waits,
	"a PPK is rotated":                              rotates,
	"the end that answers sends by the old SA":      yields,
	"a killed charon comes back":                    killed,
	"a charon that was stopped comes back":          stopped,
	"of two SAs the older goes":                     doubles,
	"a silent SA is replaced":                       silence,
	"what is not wanted goes":                       goes,
	"a number goes to a tunnel that is not ready":   givenAway,
	"whom to trust changes under a problem":         distrusts,
	"SAs that nobody knows go with a change":        orphaned,
	"PSK":                                           psk,
	"rekeyed SAs say by what":                       rekeys,
	"IPv6 outside":                                  outerSix,
	"an agent that starts again finds its tunnel":   startsAgain,
	"a weaker SA is taken down":                     weaker,
	"the other pre-shared key is tried":             otherKey,
	"another connection is not disturbed by errors": undisturbed,
	"what charon refuses holds up no other":         refused,
	"a charon that stands is waited for once":       frozen,
}

func TestContract(t *testing.T) {
	backends(t, func(t *testing.T, b Backend) {
		for _, name := range slices.Sorted(maps.Keys(contract)) {
			t.Run(name, func(t *testing.T) { contract[name](t, b, newPair(t)) })
		}
	})
}

// up has both ends run, and the tunnel come up.
func (p *pair) up(t *testing.T, change ...func(a, b *plan.IPsecTunnel)) (a, b plan.IPsec) {
	t.Helper()
	p.a.run(t)
	p.b.run(t)
	a, b = p.plans(t, change...)
	p.a.sync(t, a)
	p.b.sync(t, b)
	p.awaitUp(t)
	return a, b
}

func (p *pair) mustCarry(t *testing.T) {
	t.Helper()
	if err := p.carries(t); err != nil {
		t.Errorf("the tunnel carries nothing: %v", err)
	}
}

// sas are the IKE SAs that the end's charon has of the tunnel.
func (e *end) sas(t *testing.T) []namedSA {
	t.Helper()
	e.driver.mu.Lock()
	defer e.driver.mu.Unlock()
	if _, err := e.driver.session(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	all, err := e.driver.listSAs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return all[7]
}

func (e *end) one(t *testing.T) namedSA {
	t.Helper()
	s := e.sas(t)
	if len(s) != 1 {
		t.Fatalf("%s has %d IKE SAs, want one: %+v", e.inst, len(s), s)
	}
	return s[0]
}

func comesUp(t *testing.T, b Backend, p *pair) {
	p.up(t)
	for _, e := range []*end{p.a, p.b} {
		s := e.status(t)
		x := s.Associations[0]
		if x.IKE != "aes256gcm16-prfsha384-ecp384" || !x.PPK || x.PFS != "" || x.LocalID != e.identity.Name || x.Backend != b.String() || len(x.PeerCertificates) != 1 {
			t.Errorf("evidence %+v", x)
		}
		if esn := b == Kernel; x.ESN != esn || x.ESP != map[bool]string{true: "aes256gcm16-esn", false: "aes256gcm16"}[esn] || x.UDPEncapsulated == esn {
			t.Errorf("evidence %+v", x)
		}
		if s.PresharedUsed != 1 || !slices.Equal(s.PresharedHeld, []uint64{1}) {
			t.Errorf("pre-shared keys %v, used %d, want 1", s.PresharedHeld, s.PresharedUsed)
		}
	}
	if b == Kernel {
		p.a.checkKernel(t)
	}
	p.mustCarry(t)
	if s := p.a.status(t); s.ReceivedBytes == 0 || s.SentBytes == 0 {
		t.Errorf("nothing was counted: %+v", s)
	}
}

// checkKernel looks at what the kernel was told.
func (e *end) checkKernel(t *testing.T) {
	t.Helper()
	h, err := e.circuit.Netlink(unix.NETLINK_XFRM)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	k, err := readKernel(h)
	if err != nil {
		t.Fatal(err)
	}
	if n := len(k[7].states); n != 2 || !k[7].carries(e.address.String()) {
		t.Fatalf("the kernel has %d SAs", n)
	}
	for _, s := range k[7].states {
		if s.Limits.PacketHard == 0 || s.Limits.ByteHard == 0 || s.Limits.TimeHard == 0 {
			t.Errorf("SA %#x: limits %+v", s.Spi, s.Limits)
		}
		if out := s.Src.String() == e.address.String(); out && (s.OutputMark == nil || s.OutputMark.Value != instance.Mark(1)) {
			t.Errorf("its packets have the mark %v, want %#x", s.OutputMark, instance.Mark(1))
		}
	}
	// Extended sequence numbers and their windows netlink's package does not read.
	out, err := exec.Command("ip", "-n", e.inst.Namespace(), "xfrm", "state").Output()
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(out), fmt.Sprintf("replay_window %d", replayWindow)) {
		t.Errorf("no SA has a replay window of %d", replayWindow)
	}
	if n := len(regexp.MustCompile(`(?m)flag .*\besn\b`).FindAll(out, -1)); n != 2 {
		t.Errorf("%d SAs have extended sequence numbers, want 2", n)
	}
}

func outerSix(t *testing.T, _ Backend, p *pair) {
	p.up(t, func(a, b *plan.IPsecTunnel) {
		a.Local, a.Remote = p.a.six(), p.b.six()
		b.Local, b.Remote = p.b.six(), p.a.six()
	})
	p.mustCarry(t)
}

func rekeys(t *testing.T, _ Backend, p *pair) {
	p.up(t)
	before := p.a.one(t)
	lost := p.stream(t)
	ask := func(pairs ...any) {
		p.a.driver.mu.Lock()
		defer p.a.driver.mu.Unlock()
		if _, err := p.a.driver.session(t.Context(), false); err != nil {
			t.Fatal(err)
		}
		if _, err := p.a.driver.ask(t.Context(), "rekey", section(pairs...)); err != nil {
			t.Fatal(err)
		}
	}
	// The first ESP SA came with the IKE SA, and has to be older to be told apart.
	time.Sleep(rekeyedAfter + time.Second)
	ask("child-id", fmt.Sprint(before.children[0].id))
	for _, e := range []*end{p.a, p.b} {
		e.await(t, "PFS", func(s TunnelState) bool { return isUp(s) && s.Associations[0].PFS == "ecp384" })
	}
	ask("ike-id", fmt.Sprint(before.id))
	for _, e := range []*end{p.a, p.b} {
		e.await(t, "a rekeyed IKE SA", func(s TunnelState) bool {
			sas := e.sas(t)
			return isUp(s) && len(sas) == 1 && sas[0].spis != before.spis && s.Associations[0].PPK && s.PresharedUsed == 1
		})
	}
	if n, all := lost(); n != 0 {
		t.Errorf("%d of %d packets were lost", n, all)
	}
	p.mustCarry(t)
}

func repeats(t *testing.T, _ Backend, p *pair) {
	a, _ := p.up(t)
	before := p.a.one(t)
	p.a.drift.Begin(true)
	for range 3 {
		p.a.sync(t, a)
	}
	p.a.drift.End()
	if d := p.a.drift.Drift(); len(d) != 0 {
		t.Errorf("a repeat has written: %+v", d)
	}
	if after := p.a.one(t); after.id != before.id || after.children[0].id != before.children[0].id {
		t.Errorf("SA %d was replaced by %d", before.id, after.id)
	}
}

func startsAgain(t *testing.T, _ Backend, p *pair) {
	a, _ := p.up(t)
	before, pid := p.a.one(t), p.a.driver.open.pid
	p.a.restart()
	p.a.sync(t, a)
	p.a.run(t)
	p.a.await(t, "the tunnel", isUp)
	if after := p.a.one(t); after.id != before.id || p.a.driver.open.pid != pid {
		t.Errorf("SA %d of charon %d was replaced by %d of %d", before.id, pid, after.id, p.a.driver.open.pid)
	}
	p.a.drift.Begin(true)
	p.a.sync(t, a)
	p.a.drift.End()
	if d := p.a.drift.Drift(); len(d) != 0 {
		t.Errorf("a repeat has written: %+v", d)
	}
}

// awaitOther waits until the tunnel is up by one SA that is not this.
func (e *end) awaitOther(t *testing.T, before namedSA) {
	t.Helper()
	e.awaitFor(t, 3*patience, "another SA", func(s TunnelState) bool {
		if !isUp(s) {
			return false
		}
		sas := e.sas(t)
		return len(sas) == 1 && sas[0].spis != before.spis
	})
}

func changes(t *testing.T, _ Backend, p *pair) {
	p.up(t)
	before := p.a.one(t)
	lost := p.stream(t)
	a, b := p.plans(t, func(a, b *plan.IPsecTunnel) {
		for _, x := range []*plan.IPsecTunnel{a, b} {
			x.Policy.IKEProposals = []string{"aes256gcm16-prfsha512-ecp521"}
		}
	})
	p.b.sync(t, b)
	time.Sleep(time.Second)
	if !p.b.status(t).Up {
		t.Error("the answering end took the tunnel down before the other one knew")
	}
	p.a.sync(t, a)
	p.a.awaitOther(t, before)
	p.b.awaitOther(t, before)
	if s := p.a.status(t); s.Associations[0].IKE != "aes256gcm16-prfsha512-ecp521" {
		t.Errorf("evidence %+v", s.Associations[0])
	}
	if n, all := lost(); n != 0 {
		t.Errorf("%d of %d packets were lost", n, all)
	}
	p.mustCarry(t)
}

// waits shows that an end which hears of a change before the other one does not settle
// on what the other's old policy and the new one have in common.
func waits(t *testing.T, _ Backend, p *pair) {
	p.up(t)
	before := p.a.one(t)
	a, b := p.plans(t, func(a, b *plan.IPsecTunnel) {
		for _, x := range []*plan.IPsecTunnel{a, b} {
			x.Policy.IKEProposals = []string{"aes256gcm16-prfsha512-ecp521", "aes256gcm16-prfsha384-ecp384"}
		}
	})
	p.a.sync(t, a)
	time.Sleep(consider / 2)
	p.b.sync(t, b)
	p.a.awaitOther(t, before)
	p.b.awaitOther(t, before)
	if s := p.a.status(t); s.Associations[0].IKE != "aes256gcm16-prfsha512-ecp521" {
		t.Errorf("evidence %+v", s.Associations[0])
	}
	if got, want := p.b.one(t).connection, p.b.driver.tunnels[7].connection.name; got != want {
		t.Errorf("the answering end has an SA of connection %v, want %v", got, want)
	}
}

func rotates(t *testing.T, _ Backend, p *pair) {
	p.up(t)
	before := p.a.one(t)
	for _, step := range [][2][]uint64{{{1, 2}, {1, 2}}, {{2, 1}, {1, 2}}, {{2, 1}, {2, 1}}, {{2}, {2}}} {
		a, b := p.plans(t, func(a, b *plan.IPsecTunnel) {
			a.PresharedKeys, b.PresharedKeys = shared(t, step[0]...), shared(t, step[1]...)
		})
		p.a.sync(t, a)
		p.b.sync(t, b)
		used := step[0][0]
		for i, e := range []*end{p.a, p.b} {
			e.await(t, fmt.Sprintf("generation %d", used), func(s TunnelState) bool { return isUp(s) && s.PresharedUsed == used })
			// The controller goes on when it reads what it has told, in that order.
			if s := e.status(t); !slices.Equal(s.PresharedHeld, step[i]) {
				t.Errorf("held are %v, want %v", s.PresharedHeld, step[i])
			}
		}
	}
	p.a.awaitOther(t, before)
	if after := p.a.one(t); !after.ppk {
		t.Errorf("the SA has no PPK: %+v", after)
	}
	if s := p.b.status(t); !slices.Equal(s.PresharedHeld, []uint64{2}) {
		t.Errorf("held are %v, want generation 2", s.PresharedHeld)
	}
}

func doubles(t *testing.T, _ Backend, p *pair) {
	p.up(t)
	before := p.a.one(t)
	// Of two of the same second, which is all that charon tells, any may stay.
	for ; before.age < 2*time.Second; before = p.a.one(t) {
		time.Sleep(50 * time.Millisecond)
	}
	lost := p.stream(t)
	p.a.driver.mu.Lock()
	err := p.a.driver.initiate(t.Context(), p.a.driver.tunnels[7])
	p.a.driver.mu.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	p.a.awaitOther(t, before)
	p.b.awaitOther(t, before)
	if a, b := p.a.one(t), p.b.one(t); a.spis != b.spis {
		t.Errorf("the ends have kept different ones: %v and %v", a.spis, b.spis)
	}
	if n, all := lost(); n != 0 {
		t.Errorf("%d of %d packets were lost", n, all)
	}
	p.mustCarry(t)
}

func psk(t *testing.T, _ Backend, p *pair) {
	use := func(a, b *plan.IPsecTunnel) {
		for _, x := range []*plan.IPsecTunnel{a, b} {
			x.Policy.Authentication, x.Policy.PPKRequired, x.Policy.PeerCertificates = desired.AuthenticationPSK, false, nil
		}
	}
	p.up(t, use)
	// At the last the far end has one of both, which is used and said to be.
	for _, step := range []struct {
		a, b []uint64
		used uint64
	}{
		{[]uint64{1, 2}, []uint64{1, 2}, 1}, {[]uint64{2, 1}, []uint64{2, 1}, 2}, {[]uint64{2}, []uint64{2}, 2},
		{[]uint64{2, 3}, []uint64{2}, 2}, {[]uint64{3, 2}, []uint64{2}, 2},
	} {
		a, b := p.plans(t, use, func(a, b *plan.IPsecTunnel) {
			a.PresharedKeys, b.PresharedKeys = shared(t, step.a...), shared(t, step.b...)
		})
		before := p.a.one(t)
		p.b.sync(t, b)
		p.a.sync(t, a)
		if generationOf(before.child().name) == step.a[0] || !slices.Contains(step.b, step.a[0]) {
			// It needs no other, or can have none, as long as there is this one.
			p.a.end(t, before)
		}
		p.a.awaitOther(t, before)
		if s := p.a.status(t); s.PresharedUsed != step.used {
			t.Errorf("%v here and %v there: generation %d is said to be used, want %d", step.a, step.b, s.PresharedUsed, step.used)
		}
	}
	p.mustCarry(t)
}

func weaker(t *testing.T, _ Backend, p *pair) {
	_, b := p.up(t)
	// What is asked of the SA that is there is more than it is; its name says that it
	// was made for that.
	p.a.driver.mu.Lock()
	x := p.a.driver.tunnels[7]
	x.Policy.IKEProposals = []string{"aes256gcm16-prfsha512-ecp521"}
	x.Policy.ESPProposals = b.Tunnels[0].Policy.ESPProposals
	p.a.driver.mu.Unlock()
	p.a.driver.wake()
	s := p.a.await(t, "its end", func(s TunnelState) bool { return !s.Up && strings.Contains(s.Problem, "weaker") })
	if !strings.Contains(s.Problem, "aes256gcm16-prfsha384-ecp384") {
		t.Errorf("problem %q does not say what was negotiated", s.Problem)
	}
}

func otherKey(t *testing.T, _ Backend, p *pair) {
	p.up(t, func(a, b *plan.IPsecTunnel) {
		a.PresharedKeys, b.PresharedKeys = shared(t, 5, 4), shared(t, 4)
	})
	if s := p.a.status(t); s.PresharedUsed != 4 {
		t.Errorf("generation %d is used, the far end has 4 only", s.PresharedUsed)
	}
}

func undisturbed(t *testing.T, _ Backend, p *pair) {
	a, _ := p.up(t)
	before := p.a.one(t)
	bad := a.Tunnels[0]
	bad.ID, bad.Number, bad.Device, bad.Policy.LocalID = "customer/connection/circuit/other", 8, p.a.inst.IPsecDevice(8), "nobody.example"
	bad.LocalProbe, bad.RemoteProbe = desired.ProbeAddresses(8)
	double := a.Tunnels[0]
	double.ID, double.Number, double.Device = "customer/second/circuit/link", 9, p.a.inst.IPsecDevice(9)
	double.LocalProbe, double.RemoteProbe = desired.ProbeAddresses(9)
	a.Tunnels = append(a.Tunnels, bad, double)
	err := p.a.trySync(a)
	if err == nil || !strings.Contains(err.Error(), "no certificate of nobody.example") || !strings.Contains(err.Error(), "IKE cannot tell it from tunnel customer/connection/circuit/link") {
		t.Errorf("error %v", err)
	}
	if after := p.a.one(t); after.id != before.id {
		t.Error("the SA was replaced")
	}
}
