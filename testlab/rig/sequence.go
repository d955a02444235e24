package rig

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/circuitseal/circuitseal/testlab/netns"
)

// What the kernel says of an SA's sequence numbers (include/uapi/linux/xfrm.h):
// where the one that was sent last is in XFRMA_REPLAY_VAL and in XFRMA_REPLAY_ESN_VAL.
const (
	replaySent    = 0
	replaySentESN = 4
)

// outbound is an SA that an appliance sends by, as attributes that can be set again.
type outbound struct {
	info *nl.XfrmUsersaInfo
	kind int
	// replay is struct xfrm_replay_state or xfrm_replay_state_esn.
	replay []byte
}

func (o outbound) sent() []byte {
	if o.kind == nl.XFRMA_REPLAY_ESN_VAL {
		return o.replay[replaySentESN:][:4]
	}
	return o.replay[replaySent:][:4]
}

// Sent are the sequence numbers that the ESP SAs of an appliance have sent last.
func (r *Rig) Sent(h netns.Host) ([]uint32, error) {
	var sent []uint32
	err := r.eachOutbound(h, func(o outbound) error {
		sent = append(sent, binary.NativeEndian.Uint32(o.sent()))
		return nil
	})
	return sent, err
}

// SetSent has the ESP SAs of an appliance go on from a sequence number. When it is
// counted, so many packets count towards their lifetimes, too.
func (r *Rig) SetSent(h netns.Host, number uint32, counted bool) error {
	return r.changeSent(h, func(o outbound) []nl.NetlinkRequestData {
		binary.NativeEndian.PutUint32(o.sent(), number)
		if !counted {
			return nil
		}
		now := o.info.Curlft
		now.Packets = uint64(number)
		return []nl.NetlinkRequestData{nl.NewRtAttr(nl.XFRMA_LTIME_VAL, now.Serialize())}
	})
}

// MoveSent has the ESP SAs of an appliance go on from a sequence number so much higher,
// or lower. What is sent twice by that is encrypted with the same nonces, which nobody
// but a test may do.
func (r *Rig) MoveSent(h netns.Host, by int) error {
	return r.changeSent(h, func(o outbound) []nl.NetlinkRequestData {
		binary.NativeEndian.PutUint32(o.sent(), uint32(int64(binary.NativeEndian.Uint32(o.sent()))+int64(by)))
		return nil
	})
}

// changeSent sets what f has changed of the ESP SAs that an appliance sends by, and the
// attributes that it returns (XFRM_MSG_NEWAE).
func (r *Rig) changeSent(h netns.Host, f func(outbound) []nl.NetlinkRequestData) error {
	n := 0
	err := r.eachOutbound(h, func(o outbound) error {
		n++
		more := f(o)
		// struct xfrm_aevent_id: xfrm_usersa_id, saddr, flags, reqid.
		id := raw(slices.Concat(o.info.Id.Daddr[:], binary.NativeEndian.AppendUint32(nil, o.info.Id.Spi),
			binary.NativeEndian.AppendUint16(nil, o.info.Family), []byte{o.info.Id.Proto, 0},
			o.info.Saddr[:], make([]byte, 4), binary.NativeEndian.AppendUint32(nil, o.info.Reqid)))
		req := nl.NewNetlinkRequest(nl.XFRM_MSG_NEWAE, unix.NLM_F_ACK|unix.NLM_F_REPLACE)
		req.AddData(id)
		req.AddData(nl.NewRtAttr(o.kind, o.replay))
		for _, m := range more {
			req.AddData(m)
		}
		_, err := req.Execute(unix.NETLINK_XFRM, 0)
		return err
	})
	if err == nil && n == 0 {
		err = fmt.Errorf("%s sends by no SA of the kernel's", h)
	}
	return err
}

// raw is the fixed part of a message; what netlink's package calls raw data comes after
// the attributes.
type raw []byte

func (r raw) Len() int          { return len(r) }
func (r raw) Serialize() []byte { return r }

// eachOutbound calls f in the circuit namespace of an appliance's agent.
func (r *Rig) eachOutbound(h netns.Host, f func(outbound) error) error {
	return netns.Do(r.CircuitNamespace(h), func() error {
		local, err := net.InterfaceAddrs()
		if err != nil {
			return fmt.Errorf("list addresses: %w", err)
		}
		req := nl.NewNetlinkRequest(nl.XFRM_MSG_GETSA, unix.NLM_F_DUMP)
		all, err := req.Execute(unix.NETLINK_XFRM, nl.XFRM_MSG_NEWSA)
		if err != nil {
			return fmt.Errorf("list SAs: %w", err)
		}
		for _, b := range all {
			o := outbound{info: nl.DeserializeXfrmUsersaInfo(b)}
			if o.info.Id.Proto != unix.IPPROTO_ESP || !has(local, o.info) {
				continue
			}
			attrs, err := nl.ParseRouteAttr(b[nl.SizeofXfrmUsersaInfo:])
			if err != nil {
				return fmt.Errorf("read an SA: %w", err)
			}
			for _, a := range attrs {
				if k := int(a.Attr.Type); k == nl.XFRMA_REPLAY_VAL || k == nl.XFRMA_REPLAY_ESN_VAL {
					o.kind, o.replay = k, a.Value
				}
			}
			if len(o.replay) < replaySentESN+4 {
				// An SPI that is reserved has none.
				continue
			}
			if err := f(o); err != nil {
				return fmt.Errorf("SA %#x: %w", nl.Swap32(o.info.Id.Spi), err)
			}
		}
		return nil
	})
}

// has reports whether the packets of an SA come from one of the addresses.
func has(local []net.Addr, info *nl.XfrmUsersaInfo) bool {
	source, _ := netip.AddrFromSlice(info.Saddr.ToIP())
	return slices.ContainsFunc(local, func(a net.Addr) bool {
		p, err := netip.ParsePrefix(a.String())
		return err == nil && p.Addr() == source.Unmap()
	})
}
