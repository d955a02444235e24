package traffic

import (
	"bytes"
	"encoding/hex"
	"net/netip"
	"slices"
	"testing"

	"github.com/circuitseal/circuitseal/testlab/tap"
)

// What is forged cannot be told from a tunnel's packets, but for the canary: a
// guard that stops it does so for where it comes from.
func TestForgedLooksReal(t *testing.T) {
	canary := NewCanary()
	for _, ends := range [][2]netip.Addr{
		{netip.MustParseAddr("172.16.10.1"), netip.MustParseAddr("172.20.255.4")},
		{netip.MustParseAddr("fd00:ee:1::1"), netip.MustParseAddr("fd00:ee:5::4")},
	} {
		for _, tt := range []struct {
			shape Shape
			port  uint16
			want  tap.Kind
		}{
			{WireGuard, 51820, tap.WireGuardMessages}, {IKE, 500, tap.IKE}, {IKE, 4500, tap.IKE}, {ESP, 0, tap.ESP}, {ESPInUDP, 4500, tap.ESPInUDP},
		} {
			from, to := netip.AddrPortFrom(ends[0], tt.port), netip.AddrPortFrom(ends[1], tt.port)
			protocol := tap.IPsec
			if tt.shape == WireGuard {
				protocol = tap.WireGuard
			}
			i := tap.Interface{Link: tap.Link{Tunnels: []tap.Tunnel{tap.Of(protocol, from, to)}}}
			judge := func(canary Canary) tap.Verdict {
				packet, err := ForgeOptions{From: from, To: to, Canary: canary, Shape: tt.shape, Size: 300}.packet(1)
				if err != nil {
					t.Fatal(err)
				}
				kind := []byte{8, 0}
				if from.Addr().Is6() {
					kind = []byte{0x86, 0xdd}
				}
				looked := tap.NewInspector(tap.Config{Canary: hex.EncodeToString(bytes.Repeat([]byte{7}, 16))}, i)
				return looked.Inspect(slices.Concat(make([]byte, 12), kind, packet), tap.Meta{})
			}
			if v := judge(canary); v.Clear != "" || v.Kind != tt.want {
				t.Errorf("%s from %s: %+v, want %s", tt.shape, from, v, tt.want)
			}
			if v := judge(bytes.Repeat([]byte{7}, 16)); !v.Canary {
				t.Errorf("%s from %s: %+v, want the canary in it", tt.shape, from, v)
			}
		}
	}
}
