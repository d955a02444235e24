package uplink

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// reach simulates agents whose sessions end together when a controller goes away
// for a time: when each one's first try after its return is. A try that meets
// nobody takes a moment, or, where packets vanish, as long as dialling may.
func reach(agents int, away, vain time.Duration, r *rand.Rand) []time.Duration {
	out := make([]time.Duration, agents)
	for i := range out {
		var b backoff
		at := b.next(time.Hour, func(d time.Duration) time.Duration { return time.Duration(r.Int64N(int64(d))) })
		for at < away {
			at += vain + b.next(vain, func(d time.Duration) time.Duration { return time.Duration(r.Int64N(int64(d))) })
		}
		out[i] = at - away
	}
	return out
}

// A thousand agents do not come back in one second, whatever the outage was: at
// most twice as many in any tenth of a second as if they were spread evenly over
// what they may wait.
func TestReturnWithoutAStorm(t *testing.T) {
	const agents, slot = 1000, 100 * time.Millisecond
	for _, tt := range []struct {
		name       string
		away, vain time.Duration
		// over is what the tries are spread over at least, last when all have come.
		over, last time.Duration
	}{
		{"restart", 0, 0, firstRetry, firstRetry},
		{"five seconds", 5 * time.Second, time.Millisecond, 2 * time.Second, lastRetry},
		{"an hour", time.Hour, time.Millisecond, lastRetry / 2, lastRetry},
		{"an hour behind a firewall", time.Hour, dialTimeout, lastRetry / 2, lastRetry + dialTimeout},
		{"30 days", 30 * 24 * time.Hour, dialTimeout, lastRetry / 2, lastRetry + dialTimeout},
	} {
		t.Run(tt.name, func(t *testing.T) {
			came := reach(agents, tt.away, tt.vain, rand.New(rand.NewPCG(1, 2)))
			if last := slices.Max(came); last > tt.last {
				t.Errorf("the last comes after %s, want all within %s", last, tt.last)
			}
			slots := map[time.Duration]int{}
			most := 0
			for _, at := range came {
				slots[at/slot]++
				most = max(most, slots[at/slot])
			}
			if even := float64(agents) * float64(slot) / float64(tt.over); float64(most) > max(2*even, even+12) {
				t.Errorf("%d of %d come within %s, want at most about %.0f", most, agents, slot, even)
			}
			t.Logf("most within %s: %d", slot, most)
		})
	}
}

func TestBackoffGrowsAndStartsAnew(t *testing.T) {
	var b backoff
	var bounds []time.Duration
	draw := func(d time.Duration) time.Duration {
		bounds = append(bounds, d)
		return d
	}
	for range 6 {
		b.next(0, draw)
	}
	b.next(settled+1, draw)
	want := []time.Duration{2, 4, 8, 16, 30, 30, 2}
	for i := range want {
		want[i] *= time.Second
	}
	if !slices.Equal(bounds, want) {
		t.Errorf("bounds %v, want %v", bounds, want)
	}
}
