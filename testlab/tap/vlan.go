package tap

import (
	"encoding/binary"
	"fmt"
	"slices"
)

// VLAN is a link of an interface that carries several by VLAN tags.
type VLAN struct {
	// Tags are one or two, the outer one first.
	Tags []uint16 `json:"tags"`
	Link
}

// etherVLAN is the only ethertype that a tag may have.
const etherVLAN = 0x8100

// tagged judges a frame as one of the link that its tags name. A tag says no more
// than that: its priority is zero, and no frame is without one.
func (in *Inspector) tagged(frame []byte, m Meta) Verdict {
	var tags []uint16
	take := func(t uint32) bool {
		tags = append(tags, uint16(t))
		return t>>16 == etherVLAN
	}
	sound := !m.VLAN || take(m.Tag)
	for sound && len(frame) >= 18 && slices.Contains([]uint16{etherVLAN, 0x88a8}, binary.BigEndian.Uint16(frame[12:])) {
		sound = take(binary.BigEndian.Uint32(frame[12:]))
		frame = slices.Concat(frame[:12], frame[16:])
	}
	link := in.links[fmt.Sprint(tags)]
	if !sound || link == nil {
		return clear("vlan", "VLAN tags %v, which are no link's", tags)
	}
	return link.parse(frame, Meta{Segment: m.Segment, Truncated: m.Truncated})
}
