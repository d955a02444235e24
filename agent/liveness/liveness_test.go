package liveness

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// wire is a network above which everything is real: it answers while it is
// whole, after delay.
type wire struct {
	mu      sync.Mutex
	whole   bool
	broken  error // what receive says
	drop    int   // so many of the next probes are lost
	delay   time.Duration
	mangle  func(*answer)
	err     error
	sent    []time.Time
	answers chan answer
	broke   chan struct{}
	closed  chan struct{}
	once    sync.Once
}

func newWire(whole bool) *wire {
	return &wire{whole: whole, delay: time.Millisecond, answers: make(chan answer), broke: make(chan struct{}), closed: make(chan struct{})}
}

// probes is how many were sent.
func (w *wire) probes() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.sent)
}

func (w *wire) set(whole bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.whole = whole
}

func (w *wire) send(t Target, p probe) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.sent = append(w.sent, time.Now())
	if w.err != nil || !w.whole {
		return w.err
	}
	if w.drop > 0 {
		w.drop--
		return nil
	}
	a := answer{probe: p, device: t.Device, from: t.Remote, local: t.Local}
	if w.mangle != nil {
		w.mangle(&a)
	}
	time.AfterFunc(w.delay, func() {
		a.at = time.Now()
		select {
		case w.answers <- a:
		case <-w.closed:
		}
	})
	return nil
}

func (w *wire) receive() (answer, error) {
	select {
	case a := <-w.answers:
		return a, nil
	case <-w.broke:
		return answer{}, w.broken
	case <-w.closed:
		return answer{}, os.ErrClosed
	}
}

// fail makes receive fail.
func (w *wire) fail(err error) {
	w.broken = err
	close(w.broke)
}

func (w *wire) Close() error {
	w.once.Do(func() { close(w.closed) })
	return nil
}

func one() Target {
	return Target{
		Tunnel: "a", Device: "cs-t-1",
		Local: netip.MustParseAddr("fdc5:5ea1:7d10::1:0:1"), Remote: netip.MustParseAddr("fdc5:5ea1:7d10::1:0:2"),
	}
}

// run starts a monitor in the bubble; events lists the changes since its last
// call.
func run(t *testing.T, w *wire) (m *Monitor, events func() []string) {
	t.Helper()
	return runOn(t, slog.New(slog.DiscardHandler), func() (transport, error) { return w, nil })
}

func runOn(t *testing.T, log *slog.Logger, open func() (transport, error)) (m *Monitor, events func() []string) {
	t.Helper()
	var (
		mu   sync.Mutex
		seen []string
	)
	m = New(Config{
		Log: log,
		OnChange: func(tunnel string, up bool) {
			mu.Lock()
			defer mu.Unlock()
			seen = append(seen, fmt.Sprintf("%s up=%t", tunnel, up))
		},
		open: open,
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Run = %v, want context.Canceled", err)
		}
	})
	return m, func() []string {
		synctest.Wait()
		mu.Lock()
		defer mu.Unlock()
		out := seen
		seen = nil
		return out
	}
}

func want(t *testing.T, got []string, want ...string) {
	t.Helper()
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("changes (-want +got):\n%s", d)
	}
}

func TestUpAtOnceDownAfterThreeUpAfterThree(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire(true)
		m, events := run(t, w)
		m.Set([]Target{one()})
		time.Sleep(2 * time.Millisecond)
		want(t, events(), "a up=true")

		time.Sleep(10 * time.Second)
		want(t, events())
		h := m.Snapshot()["a"]
		if !h.Up || h.Lost != 0 || h.RTT != time.Millisecond || !h.Known {
			t.Errorf("health = %+v", h)
		}

		w.set(false)
		cut := time.Now()
		for m.Snapshot()["a"].Up {
			time.Sleep(10 * time.Millisecond)
		}
		if d := time.Since(cut); d < 2700*time.Millisecond || d > 4500*time.Millisecond {
			t.Errorf("down after %s, want 3 lost probes", d)
		}
		want(t, events(), "a up=false")
		if h := m.Snapshot()["a"]; h.Lost != 3 {
			t.Errorf("lost %d probes, want 3", h.Lost)
		}

		w.set(true)
		healed := time.Now()
		for !m.Snapshot()["a"].Up {
			time.Sleep(10 * time.Millisecond)
		}
		if d := time.Since(healed); d < 1800*time.Millisecond || d > 3500*time.Millisecond {
			t.Errorf("up after %s, want 3 answers", d)
		}
		want(t, events(), "a up=true")
	})
}

func TestTwoLossesAreForgiven(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire(true)
		m, events := run(t, w)
		m.Set([]Target{one()})
		time.Sleep(time.Second)
		want(t, events(), "a up=true")
		for range 20 {
			w.mu.Lock()
			w.drop = 2
			w.mu.Unlock()
			time.Sleep(4 * time.Second)
		}
		want(t, events())
		if lost := m.Snapshot()["a"].Lost; lost != 40 {
			t.Errorf("lost %d probes, want 40", lost)
		}
	})
}

func TestNewOneIsProbedQuickly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire(false)
		m, events := run(t, w)
		m.Set([]Target{one()})
		time.Sleep(2500 * time.Millisecond)
		want(t, events()) // the first answer may still come
		if n := w.probes(); n < 10 || n > 15 {
			t.Errorf("%d probes in 2.5 s, want one in about 200 ms", n)
		}
		time.Sleep(time.Second)
		want(t, events(), "a up=false")
		time.Sleep(10 * time.Second)
		before := w.probes()
		time.Sleep(10 * time.Second)
		if n := w.probes() - before; n < 9 || n > 11 {
			t.Errorf("%d probes in 10 s later, want one a second", n)
		}
		w.set(true)
		time.Sleep(1200 * time.Millisecond)
		want(t, events(), "a up=true")
	})
}

func TestForeignAnswersDoNothing(t *testing.T) {
	for name, mangle := range map[string]func(*answer){
		"nonce":    func(a *answer) { a.nonce++ },
		"sequence": func(a *answer) { a.sequence++ },
		"source":   func(a *answer) { a.from = a.from.Next() },
		"target":   func(a *answer) { a.local = a.local.Next() },
		"device":   func(a *answer) { a.device = "cs-t-2" },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWire(true)
				w.mangle = mangle
				m, events := run(t, w)
				m.Set([]Target{one()})
				time.Sleep(20 * time.Second)
				want(t, events(), "a up=false")
			})
		})
	}
}

func TestSlowAnswersCount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire(true)
		w.delay = 1500 * time.Millisecond
		m, events := run(t, w)
		m.Set([]Target{one()})
		time.Sleep(time.Minute)
		for _, e := range events() {
			if e != "a up=true" && e != "a up=false" {
				t.Error(e)
			}
		}
		if !m.Snapshot()["a"].Up {
			t.Error("a path of 1.5 s is down")
		}
	})
}

// A tunnel whose answers take longer than the interval comes up again after it
// was down: each answer gives back what its own miss took.
func TestSlowTunnelComesBack(t *testing.T) {
	for _, delay := range []time.Duration{1300 * time.Millisecond, 2500 * time.Millisecond} {
		t.Run(delay.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWire(true)
				m, events := run(t, w)
				m.Set([]Target{one()})
				time.Sleep(time.Second)
				w.set(false)
				time.Sleep(10 * time.Second)
				want(t, events(), "a up=true", "a up=false")
				w.mu.Lock()
				w.whole, w.delay = true, delay
				w.mu.Unlock()
				time.Sleep(20 * time.Second)
				want(t, events(), "a up=true")
			})
		})
	}
}

// journal is a log that several goroutines use.
type journal struct {
	mu   sync.Mutex
	text strings.Builder
}

func (j *journal) Write(b []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.Write(b)
}

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.String()
}

// What could not be asked is not known: neither a socket that cannot be opened
// nor one that fails says anything of a tunnel, and probing goes on later.
func TestSocketTrouble(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var (
			mu     sync.Mutex
			w      *wire
			refuse = errors.New("too many open files")
			log    journal
		)
		m, events := runOn(t, slog.New(slog.NewTextHandler(&log, nil)), func() (transport, error) {
			mu.Lock()
			defer mu.Unlock()
			if refuse != nil {
				return nil, refuse
			}
			w = newWire(true)
			return w, nil
		})
		allow := func(err error) {
			mu.Lock()
			defer mu.Unlock()
			refuse = err
		}
		logged := func(text string, want int) {
			t.Helper()
			if n := strings.Count(log.String(), text); n != want {
				t.Errorf("logged %q %d times, want %d:\n%s", text, n, want, log.String())
			}
		}
		m.Set([]Target{one()})
		time.Sleep(time.Minute)
		want(t, events())
		if h := m.Snapshot()["a"]; h.Known || h.Sent != 0 {
			t.Errorf("health without a socket = %+v", h)
		}
		const problem = "tunnels are not probed: open probe socket: too many open files"
		if got := m.Problem(); got != problem {
			t.Errorf("problem %q, want %q", got, problem)
		}
		logged("tunnels are not probed", 1)

		allow(nil)
		time.Sleep(5 * time.Second)
		want(t, events(), "a up=true")
		if got := m.Problem(); got != "" {
			t.Errorf("problem %q with a socket that works", got)
		}
		logged("tunnels are probed again", 1)

		// Every socket works for a moment and then fails.
		for range 10 {
			mu.Lock()
			w.fail(errors.New("no buffer space"))
			mu.Unlock()
			time.Sleep(1100 * time.Millisecond)
		}
		want(t, events())
		if h := m.Snapshot()["a"]; !h.Up || h.Lost != 0 {
			t.Errorf("health with sockets that fail = %+v", h)
		}
		if got := m.Problem(); !strings.Contains(got, "receive probes: no buffer space") {
			t.Errorf("problem %q, want that of receiving", got)
		}
		logged("no buffer space", 1)

		time.Sleep(5 * time.Second)
		want(t, events())
		if got := m.Problem(); got != "" {
			t.Errorf("problem %q with a socket that works again", got)
		}
	})
}

// Nothing is unanswered that was not asked all the time: a monitor that has just
// begun, as after a restart, knows of no silence.
func TestUnanswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire(false)
		m, _ := run(t, w)
		unanswered := func(since time.Time, want bool) {
			t.Helper()
			if got := m.Unanswered("a", since); got != want {
				t.Errorf("unanswered is %t, want %t", got, want)
			}
		}
		time.Sleep(time.Minute)
		unanswered(time.Now().Add(-5*time.Second), false)
		m.Set([]Target{one()})
		time.Sleep(3 * time.Second)
		unanswered(time.Now().Add(-5*time.Second), false)
		time.Sleep(3 * time.Second)
		unanswered(time.Now().Add(-5*time.Second), true)
	})
}

// A tunnel is silent until a probe of its own is answered that went out late
// enough; where none can go out, nothing is to be concluded.
func TestSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire(false)
		m, _ := run(t, w)
		silent := func(since time.Time, want bool) {
			t.Helper()
			synctest.Wait()
			if got := m.Silent("a", since); got != want {
				t.Errorf("silent since %s: %t, want %t", since.Format(time.TimeOnly), got, want)
			}
		}
		began := time.Now()
		silent(began, true)
		m.Set([]Target{one()})
		time.Sleep(time.Minute)
		silent(began, true)
		w.set(true)
		time.Sleep(2 * time.Second)
		silent(began, false)
		silent(time.Now(), true)
		later := time.Now()
		w.set(false)
		time.Sleep(2 * time.Second)
		silent(later, true)
		silent(began, false)
	})
	synctest.Test(t, func(t *testing.T) {
		m, _ := runOn(t, slog.New(slog.DiscardHandler), func() (transport, error) { return nil, errors.New("too many open files") })
		m.Set([]Target{one()})
		synctest.Wait()
		if m.Silent("a", time.Now()) {
			t.Error("silent though nothing can be asked")
		}
	})
}

func TestSetKeepsWhatDidNotChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire(true)
		m, events := run(t, w)
		a, b := one(), one()
		b.Tunnel, b.Device = "b", "cs-t-2"
		m.Set([]Target{a})
		time.Sleep(time.Second)
		want(t, events(), "a up=true")
		m.Set([]Target{a, b})
		time.Sleep(time.Second)
		want(t, events(), "b up=true")
		if h := m.Snapshot()["a"]; !h.Known || !h.Up {
			t.Errorf("health of a = %+v", h)
		}
		w.set(false)
		m.Set([]Target{b})
		time.Sleep(10 * time.Second)
		want(t, events(), "b up=false")
		if _, ok := m.Snapshot()["a"]; ok {
			t.Error("a is still there")
		}
	})
}

func TestErrorsAreLosses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire(true)
		m, events := run(t, w)
		m.Set([]Target{one()})
		time.Sleep(time.Second)
		w.mu.Lock()
		w.err = errors.New("no such device")
		w.mu.Unlock()
		time.Sleep(5 * time.Second)
		want(t, events(), "a up=true", "a up=false")
	})
}

func TestThousand(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire(true)
		m, events := run(t, w)
		var all []Target
		for i := range 1000 {
			x := one()
			x.Tunnel, x.Device = fmt.Sprint(i), fmt.Sprintf("cs-t-%d", i)
			all = append(all, x)
		}
		m.Set(all)
		time.Sleep(10 * time.Second)
		if n := len(events()); n != 1000 {
			t.Errorf("%d tunnels came up, want 1000", n)
		}
		if n := w.probes(); n < 9000 || n > 13000 {
			t.Errorf("%d probes in 10 s, want about 10,000", n)
		}
	})
}

func TestCodec(t *testing.T) {
	p := probe{sequence: 0x1234, nonce: 0x0102030405060708}
	b := encode(0xabcd, p)
	if _, err := decode(b, 0xabcd); err == nil {
		t.Error("a request passes for a reply")
	}
	b[0] = typeEchoReply
	got, err := decode(b, 0xabcd)
	if err != nil || got != p {
		t.Errorf("decode = %+v, %v; want %+v", got, err, p)
	}
	if _, err := decode(b, 0xabce); err == nil {
		t.Error("another identifier passes")
	}
}

func FuzzDecode(f *testing.F) {
	b := encode(7, probe{sequence: 1, nonce: 2})
	f.Add(b)
	b[0] = typeEchoReply
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := decode(b, 7)
		if err != nil {
			return
		}
		again := encode(7, p)
		again[0] = typeEchoReply
		again[2], again[3] = b[2], b[3]
		if d := cmp.Diff(b, again); d != "" {
			t.Errorf("round trip (-want +got):\n%s", d)
		}
	})
}
