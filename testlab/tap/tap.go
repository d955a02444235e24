package tap

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// Tap looks at all interfaces of a configuration.
type Tap struct {
	readers []*reader
}

// reader looks at one interface.
type reader struct {
	ring      *ring
	inspector *Inspector

	mu      sync.Mutex
	summary InterfaceSummary
	// caughtUp: every frame that the kernel took before it has been judged.
	caughtUp time.Time
}

// Open opens a packet socket on every interface; frames are counted from then
// on. The caller must Close it.
func Open(c Config) (*Tap, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	t := new(Tap)
	for _, i := range c.Interfaces {
		r, err := openRing(i.Namespace, i.Name, blockPatience)
		if err != nil {
			t.Close()
			return nil, err
		}
		t.readers = append(t.readers, &reader{ring: r, inspector: NewInspector(c, i), summary: newInterfaceSummary(i.Label)})
	}
	return t, nil
}

// Close closes the sockets. Run must have returned.
func (t *Tap) Close() {
	for _, r := range t.readers {
		r.ring.close()
	}
}

// Run judges frames until ctx ends. An interface that cannot be read any more
// is named in the summary and makes it invalid.
func (t *Tap) Run(ctx context.Context) {
	var wg sync.WaitGroup
	for _, r := range t.readers {
		wg.Go(func() { r.run(ctx) })
	}
	wg.Wait()
}

func (r *reader) run(ctx context.Context) {
	// What the kernel had taken by asked is judged when due more blocks are.
	asked, due := time.Now(), r.ring.pending()
	for ctx.Err() == nil {
		if due == 0 {
			r.mu.Lock()
			r.caughtUp = asked
			r.mu.Unlock()
			asked, due = time.Now(), r.ring.pending()
		}
		ok, err := r.ring.read(blockPatience, r.judge)
		if err != nil {
			r.mu.Lock()
			r.summary.fail(err)
			r.mu.Unlock()
			return
		}
		if ok && due > 0 {
			due--
		}
	}
}

func (r *reader) judge(s seen) {
	v := r.inspector.Inspect(s.frame, s.meta)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.summary.count(s.frame, v, s.at, s.outgoing)
}

// catchUp is how long a report waits for a reader that lags behind; then its
// result is invalid.
const catchUp = 20 * time.Second

// Report waits until everything that had crossed the interfaces when it was
// called has been judged, and says what was seen. What could not be judged in
// time, or was lost, or crossed an interface that has gone, makes the result
// invalid. Run must be running.
func (t *Tap) Report(ctx context.Context) Summary {
	asked := time.Now()
	var parts []InterfaceSummary
	for _, r := range t.readers {
		parts = append(parts, r.report(ctx, asked))
	}
	return total(parts)
}

func (r *reader) report(ctx context.Context, asked time.Time) InterfaceSummary {
	tick := time.NewTicker(blockPatience)
	defer tick.Stop()
	for {
		r.mu.Lock()
		if n, err := r.ring.drops(); err != nil {
			r.summary.fail(err)
		} else {
			r.summary.Drops += n
		}
		if err := r.ring.attached(); err != nil {
			r.summary.fail(err)
		}
		done := r.caughtUp.After(asked) || r.summary.Problem != ""
		if !done && (time.Since(asked) > catchUp || ctx.Err() != nil) {
			r.summary.fail(errors.Join(fmt.Errorf("frames were not judged within %s", time.Since(asked).Round(time.Millisecond)), ctx.Err()))
			done = true
		}
		s := r.summary.clone()
		r.mu.Unlock()
		if done {
			return s
		}
		<-tick.C
	}
}
