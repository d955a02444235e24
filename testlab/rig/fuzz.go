package rig

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/circuitseal/circuitseal/testlab/netns"
	"github.com/circuitseal/circuitseal/testlab/traffic"
)

// Fuzz is what a LAN host sends that keeps to no rules; see traffic.Fuzz.
type Fuzz struct {
	From   netns.Host
	Sender string
	// Interface and Gateway are the way out, Pool is the text of addresses and
	// prefixes, with commas.
	Interface, Gateway, Pool string
	Seed                     uint64
	Count                    int
	// Pace is between two packets.
	Pace time.Duration
}

// SendFuzz sends all of it and returns then.
func (r *Rig) SendFuzz(ctx context.Context, f Fuzz) error {
	var own []string
	for _, a := range r.targets[f.From] {
		if a.IsValid() {
			own = append(own, a.String())
		}
	}
	if len(own) == 0 {
		return fmt.Errorf("fuzz from %s: it has no address that is known", f.From)
	}
	_, err := r.Lab.Run(ctx, f.From, r.program("traffic", "fuzz", "fuzz", "--sender", f.Sender, "--interface", f.Interface,
		"--gateway", f.Gateway, "--own", strings.Join(own, ","), "--pool", f.Pool, "--seed", strconv.FormatUint(f.Seed, 10),
		"--count", strconv.Itoa(f.Count), "--interval", f.Pace.String()))
	return err
}

// TagFuzz is frames with any tags, of which none may pass; see traffic.TagFuzz.
type TagFuzz struct {
	From      netns.Host
	Interface string
	// Circuit tells that Interface is in the circuit namespace of From's agent.
	Circuit bool
	Sender  string
	// MAC, Outer, Others and Pool are as `traffic tagfuzz` takes them.
	MAC, Outer, Others, Pool string
	Seed                     uint64
	Count                    int
}

// SendTagFuzz sends all of it and returns then.
func (r *Rig) SendTagFuzz(ctx context.Context, f TagFuzz) error {
	_, err := r.Lab.Run(ctx, f.From, r.inCircuit(f.From, f.Circuit, r.program("traffic", "tagfuzz", "tagfuzz", "--sender", f.Sender,
		"--interface", f.Interface, "--mac", f.MAC, "--mark", strconv.Itoa(markBase), "--outer", f.Outer, "--others", f.Others,
		"--pool", f.Pool, "--seed", strconv.FormatUint(f.Seed, 10), "--count", strconv.Itoa(f.Count))))
	return err
}

// Witness is a host that notes whose fuzz packets it receives.
type Witness struct {
	process *netns.Process
	out     *lockedBuffer
	slow    Slow
}

// StartWitness starts one and waits until it looks.
func (r *Rig) StartWitness(ctx context.Context, h netns.Host) (*Witness, error) {
	w := &Witness{out: new(lockedBuffer), slow: r.slow}
	s := r.program("traffic", "witness-"+string(h), "witness")
	s.Stdout = w.out
	var err error
	if w.process, err = r.Lab.Start(h, s); err != nil {
		return nil, err
	}
	return w, until(ctx, r.slow.Longer(patience), "the witness on "+string(h)+" looks", func() error {
		if !w.process.Alive() {
			return stop(errors.New("it has ended: " + tail(w.process.LogPath())))
		}
		w.out.mu.Lock()
		defer w.out.mu.Unlock()
		if w.out.b.Len() == 0 {
			return errors.New("it says nothing yet")
		}
		w.out.b.Reset()
		return nil
	})
}

// Stop ends it and returns what it received, by sender.
func (w *Witness) Stop() (traffic.Sighted, error) {
	if err := w.process.Stop(w.slow.Longer(10 * time.Second)); err != nil {
		return nil, err
	}
	w.out.mu.Lock()
	defer w.out.mu.Unlock()
	var seen traffic.Sighted
	if err := json.Unmarshal(w.out.b.Bytes(), &seen); err != nil {
		return nil, fmt.Errorf("decode the witness's report: %w: %s", err, tail(w.process.LogPath()))
	}
	return seen, nil
}
