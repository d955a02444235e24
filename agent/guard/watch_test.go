package guard

import (
	"context"
	"encoding/binary"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/circuitseal/circuitseal/agent/drift"
)

// Whoever flushes the guard's tables is noticed at once and named; the guard's own
// changes are nobody's.
func TestWatchNamesWhoFlushes(t *testing.T) {
	l := newLab(t)
	g := l.guard()
	g.drift = drift.New()
	ctx, cancel := context.WithCancel(t.Context())
	changed, err := g.Watch(ctx)
	l.must(err)
	l.must(g.Sync(t.Context(), onePlan("circ0")))

	nft, err := exec.LookPath("nft")
	if err != nil {
		t.Fatal("the lab needs nft: ", err)
	}
	flush := func() {
		l.must(l.circuit.Do(func() error { return exec.CommandContext(t.Context(), nft, "flush", "ruleset").Run() }))
	}
	for range 5 {
		flush()
		select {
		case <-changed:
		case <-time.After(time.Minute):
			t.Fatal("a flush is not noticed")
		}
		g.drift.Begin(true)
		l.must(g.Sync(t.Context(), onePlan("circ0")))
		g.drift.End()
	}
	c := g.drift.Conflicts()
	if strings.Contains(strings.Join(c, "\n"), "guard.test") {
		t.Errorf("the guard saw itself: %q", c)
	}
	if len(c) == 0 || !strings.Contains(strings.Join(c, "\n"), `seen at it: "nft" (pid `) {
		t.Errorf("conflicts %q, want nft named", c)
	}
	cancel()
	for range changed {
	}
}

func attribute(kind uint16, value string) []byte {
	b := binary.NativeEndian.AppendUint16(nil, uint16(unix.SizeofRtAttr+len(value)))
	b = append(binary.NativeEndian.AppendUint16(b, kind), value...)
	return append(b, make([]byte, -len(b)&(unix.NLMSG_ALIGNTO-1))...)
}

func TestAuthor(t *testing.T) {
	body := append(make([]byte, 4), attribute(1, "\x00\x00\x00\x07")...)
	body = append(body, attribute(attributePID, "\x00\x00\x01\x02")...)
	body = append(body, attribute(attributeName, "firewalld\x00")...)
	m := binary.NativeEndian.AppendUint32(nil, uint32(unix.NLMSG_HDRLEN+len(body)))
	m = binary.NativeEndian.AppendUint16(m, newGeneration)
	m = append(append(m, make([]byte, 10)...), body...)
	if pid, name, ok := author(m); pid != 0x102 || name != "firewalld" || !ok {
		t.Errorf("got %d %q %v", pid, name, ok)
	}
	for n := range m {
		author(m[:n])
		binary.NativeEndian.PutUint32(m, uint32(n))
		author(m)
	}
}

func FuzzAuthor(f *testing.F) {
	f.Add(attribute(attributeName, "x"))
	f.Fuzz(func(_ *testing.T, b []byte) {
		author(b)
		generation(b)
	})
}
