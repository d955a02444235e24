package uplink

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"
	"go.uber.org/goleak"

	"github.com/circuitseal/circuitseal/agent/identity"
	v1 "github.com/circuitseal/circuitseal/proto/circuitseal/v1"
)

type bidi = connect.BidiStream[v1.SessionRequest, v1.SessionResponse]

// lasting makes certificates that begin and end so far from now.
func lasting(begins, ends time.Duration) func(*x509.Certificate) {
	return func(c *x509.Certificate) { c.NotBefore, c.NotAfter = time.Now().Add(begins), time.Now().Add(ends) }
}

func (c *controller) lasts(begins, ends time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.life = lasting(begins, ends)
}

// up starts an uplink over an identity on disk; stop ends it.
func up(t *testing.T, dir string, now func() time.Time) (u *Uplink, stop func()) {
	t.Helper()
	id, err := identity.Load(dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	u = New(Config{
		Identity: id, Node: &node{version: "x"}, Log: slog.New(slog.DiscardHandler), Now: now,
		Load: func() (*identity.Identity, error) { return identity.Load(dir, nil) },
		Renew: func(id *identity.Identity, certificates [][]byte) (*identity.Identity, error) {
			return identity.Renew(dir, nil, id, certificates, time.Now())
		},
	})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- u.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(stop)
	return u, stop
}

func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if f() {
			return
		}
	}
	t.Fatalf("in vain: %s", what)
}

// rememberPlace serves sessions as the controller does: who wants the place of
// a session has to say what that one was asked.
type rememberPlace struct {
	t  *testing.T
	mu sync.Mutex
	// holder has the place.
	holder *bidi
	by     *x509.Certificate
	// moved and refused count what became of others.
	moved, refused int
	asked          map[string]*bidi
	answers        map[string]chan bool
}

func (p *rememberPlace) serve(_ context.Context, cert *x509.Certificate, s *bidi) error {
	if cert == nil || time.Now().After(cert.NotAfter) {
		return connect.NewError(connect.CodeUnauthenticated, errors.New("the certificate has ended"))
	}
	if m, err := s.Receive(); err != nil || m.GetStatus() == nil {
		return fmt.Errorf("first came %v, %w", m, err)
	}
	received := make(chan error, 1)
	go func() {
		for {
			m, err := s.Receive()
			if err != nil {
				received <- err
				return
			}
			p.mu.Lock()
			if c := p.answers[string(m.GetProbeAnswer())]; c != nil {
				c <- p.asked[string(m.GetProbeAnswer())] == s
			}
			p.mu.Unlock()
		}
	}()
	// Sends are under the lock: two must not meet, and none may come after the
	// stream's handler has returned.
	p.mu.Lock()
	old := p.holder
	if old != nil {
		nonce := []byte(cert.SerialNumber.String())
		answer := make(chan bool, 1)
		p.asked[string(nonce)], p.answers[string(nonce)] = s, answer
		err := old.Send(&v1.SessionResponse{Probe: nonce})
		p.mu.Unlock()
		if err != nil {
			return err
		}
		same := <-answer
		p.mu.Lock()
		if !same {
			p.refused++
			p.mu.Unlock()
			return connect.NewError(connect.CodeAlreadyExists, errors.New("another host"))
		}
		p.moved++
	}
	p.holder, p.by = s, cert
	err := s.Send(&v1.SessionResponse{State: &v1.Envelope{Signed: []byte("x")}})
	p.mu.Unlock()
	if err != nil {
		return err
	}
	defer func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.holder == s {
			p.holder = nil
		}
	}()
	return <-received
}

func (p *rememberPlace) look() (by *x509.Certificate, moved, refused int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.by, p.moved, p.refused
}

func serveWithPlace(t *testing.T) (*controller, *rememberPlace) {
	c := serve(t)
	p := &rememberPlace{t: t, asked: map[string]*bidi{}, answers: map[string]chan bool{}}
	c.session = p.serve
	return c, p
}

// A certificate that is due is renewed over the same key, and the session moves
// to it without a gap.
func TestRenewalMovesTheSession(t *testing.T) {
	c, place := serveWithPlace(t)
	dir := t.TempDir()
	c.lasts(-36*time.Hour, 60*time.Hour)
	old, err := enrol(t, c, dir).Leaf()
	if err != nil {
		t.Fatal(err)
	}
	c.lasts(-time.Minute, 7*24*time.Hour)
	u, stop := up(t, dir, nil)
	eventually(t, "the session moves", func() bool { by, _, _ := place.look(); return by != nil && !by.Equal(old) })
	by, moved, refused := place.look()
	if refused != 0 {
		t.Errorf("%d sessions were refused as another host's", refused)
	}
	id, err := identity.Load(dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	now, err := id.Leaf()
	if err != nil || !now.Equal(by) {
		t.Errorf("on disk is another certificate than the session has: %v", err)
	}
	if !bytes.Equal(now.RawSubjectPublicKeyInfo, old.RawSubjectPublicKeyInfo) {
		t.Error("the key is another one")
	}
	t.Logf("the session moved %d times", moved)
	eventually(t, "no problem is told", func() bool { return len(u.Problems(time.Now())) == 0 })
	c.mu.Lock()
	if len(c.asked) != 1 || !c.asked[0].Equal(old) {
		t.Errorf("renewals came with %d certificates", len(c.asked))
	}
	c.mu.Unlock()
	stop()
	c.close()
	goleak.VerifyNone(t)
}

// Another host with the same key is refused, since the first one answers.
func TestAnswersProbesInPlace(t *testing.T) {
	c, place := serveWithPlace(t)
	dir := t.TempDir()
	c.lasts(-time.Minute, 7*24*time.Hour)
	enrol(t, c, dir)
	first, _ := up(t, dir, nil)
	eventually(t, "the first is there", func() bool { by, _, _ := place.look(); return by != nil })
	second, _ := up(t, dir, nil)
	eventually(t, "the second is refused", func() bool {
		return strings.Contains(strings.Join(second.Problems(time.Now()), ""), "another host")
	})
	if _, moved, refused := place.look(); moved != 0 || refused == 0 {
		t.Errorf("%d took the place, %d were refused", moved, refused)
	}
	if p := first.Problems(time.Now()); len(p) != 0 {
		t.Errorf("the first has problems: %q", p)
	}
}

// After an outage of 30 days an expired certificate still renews.
func TestExpiredCertificateFindsItsWayBack(t *testing.T) {
	c, place := serveWithPlace(t)
	dir := t.TempDir()
	c.lasts(-37*24*time.Hour, -30*24*time.Hour)
	old, err := enrol(t, c, dir).Leaf()
	if err != nil {
		t.Fatal(err)
	}
	c.lasts(-time.Minute, 7*24*time.Hour)
	u, _ := up(t, dir, nil)
	eventually(t, "a session", func() bool { by, _, _ := place.look(); return by != nil && !by.Equal(old) })
	eventually(t, "no problem is told", func() bool { return len(u.Problems(time.Now())) == 0 })
}

// A clock that is years off is named, and nothing is needed but to set it right.
func TestWrongClockIsNamed(t *testing.T) {
	for _, years := range []time.Duration{10, -10} {
		t.Run(fmt.Sprintf("%d years", years), func(t *testing.T) {
			c, place := serveWithPlace(t)
			dir := t.TempDir()
			c.lasts(-time.Minute, 7*24*time.Hour)
			enrol(t, c, dir)
			var off atomic.Int64
			off.Store(int64(years * 365 * 24 * time.Hour))
			now := func() time.Time { return time.Now().Add(time.Duration(off.Load())) }
			u, _ := up(t, dir, now)
			want := "this host's clock says " + now().UTC().Format("2006-")
			eventually(t, "the clock is named", func() bool {
				return strings.Contains(strings.Join(u.Problems(now()), "\n"), want)
			})
			if by, _, _ := place.look(); by != nil {
				t.Error("a session came about")
			}
			off.Store(0)
			eventually(t, "a session", func() bool { by, _, _ := place.look(); return by != nil })
			eventually(t, "no problem is told", func() bool { return len(u.Problems(now())) == 0 })
		})
	}
}

// What a controller says of a clock is told with both.
func TestControllersClockIsNamed(t *testing.T) {
	c := serve(t)
	c.session = func(context.Context, *x509.Certificate, *bidi) error {
		return connect.NewError(connect.CodeUnauthenticated, errors.New("it begins later"))
	}
	dir := t.TempDir()
	c.lasts(-time.Minute, 7*24*time.Hour)
	enrol(t, c, dir)
	now := func() time.Time { return time.Now().Add(20 * time.Minute) }
	u, _ := up(t, dir, now)
	eventually(t, "both clocks are named", func() bool {
		p := strings.Join(u.Problems(time.Now()), "\n")
		return strings.Contains(p, "it begins later; this host's clock says "+now().UTC().Format("2006-01-02T15:")) && strings.Contains(p, "and the controller's says ")
	})
}

func TestRenewalIsDaily(t *testing.T) {
	leaf := &x509.Certificate{NotBefore: time.Unix(0, 0)}
	leaf.NotAfter = leaf.NotBefore.Add(7 * 24 * time.Hour)
	if got := renewAt(leaf, 0).Sub(leaf.NotBefore); got != 24*time.Hour {
		t.Errorf("at the earliest after %s, want a day", got)
	}
	for at, want := range map[time.Duration]bool{-time.Second: true, 0: false, 23 * time.Hour: false, 24 * time.Hour: true, 30 * 24 * time.Hour: true} {
		if got := due(leaf, leaf.NotBefore.Add(at), 0); got != want {
			t.Errorf("due after %s: %v, want %v", at, got, want)
		}
	}
	if got := renewAt(leaf, 1).Sub(leaf.NotBefore); got != 30*time.Hour {
		t.Errorf("at the latest after %s, want 30 hours", got)
	}
}
