package wireguard

import (
	"context"
	"maps"
	"slices"
	"time"
)

// A peer remembers the time that the other end gave with its last handshake, and
// takes no older one (WireGuard, section 5.1). Where a clock was ahead when
// handshakes were made and is right again, neither end takes the other's for as
// long as it was ahead, which may be years. A tunnel without a session has
// nothing to lose: both ends make its peer anew, with which that memory goes.
const (
	// reviveEvery is how often a peer without a session is made anew.
	reviveEvery = 40 * time.Second
	reviveTick  = 5 * time.Second
)

// sessionless are the devices of which no session can be left, by the monotonic
// clock, and whose turn it is. It is called with mu held.
func (d *Driver) sessionless(now time.Time) []string {
	var names []string
	for _, name := range slices.Sorted(maps.Keys(d.tunnels)) {
		s, young := d.shared[name], d.young[name] != nil
		if s == nil || young || now.Sub(s.begun) < rejectAfter || now.Before(d.revived[name]) {
			continue
		}
		d.revived[name] = now.Add(spread(reviveEvery))
		names = append(names, name)
	}
	maps.DeleteFunc(d.revived, func(name string, _ time.Time) bool { _, ok := d.tunnels[name]; return !ok })
	return names
}

// revive makes the peers of devices without a session anew. What cannot be
// written now is tried again at the next turn.
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
	for _, name := range names {
		t := d.tunnels[name]
		x := want{Tunnel: t, shared: d.pick(t, now)}
		err := d.configure(s, x, restart(x))
		d.config.Log.Debug("made a peer without a session anew", "tunnel", t.ID, "device", name, "error", err)
	}
}
