package ipsec

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/strongswan/govici/vici"

	"github.com/circuitseal/circuitseal/agent/drift"
)

// syncCharon brings charon what it lacks. Without tunnels none is started.
func (d *Driver) syncCharon(ctx context.Context) error {
	want := wanted{connections: map[uint16]connection{}, initiates: map[uint16]bool{}, keys: map[string]identityKey{}}
	for n, t := range d.tunnels {
		if t.problem != "" {
			continue
		}
		want.connections[n] = t.connection
		want.initiates[n] = t.Initiates
	}
	for _, n := range keyNames(d.want.Identities) {
		if key, err := d.config.Keys.key(n); err == nil {
			want.keys[key.id] = key
		}
	}
	if _, err := d.session(ctx, len(want.connections) > 0); err != nil {
		if errors.Is(err, errNotRunning) && len(want.connections) == 0 {
			return nil
		}
		return err
	}
	if err := d.join(); err != nil {
		return err
	}
	have, err := d.readHeld(ctx)
	if err != nil {
		return err
	}
	given, err := d.endFormer(ctx, have)
	if err != nil {
		return err
	}
	ours, err := d.visit(want.keys, have.keys)
	if err != nil {
		return err
	}
	now, later := diffLoads(d.config.Instance, want, have, d.loaded)
	// What is there of a tunnel that has a problem stays as it is, but for whom to trust.
	now, later = d.keepProblems(now, given), d.keepProblems(later, given)
	// The rest of it does not wait for Sweep.
	for _, l := range later {
		if t := d.tunnels[l.number]; t != nil && l.number != 0 {
			now = append(now, l)
		}
	}
	later = slices.DeleteFunc(later, func(l load) bool { return l.number != 0 && d.tunnels[l.number] != nil })
	for _, id := range ours {
		if _, ok := want.keys[id]; !ok {
			later = append(later, load{verb: unloadKey, name: id})
		}
	}
	d.laterLoads = later
	return d.applyLoads(ctx, want, now)
}

// former reports whether a connection is of the tunnel that had its number before.
func (d *Driver) former(n connectionName) bool {
	t := d.tunnels[n.number]
	return t != nil && n.tunnel != tunnelDigest(t.ID)
}

// endFormer ends the SAs of tunnels whose numbers are other tunnels' now, before anything
// can come to their devices. given are those numbers.
func (d *Driver) endFormer(ctx context.Context, have held) (given map[uint16]bool, err error) {
	given = map[uint16]bool{}
	for _, name := range have.connections {
		if n, ours := parseName(d.config.Instance, name); ours && d.former(n) {
			given[n.number] = true
		}
	}
	if len(given) == 0 {
		return given, nil
	}
	all, err := d.listSAs(ctx)
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, sas := range all {
		errs = append(errs, d.endThoseOfFormer(ctx, sas))
	}
	return given, errors.Join(errs...)
}

func (d *Driver) endThoseOfFormer(ctx context.Context, sas []namedSA) error {
	var errs []error
	for _, s := range sas {
		if d.former(s.connection) {
			d.config.Log.Info("IPsec: end an SA", "connection", s.name, "ike", s.id, "why", "its number is another tunnel's now")
			errs = append(errs, d.terminate(ctx, termination{id: s.id, force: true}))
		}
	}
	return errors.Join(errs...)
}

// keepProblems leaves out what is of a tunnel with a problem, but for numbers that were
// another tunnel's, and for connections with whom is not trusted any more.
func (d *Driver) keepProblems(loads []load, given map[uint16]bool) []load {
	var out []load
	for _, l := range loads {
		if t, ok := d.tunnels[l.number]; ok && l.number != 0 && t.problem != "" && !given[l.number] {
			n, _ := parseName(d.config.Instance, l.name)
			if l.verb != unloadConnection || t.connection.name.trusts(n) {
				continue
			}
		}
		out = append(out, l)
	}
	return out
}

func (d *Driver) readHeld(ctx context.Context) (held, error) {
	var h held
	for _, q := range []struct {
		command, key string
		to           *[]string
	}{{"get-conns", "conns", &h.connections}, {"get-shared", "keys", &h.secrets}, {"get-keys", "keys", &h.keys}} {
		m, err := d.ask(ctx, q.command, nil)
		if err != nil {
			return held{}, err
		}
		*q.to = stringsOf(m, q.key)
	}
	return h, nil
}

// applyLoads takes the steps in order. Of a tunnel of which one fails the others are
// left out. An error that is not charon's answer ends it all: the next Sync goes on
// from what charon has then.
func (d *Driver) applyLoads(ctx context.Context, want wanted, loads []load) error {
	var errs []error
	failed := map[uint16]bool{}
	if err := d.yield(want, loads); err != nil {
		return err
	}
	for _, l := range loads {
		if failed[l.number] {
			continue
		}
		id := "(none)"
		if t, ok := d.tunnels[l.number]; ok {
			id = t.ID
		}
		d.config.Log.Debug("IPsec", "tunnel", id, "change", l.String())
		if err := d.takeLoad(ctx, want, l); err != nil {
			if l.number != 0 {
				failed[l.number] = true
			}
			errs = append(errs, fmt.Errorf("tunnel %s: %s: %w", id, l, err))
			if d.open == nil {
				break
			}
			continue
		}
		if l.verb != initiate {
			d.config.Drift.Note(l.verb.kind(), l)
		}
	}
	return errors.Join(errs...)
}

func (v loadVerb) kind() drift.Kind {
	switch v {
	case loadKey, loadSecret, unloadSecret, unloadKey:
		return drift.IPsecSecret
	case loadConnection, initiate, unloadConnection:
	}
	return drift.IPsecConnection
}

func (d *Driver) takeLoad(ctx context.Context, want wanted, l load) error {
	command, in := "", (*vici.Message)(nil)
	switch l.verb {
	case loadKey:
		der, err := want.keys[l.name].der()
		if err != nil {
			return err
		}
		command, in = "load-key", section("type", "ecdsa", "data", der)
	case loadSecret:
		s := l.secret
		command, in = "load-shared", section("id", s.id, "type", s.kind, "data", s.data(), "owners", s.owners)
	case loadConnection:
		command, in = "load-conn", want.connections[l.number].message
	case initiate:
		t := d.tunnels[l.number]
		if d.carried[l.number] {
			t.next = time.Now().Add(consider)
			return nil
		}
		t.attempt(time.Now())
		return d.initiate(ctx, t)
	case unloadConnection:
		command, in = "unload-conn", section("name", l.name)
	case unloadSecret:
		command, in = "unload-shared", section("id", l.name)
	case unloadKey:
		command, in = "unload-key", section("id", l.name)
	}
	_, err := d.ask(ctx, command, in)
	switch {
	case err != nil && d.open != nil && (l.verb == unloadConnection || l.verb == unloadSecret || l.verb == unloadKey):
		// What is gone already is gone.
		d.config.Log.Debug("IPsec", "change", l.String(), "error", err)
		return nil
	case err != nil:
		return err
	case l.verb == loadSecret:
		d.loaded[l.name] = l.secret.key
	case l.verb == unloadSecret:
		delete(d.loaded, l.name)
	}
	return nil
}

// initiate does not wait: eight that do would take all of charon's threads that
// the answers need.
func (d *Driver) initiate(ctx context.Context, t *tunnel) error {
	name := t.connection.name.in(d.config.Instance)
	_, err := d.ask(ctx, "initiate", section("ike", name, "child", childName(t.connection.generation), "timeout", "-1"))
	return err
}

// terminate does not wait either.
func (d *Driver) terminate(ctx context.Context, x termination) error {
	key, ids := "ike-id", []uint64{x.id}
	if len(x.children) > 0 {
		key, ids = "child-id", x.children
	}
	var errs []error
	for _, id := range ids {
		m, err := d.ask(ctx, "terminate", section(key, strconv.FormatUint(id, 10), "timeout", "-1", "force", strconv.FormatBool(x.force)))
		if err != nil && (m == nil || !strings.Contains(err.Error(), "no matching SAs")) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// sweepCharon unloads what is not wanted and ends its SAs, and removes those from the
// kernel that no charon knows. Nothing is left to look for when that succeeded once.
func (d *Driver) sweepCharon(ctx context.Context) error {
	if !d.unswept {
		return nil
	}
	var errs []error
	if d.want.Socket != "" && !d.config.External {
		// The instance's own has been given up for that one.
		errs = append(errs, d.stopCharon(ctx))
	}
	known, ended := map[uint16]bool{}, false
	_, err := d.session(ctx, false)
	switch {
	case err == nil:
		ended, err = d.unload(ctx, known)
		errs = append(errs, err)
	case !errors.Is(err, errNotRunning):
		return errors.Join(append(errs, err)...)
	}
	errs = append(errs, d.flushKernel(func(tunnel uint16) bool { return known[tunnel] || d.tunnels[tunnel] != nil }))
	err = errors.Join(append(errs, d.leave(ctx))...)
	// One whose keys were just replaced has gone on as another.
	d.unswept = err != nil || ended
	return err
}

// unload notes in known of which tunnels charon has SAs, and tells whether it has ended
// any.
func (d *Driver) unload(ctx context.Context, known map[uint16]bool) (ended bool, err error) {
	errs := []error{d.applyLoads(ctx, wanted{}, d.laterLoads)}
	d.laterLoads = nil
	if d.open == nil {
		return false, errors.Join(errs...)
	}
	sas, err := d.listSAs(ctx)
	if err != nil {
		return false, errors.Join(append(errs, err)...)
	}
	for n, list := range sas {
		known[n] = true
		if d.tunnels[n] != nil {
			continue
		}
		for _, s := range list {
			d.config.Log.Info("IPsec: end an SA", "connection", s.name, "ike", s.id, "why", "its tunnel is not wanted")
			errs = append(errs, d.terminate(ctx, termination{id: s.id, force: true}))
			ended = true
		}
	}
	return ended, errors.Join(errs...)
}

// algorithms are the keywords of get-algorithms, sorted.
func algorithms(m *vici.Message) map[string]bool {
	out := map[string]bool{}
	names := func(key string) []string {
		s, _ := m.Get(key).(*vici.Message)
		if s == nil {
			return nil
		}
		return s.Keys()
	}
	for _, kind := range []string{"encryption", "aead"} {
		for _, n := range names(kind) {
			c, ok := ciphers[n]
			switch {
			case !ok:
			case !c.sized:
				out[c.keyword] = true
			default:
				for _, size := range keySizes {
					out[cipherKeyword(n, size)] = true
				}
			}
		}
	}
	for kind, known := range map[string]map[string]string{"integrity": signers, "prf": prfs, "dh": groups, "ke": groups} {
		for _, n := range names(kind) {
			if k, ok := known[n]; ok {
				out[k] = true
			}
		}
	}
	return out
}
