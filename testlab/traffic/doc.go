// Package traffic makes and counts the lab's test traffic: numbered datagrams
// that come back, streams, probes and forged packets. All of it carries the
// canary that the tap looks for, so that whatever crosses a link in clear is
// recognised. It knows sockets and nothing of the product.
package traffic

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"os"
	"slices"
)

// Canary is the random text that all traffic of a lab carries.
type Canary []byte

// CanaryEnv holds the canary in hexadecimal for programs of the lab.
const CanaryEnv = "CIRCUITSEAL_CANARY"

// NewCanary draws a canary.
func NewCanary() Canary {
	c := make(Canary, 16)
	// crypto/rand.Read never fails; it ends the program instead.
	_, _ = rand.Read(c)
	return c
}

// CanaryFromEnv reads CanaryEnv.
func CanaryFromEnv() (Canary, error) {
	c, err := hex.DecodeString(os.Getenv(CanaryEnv))
	if err != nil || len(c) < 16 {
		return nil, fmt.Errorf("%s: want at least 16 bytes in hexadecimal", CanaryEnv)
	}
	return c, nil
}

// Hex is the canary as CanaryEnv holds it.
func (c Canary) Hex() string { return hex.EncodeToString(c) }

// Fill repeats the canary over b without a gap: every window of twice its
// length holds it whole, wherever TCP cuts.
func (c Canary) Fill(b []byte) []byte {
	copy(b, slices.Repeat(c, len(b)/len(c)+1))
	return b
}

// in reports whether b holds the canary.
func (c Canary) in(b []byte) bool { return bytes.Contains(b, c) }
