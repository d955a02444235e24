package api

import (
	"sync"
	"time"
)

// bucket lets a burst through and then one every so often, and counts the rest.
type bucket struct {
	now   func() time.Time
	burst int
	every time.Duration

	mu sync.Mutex
	// until is when all of the burst is back.
	until   time.Time
	leftOut int
}

// take says whether the next may pass, and how many could not since the last.
func (b *bucket) take() (ok bool, leftOut int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := b.now()
	if b.until.Before(now) {
		b.until = now
	}
	if b.until.Sub(now) > time.Duration(b.burst-1)*b.every {
		b.leftOut++
		return false, 0
	}
	b.until = b.until.Add(b.every)
	leftOut, b.leftOut = b.leftOut, 0
	return true, leftOut
}
