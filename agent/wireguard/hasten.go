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
const (
	firstHaste = 100 * time.Millisecond
	lastHaste  = time.Second
	// childhood is how long that goes on. Then WireGuard's own pace will do.
	childhood = 30 * time.Second
	hasteTick = 20 * time.Millisecond
)

// youth is a tunnel that has not had its first handshake.
type youth struct {
	born, next time.Time
	wait       time.Duration
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

// again advances to the next attempt, and reports false when y is no longer
// young.
func (y *youth) again(now time.Time) bool {
	y.wait = min(y.wait*3/2, lastHaste)
	y.next = now.Add(spread(y.wait))
	return now.Sub(y.born) < childhood
}

// Run hastens first handshakes until ctx ends, and returns its error.
func (d *Driver) Run(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-d.born:
			timer.Reset(hasteTick)
		case now := <-timer.C:
			if d.hasten(now) {
				timer.Reset(hasteTick)
			}
		}
	}
}

// hasten reports whether tunnels are left that are young.
func (d *Driver) hasten(now time.Time) (more bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	defer func() { more = len(d.young) > 0 }()
	var s *session
	for name, y := range d.young {
		if now.Before(y.next) {
			continue
		}
		if s == nil {
			wg, err := d.newClient()
			if err != nil {
				d.config.Log.Debug("hasten handshakes", "error", err)
				if !y.again(now) {
					delete(d.young, name)
				}
				continue
			}
			s = &session{wg: wg}
			defer s.close()
		}
		done, err := d.hastenOne(s, name)
		if err != nil {
			d.config.Log.Debug("hasten handshake", "device", name, "error", err)
		}
		if done || !y.again(now) {
			delete(d.young, name)
		}
	}
	return more
}

// hastenOne reports done when the device has had a handshake, or is gone. A peer
// that is young was made anew, and knows of none before; when it was cannot be
// told, since the clock on the wall may have been set.
func (d *Driver) hastenOne(s *session, name string) (done bool, err error) {
	t, ok := d.tunnels[name]
	if !ok {
		return true, nil
	}
	var w *wgtypes.Device
	err = d.guard(name, func() (err error) {
		w, err = s.wg.Device(name)
		return err
	})
	if errors.Is(err, os.ErrNotExist) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	for _, p := range w.Peers {
		if p.PublicKey == wgtypes.Key(t.PeerKey) && !p.LastHandshakeTime.IsZero() {
			return true, nil
		}
	}
	x := want{Tunnel: t}
	return false, d.configure(s, x, restart(x))
}
