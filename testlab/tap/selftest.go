package tap

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"slices"
)

// SelfTest shows the inspector one frame of each kind, allowed and in clear,
// and reports every wrong verdict.
func SelfTest() error {
	canary := make([]byte, MinCanary)
	if _, err := rand.Read(canary); err != nil {
		return fmt.Errorf("make a canary: %w", err)
	}
	in := NewInspector(Config{Canary: hex.EncodeToString(canary), InnerMTU: 1340}, craftInterface())
	var errs []error
	for _, s := range specimens(canary) {
		v := in.Inspect(s.frame, s.meta)
		if got := v.Clear != ""; got != s.clear {
			errs = append(errs, fmt.Errorf("%s: in clear = %t (%s), want %t", s.name, got, v.Clear, s.clear))
		}
	}
	return errors.Join(errs...)
}

// specimen is a crafted frame and what the verdict must be.
type specimen struct {
	name  string
	frame []byte
	meta  Meta
	clear bool
}

func specimens(canary []byte) []specimen {
	text := bytes.Repeat([]byte("the quick brown fox jumps over the lazy dog; "), 30)
	return slices.Concat(neighbourSpecimens(text), wireguardSpecimens(text, canary), ipsecSpecimens(text, canary), otherSpecimens(text, canary))
}

// neighbourSpecimens are ARP and ND.
func neighbourSpecimens(text []byte) []specimen {
	stranger, far := netip.MustParseAddr("10.1.0.10"), netip.MustParseAddr("fd00:c0:1::10")
	local := netip.MustParseAddr("fe80::1")
	address := func(kind byte, mac []byte) []byte { return append([]byte{kind, 1}, mac...) }
	return []specimen{
		{name: "arp request", frame: craftARP(1, macA, craftA, noMAC, craftB, nil)},
		{name: "arp reply", frame: craftARP(2, macA, craftA, macB, craftB, nil)},
		{name: "arp padded with zeros", frame: craftARP(1, macA, craftA, noMAC, craftB, make([]byte, 18))},
		{name: "arp padded with text", frame: craftARP(1, macA, craftA, noMAC, craftB, text[:18]), clear: true},
		{name: "arp of a stranger", frame: craftARP(1, macA, craftA, noMAC, stranger, nil), clear: true},
		{name: "arp request with text for the sender's address", frame: craftARP(1, text[:6], craftA, noMAC, craftB, nil), clear: true},
		{name: "arp request with text for the target's address", frame: craftARP(1, macA, craftA, text[:6], craftB, nil), clear: true},
		{name: "arp reply with text for the sender's address", frame: craftARP(2, text[:6], craftA, macB, craftB, nil), clear: true},
		{name: "arp reply with text for the target's address", frame: craftARP(2, macA, craftA, text[:6], craftB, nil), clear: true},

		{name: "neighbour solicitation", frame: craftND(135, 0, address(1, macA)...)},
		{name: "neighbour solicitation without an option", frame: craftND(135, 0)},
		{name: "neighbour advertisement", frame: craftND(136, 0xe0000000, address(2, macA)...)},
		{name: "neighbour solicitation with text in its option", frame: craftND(135, 0, address(1, text[:6])...), clear: true},
		{name: "neighbour advertisement with text in its option", frame: craftND(136, 0xe0000000, address(2, text[:6])...), clear: true},
		{name: "neighbour solicitation with the other option", frame: craftND(135, 0, address(2, macA)...), clear: true},
		{name: "neighbour solicitation with a second option", frame: craftND(135, 0, append(address(1, macA), text[:8]...)...), clear: true},
		{name: "neighbour solicitation with flags", frame: craftND(135, 0xe0000000), clear: true},
		{name: "neighbour solicitation with reserved bits", frame: craftND(135, 0x00616161), clear: true},
		{name: "neighbour advertisement with reserved bits", frame: craftND(136, 0xe0616161), clear: true},
		{name: "neighbour solicitation to all that may have the address", frame: craftNDBetween(craftB6, solicited(craftA6), craftA6, 135, 0)},
		{name: "neighbour solicitation from a link-local address", frame: craftNDBetween(local, craftA6, craftA6, 135, 0)},
		{name: "neighbour solicitation of the link-local address that it goes to", frame: craftNDBetween(local, linkLocalOf(macB), linkLocalOf(macB), 135, 0)},
		{name: "neighbour advertisement of the link-local address that it comes from", frame: craftNDBetween(linkLocalOf(macA), local, linkLocalOf(macA), 136, 0xe0000000)},
		{name: "neighbour advertisement to all", frame: craftNDBetween(craftA6, netip.IPv6LinkLocalAllNodes(), craftA6, 136, 0xa0000000)},
		{name: "neighbour solicitation of another link-local address", frame: craftNDBetween(local, linkLocalOf(macB), local, 135, 0), clear: true},
		{name: "neighbour advertisement of another link-local address", frame: craftNDBetween(local, craftB6, local, 136, 0xe0000000), clear: true},
		{name: "neighbour solicitation from a stranger", frame: craftNDBetween(far, craftA6, craftA6, 135, 0), clear: true},
		{name: "neighbour solicitation to a stranger", frame: craftNDBetween(craftB6, far, craftA6, 135, 0), clear: true},
		{name: "neighbour solicitation from beyond the link-local prefix", frame: craftNDBetween(netip.MustParseAddr("fe80:1::1"), craftA6, craftA6, 135, 0), clear: true},
		{name: "neighbour solicitation to all", frame: craftNDBetween(craftB6, netip.IPv6LinkLocalAllNodes(), craftA6, 135, 0), clear: true},
		{name: "duplicate address detection", frame: craftNDBetween(netip.IPv6Unspecified(), solicited(craftA6), craftA6, 135, 0), clear: true},
		{name: "router advertisement", frame: craftIPv6(protoICMPv6, append([]byte{134}, make([]byte, 15)...)), clear: true},
		{name: "redirect", frame: craftIPv6(protoICMPv6, append([]byte{137}, make([]byte, 39)...)), clear: true},
		{name: "router solicitation", frame: craftIPv6(protoICMPv6, append([]byte{133}, make([]byte, 15)...)), clear: true},
	}
}

func wireguardSpecimens(text, canary []byte) []specimen {
	wg := func(payload []byte) []byte { return craftIPv4(protoUDP, craftUDP(51820, 51820, payload)) }
	super := slices.Concat(craftData(1372), craftData(1372), craftData(144))
	withText := append(craftData(16), text[:1024]...)
	packet4, packet6 := craftPacket4(craftB, 6, craftRandom(1003)), craftUDP6(craftRandom(1280))
	return []specimen{
		{name: "wireguard keepalive", frame: wg(craftData(32))},
		{name: "wireguard data at the tunnel's MTU", frame: wg(craftData(1340 + 32))},
		{name: "wireguard super-frame", frame: wg(super), meta: Meta{Segment: 1372}},
		{name: "wireguard super-frame with text inside", frame: wg(slices.Concat(craftData(1040), withText)), meta: Meta{Segment: 1040}, clear: true},
		{name: "wireguard initiation", frame: wg(craftHandshake(1, initiationSize))},
		{name: "wireguard response", frame: wg(craftHandshake(2, responseSize))},
		{name: "wireguard cookie", frame: wg(craftHandshake(3, cookieSize))},
		{name: "text on wireguard's port", frame: wg(text), clear: true},
		{name: "text behind a wireguard header", frame: wg(withText), clear: true},
		{name: "zeros behind a wireguard header", frame: wg(append(craftData(16), make([]byte, 64)...)), clear: true},
		{name: "ipv4 behind a wireguard header", frame: wg(craftUnencrypted(packet4)), clear: true},
		{name: "ipv6 behind a wireguard header", frame: wg(craftUnencrypted(packet6)), clear: true},
		{name: "ipv4 without a tag behind a wireguard header", frame: wg(slices.Concat(craftData(16), packet4, []byte{0})), clear: true},
		{name: "wireguard super-frame with ipv4 inside", frame: wg(slices.Concat(craftData(1056), craftUnencrypted(packet4))), meta: Meta{Segment: 1056}, clear: true},
		{name: "wireguard of an odd length", frame: wg(craftData(1001)), clear: true},
		{name: "wireguard with the canary", frame: wg(append(craftData(64), canary...)), clear: true},
		{name: "wireguard on another port", frame: craftIPv4(protoUDP, craftUDP(51820, 51821, craftData(1372))), clear: true},
	}
}

func ipsecSpecimens(text, canary []byte) []specimen {
	esp := func(content []byte) []byte { return craftIPv4To(craftC, protoESP, craftESP(content)) }
	udp := func(port uint16, b []byte) []byte { return craftIPv4To(craftC, protoUDP, craftUDP(port, port, b)) }
	packet := craftPacket4(craftB, 6, craftRandom(1000))
	trailer := append([]byte{1, 2, 2, 4}, craftRandom(16)...)
	hashes := func(b []byte) ikePayload { return ikePayload{payloadCertReq, append([]byte{4}, b...)} }
	hello, sk := craftSAInit(), ikePayload{payloadSK, craftRandom(240)}
	auth := craftIKE(ikeAuth, sk)
	// Its first payload is SA with one proposal and three transforms, then KE.
	const proposal = ikeHeader + 4
	const transform, key = proposal + 8, proposal + 36 + 4
	return []specimen{
		{name: "esp", frame: esp(craftRandom(1400))},
		{name: "esp in udp", frame: udp(4500, craftESP(craftRandom(1400)))},
		{name: "nat keepalive", frame: udp(4500, []byte{0xff})},
		{name: "esp with text", frame: esp(text[:1024]), clear: true},
		{name: "esp with text in udp", frame: udp(4500, craftESP(text[:1024])), clear: true},
		{name: "esp with the null cipher", frame: esp(slices.Concat(packet, trailer)), clear: true},
		{name: "esp with the null cipher in udp", frame: udp(4500, craftESP(slices.Concat(packet, trailer))), clear: true},
		{name: "esp with the null cipher and ipv6", frame: esp(slices.Concat(craftUDP6(craftRandom(1000)), trailer)), clear: true},
		{name: "esp with the canary", frame: esp(slices.Concat(craftRandom(800), canary, craftRandom(400))), clear: true},
		{name: "esp with the canary in udp", frame: udp(4500, craftESP(slices.Concat(craftRandom(800), canary, craftRandom(400)))), clear: true},
		{name: "esp with a reserved spi", frame: craftIPv4To(craftC, protoESP, append([]byte{0, 0, 0, 255, 0, 0, 0, 1}, craftRandom(200)...)), clear: true},
		{name: "esp without a sequence number", frame: craftIPv4To(craftC, protoESP, append([]byte{0xc0, 0, 0, 1, 0, 0, 0, 0}, craftRandom(200)...)), clear: true},
		{name: "esp without content", frame: esp(nil), clear: true},
		{name: "esp in a fragment", frame: craftFragment(esp(craftRandom(1400))), clear: true},
		{name: "ah", frame: craftIPv4To(craftC, 51, craftRandom(200)), clear: true},
		{name: "nat keepalive of another byte", frame: udp(4500, []byte{0xfe}), clear: true},
		{name: "nat keepalive with a byte behind it", frame: udp(4500, []byte{0xff, 0}), clear: true},
		{name: "nat keepalive on ike's port", frame: udp(500, []byte{0xff}), clear: true},
		{name: "esp in udp on ike's port", frame: udp(500, craftESP(craftRandom(1400))), clear: true},
		{name: "ike from another port", frame: craftIPv4To(craftC, protoUDP, craftUDP(501, 500, hello)), clear: true},
		{name: "wireguard between ipsec ends", frame: udp(51820, craftData(1372)), clear: true},
		{name: "esp that only authenticates", frame: esp(slices.Concat(craftRandom(8), packet, trailer)), clear: true},

		{name: "ike_sa_init", frame: udp(500, hello)},
		{name: "ike_sa_init with certificate authorities", frame: udp(500, craftSAInit(hashes(craftRandom(40))))},
		{name: "ike_auth", frame: udp(500, auth)},
		{name: "ike_sa_init on the other port", frame: udp(4500, append(make([]byte, 4), hello...))},
		{name: "ike_auth in a fragment", frame: udp(4500, append(make([]byte, 4), craftIKE(ikeAuth, ikePayload{payloadSKF, append([]byte{0, 1, 0, 2}, craftRandom(1200)...)})...))},
		{name: "ike_auth in a fragment with text", frame: udp(4500, append(make([]byte, 4), craftIKE(ikeAuth, ikePayload{payloadSKF, append([]byte{0, 1, 0, 2}, text[:1200]...)})...)), clear: true},
		{name: "ike_auth with the canary", frame: udp(500, craftIKE(ikeAuth, ikePayload{payloadSK, slices.Concat(craftRandom(100), canary, craftRandom(100))})), clear: true},
		{name: "text on ike's port", frame: udp(500, text), clear: true},
		{name: "text behind the mark of ike on the other port", frame: udp(4500, append(make([]byte, 4), text...)), clear: true},
		{name: "ike without the initiator's spi", frame: udp(500, append(make([]byte, 8), hello[8:]...)), clear: true},
		{name: "ike of another version", frame: udp(500, craftChange(hello, 17, 0x21)), clear: true},
		{name: "ike with reserved flags", frame: udp(500, craftChange(hello, 19, 0xff)), clear: true},
		{name: "ike with another length", frame: udp(500, craftChange(hello, 25, 1)), clear: true},
		{name: "ike with a byte behind it", frame: udp(500, append(bytes.Clone(hello), 0)), clear: true},
		{name: "ike without payloads", frame: udp(500, craftIKE(ikeInformation)), clear: true},
		{name: "ike with a payload that is too long", frame: udp(500, craftChange(hello, ikeHeader+2, 0xff)), clear: true},
		{name: "ike with reserved bits in a payload", frame: udp(500, craftChange(hello, ikeHeader+1, 0x41)), clear: true},
		{name: "ike of an unknown exchange", frame: udp(500, craftIKE(42, sk)), clear: true},
		{name: "ike_auth with text", frame: udp(500, craftIKE(ikeAuth, ikePayload{payloadSK, text[:240]})), clear: true},
		{name: "ike_auth with a text for an encrypted payload", frame: udp(500, craftIKE(ikeAuth, ikePayload{payloadSK, text[:12]})), clear: true},
		{name: "ike_auth that is not encrypted", frame: udp(500, craftIKE(ikeAuth, ikePayload{35, craftRandom(240)})), clear: true},
		{name: "ike_auth with a second payload", frame: udp(500, craftIKE(ikeAuth, sk, sk)), clear: true},
		{name: "ike_sa_init with text for proposals", frame: udp(500, craftIKE(ikeSAInit, ikePayload{payloadSA, text[:64]})), clear: true},
		{name: "ike_sa_init with an spi in its proposal", frame: udp(500, craftChange(hello, proposal+6, 8)), clear: true},
		{name: "ike_sa_init with reserved bits in a transform", frame: udp(500, craftChange(hello, transform+5, 'a')), clear: true},
		{name: "ike_sa_init with another attribute", frame: udp(500, craftChange(hello, transform+9, 'a')), clear: true},
		{name: "ike_sa_init with reserved bits in its key", frame: udp(500, craftChange(hello, key+2, 'a')), clear: true},
		{name: "ike_sa_init that ends early", frame: udp(500, craftChange(hello, len(hello)-28, payloadNotify)), clear: true},
		{name: "ike_sa_init with a short nonce", frame: udp(500, craftSAInit(ikePayload{payloadNonce, text[:8]})), clear: true},
		{name: "ike_sa_init with text for certificate authorities", frame: udp(500, craftSAInit(hashes(text[:200]))), clear: true},
		{name: "ike_sa_init with a long notification", frame: udp(500, craftSAInit(ikePayload{payloadNotify, append([]byte{0, 0, 0x40, 4}, text[:200]...)})), clear: true},
		{name: "ike_sa_init with a long vendor id", frame: udp(500, craftSAInit(ikePayload{payloadVendor, text[:200]})), clear: true},
		{name: "ike_sa_init with a foreign payload", frame: udp(500, craftSAInit(ikePayload{48, text[:20]})), clear: true},
	}
}

func otherSpecimens(text, canary []byte) []specimen {
	data := craftData(1372)
	wg := func(payload []byte) []byte { return craftIPv4(protoUDP, craftUDP(51820, 51820, payload)) }
	return []specimen{
		{name: "tcp with the canary", frame: craftIPv4(6, append(make([]byte, 20), bytes.Repeat(canary, 20)...)), clear: true},
		{name: "tcp", frame: craftIPv4(6, make([]byte, 20)), clear: true},
		{name: "tcp between ipsec ends", frame: craftIPv4To(craftC, 6, data), clear: true},
		{name: "icmp", frame: craftIPv4(1, make([]byte, 8)), clear: true},
		{name: "ipip", frame: craftIPv4(4, data), clear: true},
		{name: "gre", frame: craftIPv4(47, data), clear: true},
		{name: "sctp", frame: craftIPv4(132, data), clear: true},
		{name: "esp that is not configured", frame: craftIPv4(protoESP, data), clear: true},
		{name: "ipv6 hop-by-hop", frame: craftIPv6(0, make([]byte, 16)), clear: true},
		{name: "vlan tag", frame: wg(data), meta: Meta{VLAN: true}, clear: true},
		{name: "vlan tag in the frame", frame: craftEthernet(0x8100, make([]byte, 50)), clear: true},
		{name: "lldp", frame: craftEthernet(0x88cc, make([]byte, 50)), clear: true},
		{name: "truncated", frame: wg(data), meta: Meta{Truncated: true}, clear: true},
		{name: "fragment", frame: craftFragment(wg(data)), clear: true},
		{name: "trailer", frame: append(wg(craftData(32)), text[:8]...), clear: true},
		{name: "runt", frame: make([]byte, 8), clear: true},
	}
}
