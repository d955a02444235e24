package ipsec

import (
	"fmt"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/strongswan/govici/vici"

	"github.com/circuitseal/circuitseal/agent/instance"
	"github.com/circuitseal/circuitseal/agent/plan"
	"github.com/circuitseal/circuitseal/proto/desired"
)

// manyEnv is how many tunnels TestMany makes; without it there are a few, so that it
// does not rot.
const manyEnv = "CIRCUITSEAL_MANY_TUNNELS"

// TestMany compares how long the driver takes for many tunnels with a loop that
// loads and initiates the same connections and does nothing else, and says how long
// a repeat takes. It asserts no times: this machine may be busy.
func TestMany(t *testing.T) {
	backends(t, func(t *testing.T, _ Backend) {
		n := 20
		if text := os.Getenv(manyEnv); text != "" {
			var err error
			if n, err = strconv.Atoi(text); err != nil {
				t.Fatal(err)
			}
		}
		var plain, driven, repeat time.Duration
		t.Run("plain", func(t *testing.T) { plain = manyPlain(t, n) })
		t.Run("driven", func(t *testing.T) { driven, repeat = manyDriven(t, n) })
		t.Logf("%d tunnels: a plain loop %s, the driver %s (%.2f of its rate); a Sync that changes nothing %s",
			n, plain.Round(time.Millisecond), driven.Round(time.Millisecond), plain.Seconds()/driven.Seconds(), repeat.Round(time.Millisecond))
	})
}

// manyPair has both ends planned, devices made, and the answering end ready.
func manyPair(t *testing.T, n int) *pair {
	t.Helper()
	p := newPair(t)
	of := func(e, other *end, initiates bool) plan.IPsec {
		var w plan.IPsec
		for i := 1; i <= n; i++ {
			local, remote := desired.ProbeAddresses(uint16(i))
			if !initiates {
				local, remote = remote, local
			}
			w.Tunnels = append(w.Tunnels, plan.IPsecTunnel{
				ID: fmt.Sprintf("customer/connection/circuit/%d", i), Device: e.inst.IPsecDevice(uint16(i)), Number: uint16(i),
				InterfaceID: instance.InterfaceID(uint16(i)), Mark: instance.Mark(1), MTU: 1360,
				Local: e.address, Remote: other.address, Initiates: initiates, LocalProbe: local, RemoteProbe: remote,
				Policy: desired.IPsecPolicy{
					Profile: "test", LocalID: fmt.Sprintf("%c%d.example", e.inst[0], i), RemoteID: fmt.Sprintf("%c%d.example", other.inst[0], i),
					Authentication: desired.AuthenticationPSK, IKEProposals: []string{"aes256gcm16-prfsha384-ecp384"}, ESPProposals: []string{espProposal()},
					IKELifetime: 4 * time.Hour, ESPLifetime: time.Hour, DPDDelay: 30 * time.Second,
				},
				PresharedKeys: shared(t, 1),
			})
		}
		return w
	}
	for _, e := range []*end{p.a, p.b} {
		e.driver.unlimited = true
		e.driver.backend, _ = Automatic.resolve()
		e.driver.mu.Lock()
		e.driver.want = of(e, map[*end]*end{p.a: p.b, p.b: p.a}[e], e == p.a)
		for _, err := range e.driver.adopt(e.driver.want) {
			t.Error(err)
		}
		if err := e.driver.syncDevices(func([]string) error { return nil }); err != nil {
			t.Fatal(err)
		}
		if _, err := e.driver.session(t.Context(), true); err != nil {
			t.Fatal(err)
		}
		e.driver.mu.Unlock()
	}
	p.b.sync(t, p.b.driver.want)
	return p
}

// count waits until there are so many tunnels.
func (p *pair) count(t *testing.T, n int) {
	t.Helper()
	c, err := dial(t.Context(), p.b.inst.CharonSocket(), p.b.circuit)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	for end := time.Now().Add(5 * time.Minute); ; time.Sleep(50 * time.Millisecond) {
		// A list would wait for those that are being worked at, and take the time of that.
		m, err := c.call(t.Context(), "stats", nil)
		if err != nil {
			t.Fatal(err)
		}
		f := &fields{m: m.Get("ikesas").(*vici.Message)}
		total, open := f.number("total", 10, 32), f.number("half-open", 10, 32)
		if total-open >= uint64(n) {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%d of %d tunnels are up", total-open, n)
		}
	}
}

func manyPlain(t *testing.T, n int) time.Duration {
	p := manyPair(t, n)
	p.a.driver.mu.Lock()
	defer p.a.driver.mu.Unlock()
	c := p.a.driver.open
	begin := time.Now()
	for _, x := range p.a.driver.sortedTunnels() {
		s := x.connection.secrets[0]
		name := x.connection.name.in(p.a.inst)
		for _, q := range []struct {
			command string
			pairs   []any
		}{
			{"load-shared", []any{"id", s.id, "type", s.kind, "data", s.data(), "owners", s.owners}},
			{"load-conn", []any{name, x.connection.message.Get(name)}},
			{"initiate", []any{"ike", name, "child", childName(1), "timeout", "-1"}},
		} {
			if _, err := c.call(t.Context(), q.command, section(q.pairs...)); err != nil {
				t.Fatal(err)
			}
		}
	}
	p.count(t, n)
	return time.Since(begin)
}

func manyDriven(t *testing.T, n int) (up, repeat time.Duration) {
	p := manyPair(t, n)
	p.a.run(t)
	p.b.run(t)
	want := p.a.driver.want
	begin := time.Now()
	p.a.sync(t, want)
	p.count(t, n)
	up = time.Since(begin)
	p.a.drift.Begin(true)
	for i := range 3 {
		begin := time.Now()
		p.a.sync(t, want)
		if took := time.Since(begin); i == 0 || took < repeat {
			repeat = took
		}
	}
	p.a.drift.End()
	if d := p.a.drift.Drift(); len(d) != 0 {
		t.Errorf("a repeat has written: %+v", d)
	}
	return up, repeat
}
