package ipsec

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/strongswan/govici/vici"

	"github.com/circuitseal/circuitseal/agent/instance"
	"github.com/circuitseal/circuitseal/agent/plan"
	"github.com/circuitseal/circuitseal/proto/desired"
)

// manyEnv is how many tunnels TestMany makes, and roundsEnv how often; without them
// there are a few, once, so that it does not rot. resultEnv is a file for what came out.
const (
	manyEnv   = "CIRCUITSEAL_MANY_TUNNELS"
	roundsEnv = "CIRCUITSEAL_MANY_ROUNDS"
	resultEnv = "CIRCUITSEAL_MANY_RESULT"
)

// manyResult is what `make bench-ike` keeps.
type manyResult struct {
	Backend string `json:"backend"`
	Tunnels int    `json:"tunnels"`
	// Rounds are in the order in which they were run, the two ways by turns.
	Rounds []manyRound `json:"rounds"`
	// RatePerCent is how fast the driver brings tunnels up, of the rate of the plain loop: the
	// median of the rounds.
	RatePerCent float64 `json:"rate_per_cent"`
	// UnchangedMilliseconds is the median of how long a reconcile that changes nothing
	// takes the driver.
	UnchangedMilliseconds float64 `json:"unchanged_milliseconds"`
}

type manyRound struct {
	PlainSeconds          float64 `json:"plain_seconds"`
	DrivenSeconds         float64 `json:"driven_seconds"`
	UnchangedMilliseconds float64 `json:"unchanged_milliseconds"`
}

// TestMany compares how long the driver takes for many tunnels with a loop that
// loads and initiates connections written by hand and does nothing else, and says how
// long a repeat takes. It asserts no times: this machine may be busy.
func TestMany(t *testing.T) {
	backends(t, func(t *testing.T, b Backend) {
		r := manyResult{Backend: b.String(), Tunnels: setting(t, manyEnv, 20)}
		var rates, repeats []float64
		for i := range setting(t, roundsEnv, 1) {
			var plain, driven, repeat time.Duration
			ways := []func(){
				func() { t.Run("plain", func(t *testing.T) { plain = manyPlain(t, r.Tunnels) }) },
				func() { t.Run("driven", func(t *testing.T) { driven, repeat = manyDriven(t, r.Tunnels) }) },
			}
			ways[i%2]()
			ways[1-i%2]()
			if t.Failed() {
				return
			}
			rate, ms := 100*plain.Seconds()/driven.Seconds(), float64(repeat.Microseconds())/1000
			t.Logf("%d tunnels: a plain loop %s, the driver %s (%.0f %% of its rate); a reconcile that changes nothing %.1f ms",
				r.Tunnels, plain.Round(time.Millisecond), driven.Round(time.Millisecond), rate, ms)
			r.Rounds = append(r.Rounds, manyRound{plain.Seconds(), driven.Seconds(), ms})
			rates, repeats = append(rates, rate), append(repeats, ms)
		}
		r.RatePerCent, r.UnchangedMilliseconds = median(rates), median(repeats)
		if path := os.Getenv(resultEnv); path != "" {
			text, err := json.MarshalIndent(r, "", "  ")
			if err == nil {
				err = os.WriteFile(path, append(text, '\n'), 0o644)
			}
			if err != nil {
				t.Error(err)
			}
		}
	})
}

func setting(t *testing.T, env string, otherwise int) int {
	t.Helper()
	text := os.Getenv(env)
	if text == "" {
		return otherwise
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("%s=%q: want a number from 1", env, text)
	}
	return n
}

func median(x []float64) float64 {
	slices.Sort(x)
	return (x[(len(x)-1)/2] + x[len(x)/2]) / 2
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

// manyPlain does what a script would that somebody wrote for these tunnels.
func manyPlain(t *testing.T, n int) time.Duration {
	p := manyPair(t, n)
	p.a.driver.mu.Lock()
	defer p.a.driver.mu.Unlock()
	c := p.a.driver.open
	begin := time.Now()
	for i, x := range p.a.driver.want.Tunnels {
		name, local, remote := fmt.Sprintf("plain-%d", i), x.Policy.LocalID, x.Policy.RemoteID
		child := section("mode", "tunnel", "esp_proposals", []string{espProposal()}, "local_ts", everything, "remote_ts", everything,
			"rekey_time", "1h", "replay_window", "1024", "reqid", strconv.Itoa(i+1))
		connection := section("version", "2", "local_addrs", []string{x.Local.String()}, "remote_addrs", []string{x.Remote.String()},
			"proposals", []string{"aes256gcm16-prfsha384-ecp384"}, "mobike", "no", "encap", yes(p.a.driver.backend == Libipsec), "unique", "never",
			"dpd_delay", "30s", "rekey_time", "4h", "local", section("auth", "psk", "id", local), "remote", section("auth", "psk", "id", remote),
			"children", section("net", child))
		for _, q := range []struct {
			command string
			pairs   []any
		}{
			{"load-shared", []any{"id", name, "type", "ike", "data", base64.StdEncoding.EncodeToString(x.PresharedKeys[0].Key[:]), "owners", []string{local, remote}}},
			{"load-conn", []any{name, connection}},
			{"initiate", []any{"ike", name, "child", "net", "timeout", "-1"}},
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
