package tap

import (
	"bytes"
	"encoding/hex"
	"testing"
)

// Packets that others made: a well-known IPv4 header, and an ICMPv6 echo of
// Linux, whose length is odd.
const (
	foreign4 = "45000073000040004011b861c0a80001c0a800c7"
	foreign6 = "6009a3d100113a4020010db800000000000000000000000120010db80000000000000000000000018000be0852260001000102030405060708"
)

func fromHex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestHoldsPacket(t *testing.T) {
	v4 := append(fromHex(t, foreign4), craftRandom(0x73-20)...)
	v6 := fromHex(t, foreign6)
	changed := func(b []byte, at int) []byte { return craftChange(b, at, b[at]^1) }
	tests := []struct {
		name    string
		content []byte
		want    bool
	}{
		{"ipv4", v4, true},
		{"ipv4 and as much as may follow", append(bytes.Clone(v4), craftRandom(dataSlack)...), true},
		{"ipv4 and more than may follow", append(bytes.Clone(v4), craftRandom(dataSlack+1)...), false},
		{"ipv4 that is cut off", v4[:len(v4)-1], false},
		{"ipv4 with a wrong checksum", changed(v4, 15), false},
		{"ipv6", v6, true},
		{"ipv6 and as much as may follow", append(bytes.Clone(v6), craftRandom(dataSlack)...), true},
		{"ipv6 and more than may follow", append(bytes.Clone(v6), craftRandom(dataSlack+1)...), false},
		{"ipv6 that is cut off", v6[:len(v6)-1], false},
		{"ipv6 with a wrong checksum", changed(v6, len(v6)-1), false},
		{"ipv6 with another payload", changed(v6, 6), false},
		{"a lone version", []byte{0x45}, false},
		{"nothing", nil, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := holdsPacket(tt.content, dataSlack); got != tt.want {
				t.Errorf("holdsPacket = %t, want %t", got, tt.want)
			}
		})
	}
}

// TestRandomContentHoldsNoPacket shows random content with the first byte of
// a packet, so that each message stands for sixteen.
func TestRandomContentHoldsNoPacket(t *testing.T) {
	for i := range 200_000 {
		b := craftRandom(16 * (2 + i%8))
		b[0] = []byte{0x45, 0x60}[i%2]
		if holdsPacket(b, dataSlack) {
			t.Fatalf("random content passes as a packet: %x", b)
		}
	}
}
