package uplink

import "time"

const (
	// firstRetry bounds the pause after a session that had lasted, lastRetry every
	// later one.
	firstRetry = 2 * time.Second
	lastRetry  = 30 * time.Second
	// settled is how long a session must have lasted for retries to start anew.
	settled = 10 * time.Second
)

// backoff is how long to wait before the next try. Its zero value is ready.
type backoff struct{ bound time.Duration }

// next is the pause after a try that lasted a time; random draws from 0 to below
// its argument. The whole pause is drawn ("full jitter"): agents that lose a
// controller together, or find it again together, come one by one.
func (b *backoff) next(lasted time.Duration, random func(time.Duration) time.Duration) time.Duration {
	switch {
	case b.bound == 0, lasted > settled:
		b.bound = firstRetry
	default:
		b.bound = min(2*b.bound, lastRetry)
	}
	return random(b.bound)
}
