package traffic

import (
	"context"
	"net"
	"testing"
	"time"
)

// serve runs a server on loopback and returns its address.
func serve(t *testing.T, canary Canary) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done, up := make(chan error, 1), make(chan struct{})
	go func() { done <- Serve(ctx, address, canary, func() { close(up) }) }()
	select {
	case <-up:
	case err := <-done:
		t.Fatal(err)
	}
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return address
}

func TestDatagramsAreCounted(t *testing.T) {
	c := NewCanary()
	r, err := Datagrams(t.Context(), DatagramOptions{To: serve(t, c), Canary: c, Flows: 4, Interval: time.Millisecond,
		Duration: 200 * time.Millisecond, Size: 200, Linger: 100 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	if r.Sent < 100 || r.Lost != 0 || r.Duplicates != 0 || r.Foreign != 0 || r.FlowsAnswered != 4 {
		t.Errorf("report %+v, want all of at least 100 back", r)
	}
}

// A server that waits to run answers later, and nothing was lost for that.
func TestSlowServerIsWaitedFor(t *testing.T) {
	t.Parallel()
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	go func() {
		b := make([]byte, 1<<10)
		for {
			n, from, err := c.ReadFrom(b)
			if err != nil {
				return
			}
			time.Sleep(100 * time.Millisecond)
			_, _ = c.WriteTo(b[:n], from)
		}
	}()
	r, err := Datagrams(t.Context(), DatagramOptions{To: c.LocalAddr().String(), Canary: NewCanary(), Flows: 4, Interval: 10 * time.Millisecond,
		Duration: 50 * time.Millisecond, Size: 200, Linger: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	if r.Sent < 16 || r.Lost != 0 {
		t.Errorf("report %+v, want all of at least 16 back", r)
	}
}

func TestFlowCounts(t *testing.T) {
	c := NewCanary()
	f := &flow{canary: c, sent: 10, last: time.Unix(0, 0)}
	datagram := func(seq byte) []byte {
		b := append([]byte("labt\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"), seq)
		return append(append(b, 0, 0, 0, 0), c...)
	}
	for i, seq := range []byte{1, 3, 2, 3, 9} {
		f.take(datagram(seq), time.Unix(int64(i), 0))
	}
	f.take([]byte("nonsense"), time.Unix(9, 0))
	f.take(datagram(11), time.Unix(9, 0))
	var r DatagramReport
	f.add(&r, time.Unix(7, 0))
	want := DatagramReport{Sent: 10, Received: 4, Lost: 6, Reordered: 1, Duplicates: 1, Foreign: 2, OutageSeconds: 3, LastAnswer: time.Unix(4, 0), FlowsAnswered: 1}
	if r != want {
		t.Errorf("report %+v\nwant   %+v", r, want)
	}
}

func TestStreamsBothWays(t *testing.T) {
	c := NewCanary()
	address := serve(t, c)
	for _, reverse := range []bool{false, true} {
		r, err := Streams(t.Context(), StreamOptions{To: address, Canary: c, Flows: 2, Duration: 100 * time.Millisecond, Reverse: reverse})
		if err != nil || r.Bytes == 0 || r.Gbps == 0 {
			t.Errorf("reverse %t: %+v, %v", reverse, r, err)
		}
	}
}

func TestProbe(t *testing.T) {
	c := NewCanary()
	address := serve(t, c)
	for _, udp := range []bool{false, true} {
		if r := Probe(t.Context(), ProbeOptions{To: address, Canary: c, UDP: udp, Deadline: 5 * time.Second, Attempt: time.Second}); !r.Reached {
			t.Errorf("udp %t: %s", udp, r)
		}
	}
	r := Probe(t.Context(), ProbeOptions{To: "127.0.0.1:1", Canary: c, Deadline: 50 * time.Millisecond, Attempt: 10 * time.Millisecond})
	if r.Reached || r.Problem == "" || r.Attempts < 2 {
		t.Errorf("probe of a closed port: %s", r)
	}
}

// TestCanaryStandsInEveryWindow is what lets the tap find it in any segment.
func TestCanaryStandsInEveryWindow(t *testing.T) {
	c := NewCanary()
	b := c.Fill(make([]byte, 1000))
	for i := range len(b) - 2*len(c) + 1 {
		if !c.in(b[i : i+2*len(c)-1]) {
			t.Fatalf("window at %d does not hold the canary", i)
		}
	}
}
