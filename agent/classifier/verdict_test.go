package classifier

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
)

// dump is the headers of a packet.
func dump(d []byte) string {
	return fmt.Sprintf("%d bytes\n%s", len(d), hex.Dump(d[:min(len(d), 128)]))
}

// check compares what a program makes of a frame with the oracle.
func (b *bed) check(f frame, alive map[uint32]uint32) (outcome, error) {
	got, err := b.run(f)
	if err != nil {
		return got, fmt.Errorf("%s on %s: %w\n%s", f.program, f.device, err, dump(f.data))
	}
	want := b.oracle(f, alive)
	if got.reason != want.reason || got.target != want.target {
		return got, fmt.Errorf("%s on %s, ethertype %#x, GSO size %d: %s %s, want %s %s\n%s", f.program, f.device, f.ethertype, f.gsoSize,
			reasons[got.reason], got.target, reasons[want.reason], want.target, dump(f.data))
	}
	if want.data == nil {
		return got, nil
	}
	if f.program == bpfProgCsTunnelOut || f.program == bpfProgCsSlowIn {
		if !bytes.Equal(f.data, got.data) {
			return got, fmt.Errorf("%s on %s edited the packet\n%s", f.program, f.device, dump(f.data))
		}
		return got, nil
	}
	if p, _ := parse(f, 0); !sameButChecksums(f.data, want.data, got.data, p) {
		return got, fmt.Errorf("%s on %s: packet\n%sbecame\n%swant, but for checksums\n%s", f.program, f.device,
			dump(f.data), dump(got.data), dump(want.data))
	}
	return got, nil
}

// The verdict of every program on generated packets is the oracle's, for
// several alive masks, and nothing is counted that was not seen.
func TestVerdicts(t *testing.T) {
	b := newBed(t)
	packets := 60_000
	if testing.Short() {
		packets = 6_000
	}
	b.judge(packets,
		"cs_lan_in forwarded", "cs_lan_in passed", "cs_lan_in dropped_spoofed_source", "cs_lan_in dropped_no_remote", "cs_lan_in dropped_expired",
		"cs_lan_in dropped_too_big", "cs_lan_in dropped_probe_address", "cs_lan_in dropped_malformed", "cs_lan_in dropped_not_ip", "cs_lan_in dropped_other_host",
		"cs_lan_in dropped_unroutable_address", "cs_tunnel_in forwarded", "cs_tunnel_in passed", "cs_tunnel_in dropped_wrong_selector", "cs_tunnel_in dropped_no_local",
		"cs_tunnel_in dropped_probe_address", "cs_tunnel_in dropped_too_big", "cs_tunnel_out forwarded", "cs_tunnel_out passed", "cs_tunnel_out dropped_not_classified",
		"cs_tunnel_out dropped_wrong_selector", "cs_tunnel_out dropped_probe_address", "cs_lan_in dropped_no_member",
		"cs_lan_in dropped_router_message", "cs_lan_in dropped_node_is_shared",
		"cs_lan_in slow_path", "cs_slow_in told_mtu", "cs_slow_in forwarded", "cs_slow_in dropped_no_local", "cs_slow_in dropped_no_remote",
		"cs_slow_in dropped_not_slow_path", "cs_slow_in dropped_spoofed_source", "cs_slow_in dropped_too_big", "cs_slow_in dropped_expired",
		"cs_slow_in dropped_unroutable_address", "cs_slow_in dropped_no_member", "cs_slow_in dropped_malformed", "cs_slow_in dropped_not_ip",
	)
	// A tenant that is alone may speak to the node itself.
	b.plan.LANs, b.plan.Locals, b.plan.Remotes, b.plan.Groups = b.plan.LANs[:2], b.plan.Locals[:4], b.plan.Remotes[:5], b.plan.Groups[:2]
	b.sync(b.plan)
	b.judge(packets/6, "cs_lan_in forwarded", "cs_lan_in passed", "cs_lan_in dropped_spoofed_source", "cs_lan_in dropped_router_message")
}

// judge compares programs and oracle; each of these must have been seen.
func (b *bed) judge(packets int, wanted ...string) {
	t := b.t
	t.Helper()
	r := rand.New(rand.NewPCG(1, 2))
	seen := map[string]int{}
	before := b.total()
	for _, mask := range []uint32{0, 0b01, 0b10} {
		alive := map[uint32]uint32{}
		for _, g := range b.plan.Groups {
			alive[g.Number] = mask & (1<<len(g.Members) - 1)
			if err := b.classifier.SetAlive(g.Number, masked(g, alive[g.Number])); err != nil {
				t.Fatal(err)
			}
		}
		err := b.ns.Do(func() error {
			for range packets / 3 {
				f := b.randomFrame(r)
				got, err := b.check(f, alive)
				if err != nil {
					return err
				}
				seen[f.program+" "+reasons[got.reason]]++
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, k := range slices.Sorted(maps.Keys(seen)) {
		t.Logf("%-50s %6d", k, seen[k])
	}
	for _, want := range wanted {
		if seen[want] == 0 {
			t.Errorf("no packet was %q: the generator misses it", want)
		}
	}
	if got, want := b.total()-before, uint64(packets/3*3); got != want {
		t.Errorf("counters rose by %d, want %d", got, want)
	}
}

func (b *bed) total() (n uint64) {
	b.t.Helper()
	list, err := b.classifier.Counters()
	if err != nil {
		b.t.Fatal(err)
	}
	for _, c := range list {
		n += c.Packets
	}
	return n
}

// A group loses a member: only that member's flows move, both directions of a
// flow share a tunnel, and members share flows about evenly.
func TestRendezvous(t *testing.T) {
	b := newBed(t)
	g := b.group(1)
	r := rand.New(rand.NewPCG(3, 4))
	const flows = 6000
	frames := make([]frame, flows)
	for i := range frames {
		src := netip.AddrFrom4([4]byte{10, 1, byte(r.IntN(128)), byte(2 + r.IntN(250))})
		dst := netip.AddrFrom4([4]byte{10, 2, 8, byte(r.IntN(256))})
		frames[i] = frame{program: bpfProgCsLanIn, device: "lan7a", mac: b.mac["lan7a"], ethertype: 0x0800, data: udp4(src, dst, uint16(r.Uint32()), 53)}
	}
	choose := func(mask uint32) []string {
		t.Helper()
		if err := b.classifier.SetAlive(1, masked(g, mask)); err != nil {
			t.Fatal(err)
		}
		targets := make([]string, flows)
		err := b.ns.Do(func() error {
			for i, f := range frames {
				got, err := b.check(f, map[uint32]uint32{1: mask})
				if err != nil {
					return err
				}
				if got.reason != bpfReasonREASON_FORWARDED {
					return errors.New(reasons[got.reason])
				}
				targets[i] = got.target
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return targets
	}
	all := choose(0b111)
	if !slices.Equal(all, choose(0)) {
		t.Error("mask 0 and all members differ")
	}
	for lost, m := range g.Members {
		without := choose(0b111 &^ (1 << lost))
		share, moved := 0, 0
		for i := range all {
			if all[i] == m.Device {
				share++
				if without[i] == m.Device {
					t.Fatal("a lost member still carries a flow")
				}
			} else if all[i] != without[i] {
				moved++
			}
		}
		if moved > 0 {
			t.Errorf("%d flows of other members moved with member %d", moved, lost)
		}
		if share < flows/3*9/10 || share > flows/3*11/10 {
			t.Errorf("member %d carries %d of %d flows, want about a third", lost, share, flows)
		}
	}
	if !slices.Equal(all, choose(0b111)) {
		t.Error("members that come back do not get their flows back")
	}
	for _, f := range frames[:500] {
		p, _ := parse(f, 0)
		back := p
		back.src, back.dst, back.sport, back.dport = p.dst, p.src, p.dport, p.sport
		if flowHash(p) != flowHash(back) {
			t.Fatal("the two directions of a flow hash differently")
		}
	}
}

func udp4(src, dst netip.Addr, sport, dport uint16) []byte {
	d := make([]byte, 36)
	d[0], d[3], d[8], d[9] = 0x45, 36, 64, 17
	copy(d[12:], src.AsSlice())
	copy(d[16:], dst.AsSlice())
	d[20], d[21], d[22], d[23], d[25] = byte(sport>>8), byte(sport), byte(dport>>8), byte(dport), 16
	c := ^uint16(sum(d[:20]))
	d[10], d[11] = byte(c>>8), byte(c)
	return d
}

// All fragments of a datagram go one way, whatever their ports seem to be.
func TestFragmentsStayTogether(t *testing.T) {
	b := newBed(t)
	err := b.ns.Do(func() error {
		for host := range byte(40) {
			var first string
			for part := range 4 {
				d := udp4(netip.MustParseAddr("10.1.0.9"), netip.AddrFrom4([4]byte{10, 2, 9, host}), uint16(part*7919), 53)
				d[6], d[7] = 0x20, byte(part)
				got, err := b.run(frame{program: bpfProgCsLanIn, device: "lan7a", mac: b.mac["lan7a"], ethertype: 0x0800, data: d})
				if err != nil {
					return err
				}
				if part == 0 {
					first = got.target
				}
				if got.target != first || first == "" {
					return fmt.Errorf("fragment %d to host %d goes to %q, the first to %q", part, host, got.target, first)
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// FuzzVerdict compares programs and oracle on foreign bytes.
func FuzzVerdict(f *testing.F) {
	b := newBed(f)
	r := rand.New(rand.NewPCG(5, 6))
	for range 200 {
		s := b.randomFrame(r)
		f.Add(uint8(r.Uint32()), s.ethertype == 0x86dd, s.mark != 0, uint16(s.gsoSize), s.data)
	}
	prefix := b.instance.DevicePrefix()
	slow := []frame{{program: bpfProgCsSlowIn, device: b.slowDevice("lan7a")}, {program: bpfProgCsSlowIn, device: b.slowDevice("lan8")}}
	places := []frame{{program: bpfProgCsLanIn, device: "lan7a"}, {program: bpfProgCsLanIn, device: "lan7b"}, {program: bpfProgCsLanIn, device: "lan8"}}
	for i := range 7 {
		device := fmt.Sprint(prefix, i+1)
		places = append(places, frame{program: bpfProgCsTunnelIn, device: device}, frame{program: bpfProgCsTunnelOut, device: device})
	}
	places = append(places, slow...)
	f.Fuzz(func(t *testing.T, place uint8, six, marked bool, gso uint16, data []byte) {
		p := places[int(place)%len(places)]
		p.mac, p.ethertype, p.data, p.gsoSize = b.mac[p.device], 0x0800, data, int(gso)
		if six {
			p.ethertype = 0x86dd
		}
		if len(data) < fixedHeader(p.ethertype) || len(data) > 3000 {
			t.Skip()
		}
		if marked && p.program != bpfProgCsLanIn && p.program != bpfProgCsSlowIn {
			g, _ := b.member(p.device)
			p.mark = b.mark(g)
		}
		err := b.ns.Do(func() error {
			_, err := b.check(p, nil)
			return err
		})
		if err != nil {
			t.Error(err)
		}
	})
}
