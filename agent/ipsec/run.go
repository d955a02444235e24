package ipsec

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"github.com/strongswan/govici/vici"
	"golang.org/x/sys/unix"

	"github.com/circuitseal/circuitseal/agent/outlive"
)

const (
	// lookEvery is how often SAs are looked at though nothing was heard of them, and
	// lookUneasy while any is not as it is to be.
	lookEvery  = 10 * time.Second
	lookUneasy = time.Second
	// calm is how long events are collected before a look: a thousand tunnels that
	// come up tell of it one by one.
	calm = 100 * time.Millisecond
	// eachCalm is how much longer that is for each tunnel: a list waits for the SAs that
	// are being worked at, and takes the time of that.
	eachCalm = 2 * time.Millisecond
	// firstRetry and lastRetry are how long after an attempt the next is made: the
	// ends are configured one after the other.
	firstRetry = 500 * time.Millisecond
	lastRetry  = 30 * time.Second
	// consider is how long the SA of a connection that was replaced carries on before another
	// is begun: the other end may not have heard of the change, and would agree to
	// what its old connection and the new one have in common.
	consider = 2 * time.Second
	// hearing is how long a new SA may be silent.
	hearing = 5 * time.Second
	// firstSilent is how long after an attempt a tunnel that stays silent may begin
	// anew at the soonest.
	firstSilent = 15 * time.Second
	// another is after how many failures the other pre-shared key is tried.
	another = 3
	// redial is how long after an error of the session of events the next is made.
	redial = 200 * time.Millisecond
)

// attempt notes that one is made, and when the next may be.
func (t *tunnel) attempt(now time.Time) {
	t.wait = min(max(2*t.wait, firstRetry), lastRetry)
	t.next = now.Add(spread(t.wait))
}

// spread draws from [d/2, 3d/2), so that the tunnels of a link that was dead do not
// all come at once.
func spread(d time.Duration) time.Duration { return d/2 + rand.N(d) }

// Run keeps tunnels up until ctx ends, and returns its error: it begins those that
// have no SA and are this end's to begin, begins anew, beside the old one, what is
// silent or belongs to a connection that was replaced, ends what was taken over, is
// double, or is weaker than its policy, starts charon again and loads everything
// when it died, and then removes what the one that died has left in the kernel.
// silent reports whether nothing has come back through a tunnel of what was sent
// since then; nil where nobody asks. It must not call the driver.
func (d *Driver) Run(ctx context.Context, silent func(tunnel string, since time.Time) bool) error {
	noises := make(chan vici.Event, 4096)
	go d.listen(ctx, noises)
	timer := time.NewTimer(0)
	defer timer.Stop()
	next := time.Now()
	sooner := func(in time.Duration) {
		if at := time.Now().Add(in); at.Before(next) {
			next = at
			timer.Reset(in)
		}
	}
	pause := calm
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-d.kick:
			sooner(pause)
		case e := <-noises:
			if e.Name == eventLog {
				d.hear(e.Message)
			} else {
				sooner(pause)
			}
		case now := <-timer.C:
			wait := lookEvery
			work, uneasy := d.look(ctx, now, silent)
			if uneasy {
				wait = lookUneasy
			}
			pause = max(calm, work)
			wait = max(wait, pause)
			next = time.Now().Add(wait)
			timer.Reset(wait)
		}
	}
}

// What charon tells to who subscribes.
const (
	eventLog   = "log"
	eventIKE   = "ike-updown"
	eventChild = "child-updown"
)

// listen hears charon's events, in a session of its own, until ctx ends, while there are
// tunnels to hear of.
func (d *Driver) listen(ctx context.Context, to chan<- vici.Event) {
	for ctx.Err() == nil {
		if d.busy() {
			if err := d.listenOnce(ctx, to); err != nil && !errors.Is(err, errNotRunning) {
				d.config.Log.Debug("listen to charon", "error", err)
			}
			d.wake()
		}
		select {
		case <-ctx.Done():
		case <-time.After(redial):
		}
	}
}

// busy reports whether there are tunnels to hear of.
func (d *Driver) busy() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.tunnels) > 0
}

func (d *Driver) listenOnce(ctx context.Context, to chan<- vici.Event) error {
	d.mu.Lock()
	socket := d.socketPath()
	d.mu.Unlock()
	c, err := dial(ctx, socket, d.config.Circuit)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	events := make(chan vici.Event, cap(to))
	if err := c.subscribe(events, eventIKE, eventChild, eventLog); err != nil {
		return fmt.Errorf("subscribe: %w", err)
	}
	d.wake()
	check := time.NewTicker(lookEvery)
	defer check.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case e, ok := <-events:
			if !ok {
				return errNotRunning
			}
			if e.Name == eventLog && !worthHearing(e.Message) {
				continue
			}
			select {
			case to <- e:
			case <-ctx.Done():
			}
		case <-check.C:
			d.mu.Lock()
			other := d.socketPath() != socket
			d.mu.Unlock()
			if other {
				return nil
			}
		}
	}
}

func worthHearing(m *vici.Message) bool {
	n, ok := parseNoise(m)
	if !ok {
		return false
	}
	_, generation := n.generation()
	_, sentence := n.reason(false)
	return generation || sentence != ""
}

// hear takes one line of charon's log.
func (d *Driver) hear(m *vici.Message) {
	n, ok := parseNoise(m)
	if !ok {
		return
	}
	name, ok := parseName(d.config.Instance, n.connection)
	if !ok {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	t, ok := d.tunnels[name.number]
	if !ok {
		return
	}
	if g, ok := n.generation(); ok {
		if number, err := strconv.ParseUint(g, 10, 64); err == nil {
			t.used[n.ike], t.lastUsed = number, number
		}
		return
	}
	t.blame(n)
}

// blame keeps why there is no SA: the latest attempt's best reason.
func (t *tunnel) blame(n noise) {
	rank, sentence := n.reason(t.Policy.PPKRequired)
	if sentence == "" || n.ike == t.blamed && rank > t.rank {
		return
	}
	t.reason, t.rank, t.blamed = sentence, rank, n.ike
}

// look sees to all tunnels once, and reports how long the next may wait for more to see,
// and whether any tunnel is not as it is to be.
func (d *Driver) look(ctx context.Context, now time.Time, silent func(string, time.Time) bool) (pause time.Duration, uneasy bool) {
	if !d.goesOn(ctx) {
		return 0, true
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.synced || len(d.tunnels) == 0 {
		return 0, false
	}
	began := time.Now()
	uneasy = d.lookAtAll(ctx, now, silent)
	if d.open == nil {
		// It was waited for, which was no work of its.
		return 0, uneasy
	}
	// A look at a thousand takes a while, and of charon, too.
	return max(4*time.Since(began), time.Duration(len(d.tunnels))*eachCalm), uneasy
}

func (d *Driver) lookAtAll(ctx context.Context, now time.Time, silent func(string, time.Time) bool) (uneasy bool) {
	if err := outlive.TrimLog(d.logPath()); err != nil {
		d.config.Log.Warn("shorten charon's log", "error", err)
	}
	if d.open == nil || d.alive(ctx) != nil {
		// It may have died, and then knows nothing of any tunnel.
		if err := d.syncCharon(ctx); err != nil {
			d.config.Log.Warn("bring charon back", "error", err)
			return true
		}
	}
	sas, err := d.listSAs(ctx)
	if err != nil {
		d.config.Log.Warn("look at SAs", "error", err)
		return true
	}
	for _, t := range d.sortedTunnels() {
		if !d.lookAt(ctx, now, t, sas[t.Number], silent) {
			uneasy = true
		}
		if d.open == nil {
			return true
		}
	}
	if err := d.removeOrphans(sas, now); err != nil {
		d.config.Log.Warn("remove SAs that a charon before this one has left", "error", err)
	}
	return uneasy
}

// lookAt reports whether the tunnel is as it is to be.
func (d *Driver) lookAt(ctx context.Context, now time.Time, t *tunnel, sas []namedSA, silent func(string, time.Time) bool) (done bool) {
	log := d.config.Log.With("tunnel", t.ID)
	t.observe(sas, now)
	v := view{
		tunnel: t.IPsecTunnel, backend: d.backend, name: t.connection.name, sas: sas, due: t.problem == "" && !now.Before(t.next),
		silent: silent != nil && t.silent(sas, now, func(since time.Time) bool { return silent(t.ID, since) }),
	}
	r := decide(v)
	if r.up != nil {
		t.given = false
		if r.weakness == "" {
			t.weakness = ""
		}
		t.reason, t.rank = "", len(reasons)
		if r.quiet {
			t.failures, t.wait, t.next = 0, 0, time.Time{}
		}
	}
	if r.weakness != "" {
		t.weakness = r.weakness
	}
	for _, x := range r.terminate {
		log.Info("IPsec: end an SA", "ike", x.id, "why", x.why)
		if err := d.terminate(ctx, x); err != nil {
			log.Warn("IPsec: end an SA", "ike", x.id, "error", err)
		}
		if t.problem != "" && x.force && d.open != nil {
			// No other connection takes the place of its, by which it would come back.
			i := slices.IndexFunc(sas, func(s namedSA) bool { return s.id == x.id })
			if _, err := d.ask(ctx, "unload-conn", section("name", sas[i].connection.in(d.config.Instance))); err != nil {
				log.Debug("IPsec", "change", "unload the connection of what was ended", "error", err)
			}
		}
	}
	if r.initiate && d.open != nil {
		turned := false
		if r.up == nil {
			t.failures++
			turned = d.turn(ctx, t)
		}
		t.attempt(now)
		if r.up != nil && v.silent {
			t.next = now.Add(max(t.next.Sub(now), firstSilent))
		}
		if !turned && d.open != nil {
			log.Debug("IPsec: initiate", "connection", t.connection.name.in(d.config.Instance), "silent", v.silent)
			if err := d.initiate(ctx, t); err != nil {
				log.Warn("IPsec: initiate", "error", err)
			}
		}
	}
	return r.quiet || (!t.Initiates && r.up != nil || t.problem != "") && len(r.terminate) == 0
}

// observe keeps since when SAs have been in a state that must not last, and what
// generations of pre-shared keys are in use.
func (t *tunnel) observe(sas []namedSA, now time.Time) {
	seen, used := map[sighted]sighting{}, map[uint64]uint64{}
	for i, s := range sas {
		what, at := "", sighted{ike: s.id}
		switch {
		case !s.established:
			what = s.state
		case !s.up():
			what = "childless"
		case s.connection != t.connection.name:
			what, at = "judged by "+judgedBy(t.IPsecTunnel), sighted{connection: s.connection}
			if !t.connection.name.trusts(s.connection) {
				// Since then, whatever else changes.
				what = "not trusted"
			}
		}
		if what != "" {
			was := t.seen[at]
			if was.what != what {
				was = sighting{what, now}
			}
			seen[at] = was
			sas[i].seen = now.Sub(was.since)
		}
		g := t.used[s.id]
		if c := s.child(); g == 0 && c != nil {
			switch g = generationOf(c.name); {
			case g != 0 || !s.ppk:
			case len(t.PresharedKeys) == 1 && s.age < now.Sub(t.sole):
				g = t.PresharedKeys[0].Generation
			case len(t.used) > 0:
				// A rekeyed IKE SA has another number; one that was authenticated anew would
				// have told.
				g = t.lastUsed
			}
		}
		if g != 0 {
			used[s.id] = g
		}
	}
	for at, was := range t.seen {
		// The far end could end its ESP SA and make another, again and again.
		if _, ok := seen[at]; !ok && slices.ContainsFunc(sas, func(s namedSA) bool { return s.connection == at.connection }) {
			seen[at] = was
		}
	}
	t.seen, t.used = seen, used
}

// silent reports that the SA which counts is silent, and old enough to be heard.
func (t *tunnel) silent(sas []namedSA, now time.Time, ask func(since time.Time) bool) bool {
	for _, s := range sas {
		if s.up() && s.connection == t.connection.name && s.age < hearing {
			return false
		}
	}
	for _, s := range sas {
		if s.up() && s.connection == t.connection.name {
			return ask(now.Add(-hearing))
		}
	}
	return false
}

// turn goes over to the tunnel's other pre-shared key when attempts fail: the far
// end may have only that. A connection by that one is begun with it.
func (d *Driver) turn(ctx context.Context, t *tunnel) (turned bool) {
	if len(t.PresharedKeys) < 2 || t.failures%another != 0 {
		return false
	}
	failures, next, wait, reason, rank := t.failures, t.next, t.wait, t.reason, t.rank
	t.preferred = 1 - t.preferred
	err := d.prepare(t, d.want, map[string]string{})
	if err == nil {
		err = d.syncCharon(ctx)
	}
	if err != nil {
		d.config.Log.Warn("IPsec: try the other pre-shared key", "tunnel", t.ID, "error", err)
	}
	t.failures, t.next, t.wait, t.reason, t.rank = failures, next, wait, reason, rank
	return err == nil
}

// removeOrphans removes from the kernel what no charon knows: what is left of one that was
// killed, of tunnels that are up again, of those that had their numbers before, and, in the
// time of a handover, of those whose policy has changed since. Others carry on until their
// time is over, or the end that begins replaces them, which notices at the next rekeying:
// charon asks no peer whose ESP packets arrive whether it is there.
func (d *Driver) removeOrphans(sas map[uint16][]namedSA, now time.Time) error {
	if d.backend != Kernel || d.open == nil || d.flushed == d.open.pid {
		return nil
	}
	if d.bereaved.IsZero() {
		d.bereaved = now
	}
	h, err := d.config.Circuit.Netlink(unix.NETLINK_XFRM)
	if err != nil {
		return err
	}
	defer h.Close()
	states, err := readKernel(h)
	if err != nil {
		return err
	}
	var errs []error
	waits := false
	for n, k := range states {
		if _, wanted := d.tunnels[n]; !wanted {
			continue
		}
		var known []ikeSA
		up := false
		for _, s := range sas[n] {
			known = append(known, s.ikeSA)
			up = up || s.up() && s.age >= settles
		}
		orphans, young := k.orphans(known, now)
		waits = waits || young
		for _, s := range orphans {
			// Nobody can tell any more whom it is with, and what was negotiated.
			t := d.tunnels[n]
			changed := t.changed.After(d.bereaved.Add(-handover)) && now.Sub(t.changed) > handover
			if !up && !t.given && t.joins(s.Src, s.Dst) && !changed {
				waits = true
				continue
			}
			d.config.Log.Info("IPsec: remove an SA that no charon knows", "tunnel", d.tunnels[n].ID, "spi", fmt.Sprintf("%#x", uint32(s.Spi)), "replaced", up)
			errs = append(errs, removeSA(h, s))
		}
	}
	if !waits && errors.Join(errs...) == nil {
		d.flushed, d.bereaved = d.open.pid, time.Time{}
	}
	return errors.Join(errs...)
}

// joins reports whether an SA between two addresses may be the tunnel's.
func (t *tunnel) joins(src, dst net.IP) bool {
	from, _ := netip.AddrFromSlice(src)
	to, _ := netip.AddrFromSlice(dst)
	from, to = from.Unmap(), to.Unmap()
	return from == t.Local && to == t.Remote || from == t.Remote && to == t.Local
}
