package guard

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"

	"github.com/circuitseal/circuitseal/agent/plan"
)

// manyFlows has n flows on circ0.
func manyFlows(n int) plan.Guard {
	g := onePlan("circ0")
	g.Flows = nil
	for i := range n {
		g.Flows = append(g.Flows, plan.Flow{Interface: "circ0", Mark: mark, Protocol: protocolUDP, Local: tunnelLocal,
			Remote: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 10, byte(i >> 8), byte(i)}), 51820)})
	}
	return g
}

// The table can be filled, in one transaction, and emptied again.
func TestFullTable(t *testing.T) {
	l := newLab(t)
	g := l.guard()
	for _, n := range []int{maxFlows, 1} {
		start := time.Now()
		l.must(g.Sync(t.Context(), manyFlows(n)))
		t.Logf("%d flows in %v", n, time.Since(start).Round(time.Millisecond))
		have, err := readMaps(g.objects)
		l.must(err)
		conn, err := g.nftConn()
		l.must(err)
		inet, err := g.readNFT(conn, renderNFT(policy{})[0].family, true)
		l.must(err)
		if len(have.flows) != n || len(inet.elements[setUDPOut]) != n || len(inet.elements[setUDPIn]) != n {
			t.Errorf("%d flows in the map, %d and %d in nftables, want %d", len(have.flows), len(inet.elements[setUDPOut]), len(inet.elements[setUDPIn]), n)
		}
	}
}

// BenchmarkEgress has the time that the egress program takes for a tunnel's
// packet, net of a program that does nothing, and how it grows with the number
// of flows. Rounds are interleaved; the least disturbed one counts.
func BenchmarkEgress(b *testing.B) {
	l := newLab(b)
	g := l.guard()
	empty, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, License: "MIT", Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()}})
	l.must(err)
	defer func() { l.must(empty.Close()) }()
	index := uint32(0)
	// Many packets a call, so that the call itself does not count; many flows.
	const repeat, calls, rounds = 500, 200, 15
	round := func(p *ebpf.Program, frames [][]byte) float64 {
		start := time.Now()
		for i := range calls {
			out := skBuff{}
			code, err := p.Run(&ebpf.RunOptions{Data: frames[i*7%len(frames)], Context: skBuff{Mark: mark, Ifindex: index}, ContextOut: &out, Repeat: repeat})
			if err != nil || code != 0 {
				b.Errorf("run: verdict %d, reason %s, error %v", code, Reason(out.CB[0]), err)
				return 0
			}
		}
		return float64(time.Since(start).Nanoseconds()) / (repeat * calls)
	}
	frames := func(n int) (out [][]byte) {
		for _, f := range manyFlows(n).Flows {
			out = append(out, ethernet(remoteMAC, localMAC, etherTypeIPv4, udp(f.Local, f.Remote, make([]byte, 1400))))
		}
		return out
	}
	sizes := []int{10, 1000}
	for b.Loop() {
		gross := make(map[int][]float64)
		var base []float64
		for range rounds {
			for _, n := range sizes {
				l.must(g.Sync(b.Context(), manyFlows(n)))
				index = uint32(l.index(l.circuit, "circ0"))
				l.must(l.circuit.Do(func() error {
					base = append(base, round(empty, frames(n)))
					gross[n] = append(gross[n], round(g.objects.GuardEgress, frames(n)))
					return nil
				}))
			}
		}
		nothing := slices.Min(base)
		few, many := slices.Min(gross[sizes[0]])-nothing, slices.Min(gross[sizes[1]])-nothing
		b.ReportMetric(nothing, "ns/packet-empty")
		b.ReportMetric(few, fmt.Sprintf("ns/packet-%d", sizes[0]))
		b.ReportMetric(many, fmt.Sprintf("ns/packet-%d", sizes[1]))
		b.ReportMetric(many/few, "ratio")
	}
}
