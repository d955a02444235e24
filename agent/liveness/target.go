package liveness

import (
	"crypto/rand"
	"encoding/binary"
	mathrand "math/rand/v2"
	"time"
)

const (
	// interval is between probes of a tunnel that is up, or was.
	interval = time.Second
	// quick is between probes of one that has never been up, for as long as
	// quickFor: a policy that was just applied shall carry its first packet soon.
	quick    = 200 * time.Millisecond
	quickFor = 10 * time.Second
	// lossesDown in a row take a tunnel down; answersUp in a row bring one up
	// again that went down, one answer one that is new.
	lossesDown = 3
	answersUp  = 3
	// jitter is the part of an interval by which it varies either way, so that
	// the probes of many tunnels do not march in step.
	jitter = 0.1
	// outstanding is how many probes may be answered at a time; an older answer
	// is no news.
	outstanding = 4
)

// probe is what an answer must bring back.
type probe struct {
	sequence uint16
	nonce    uint64
}

type sentProbe struct {
	probe
	at               time.Time
	answered, missed bool
	valid            bool
	// took is how many answers in a row ended when this one was missed.
	took int
}

// target is the state of one tunnel. It has no clock: times are passed in.
type target struct {
	Target
	since time.Time
	// next is when the last probe counts as lost, and another one is due.
	next    time.Time
	ring    [outstanding]sentProbe
	current int

	up, everUp bool
	reported   bool // of a new one: that it does not come up
	losses     int
	answers    int
	sent, lost uint64
	rtt        time.Duration
	// asked is when the newest probe that was answered went out.
	asked         time.Time
	lastFailure   string
	sequenceStart uint16
}

func newTarget(t Target, now time.Time) *target {
	return &target{Target: t, since: now, next: now, sequenceStart: uint16(mathrand.Uint32())}
}

func (t *target) health() Health {
	return Health{
		Known: t.everUp || t.reported, Up: t.up,
		Sent: t.sent, Lost: t.lost, RTT: t.rtt,
	}
}

// expire counts the last probe as lost if it was not answered, and reports
// whether that changed what is to be known of the tunnel.
func (t *target) expire(now time.Time) (changed bool) {
	last := &t.ring[t.current]
	if !last.valid || last.answered || last.missed {
		return false
	}
	last.missed = true
	last.took = t.answers
	t.lost++
	t.losses++
	t.answers = 0
	switch {
	case t.up && t.losses >= lossesDown:
		t.up = false
		return true
	case !t.everUp && !t.reported && now.Sub(t.since) >= lossesDown*interval:
		t.reported = true
		return true
	}
	return false
}

// restart forgets what is outstanding, and gives one of which nothing is known
// its time anew.
func (t *target) restart(now time.Time) {
	t.ring = [outstanding]sentProbe{}
	t.next = now
	if !t.everUp && !t.reported {
		t.since = now
	}
}

// begin is the next probe, due now.
func (t *target) begin(now time.Time) probe {
	t.sent++
	p := probe{sequence: t.sequenceStart + uint16(t.sent), nonce: newNonce()}
	t.current = (t.current + 1) % outstanding
	t.ring[t.current] = sentProbe{probe: p, at: now, valid: true}
	wait := interval
	if !t.everUp && now.Sub(t.since) < quickFor {
		wait = quick
	}
	t.next = now.Add(time.Duration(float64(wait) * (1 - jitter + 2*jitter*mathrand.Float64())))
	return p
}

// reply takes an answer, and reports whether the tunnel came up by it. An
// answer to no outstanding probe, or a second one, does nothing; one that comes
// after its probe counted as lost still shows that packets pass, and gives back
// what its miss took: a path that is slower than the interval must be able to
// come up again.
func (t *target) reply(p probe, at time.Time) (changed bool) {
	for i := range t.ring {
		s := &t.ring[i]
		if !s.valid || s.answered || s.probe != p {
			continue
		}
		s.answered = true
		t.losses = 0
		t.answers += s.took + 1
		t.rtt = max(at.Sub(s.at), 0)
		if s.at.After(t.asked) {
			t.asked = s.at
		}
		if !t.up && (!t.everUp || t.answers >= answersUp) {
			t.up, t.everUp = true, true
			return true
		}
		return false
	}
	return false
}

// firstFailure reports whether the error is not the one of the last time.
func (t *target) firstFailure(err error) bool {
	text := err.Error()
	if text == t.lastFailure {
		return false
	}
	t.lastFailure = text
	return true
}

func newNonce() uint64 {
	var b [8]byte
	// Read never fails (crypto/rand, since Go 1.24).
	_, _ = rand.Read(b[:])
	return binary.BigEndian.Uint64(b[:])
}
