package wireguard

import (
	"context"
	"maps"
	"slices"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// A peer remembers the time that the other end gave with its last handshake, and
// takes no older one (WireGuard, section 5.1). Where a clock was ahead when both
// ends began handshakes and is right again, neither takes the other's for as long
// as it was ahead, which may be years. A tunnel without a session has nothing to
// lose: both ends make its peer anew, with which that memory goes.
const (
	// reviveEvery is how often a peer without a session is made anew.
	reviveEvery = 40 * time.Second
	reviveTick  = 5 * time.Second
)

// over reports that no session can be left of what this agent saw of a peer, by
// the monotonic clock.
func (s *sharing) over(now time.Time) bool {
	return now.Sub(s.begun) >= rejectAfter && now.Sub(s.seen) >= rejectAfter
}

// sessionless are the devices that seem to have no session, and whose turn it is.
// It is called with mu held.
func (d *Driver) sessionless(now time.Time) []string {
	var names []string
	for _, name := range slices.Sorted(maps.Keys(d.tunnels)) {
		s := d.shared[name]
		if s == nil || d.young[name] != nil || !s.over(now) {
			delete(d.revived, name)
			continue
		}
		turn, waits := d.revived[name]
		if waits && !now.Before(turn) {
			names = append(names, name)
		}
		if !waits || !now.Before(turn) {
			// The first one too is some time off, so that the tunnels of a dead link
			// do not all come at once.
			d.revived[name] = now.Add(spread(reviveEvery))
		}
	}
	maps.DeleteFunc(d.revived, func(name string, _ time.Time) bool { _, ok := d.tunnels[name]; return !ok })
	return names
}

// revive makes the peers of devices without a session anew, after a look at each:
// nobody may have read them for long. What cannot be read or written now is tried
// again at the next turn.
func (d *Driver) revive(ctx context.Context, now time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	names := d.sessionless(now)
	if len(names) == 0 {
		return
	}
	s, err := d.open(ctx)
	if err != nil {
		d.config.Log.Debug("make peers without a session anew", "error", err)
		return
	}
	defer s.close()
	told, err := s.list()
	if err != nil {
		d.config.Log.Debug("make peers without a session anew", "error", err)
		return
	}
	for _, name := range names {
		if err := d.reviveOne(s, name, told[name], now); err != nil {
			d.config.Log.Debug("make a peer without a session anew", "device", name, "error", err)
		}
	}
}

// reviveOne leaves a device alone that has another peer: it is not made what it
// is to be yet.
func (d *Driver) reviveOne(s *session, name string, told hostedDevice, now time.Time) error {
	t := d.tunnels[name]
	w, err := d.readDevice(s, name, told)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(w.Peers, func(p wgtypes.Peer) bool { return p.PublicKey == wgtypes.Key(t.PeerKey) })
	if i < 0 {
		return nil
	}
	d.observe(name, w.Peers[i], now)
	if !d.shared[name].over(now) {
		return nil
	}
	d.config.Log.Debug("make a peer without a session anew", "tunnel", t.ID, "device", name)
	x := want{Tunnel: t, shared: d.pick(t, now)}
	return d.configure(s, x, restart(x))
}
