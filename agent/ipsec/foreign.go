package ipsec

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/circuitseal/circuitseal/agent/durable"
)

// guests are what the instance has in charons that are not its own, by their sockets: the
// IDs of private keys, which carry no prefix. They are kept in a file that lasts as long
// as what they are about, so that all of it can be taken back by an agent that knows
// nothing else of it.
type guests map[string][]string

const guestsLimit = 1 << 20

func (d *Driver) guestsFile() string {
	return filepath.Join(d.config.Instance.RunDir(), "foreign-charons.json")
}

// guests are none where the file cannot be read: then there is nothing to go by.
func (d *Driver) guests() (guests, error) {
	b, err := durable.ReadFile(d.guestsFile(), guestsLimit, true)
	if errors.Is(err, os.ErrNotExist) {
		return guests{}, nil
	}
	g := guests{}
	if err == nil {
		err = json.Unmarshal(b, &g)
	}
	if err != nil {
		return guests{}, fmt.Errorf("read what is in a charon of somebody else: %w", err)
	}
	return g, nil
}

func (d *Driver) keepGuests(g guests) error {
	if len(g) == 0 {
		if err := os.Remove(d.guestsFile()); !errors.Is(err, os.ErrNotExist) {
			return err
		}
		return nil
	}
	b, err := json.Marshal(g)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(d.config.Instance.RunDir(), 0o700); err != nil {
		return err
	}
	return durable.WriteFile(d.guestsFile(), b, 0o600)
}

// visit notes which private keys the charon of somebody else is about to have, and says
// which of those that it has are ours: all are, of a charon of our own.
func (d *Driver) visit(want map[string]identityKey, have []string) (ours []string, err error) {
	if d.want.Socket == "" {
		return have, nil
	}
	g, err := d.guests()
	if err != nil {
		d.config.Log.Warn("IPsec", "error", err)
	}
	before, known := g[d.want.Socket]
	for _, id := range have {
		if _, wanted := want[id]; wanted || slices.Contains(before, id) {
			ours = append(ours, id)
		}
	}
	all := slices.Sorted(maps.Keys(want))
	for _, id := range ours {
		if !slices.Contains(all, id) {
			all = append(all, id)
		}
	}
	slices.Sort(all)
	if known && slices.Equal(all, before) {
		return ours, nil
	}
	g[d.want.Socket] = all
	if err := d.keepGuests(g); err != nil {
		return nil, fmt.Errorf("note what is given to the charon at %s: %w", d.want.Socket, err)
	}
	return ours, nil
}

// leave takes everything of the instance back from charons that are not used any more. One
// that does not run has nothing.
func (d *Driver) leave(ctx context.Context) error {
	g, err := d.guests()
	if err != nil {
		d.config.Log.Warn("IPsec", "error", err)
		return nil
	}
	left := maps.Clone(g)
	var errs []error
	for _, socket := range slices.Sorted(maps.Keys(g)) {
		if socket == d.want.Socket {
			continue
		}
		if err := d.leaveOne(ctx, socket, g[socket]); err != nil {
			errs = append(errs, fmt.Errorf("leave the charon at %s: %w", socket, err))
			continue
		}
		delete(left, socket)
	}
	if len(left) < len(g) {
		errs = append(errs, d.keepGuests(left))
	}
	return errors.Join(errs...)
}

func (d *Driver) leaveOne(ctx context.Context, socket string, keys []string) error {
	c, err := dial(ctx, socket, d.config.Circuit)
	if errors.Is(err, errNotRunning) || errors.Is(err, errElsewhere) {
		return nil
	}
	if err != nil {
		return err
	}
	x := New(d.config)
	x.open, x.socket, x.want.Socket = c, socket, socket
	defer x.hangUp()
	// What was to begin when something ended may have begun.
	for range 3 {
		have, err := x.readHeld(ctx)
		if err != nil {
			return err
		}
		_, x.laterLoads = diffLoads(d.config.Instance, wanted{}, have, nil)
		for _, id := range have.keys {
			if slices.Contains(keys, id) {
				x.laterLoads = append(x.laterLoads, load{verb: unloadKey, name: id})
			}
		}
		ended, err := x.unload(ctx, map[uint16]bool{})
		if err != nil || !ended {
			return err
		}
	}
	return errors.New("SAs are made as fast as they are ended")
}
