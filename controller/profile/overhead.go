package profile

import "strings"

// The headers around what ESP encrypts, in bytes.
const (
	ipv4Header = 20
	ipv6Header = 40
	udpHeader  = 8
	// espHeader is SPI and sequence number (RFC 4303, section 2).
	espHeader = 8
	// espTrailer is pad length and next header, which are encrypted.
	espTrailer = 2
)

// layout is what an ESP packet has beside headers: an explicit IV, what the
// ciphertext is a multiple of, and the integrity check value.
type layout struct{ iv, block, icv int }

// integrity check values (RFC 4868, section 2.3; RFC 4494, section 2).
var icvs = map[string]int{"sha256": 16, "sha384": 24, "sha512": 32, "aescmac": 12}

// layout of a proposal; false for algorithms that nobody here knows.
func (p Proposal) layout() (layout, bool) {
	switch {
	// RFC 4106, sections 3.1 and 6; RFC 4309, sections 3.1 and 6; RFC 7634, section 2.
	case strings.HasSuffix(p.Encryption, "gcm16"), strings.HasSuffix(p.Encryption, "ccm16"), p.Encryption == "chacha20poly1305":
		return layout{8, 4, 16}, true
	// RFC 3686, section 3.1.
	case strings.HasSuffix(p.Encryption, "ctr"):
		icv, ok := icvs[p.Integrity]
		return layout{8, 4, icv}, ok
	// RFC 3602, section 3.
	case p.Encryption == "aes128", p.Encryption == "aes192", p.Encryption == "aes256":
		icv, ok := icvs[p.Integrity]
		return layout{16, 16, icv}, ok
	}
	return layout{}, false
}

// InnerMTU is the largest inner packet in bytes that fits into an outer one of
// outer bytes, whichever of the ESP proposals is negotiated: in tunnel mode the
// inner packet and the trailer are padded to the cipher's block. udp says whether
// the packet may be in UDP (RFC 3948), six that the outer packet is IPv6. It is 0
// where a proposal is unknown or nothing is left.
func InnerMTU(esp []Choice, outer int, udp, six bool) int {
	room := outer - ipv4Header - espHeader
	if six {
		room = outer - ipv6Header - espHeader
	}
	if udp {
		room -= udpHeader
	}
	least := 0
	for i, c := range esp {
		l, ok := c.layout()
		if !ok {
			return 0
		}
		encrypted := room - l.iv - l.icv
		n := max(0, encrypted-encrypted%l.block-espTrailer)
		if i == 0 || n < least {
			least = n
		}
	}
	return least
}
