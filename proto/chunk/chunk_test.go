package chunk_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/circuitseal/circuitseal/proto/chunk"
)

func text(n int) []byte {
	r := rand.New(rand.NewPCG(1, 2))
	var b bytes.Buffer
	for i := 0; b.Len() < n; i++ {
		fmt.Fprintf(&b, "rule %d from 10.%d.%d.0/24\n", i, r.IntN(256), r.IntN(256))
	}
	return b.Bytes()[:n]
}

func TestSplitLosesNothing(t *testing.T) {
	whole := text(3 << 20)
	rapid.Check(t, func(t *rapid.T) {
		part := whole[:rapid.IntRange(0, len(whole)).Draw(t, "length")]
		if rapid.Bool().Draw(t, "zeros") {
			part = make([]byte, len(part))
		}
		var joined []byte
		for piece := range chunk.Split(part) {
			if len(piece) == 0 || len(piece) > chunk.Max {
				t.Fatalf("a piece of %d bytes", len(piece))
			}
			joined = append(joined, piece...)
		}
		if !bytes.Equal(joined, part) {
			t.Fatal("the pieces are another text")
		}
	})
}

// A line more, at the start, changes few pieces.
func TestSplitFindsWhatIsTheSame(t *testing.T) {
	before := text(8 << 20)
	after := append([]byte("a new rule\n"), before...)
	have := map[chunk.Sum]bool{}
	for piece := range chunk.Split(before) {
		have[chunk.Of(piece)] = true
	}
	pieces, missing := 0, 0
	for piece := range chunk.Split(after) {
		pieces++
		if !have[chunk.Of(piece)] {
			missing++
		}
	}
	if pieces < 16 || missing > 2 {
		t.Errorf("%d of %d pieces are new, want at most 2 of 16 or more", missing, pieces)
	}
}

func TestParseSum(t *testing.T) {
	s := chunk.Of([]byte("x"))
	if got, err := chunk.ParseSum(s.String()); err != nil || got != s {
		t.Errorf("got %s, %v, want %s", got, err, s)
	}
	for _, bad := range []string{"", "00", strings.ToUpper(s.String()), s.String() + "00", strings.Repeat("g", 64)} {
		if _, err := chunk.ParseSum(bad); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}
