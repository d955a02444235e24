package api

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/circuitseal/circuitseal/controller/document"
	"github.com/circuitseal/circuitseal/proto/chunk"
	v1 "github.com/circuitseal/circuitseal/proto/circuitseal/v1"
)

// clock is a time that stands still.
type clock struct{ t time.Time }

func (c *clock) now() time.Time { return c.t }

func TestUploadsAreBoundedAndForgotten(t *testing.T) {
	c := &clock{time.Unix(1_000_000_000, 0)}
	u := newUploads(c.now)
	defer func() { u.sweeper.Stop() }()
	piece := func(i int) []byte { return fmt.Appendf(bytes.Repeat([]byte{'x'}, chunk.Max-8), "%08d", i) }
	var sums [][]byte
	most := maxUploads / chunk.Max
	for i := range most {
		sum, err := u.put(piece(i))
		if err != nil {
			t.Fatalf("piece %d: %v", i, err)
		}
		sums = append(sums, sum[:])
	}
	if _, err := u.put(piece(most)); connect.CodeOf(err) != connect.CodeResourceExhausted {
		t.Errorf("one more: %v, want resource_exhausted", err)
	}
	if _, err := u.put(piece(0)); err != nil {
		t.Errorf("one that is there: %v", err)
	}
	c.t = c.t.Add(uploadLife - 1)
	// To ask is to need.
	if missing, err := u.missing(sums[:2]); err != nil || len(missing) > 0 {
		t.Errorf("missing %d, %v", len(missing), err)
	}
	c.t = c.t.Add(1)
	u.sweep()
	if missing, err := u.missing(sums); err != nil || len(missing) != most-2 || u.total != 2*chunk.Max {
		t.Errorf("after %s %d of %d are missing, %d bytes are kept, %v", uploadLife, len(missing), most, u.total, err)
	}
	u.forget([]*v1.Source{{Chunks: sums}})
	if u.total != 0 || len(u.pieces) != 0 {
		t.Errorf("%d bytes in %d pieces are left", u.total, len(u.pieces))
	}
}

func TestTextsOfChunks(t *testing.T) {
	u := newUploads(time.Now)
	defer func() { u.sweeper.Stop() }()
	a, err := u.put([]byte("kind: "))
	if err != nil {
		t.Fatal(err)
	}
	b, err := u.put([]byte("Site\n"))
	if err != nil {
		t.Fatal(err)
	}
	big, err := u.put(make([]byte, chunk.Max))
	if err != nil {
		t.Fatal(err)
	}
	bomb := &v1.Source{}
	for range document.MaxLong/chunk.Max + 1 {
		bomb.Chunks = append(bomb.Chunks, big[:])
	}
	for _, tt := range []struct {
		name   string
		source *v1.Source
		code   connect.Code
		want   string
	}{
		{"text", &v1.Source{Text: "x"}, 0, "x"},
		{"chunks", &v1.Source{Chunks: [][]byte{a[:], b[:]}}, 0, "kind: Site\n"},
		{"both", &v1.Source{Text: "x", Chunks: [][]byte{a[:]}}, connect.CodeInvalidArgument, "sources[3].chunks stands beside text"},
		{"short name", &v1.Source{Chunks: [][]byte{a[:], b[:3]}}, connect.CodeInvalidArgument, "sources[3].chunks[1] has 3 bytes"},
		{"not there", &v1.Source{Chunks: [][]byte{make([]byte, 32)}}, connect.CodeFailedPrecondition, "PutChunk"},
		{"one often", bomb, connect.CodeInvalidArgument, "more than the 67108864 bytes"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			text, err := u.text(3, tt.source)
			if tt.code == 0 {
				if err != nil || text != tt.want {
					t.Errorf("got %q, %v, want %q", text, err, tt.want)
				}
				return
			}
			if connect.CodeOf(err) != tt.code || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %s with %q", err, tt.code, tt.want)
			}
		})
	}
}

func FuzzParsePage(f *testing.F) {
	f.Add("MTIzL05vZGUvL24")
	f.Fuzz(func(t *testing.T, token string) {
		if p, err := parsePage(token); err == nil && p.token() != token {
			t.Errorf("%q is also %q", token, p.token())
		}
	})
}
