package tap

import (
	"context"
	"encoding/hex"
	"log/slog"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/circuitseal/circuitseal/testlab/netns"
)

// link is the primary link of a control lab, on which packets cross in clear,
// seen from the edge.
type link struct {
	t   *testing.T
	lab *netns.Lab
}

func newLink(t *testing.T) link {
	t.Helper()
	netns.Require(t)
	lab, err := netns.New(t.Context(), netns.Config{Log: slog.New(slog.DiscardHandler), Dir: t.TempDir(), Control: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := lab.Close(); err != nil {
			t.Error(err)
		}
	})
	return link{t: t, lab: lab}
}

func (l link) ip(h netns.Host, args string) {
	l.t.Helper()
	if _, err := l.lab.Run(l.t.Context(), h, netns.Spec{Path: "ip", Args: strings.Fields(args)}); err != nil {
		l.t.Fatal(err)
	}
}

// ping sends n packets in clear over the link, and wants as many answers.
func (l link) ping(n string) {
	l.t.Helper()
	if err := l.tryPing(n); err != nil {
		l.t.Fatal(err)
	}
}

func (l link) tryPing(n string) error {
	_, err := l.lab.Run(l.t.Context(), netns.Prem, netns.Spec{Path: "ping", Args: []string{"-q", "-c", n, "-i", "0.002", "-W", "2", netns.EdgePrimary.String()}})
	return err
}

// carries waits until the link carries packets again: the kernel takes up to a
// second to believe in a carrier.
func (l link) carries() {
	l.t.Helper()
	var err error
	for range 5 {
		if err = l.tryPing("1"); err == nil {
			return
		}
	}
	l.t.Fatal(err)
}

// open opens a tap on the edge's side, whose blocks wait for patience.
func (l link) open(patience time.Duration) *Tap {
	l.t.Helper()
	i := Interface{Namespace: netns.Path(l.lab.Namespace(netns.Edge1)), Name: netns.EdgeInterface, Label: "primary",
		Link: Link{Addresses: []netip.Addr{netns.PremPrimary, netns.EdgePrimary}}}
	r, err := openRing(i.Namespace, i.Name, patience)
	if err != nil {
		l.t.Fatal(err)
	}
	c := Config{Canary: hex.EncodeToString(testCanary), Interfaces: []Interface{i}}
	tap := &Tap{readers: []*reader{{ring: r, inspector: NewInspector(c, i), summary: newInterfaceSummary(i.Label)}}}
	l.t.Cleanup(tap.Close)
	return tap
}

// run runs a tap to the end of the test.
func (l link) run(tap *Tap) {
	ctx, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { tap.Run(ctx) })
	l.t.Cleanup(func() {
		stop()
		wg.Wait()
	})
}

// pings is how many frames of pings a valid report counts.
func (l link) pings(tap *Tap) uint64 {
	l.t.Helper()
	s := tap.Report(l.t.Context())
	if !s.Valid {
		l.t.Errorf("invalid: %s, %d drops", s.Interfaces[0].Problem, s.Drops)
	}
	return s.Interfaces[0].ByKind["icmp"]
}

// want wants a valid report with exactly so many pings and their answers.
func (l link) want(tap *Tap, pings uint64) {
	l.t.Helper()
	if got := l.pings(tap); got != 2*pings {
		l.t.Errorf("%d frames of pings, want %d", got, 2*pings)
	}
}

// TestInterfaceDownAndUp: frames come again when the interface is back.
func TestInterfaceDownAndUp(t *testing.T) {
	l := newLink(t)
	tap := l.open(blockPatience)
	l.run(tap)
	l.ping("1")
	l.want(tap, 1)
	l.ip(netns.Edge1, "link set ce0 down")
	l.want(tap, 1)
	l.ip(netns.Edge1, "link set ce0 up")
	l.carries()
	before := l.pings(tap)
	l.ping("3")
	if got := l.pings(tap) - before; got != 6 {
		t.Errorf("%d frames of 3 pings after the interface came back, want 6", got)
	}
}

// TestInterfaceGone: a tap that looks at an interface that is no longer the
// link has seen nothing, and must not say that there was nothing to see.
func TestInterfaceGone(t *testing.T) {
	tests := []struct {
		name string
		gone func(l link)
	}{
		{"deleted", func(l link) { l.ip(netns.Edge1, "link del ce0") }},
		{"made again", func(l link) {
			l.ip(netns.Edge1, "link del ce0")
			l.ip(netns.Edge1, "link add ce0 type veth peer name circ0 netns "+l.lab.Namespace(netns.Prem))
			l.ip(netns.Edge1, "addr add 172.16.10.2/30 dev ce0")
			l.ip(netns.Edge1, "link set ce0 up")
			l.ip(netns.Prem, "addr add 172.16.10.1/30 dev circ0")
			l.ip(netns.Prem, "link set circ0 up")
			l.carries()
		}},
		{"moved and back", func(l link) {
			l.ip(netns.Edge1, "link set ce0 netns "+l.lab.Namespace(netns.Edge2)+" name moved")
			l.ip(netns.Edge2, "link set moved netns "+l.lab.Namespace(netns.Edge1)+" name ce0")
		}},
		{"another has its name", func(l link) {
			l.ip(netns.Edge1, "link set ce0 down")
			l.ip(netns.Edge1, "link set ce0 name other")
			l.ip(netns.Edge1, "link set other up")
			l.ip(netns.Edge1, "link add ce0 type veth peer name ce1")
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l := newLink(t)
			tap := l.open(blockPatience)
			l.run(tap)
			l.ping("1")
			l.want(tap, 1)
			tt.gone(l)
			for range 2 {
				if s := tap.Report(t.Context()); s.Valid || !strings.Contains(s.Interfaces[0].Problem, "ce0") {
					t.Errorf("valid %t (%q), %d frames; want an invalid result that names ce0", s.Valid, s.Interfaces[0].Problem, s.Frames)
				}
			}
		})
	}
}

// TestReportWaitsForFramesInTheKernel: frames sit in a block that the kernel
// fills for longer than any reader would guess.
func TestReportWaitsForFramesInTheKernel(t *testing.T) {
	l := newLink(t)
	tap := l.open(500 * time.Millisecond)
	l.run(tap)
	for pings := uint64(1); pings <= 3; pings++ {
		l.ping("1")
		l.want(tap, pings)
	}
}

// TestReportUnderLoad: blocks are never empty for long, and reports come all
// the same.
func TestReportUnderLoad(t *testing.T) {
	l := newLink(t)
	tap := l.open(blockPatience)
	l.run(tap)
	const pings = 300
	sent := 0
	done := make(chan error, 1)
	send := func() {
		sent += pings
		go func() { done <- l.tryPing(strconv.Itoa(pings)) }()
	}
	send()
	for reports := 0; ; reports++ {
		select {
		case err := <-done:
			if err != nil {
				t.Fatal(err)
			}
			// A machine that is busy may have had no time for reports.
			if reports < 3 {
				send()
				continue
			}
			l.want(tap, uint64(sent))
			return
		default:
		}
		if s := tap.Report(t.Context()); !s.Valid {
			t.Fatalf("invalid: %+v", s)
		}
	}
}

// TestPending shows states of the ring that the kernel passes through.
func TestPending(t *testing.T) {
	tests := []struct {
		name string
		// full are how many blocks are handed over, from next on; filling is how
		// many frames the one behind them holds.
		next, full int
		filling    uint32
		want       int
	}{
		{"nothing yet", 0, 0, 0, 0},
		{"frames in the block that is filled", 0, 0, 3, 1},
		{"a full block and an empty one", 5, 1, 0, 1},
		{"full blocks and one that is filled", 5, 2, 1, 3},
		{"across the end of the ring", blockCount - 1, 2, 1, 3},
		{"all are full", 7, blockCount, 0, blockCount},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := &ring{mem: make([]byte, blockSize*blockCount), next: tt.next}
			for i := range tt.full {
				_, h := r.block(tt.next + i)
				h.Block_status, h.Num_pkts = unix.TP_STATUS_USER, 1
			}
			if _, h := r.block(tt.next + tt.full); tt.full < blockCount {
				h.Num_pkts = tt.filling
			}
			if got := r.pending(); got != tt.want {
				t.Errorf("pending = %d, want %d", got, tt.want)
			}
		})
	}
}

// TestReportWithoutReader: what cannot be judged in time is not clean.
func TestReportWithoutReader(t *testing.T) {
	l := newLink(t)
	tap := l.open(blockPatience)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if s := tap.Report(ctx); s.Valid || s.Interfaces[0].Problem == "" {
		t.Errorf("summary %+v, want an invalid one", s)
	}
}

// TestKernelsOwnARP: requests to all and to one neighbour, replies, and
// announcements of this kernel are on the list.
func TestKernelsOwnARP(t *testing.T) {
	l := newLink(t)
	tap := l.open(blockPatience)
	l.run(tap)
	allowed := func() uint64 { return tap.Report(t.Context()).Interfaces[0].Allowed[ARP] }
	neighbour := func(h netns.Host, dev, to string) {
		l.ip(h, "neigh flush dev "+dev)
		l.ping("1")
		before := allowed()
		l.ip(h, "neigh change "+to+" dev "+dev+" nud probe")
		// The question and its answer.
		for deadline := time.Now().Add(20 * time.Second); allowed() < before+2; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%s probes no neighbour", h)
			}
		}
	}
	neighbour(netns.Prem, "circ0", netns.EdgePrimary.String())
	neighbour(netns.Edge1, netns.EdgeInterface, netns.PremPrimary.String())
	l.ip(netns.Prem, "link set circ0 down")
	if _, err := l.lab.Run(t.Context(), netns.Prem, netns.Spec{Path: "sysctl", Args: []string{"-qw", "net.ipv4.conf.circ0.arp_notify=1"}}); err != nil {
		t.Fatal(err)
	}
	l.ip(netns.Prem, "link set circ0 up")
	l.carries()
	s := tap.Report(t.Context()).Interfaces[0]
	if got := s.ByKind[ARP]; got != 0 || s.Allowed[ARP] < 9 {
		t.Errorf("%d ARP frames allowed, %d in clear, want at least 9 and 0: %+v", s.Allowed[ARP], got, s.Examples)
	}
}
