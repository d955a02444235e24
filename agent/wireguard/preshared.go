package wireguard

import (
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/circuitseal/circuitseal/agent/plan"
	"github.com/circuitseal/circuitseal/proto/desired"
)

// A peer's pre-shared key matters to the next handshake only: a session goes on
// with what it was made of. WireGuard begins a handshake 120 s after the last
// (REKEY_AFTER_TIME), repeats it every 5 s (REKEY_TIMEOUT), and drops the
// session after 180 s (REJECT_AFTER_TIME). When the two ends' keys differ, the
// initiator cannot read the response; nothing else is lost. So there are 60 s
// to find the key that the far end has, and no more than two to try.
//
// The ends agree without a word: the second one, by its probe address, tries
// its other key soon and changes often; the first stays longer with each than
// the second takes for both. Either finds an end that cannot change its key,
// because its agent is dead. As soon as a handshake is done, both go back to
// the first key of their state.
const (
	// overdue is when a handshake that was due has failed twice.
	overdue = 130 * time.Second
	// hurried is how long the second end stays with a key: two attempts.
	hurried = 10 * time.Second
	// patient is how long the first end stays with a key.
	patient = 25 * time.Second
	// unshaken is the age at which a peer without any handshake begins: the
	// second end tries its first key first.
	unshaken = overdue + hurried
	// rejectAfter is when a session is over.
	rejectAfter = 180 * time.Second
	// settled is how long a key must have been configured for a handshake to
	// have been with it: the responder counts a handshake as done with the first
	// packet that comes, which is sent at once and again every second.
	settled = 3 * time.Second
)

// choose says which of two keys, 0 or 1, an end configures age after its last
// handshake.
func choose(age time.Duration, second bool) int {
	begin, each := overdue+patient, patient
	if second {
		begin, each = overdue, hurried
	}
	if age < begin || (age-begin)/each%2 == 1 {
		return 0
	}
	return 1
}

// secondEnd reports whether an end has the greater probe address.
func secondEnd(t plan.Tunnel) bool { return t.LocalProbe.Compare(t.RemoteProbe) > 0 }

// sharing is what was seen of a peer's pre-shared key and its handshakes.
// Times at which something was seen are of the monotonic clock, since the one
// on the wall may be set; handshake is WireGuard's own, and only compared.
type sharing struct {
	configured desired.Secret
	since      time.Time
	handshake  time.Time
	// begun is when the last handshake was, for choose.
	begun time.Time
	// used is the key of the last handshake, zero while that is not known.
	used desired.Secret
	// seen is when this agent first saw the peer: how long ago a handshake was that
	// it did not see only the clock on the wall could say.
	seen time.Time
}

// String keeps secrets out of what prints a Driver.
func (*sharing) String() string { return "(sharing)" }

// observe takes what a device says of its peer.
func (d *Driver) observe(name string, p wgtypes.Peer, now time.Time) {
	s := d.shared[name]
	key := desired.Secret(p.PresharedKey)
	if s == nil {
		// This agent has just begun. How old the session is only the clock on the
		// wall can say, within what a session can be.
		s = &sharing{configured: key, since: now, handshake: p.LastHandshakeTime, begun: now.Add(-unshaken), seen: now}
		if !p.LastHandshakeTime.IsZero() {
			s.begun = now.Add(-min(max(0, now.Round(0).Sub(p.LastHandshakeTime)), rejectAfter))
		}
		d.shared[name] = s
		return
	}
	if !s.configured.Equal(key) {
		s.configured, s.since = key, now
	}
	switch {
	case p.LastHandshakeTime.Equal(s.handshake):
	case p.LastHandshakeTime.IsZero():
		// Somebody has made the peer anew.
		*s = sharing{configured: key, since: now, begun: now.Add(-unshaken), seen: s.seen}
	default:
		s.handshake, s.begun, s.used = p.LastHandshakeTime, now, desired.Secret{}
		if now.Sub(s.since) >= settled {
			s.used = key
		}
	}
}

// bornWith remembers that a peer was made with a key, and had none before: its
// first handshake is with this one.
func (d *Driver) bornWith(name string, key desired.Secret, now time.Time) {
	s := d.shared[name]
	if s == nil || !s.handshake.IsZero() {
		// One that has failed so far goes on trying where it was.
		s = &sharing{begun: now.Add(-unshaken), seen: now}
		d.shared[name] = s
	}
	s.configured, s.since = key, now.Add(-settled)
}

// pick is the pre-shared key that a tunnel's peer is to have now; nil when the
// plan has none.
func (d *Driver) pick(t plan.Tunnel, now time.Time) *desired.PresharedKey {
	switch len(t.PresharedKeys) {
	case 0:
		return nil
	case 1:
		return &t.PresharedKeys[0]
	}
	age := time.Duration(unshaken)
	if s := d.shared[t.Device]; s != nil {
		age = now.Sub(s.begun)
	}
	return &t.PresharedKeys[choose(age, secondEnd(t))]
}

// generations are those that the plan has for a tunnel, and the one of its last
// handshake, 0 when that is not known or not of the plan any more.
func (d *Driver) generations(t plan.Tunnel) (held []uint64, used uint64) {
	s := d.shared[t.Device]
	for _, k := range t.PresharedKeys {
		held = append(held, k.Generation)
		if s != nil && !s.used.IsZero() && s.used.Equal(k.Key) {
			used = k.Generation
		}
	}
	return held, used
}
