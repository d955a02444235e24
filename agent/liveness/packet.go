package liveness

import (
	"encoding/binary"
	"errors"
)

// ICMPv6 echo messages (RFC 4443, sections 4.1 and 4.2): type, code, checksum,
// identifier, sequence number, data. The kernel fills in the checksum of a raw
// ICMPv6 socket and has checked that of what it hands over (RFC 3542, section
// 3.1).
const (
	typeEchoRequest = 128
	typeEchoReply   = 129
	packetSize      = 8 + 8
)

var errNotOurs = errors.New("not an echo reply to a probe")

func encode(identifier uint16, p probe) []byte {
	b := make([]byte, packetSize)
	b[0] = typeEchoRequest
	binary.BigEndian.PutUint16(b[4:], identifier)
	binary.BigEndian.PutUint16(b[6:], p.sequence)
	binary.BigEndian.PutUint64(b[8:], p.nonce)
	return b
}

// decode reads an echo reply. A reply of another form than our requests is
// errNotOurs.
func decode(b []byte, identifier uint16) (probe, error) {
	if len(b) != packetSize || b[0] != typeEchoReply || b[1] != 0 || binary.BigEndian.Uint16(b[4:]) != identifier {
		return probe{}, errNotOurs
	}
	return probe{sequence: binary.BigEndian.Uint16(b[6:]), nonce: binary.BigEndian.Uint64(b[8:])}, nil
}
