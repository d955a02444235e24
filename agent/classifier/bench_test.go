package classifier

import (
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"

	"github.com/circuitseal/circuitseal/agent/plan"
)

// runs of one packet before its TTL expires.
const runs = 250

// BenchmarkPacket tells what a packet costs in each program, beside an empty
// program and one that only redirects: ns/packet is net of the empty program,
// x/redirect how many times the plain redirect. One hot flow, 1,000 prefixes.
func BenchmarkPacket(b *testing.B) {
	bed := newBed(b)
	bed.benchMaps(b)
	target := bed.index[bed.instance.Device(1)]
	empty := program(b, asm.Mov.Imm(asm.R0, -1), asm.Return())
	redirect := program(b, asm.Mov.Imm(asm.R1, int32(target)), asm.Mov.Imm(asm.R2, 0), asm.FnRedirect.Call(), asm.Return())
	lan, remote := netip.MustParseAddr("10.1.0.9"), netip.MustParseAddr("10.2.9.9")
	lan6, remote6 := netip.MustParseAddr("fd01::9"), netip.MustParseAddr("fd02::9")
	programs := bed.classifier.programs()
	for _, c := range []struct {
		name     string
		program  *ebpf.Program
		src, dst netip.Addr
	}{
		{"redirect-only", redirect, lan, remote},
		{"lan-ipv4", programs[bpfProgCsLanIn], lan, remote},
		{"lan-ipv6", programs[bpfProgCsLanIn], lan6, remote6},
		{"lan-dropped", programs[bpfProgCsLanIn], remote, lan},
		{"tunnel-ipv4", programs[bpfProgCsTunnelIn], remote, lan},
		{"tunnel-ipv6", programs[bpfProgCsTunnelIn], remote6, lan6},
	} {
		b.Run(c.name, func(b *testing.B) {
			in := benchFrame(c.src, c.dst)
			kind := bpfPort{Ifindex: 1, Kind: bpfPortKindPORT_LAN, Tenant: benchTenant, Slot: 900, Header: 1}
			if c.program == programs[bpfProgCsTunnelIn] {
				kind.Kind, kind.Group, kind.Mtu = bpfPortKindPORT_TUNNEL, benchTenant, 1420
			}
			must(b, bed.classifier.objects.Ports.Put(uint32(1), &kind))
			none, base, cost := time.Hour, time.Hour, time.Hour
			for b.Loop() {
				none = min(none, bed.time(b, empty, in))
				base = min(base, bed.time(b, redirect, in))
				cost = min(cost, bed.time(b, c.program, in))
			}
			b.ReportMetric(float64(cost-none), "ns/packet")
			b.ReportMetric(float64(cost)/float64(base), "x/redirect")
			b.ReportMetric(0, "ns/op")
		})
	}
}

func (b *bed) time(t testing.TB, p *ebpf.Program, in []byte) (d time.Duration) {
	must(t, b.ns.Do(func() (err error) {
		_, d, err = p.Benchmark(in, runs, func() {})
		return err
	}))
	return d
}

const benchTenant = 77

// benchMaps makes a LAN of the loopback interface, on which the kernel runs
// programs by hand, with prefixes of a tenant of its own.
func (b *bed) benchMaps(t testing.TB) {
	t.Helper()
	s := newState()
	var errs []error
	g := bpfGroup{Tenant: benchTenant, Count: 2}
	for i := range 2 {
		g.Members[i] = bpfMember{Ifindex: b.index[b.instance.Device(uint16(i+1))], Number: uint32(i + 1), Mtu: 1420}
	}
	s.groups[benchTenant] = g
	for _, p := range []string{"10.1.0.0/16", "fd01::/32"} {
		put(s.locals, &errs, "local", benchTenant, netip.MustParsePrefix(p), bpfLocal{Ifindex: 1})
	}
	for i := range 500 {
		four := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(2 + i/256), byte(i), 0}), 24)
		six := [16]byte{0xfd, 2, 0, 0, byte(i / 256), byte(i)}
		put(s.remotes, &errs, "remote", benchTenant, four, bpfRemote{Group: benchTenant})
		put(s.remotes, &errs, "remote", benchTenant, netip.PrefixFrom(netip.AddrFrom16(six), 48), bpfRemote{Group: benchTenant})
	}
	todo := diff(s, newState())
	o := &b.classifier.objects
	for _, err := range append(errs, putAll(nil, o.Locals, "local", todo.locals), putAll(nil, o.Remotes, "remote", todo.remotes), putAll(nil, o.Groups, "group", todo.groups)) {
		must(t, err)
	}
}

func benchFrame(src, dst netip.Addr) []byte {
	in := make([]byte, 14, 134)
	var d []byte
	if src.Is4() {
		d = udp4(src, dst, 1234, 53)
		d[8] = 255
		binary.BigEndian.PutUint16(in[12:], 0x0800)
	} else {
		d = make([]byte, 48)
		d[0], d[5], d[6], d[7] = 0x60, 8, 17, 255
		copy(d[8:], src.AsSlice())
		copy(d[24:], dst.AsSlice())
		binary.BigEndian.PutUint16(in[12:], 0x86dd)
	}
	return append(in, d...)
}

func program(t testing.TB, instructions ...asm.Instruction) *ebpf.Program {
	t.Helper()
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, License: "Dual BSD/GPL", Instructions: instructions})
	must(t, err)
	t.Cleanup(func() { _ = p.Close() })
	return p
}

// BenchmarkSetAlive is what a failover costs, with 10,000 prefixes behind the
// group.
func BenchmarkSetAlive(b *testing.B) {
	bed := newBed(b)
	c := bed.plan
	for i := range 10_000 {
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{100, byte(i >> 8), byte(i), 0}), 24)
		c.Remotes = append(c.Remotes, plan.Remote{Tenant: 7, Prefix: p, Group: 1})
	}
	if _, err := bed.classifier.Sync(b.Context(), c); err == nil {
		b.Fatal("sync without a device says nothing")
	}
	b.Run("failover", func(b *testing.B) {
		for i := 0; b.Loop(); i++ {
			must(b, bed.classifier.SetAlive(1, masked(bed.group(1), uint32(1+i%2))))
		}
	})
	b.Run("sync-repeat-10k", func(b *testing.B) {
		for b.Loop() {
			_, _ = bed.classifier.Sync(b.Context(), c)
		}
	})
}
