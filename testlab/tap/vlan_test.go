package tap

import (
	"encoding/binary"
	"encoding/hex"
	"slices"
	"testing"
)

// On a port, a packet is judged as its tags' link's, wherever the tags are.
func TestTaggedLinks(t *testing.T) {
	link := craftInterface().Link
	other := Link{Addresses: link.Addresses[2:]}
	c := Config{Canary: hex.EncodeToString(testCanary), InnerMTU: 1340, Interfaces: []Interface{{
		Name: "port", VLANs: []VLAN{{Tags: []uint16{300, 100}, Link: link}, {Tags: []uint16{200}, Link: other}},
	}}}
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	frame := craftIPv4(protoUDP, craftUDP(51820, 51820, craftData(1372)))
	behind := func(tags ...uint32) []byte {
		out := slices.Clone(frame[:12])
		for _, v := range tags {
			out = binary.BigEndian.AppendUint32(out, v)
		}
		return append(out, frame[12:]...)
	}
	const vlan, ad = 0x8100 << 16, 0x88a8 << 16
	for _, tt := range []struct {
		name    string
		frame   []byte
		beside  uint32
		allowed bool
	}{
		{"both in the frame", behind(vlan|300, vlan|100), 0, true},
		{"one beside it", behind(vlan | 100), vlan | 300, true},
		{"untagged", frame, 0, false},
		{"another link's", behind(vlan | 200), 0, false},
		{"another link's beside it", frame, vlan | 200, false},
		{"outer only", behind(vlan | 300), 0, false},
		{"inner only", behind(vlan | 100), 0, false},
		{"swapped", behind(vlan|100, vlan|300), 0, false},
		{"three", behind(vlan|300, vlan|100, vlan|100), 0, false},
		{"priority", behind(vlan|300, vlan|0x2000|100), 0, false},
		{"priority tag", behind(vlan), 0, false},
		{"802.1ad", behind(ad|300, vlan|100), 0, false},
		{"802.1ad beside it", behind(vlan | 100), ad | 300, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			v := NewInspector(c, c.Interfaces[0]).Inspect(tt.frame, Meta{VLAN: tt.beside != 0, Tag: tt.beside})
			if (v.Clear == "") != tt.allowed {
				t.Errorf("judged %+v, want it allowed %t", v, tt.allowed)
			}
		})
	}
	c.Interfaces[0].Link = link
	if c.Validate() == nil {
		t.Error("a link without tags beside those with some is taken")
	}
}
