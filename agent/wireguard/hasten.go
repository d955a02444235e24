package wireguard

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// WireGuard repeats a lost first handshake after 5 s and not sooner
// (REKEY_TIMEOUT), and two that cross cancel each other. Both are usual when a
// policy has just been applied: one end is configured before the other, and
// before its guard is open. So a tunnel without a handshake gets its peer made
// anew, first soon, then less often.
//
// So does one that had its handshake and through which nothing comes back. In
// user space a response may be taken while a crossing initiation is answered
// (ConsumeMessageResponse in device/noise-protocol.go looks at the handshake's
// state before it takes the lock for writing): that end then sends with a
// session that the other has not, and WireGuard notices after 15 s
// (KEEPALIVE_TIMEOUT and REKEY_TIMEOUT).
const (
	firstHaste = 100 * time.Millisecond
	lastHaste  = time.Second
	// hearing is how long a tunnel may be silent after its handshake.
	hearing = 3 * time.Second
	// childhood is how long that goes on. Then WireGuard's own pace will do.
	childhood = 30 * time.Second
	hasteTick = 20 * time.Millisecond
	// eachHaste is how much each young tunnel slows the others down: their peers
	// made anew all at once would take the processor from the handshakes that
	// they are for.
	eachHaste = 5 * time.Millisecond
)

// youth is a tunnel that has not carried its first packet.
type youth struct {
	born, next time.Time
	wait       time.Duration
	// shaken is when a handshake was first seen; zero before.
	shaken time.Time
}

// expect counts a device as young from now on.
func (d *Driver) expect(name string) {
	now := time.Now()
	d.young[name] = &youth{born: now, next: now.Add(spread(firstHaste)), wait: firstHaste}
	select {
	case d.born <- struct{}{}:
	default:
	}
}

// spread draws from [d/2, 3d/2), so that two ends whose handshakes crossed do
// not cross again.
func spread(d time.Duration) time.Duration { return d/2 + rand.N(d) }

// again advances to the next attempt, which comes the later the more others are
// young, and reports false when y is no longer
// young itself.
func (y *youth) again(now time.Time, others int) bool {
	y.wait = min(y.wait*3/2, lastHaste+time.Duration(others)*eachHaste)
	y.next = now.Add(spread(y.wait))
	return now.Sub(y.born) < childhood
}

// Run hastens first handshakes, and revives tunnels that have no session, until
// ctx ends, and returns its error. silent
// reports whether nothing has come back through a tunnel of what was sent since
// then; nil where nobody asks, so that a handshake is enough. It must not call
// the driver.
func (d *Driver) Run(ctx context.Context, silent func(tunnel string, since time.Time) bool) error {
	timer, turns := time.NewTimer(0), time.NewTicker(reviveTick)
	defer timer.Stop()
	defer turns.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-d.born:
			timer.Reset(hasteTick)
		case now := <-turns.C:
			d.revive(ctx, now)
		case now := <-timer.C:
			if young := d.hasten(ctx, now, silent); young > 0 {
				timer.Reset(hasteTick + time.Duration(young)*eachHaste/10)
			}
		}
	}
}

// hasten reports how many tunnels are left that are young.
func (d *Driver) hasten(ctx context.Context, now time.Time, silent func(tunnel string, since time.Time) bool) (young int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var s *session
	told := map[string]hostedDevice{}
	for name, y := range d.young {
		if now.Before(y.next) {
			continue
		}
		if s == nil {
			opened, err := d.open(ctx)
			if err == nil {
				defer opened.close()
				told, err = opened.list()
			}
			if err != nil {
				d.config.Log.Debug("hasten handshakes", "error", err)
				if !y.again(now, len(d.young)) {
					delete(d.young, name)
				}
				continue
			}
			s = opened
		}
		done, err := d.hastenOne(s, name, told[name], silent)
		if err != nil {
			d.config.Log.Debug("hasten handshake", "device", name, "error", err)
		}
		if done || !y.again(now, len(d.young)) {
			delete(d.young, name)
		}
	}
	return len(d.young)
}

// hastenOne reports done when the device has had a handshake and packets come
// back, or when it is gone. A peer that is young was made anew, and knows of no
// handshake before; when it was cannot be told, since the clock on the wall may
// have been set.
func (d *Driver) hastenOne(s *session, name string, told hostedDevice, silent func(tunnel string, since time.Time) bool) (done bool, err error) {
	t, ok := d.tunnels[name]
	if !ok {
		return true, nil
	}
	w, err := d.readDevice(s, name, told)
	if errors.Is(err, os.ErrNotExist) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	y := d.young[name]
	for _, p := range w.Peers {
		if p.PublicKey != wgtypes.Key(t.PeerKey) || p.LastHandshakeTime.IsZero() {
			continue
		}
		if silent == nil || !silent(t.ID, y.born) {
			return true, nil
		}
		if y.shaken.IsZero() {
			y.shaken = time.Now()
		}
		if time.Since(y.shaken) < hearing {
			return false, nil
		}
	}
	y.shaken = time.Time{}
	x := want{Tunnel: t, shared: d.pick(t, time.Now())}
	return false, d.configure(s, x, restart(x))
}
