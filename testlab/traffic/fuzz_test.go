package traffic

import (
	"bytes"
	"net/netip"
	"testing"
)

func fuzzOptions(canary Canary) Fuzz {
	return Fuzz{
		Canary: canary, Sender: "contoso", Seed: 7, Count: 3000,
		Own:  []netip.Addr{netip.MustParseAddr("10.1.0.10"), netip.MustParseAddr("fd00:c0:1::10")},
		Pool: []netip.Prefix{netip.MustParsePrefix("10.2.0.0/16"), netip.MustParsePrefix("172.16.10.1/32"), netip.MustParsePrefix("fd00:c0:2::/48")},
	}
}

// What a witness reads from a packet is who sent it, whatever it is wrapped in.
func TestFuzzIsSeen(t *testing.T) {
	canary := NewCanary()
	packets, err := fuzzOptions(canary).Packets()
	if err != nil {
		t.Fatal(err)
	}
	protocols := map[byte]int{}
	to, inside, exact := 0, netip.MustParsePrefix("10.2.0.0/16"), netip.MustParseAddr("172.16.10.1")
	for i, p := range packets {
		if sender, ok := canary.see(append(make([]byte, 14), p...)); !ok || sender != "contoso" {
			t.Fatalf("packet %d is seen as %q, %t: %x", i, sender, ok, p)
		}
		switch p[0] >> 4 {
		case 4:
			destination, _ := netip.AddrFromSlice(p[16:20])
			if !inside.Contains(destination) && destination != exact {
				t.Fatalf("packet %d goes to %s", i, destination)
			}
			if sum(0, p[:int(p[0]&15)*4]) != 0xffff {
				t.Errorf("packet %d: the header's checksum is wrong", i)
			}
			protocols[p[9]]++
			to++
		case 6:
			protocols[p[6]]++
		default:
			t.Fatalf("packet %d is of no IP version: %x", i, p)
		}
	}
	if len(protocols) < 50 || to < len(packets)/3 || to == len(packets) {
		t.Errorf("%d protocols, %d packets of IPv4 among %d", len(protocols), to, len(packets))
	}
}

func TestFuzzRepeats(t *testing.T) {
	f := fuzzOptions(NewCanary())
	a, errA := f.Packets()
	b, errB := f.Packets()
	f.Seed++
	c, errC := f.Packets()
	if errA != nil || errB != nil || errC != nil {
		t.Fatal(errA, errB, errC)
	}
	if !bytes.Equal(bytes.Join(a, nil), bytes.Join(b, nil)) || bytes.Equal(bytes.Join(a, nil), bytes.Join(c, nil)) {
		t.Error("the same seed gives other packets, or another seed the same")
	}
}

// Other traffic of the lab is nobody's fuzz.
func TestWitnessIgnoresOtherTraffic(t *testing.T) {
	canary := NewCanary()
	if sender, ok := canary.see(canary.Fill(make([]byte, 256))); ok {
		t.Errorf("a datagram of the lab is seen as %q", sender)
	}
	if sender, ok := canary.see(make([]byte, 256)); ok {
		t.Errorf("nothing is seen as %q", sender)
	}
}
