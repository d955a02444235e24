// Package chunk cuts long texts into pieces that are known by their content: the
// same stretch of text gives the same pieces wherever it stands, so that who has
// most of a text has most of its pieces. It knows nothing of what the text means
// nor where pieces are kept. Where it cuts is no part of any format: pieces cut
// elsewhere are as good.
package chunk

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"iter"
)

const (
	// Max is the size of the largest piece in bytes.
	Max = 512 << 10
	// Least is the size of the smallest piece that Split makes, but for the last.
	Least = 64 << 10
	// bits is how many bits of the rolling hash have to be 0 at a cut: pieces have
	// Least + 2^bits bytes on average.
	bits = 17
)

// Sum is the SHA-256 of a piece, which is its name.
type Sum [sha256.Size]byte

// Of is the name of a piece.
func Of(piece []byte) Sum { return sha256.Sum256(piece) }

// String is the name in hexadecimal.
func (s Sum) String() string { return hex.EncodeToString(s[:]) }

// ParseSum reads what String writes.
func ParseSum(text string) (Sum, error) {
	b, err := hex.DecodeString(text)
	if err != nil || len(b) != sha256.Size {
		return Sum{}, fmt.Errorf("read name of a chunk: want %d hexadecimal digits", 2*sha256.Size)
	}
	s := Sum(b)
	if s.String() != text {
		return Sum{}, fmt.Errorf("read name of a chunk: want small letters")
	}
	return s, nil
}

// gear has a number for each byte, by splitmix64 (Steele, Lea and Flood, 2014).
var gear = func() (table [256]uint64) {
	state := uint64(0)
	for i := range table {
		state += 0x9e3779b97f4a7c15
		z := state
		z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
		z = (z ^ z>>27) * 0x94d049bb133111eb
		table[i] = z ^ z>>31
	}
	return table
}()

// Split yields the pieces of a text in order, none of them empty nor longer than
// Max. They share the text's memory.
func Split(text []byte) iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		for len(text) > 0 {
			n := cut(text)
			if !yield(text[:n:n]) {
				return
			}
			text = text[n:]
		}
	}
}

// cut is the length of the first piece: a hash of the last 64 bytes decides (Xia
// et al., "FastCDC", 2016).
func cut(text []byte) int {
	if len(text) <= Least {
		return len(text)
	}
	end := min(len(text), Max)
	hash := uint64(0)
	for i := Least - 64; i < end; i++ {
		hash = hash<<1 + gear[text[i]]
		if i >= Least && hash>>(64-bits) == 0 {
			return i + 1
		}
	}
	return end
}
