package api

import (
	"net/netip"
	"sync"
	"time"
)

const (
	// failureBurst is how many guesses at tokens an address may make at once;
	// every failureEvery gives it one back. A token has 256 random bits: this
	// keeps the log and the store calm, it does not keep the secret.
	failureBurst = 60
	failureEvery = time.Second
	// maxAddresses bounds the memory of who has failed.
	maxAddresses = 4096
)

// failures counts, by address, enrolments with tokens that do not exist.
type failures struct {
	now func() time.Time

	mu sync.Mutex
	// until is when an address has all its guesses back.
	until map[netip.Prefix]time.Time
}

func newFailures(now func() time.Time) *failures {
	return &failures{now: now, until: map[netip.Prefix]time.Time{}}
}

// network is what one party surely has of addresses: one of IPv4, a /64 of IPv6.
func network(address string) netip.Prefix {
	a, err := netip.ParseAddr(address)
	if err != nil {
		return netip.Prefix{}
	}
	a = a.Unmap().WithZone("")
	bits := a.BitLen()
	if a.Is6() {
		bits = 64
	}
	p, err := a.Prefix(bits)
	if err != nil {
		return netip.Prefix{}
	}
	return p
}

// wait is how long an address has to wait for its next attempt; 0 for not at all.
func (f *failures) wait(address string) time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	until, known := f.until[network(address)]
	if !known {
		return 0
	}
	return max(0, until.Sub(f.now())-(failureBurst-1)*failureEvery)
}

// add counts a failure.
func (f *failures) add(address string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now, key := f.now(), network(address)
	until := f.until[key]
	if until.Before(now) {
		until = now
	}
	if _, known := f.until[key]; !known && len(f.until) >= maxAddresses {
		f.forget(now)
	}
	f.until[key] = until.Add(failureEvery)
}

// forget makes room: who has all its guesses back goes, and when nobody has,
// somebody does.
func (f *failures) forget(now time.Time) {
	for k, t := range f.until {
		if t.Before(now) {
			delete(f.until, k)
		}
	}
	for k := range f.until {
		if len(f.until) < maxAddresses {
			return
		}
		delete(f.until, k)
	}
}
