package tap

import "encoding/binary"

// Exchanges and payloads (RFC 7296, sections 3.1 and 3.2; RFC 7383, 9242, 9370).
const (
	ikeSAInit       = 34
	ikeAuth         = 35
	ikeCreateChild  = 36
	ikeInformation  = 37
	ikeIntermediate = 43
	ikeFollowUp     = 44

	payloadSA      = 33
	payloadKE      = 34
	payloadCertReq = 38
	payloadNonce   = 40
	payloadNotify  = 41
	payloadVendor  = 43
	payloadSK      = 46
	payloadSKF     = 53
)

const (
	ikeHeader = 28
	// ikeFree is how much a notification or a vendor id may say freely.
	ikeFree = 64
	// ikeEncrypted is the least that an encrypted payload has: initialization
	// vector, length of padding, check value.
	ikeEncrypted = 8 + 1 + 8
)

// ike judges an IKE message. IKE_SA_INIT shows proposals, public keys, nonces
// and short notifications by design; of every other exchange nothing may show
// but one encrypted payload. Content is judged per message: IKE repeats a
// message that nobody answers, which in a flow would look predictable.
func ike(b []byte) Verdict {
	// Version 2.0, no reserved flag, the initiator's SPI, an exact length.
	if len(b) < ikeHeader || b[17] != 0x20 || b[19]&^0x28 != 0 || zero(b[:8]) || int(binary.BigEndian.Uint32(b[24:])) != len(b) {
		return clear(IKE, "datagram of %d bytes on IKE's port that is no IKEv2 message", len(b))
	}
	next, exchange, rest := b[16], b[18], b[ikeHeader:]
	var random histogram
	var fits func(kind byte, body []byte, last bool) bool
	switch exchange {
	case ikeSAInit:
		fits = func(kind byte, body []byte, _ bool) bool { return initPayload(&random, kind, body) }
	case ikeAuth, ikeCreateChild, ikeInformation, ikeIntermediate, ikeFollowUp:
		fits = func(kind byte, body []byte, last bool) bool { return last && encryptedPayload(&random, kind, body) }
	default:
		return clear(IKE, "IKE exchange %d", exchange)
	}
	for first := true; first || len(rest) > 0; first = false {
		// RFC 7296, section 3.2.
		if len(rest) < 4 || rest[1]&0x7f != 0 {
			return clear(IKE, "IKE exchange %d with a broken payload", exchange)
		}
		n := int(binary.BigEndian.Uint16(rest[2:]))
		if n < 4 || n > len(rest) || !fits(next, rest[4:n], n == len(rest)) {
			return clear(IKE, "IKE exchange %d with a payload of type %d that does not belong there, %d bytes", exchange, next, n)
		}
		next, rest = rest[0], rest[n:]
	}
	switch {
	case exchange == ikeSAInit && next != 0:
		return clear(IKE, "IKE exchange %d that ends before its last payload", exchange)
	case random.predictable():
		return clear(IKE, "IKE exchange %d whose content is predictable, %d bytes", exchange, len(b))
	}
	return allowed(IKE)
}

// encryptedPayload is SK (RFC 7296, section 3.14) or a fragment of one (RFC
// 7383, section 2.5). An initialization vector may be a counter.
func encryptedPayload(random *histogram, kind byte, b []byte) bool {
	if kind == payloadSKF && len(b) >= 4 {
		b = b[4:]
	} else if kind != payloadSK {
		return false
	}
	if len(b) < ikeEncrypted {
		return false
	}
	random.add(b[8:])
	return true
}

// initPayload is a payload of IKE_SA_INIT (RFC 7296, section 1.2 and appendix C.1).
func initPayload(random *histogram, kind byte, b []byte) bool {
	switch kind {
	case payloadSA:
		return proposals(b)
	case payloadKE:
		if len(b) < 4+32 || !zero(b[2:4]) {
			return false
		}
		random.add(b[4:])
		return true
	case payloadNonce:
		random.add(b)
		return len(b) >= 16 && len(b) <= 256
	case payloadCertReq:
		// One byte of encoding, then SHA-1 hashes of keys.
		if len(b) == 0 || (len(b)-1)%20 != 0 {
			return false
		}
		random.add(b[1:])
		return true
	case payloadNotify:
		// No SPI exists yet.
		return len(b) >= 4 && len(b) <= 4+ikeFree && b[1] == 0
	case payloadVendor:
		return len(b) <= ikeFree
	}
	return false
}

// proposals follows RFC 7296, section 3.3: proposals for IKE, without a SPI.
func proposals(b []byte) bool {
	for more := true; more; {
		if len(b) < 8 {
			return false
		}
		n := int(binary.BigEndian.Uint16(b[2:]))
		more = b[0] == 2
		if !more && b[0] != 0 || b[1] != 0 || n < 8 || n > len(b) || b[5] != 1 || b[6] != 0 || !transforms(b[8:n]) {
			return false
		}
		b = b[n:]
	}
	return len(b) == 0
}

// transforms follows RFC 7296, sections 3.3.2 and 3.3.5: the only attribute is
// a key's length.
func transforms(b []byte) bool {
	for more := true; more; {
		if len(b) < 8 {
			return false
		}
		n := int(binary.BigEndian.Uint16(b[2:]))
		more = b[0] == 3
		if !more && b[0] != 0 || b[1] != 0 || b[5] != 0 || n > len(b) || n != 8 && (n != 12 || binary.BigEndian.Uint16(b[8:]) != 0x800e) {
			return false
		}
		b = b[n:]
	}
	return len(b) == 0
}
