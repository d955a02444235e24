package traffic

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
	"testing"
)

func tagFuzzOptions(t *testing.T, canary Canary) TagFuzz {
	t.Helper()
	flows, err := ParseOuterFlows("300.100/172.16.10.1:51820/172.20.255.4:51820/1,200/172.16.20.1:51822/172.21.255.4:51822/3", 0x43530000)
	if err != nil {
		t.Fatal(err)
	}
	others, err := ParseOuterFlows("201/172.16.20.5:51823/172.21.255.5:51823/4", 0x43530000)
	if err != nil {
		t.Fatal(err)
	}
	return TagFuzz{
		Canary: canary, Sender: "port", Seed: 7, Count: 4000, Flows: flows, Others: others,
		From: net.HardwareAddr{2, 0, 0, 0, 0, 1}, To: net.HardwareAddr{2, 0, 0, 0, 0, 2},
		Pool: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("10.2.0.10/32"), netip.MustParsePrefix("fd00:c0:2::/48")},
	}
}

// cut takes a frame apart: tags without priorities, and what is behind the
// ethertype of the packet.
func cut(frame []byte) (tags []uint32, kind uint16, packet []byte) {
	for b := frame[12:]; ; b = b[4:] {
		kind = binary.BigEndian.Uint16(b)
		if kind != 0x8100 && kind != 0x88a8 {
			return tags, kind, b[2:]
		}
		tags = append(tags, binary.BigEndian.Uint32(b)&^0xf000)
	}
}

// Every stack of tags is among them, with every tuple and mark, each frame is
// seen by a witness, and none is one that may pass.
func TestTagFuzz(t *testing.T) {
	canary := NewCanary()
	f := tagFuzzOptions(t, canary)
	frames, err := f.Frames()
	if err != nil {
		t.Fatal(err)
	}
	depths, kinds, marks, rightTags, rightTuple := map[int]int{}, map[uint16]int{}, map[int]int{}, 0, 0
	for i, frame := range frames {
		if sender, ok := canary.see(frame.Bytes); !ok || sender != "port" {
			t.Fatalf("frame %d is seen as %q, %t: %x", i, sender, ok, frame.Bytes)
		}
		tags, kind, packet := cut(frame.Bytes)
		depths[len(tags)]++
		kinds[kind]++
		marks[frame.Mark]++
		for _, o := range f.Flows {
			tagged := slices.Equal(tags, o.Tags)
			from, to := o.From.Addr().As4(), o.To.Addr().As4()
			tuple := kind == 0x0800 && len(packet) > 24 && packet[0] == 0x45 && packet[9] == 17 &&
				bytes.Equal(packet[12:16], from[:]) && bytes.Equal(packet[16:20], to[:]) &&
				binary.BigEndian.Uint16(packet[20:]) == o.From.Port() && binary.BigEndian.Uint16(packet[22:]) == o.To.Port()
			switch {
			case tagged && tuple && frame.Mark == o.Mark, tagged && kind == 0x0806:
				t.Fatalf("frame %d may pass: %x with mark %#x", i, frame.Bytes, frame.Mark)
			case tagged:
				rightTags++
			case tuple:
				rightTuple++
			}
		}
	}
	for what, n := range map[string]int{"no tag": depths[0], "one tag": depths[1], "two": depths[2], "three": depths[3],
		"IPv4": kinds[0x0800], "IPv6": kinds[0x86dd], "ARP": kinds[0x0806], "no mark": marks[0], "a link's mark": marks[0x43530001],
		"a link's tags": rightTags, "a tunnel's tuple": rightTuple} {
		if n < len(frames)/100 {
			t.Errorf("%d of %d frames have %s", n, len(frames), what)
		}
	}
	again, err := f.Frames()
	if err != nil || !slices.EqualFunc(frames, again, func(a, b MarkedFrame) bool { return a.Mark == b.Mark && bytes.Equal(a.Bytes, b.Bytes) }) {
		t.Errorf("the same seed gives other frames: %v", err)
	}
}

// Where marks do not count, right tags and tuple suffice.
func TestTagFuzzOfTheWayIn(t *testing.T) {
	f := tagFuzzOptions(t, NewCanary())
	for i := range f.Flows {
		f.Flows[i].Mark = 0
	}
	for _, mark := range []int{0, 0x43530001} {
		if o := f.Flows[1]; !f.right([]uint32{0x8100<<16 | 5<<13 | 200}, o.From, o.To, mark) {
			t.Errorf("a frame of a flow with mark %#x is not known as such", mark)
		}
	}
	if o := f.Flows[1]; f.right([]uint32{0x88a8<<16 | 200}, o.From, o.To, 0) {
		t.Error("a tag of 802.1ad is taken for one of 802.1Q")
	}
}

func TestParseOuterFlowsRefuses(t *testing.T) {
	for _, text := range []string{"", "300/172.16.10.1:1/172.16.10.2:1", "x/172.16.10.1:1/172.16.10.2:1/1", "3/172.16.10.1/172.16.10.2:1/1", "3/172.16.10.1:1/[fd00::1]:1/1"} {
		if f, err := ParseOuterFlows(text, 0); err == nil {
			t.Errorf("%q is read as %+v", text, f)
		}
	}
}
