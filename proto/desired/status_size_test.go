package desired

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
)

// outage is what a large node says when all of its circuits are down.
func outage(tunnels int, problem string) Status {
	s := Status{Version: "v1", Kernel: "6.12", Time: time.Unix(1_800_000_000, 0).UTC()}
	for i := range tunnels {
		id := fmt.Sprintf("customer-%d/connection-%d/er-ams/primary", i/10, i)
		s.Tunnels = append(s.Tunnels, TunnelStatus{
			ID: id, Phase: PhaseDown, Backend: "wireguard-userspace", PublicKey: PublicKey{byte(i), byte(i >> 8), 1},
			LastHandshake: s.Time, ReceivedBytes: 1 << 40, SentBytes: 1 << 40, ProbesSent: 1 << 20, ProbesLost: 1 << 19,
			RoundTrip: time.Millisecond, Problem: problem,
		})
		s.Problems = append(s.Problems, "tunnel "+id+": "+problem)
		s.Guards = append(s.Guards, GuardStatus{Interface: "circ0", Layer: "ebpf", Alive: true})
		s.Counters = append(s.Counters, Counter{Name: "guard_out_dropped_no_mark", Interface: "circ0", Packets: 1 << 40})
	}
	return s
}

// A node loses its controller when its status does not fit, and that in an
// outage, of all times.
func TestStatusFits(t *testing.T) {
	long := strings.Repeat("x", 2000)
	worst := outage(30_000, long)
	for i := range worst.Tunnels {
		worst.Tunnels[i].ID, worst.Tunnels[i].Backend = long, long
		worst.Guards[i] = GuardStatus{Interface: long, Layer: long}
		worst.Counters[i] = Counter{Name: long, Interface: long}
	}
	worst.Version, worst.Kernel, worst.Rejection = long, long, &Rejection{Reason: long}
	tests := []struct {
		name   string
		status Status
		// whole says that every tunnel is to be in it.
		whole bool
	}{
		{"nothing wrong", outage(100, ""), true},
		{"a large node in an outage", outage(2000, strings.Repeat("the peer does not answer; ", 20)), true},
		{"a very large one", outage(5000, long), true},
		{"as many as there may be", outage(20_000, long), false},
		{"nonsense", worst, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := tt.status.ToWire()
			if n := proto.Size(w); n > MaxStatus {
				t.Errorf("the status has %d bytes, more than %d", n, MaxStatus)
			}
			got, err := StatusFromWire(w)
			if err != nil {
				t.Fatal(err)
			}
			if tt.whole && len(got.Tunnels) != len(tt.status.Tunnels) {
				t.Errorf("%d tunnels came, want %d", len(got.Tunnels), len(tt.status.Tunnels))
			}
			if len(got.Tunnels) == 0 {
				t.Error("no tunnel came")
			}
			for i, have := range got.Tunnels {
				want := tt.status.Tunnels[i]
				if have.PublicKey != want.PublicKey || have.Phase != want.Phase || have.ReceivedBytes != want.ReceivedBytes {
					t.Fatalf("tunnel %d is %+v, want %+v", i, have, want)
				}
			}
			cut := len(tt.status.Problems) > maxStatusProblems
			if told := len(got.Problems) > 0 && strings.Contains(got.Problems[0], "did not fit"); told != cut {
				t.Errorf("that it was cut is told: %v, want %v: %.100q", told, cut, got.Problems)
			}
			if again := got.ToWire(); !proto.Equal(again, w) {
				t.Error("what was cut once is cut again")
			}
		})
	}
}
