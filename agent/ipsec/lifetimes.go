package ipsec

import (
	"strings"
	"time"

	"github.com/circuitseal/circuitseal/proto/desired"
)

const (
	defaultIKELifetime = 4 * time.Hour
	defaultESPLifetime = time.Hour
	// gcmPackets and gcmBytes keep an attacker's advantage over AES-GCM at 2^-60
	// with packets of 1,500 bytes (draft-irtf-cfrg-aead-limits, section 5.1.1).
	gcmPackets = 1 << 28
	gcmBytes   = 384_000_000_000
	// sequences is how many packets an SA without extended sequence numbers may
	// carry, half of what RFC 4303, section 3.3.3, allows: the other half is for
	// what rekeying takes on a fast link.
	sequences = 1 << 31
)

// lifetimes are when keys are replaced, and when an SA ends that could not be.
type lifetimes struct {
	ike, ikeOver         time.Duration
	esp, espLife         time.Duration
	bytes, bytesLife     uint64
	packets, packetsLife uint64
}

// lifetimesOf are those of the policy, with bounds of our own where it has none.
// Rekeying begins at a random point of the tenth before the end (of the quarter,
// with packets and bytes), so that both ends do not begin at once.
func lifetimesOf(p desired.IPsecPolicy) lifetimes {
	l := lifetimes{ike: p.IKELifetime, esp: p.ESPLifetime, bytes: p.ESPBytes, packets: p.ESPPackets}
	if l.ike <= 0 {
		l.ike = defaultIKELifetime
	}
	if l.esp <= 0 {
		l.esp = defaultESPLifetime
	}
	if l.bytes == 0 {
		l.bytes = gcmBytes
	}
	if l.packets == 0 {
		l.packets = gcmPackets
	}
	l.ikeOver = max(l.ike/10, 30*time.Second)
	l.espLife = l.esp + max(l.esp/10, 30*time.Second)
	l.bytesLife = l.bytes + l.bytes/4
	if sequencesWrap(p.ESPProposals) {
		l.packets = min(l.packets, sequences-sequences/5)
	}
	l.packetsLife = l.packets + l.packets/4
	return l
}

// sequencesWrap reports whether an SA without extended sequence numbers may come of
// the proposals.
func sequencesWrap(proposals []string) bool {
	for _, p := range proposals {
		words := strings.Split(p, "-")
		extended := false
		for _, w := range words {
			if w == "noesn" {
				return true
			}
			extended = extended || w == "esn"
		}
		if !extended {
			return true
		}
	}
	return false
}
