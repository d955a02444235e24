package traffic

import (
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

func TestIsESP(t *testing.T) {
	tests := []struct {
		from, to string
		shape    Shape
		kind     uint16
		want     bool
	}{
		{"192.0.2.1:0", "192.0.2.2:0", ESP, unix.ETH_P_IP, true},
		{"[2001:db8::1]:0", "[2001:db8::2]:0", ESP, unix.ETH_P_IPV6, true},
		{"192.0.2.1:4500", "192.0.2.2:4500", ESPInUDP, unix.ETH_P_IP, false},
		{"192.0.2.1:0", "192.0.2.2:0", ESP, unix.ETH_P_ARP, false},
	}
	for _, tt := range tests {
		o := ForgeOptions{From: netip.MustParseAddrPort(tt.from), To: netip.MustParseAddrPort(tt.to), Shape: tt.shape, Canary: make(Canary, 16)}
		packet, err := o.packet(1)
		if err != nil {
			t.Fatal(err)
		}
		frame := slices.Concat(make([]byte, 12), []byte{byte(tt.kind >> 8), byte(tt.kind)}, packet)
		if got := isESP(frame); got != tt.want {
			t.Errorf("%s from %s in a frame of kind %#x: %v, want %v", tt.shape, tt.from, tt.kind, got, tt.want)
		}
		if isESP(frame[:20]) {
			t.Error("a frame cut short is taken for ESP")
		}
	}
}
