package tap

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
)

// SelfTest shows the inspector one frame of each kind, allowed and in clear,
// and reports every wrong verdict.
func SelfTest() error {
	canary := make([]byte, MinCanary)
	if _, err := rand.Read(canary); err != nil {
		return fmt.Errorf("make a canary: %w", err)
	}
	c := Config{Canary: hex.EncodeToString(canary), InnerMTU: 1340}
	i := Interface{Name: "test", Addresses: []netip.Addr{craftA, craftB}, Tunnels: []Tunnel{{Protocol: WireGuard, A: craftA, B: craftB, PortA: 51820, PortB: 51820}}}
	in := NewInspector(c, i)
	var errs []error
	for _, s := range specimens(canary) {
		v := in.Inspect(s.frame, s.meta)
		if got := v.Clear != ""; got != s.clear {
			errs = append(errs, fmt.Errorf("%s: in clear = %t (%s), want %t", s.name, got, v.Clear, s.clear))
		}
	}
	return errors.Join(errs...)
}

// The two ends of the crafted link and tunnel.
var (
	craftA = netip.MustParseAddr("172.16.10.1")
	craftB = netip.MustParseAddr("172.16.10.2")
)

// specimen is a crafted frame and what the verdict must be.
type specimen struct {
	name  string
	frame []byte
	meta  Meta
	clear bool
}

func specimens(canary []byte) []specimen {
	text := bytes.Repeat([]byte("the quick brown fox jumps over the lazy dog; "), 30)
	marked := bytes.Repeat(canary, 20)
	wg := func(payload []byte) []byte { return craftIPv4(protoUDP, craftUDP(51820, 51820, payload)) }
	data := craftData(1340 + 32)
	keepalive := craftData(32)
	super := slicesConcat(craftData(1372), craftData(1372), craftData(144))
	withText := append(craftData(16), text[:1024]...)
	return []specimen{
		{name: "arp request", frame: craftARP(craftA, craftB, nil)},
		{name: "arp padded with zeros", frame: craftARP(craftA, craftB, make([]byte, 18))},
		{name: "arp padded with text", frame: craftARP(craftA, craftB, text[:18]), clear: true},
		{name: "arp of a stranger", frame: craftARP(craftA, netip.MustParseAddr("10.1.0.10"), nil), clear: true},
		{name: "wireguard keepalive", frame: wg(keepalive)},
		{name: "wireguard data at the tunnel's MTU", frame: wg(data)},
		{name: "wireguard super-frame", frame: wg(super), meta: Meta{Segment: 1372}},
		{name: "wireguard super-frame with text inside", frame: wg(slicesConcat(craftData(1040), withText)), meta: Meta{Segment: 1040}, clear: true},
		{name: "wireguard initiation", frame: wg(craftHandshake(1, initiationSize))},
		{name: "wireguard response", frame: wg(craftHandshake(2, responseSize))},
		{name: "wireguard cookie", frame: wg(craftHandshake(3, cookieSize))},
		{name: "text on wireguard's port", frame: wg(text), clear: true},
		{name: "text behind a wireguard header", frame: wg(withText), clear: true},
		{name: "zeros behind a wireguard header", frame: wg(append(craftData(16), make([]byte, 64)...)), clear: true},
		{name: "wireguard of an odd length", frame: wg(craftData(1001)), clear: true},
		{name: "wireguard with the canary", frame: wg(append(craftData(64), canary...)), clear: true},
		{name: "wireguard on another port", frame: craftIPv4(protoUDP, craftUDP(51820, 51821, data)), clear: true},
		{name: "tcp with the canary", frame: craftIPv4(6, append(make([]byte, 20), marked...)), clear: true},
		{name: "tcp", frame: craftIPv4(6, make([]byte, 20)), clear: true},
		{name: "icmp", frame: craftIPv4(1, make([]byte, 8)), clear: true},
		{name: "ipip", frame: craftIPv4(4, data), clear: true},
		{name: "gre", frame: craftIPv4(47, data), clear: true},
		{name: "sctp", frame: craftIPv4(132, data), clear: true},
		{name: "esp that is not configured", frame: craftIPv4(protoESP, data), clear: true},
		{name: "ipv6 router solicitation", frame: craftIPv6(protoICMPv6, append([]byte{133}, make([]byte, 15)...)), clear: true},
		{name: "ipv6 hop-by-hop", frame: craftIPv6(0, make([]byte, 16)), clear: true},
		{name: "vlan tag", frame: wg(data), meta: Meta{VLAN: true}, clear: true},
		{name: "vlan tag in the frame", frame: craftEthernet(0x8100, make([]byte, 50)), clear: true},
		{name: "lldp", frame: craftEthernet(0x88cc, make([]byte, 50)), clear: true},
		{name: "truncated", frame: wg(data), meta: Meta{Truncated: true}, clear: true},
		{name: "fragment", frame: craftFragment(wg(data)), clear: true},
		{name: "trailer", frame: append(wg(keepalive), text[:8]...), clear: true},
		{name: "runt", frame: make([]byte, 8), clear: true},
	}
}

func slicesConcat(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

// craftData is a WireGuard data message of n bytes; its content is random.
func craftData(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b)
	copy(b, []byte{4, 0, 0, 0})
	copy(b[8:16], []byte{7, 0, 0, 0, 0, 0, 0, 0})
	return b
}

func craftHandshake(kind byte, n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b)
	copy(b, []byte{kind, 0, 0, 0})
	return b
}

func craftUDP(src, dst uint16, payload []byte) []byte {
	b := binary.BigEndian.AppendUint16(nil, src)
	b = binary.BigEndian.AppendUint16(b, dst)
	b = binary.BigEndian.AppendUint16(b, uint16(8+len(payload)))
	return append(append(b, 0, 0), payload...)
}

func craftEthernet(kind uint16, body []byte) []byte {
	return append(binary.BigEndian.AppendUint16(make([]byte, 12), kind), body...)
}

func craftIPv4(proto byte, body []byte) []byte {
	h := make([]byte, 20)
	h[0], h[8], h[9] = 0x45, 64, proto
	binary.BigEndian.PutUint16(h[2:], uint16(20+len(body)))
	copy(h[12:], craftA.AsSlice())
	copy(h[16:], craftB.AsSlice())
	return craftEthernet(etherIPv4, append(h, body...))
}

func craftFragment(frame []byte) []byte {
	f := bytes.Clone(frame)
	f[14+6] |= 0x20
	return f
}

func craftIPv6(proto byte, body []byte) []byte {
	h := make([]byte, 40)
	h[0], h[6], h[7], h[8], h[24] = 0x60, proto, 255, 0xfe, 0xff
	binary.BigEndian.PutUint16(h[4:], uint16(len(body)))
	return craftEthernet(etherIPv6, append(h, body...))
}

func craftARP(sender, target netip.Addr, padding []byte) []byte {
	b := []byte{0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 1}
	b = append(append(b, sender.AsSlice()...), 0, 0, 0, 0, 0, 0)
	return craftEthernet(etherARP, append(append(b, target.AsSlice()...), padding...))
}
