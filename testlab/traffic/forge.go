package traffic

import (
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// Shape is what a forged packet looks like. All but Text have random content with
// the canary at its end.
type Shape string

// The shapes. IKE is what an encrypted exchange is, behind the marker of RFC
// 3948 unless it is for port 500; ESP has no ports.
const (
	Text      Shape = "text"
	WireGuard Shape = "wireguard"
	IKE       Shape = "ike"
	ESP       Shape = "esp"
	ESPInUDP  Shape = "esp-in-udp"
)

// ForgeOptions are packets with a source address that is not the sender's.
type ForgeOptions struct {
	// From and To are of one family.
	From, To netip.AddrPort
	Canary   Canary
	Count    int
	Interval time.Duration
	// Shape is Text when it is empty.
	Shape Shape
	// Size is about how long the payload is.
	Size int
}

// Forge sends them through a raw socket (raw(7)); it needs CAP_NET_RAW.
func Forge(o ForgeOptions) error {
	domain, to := unix.AF_INET, unix.Sockaddr(nil)
	switch a := o.To.Addr(); {
	case a.Is4() && o.From.Addr().Is4():
		to = &unix.SockaddrInet4{Addr: a.As4()}
	case a.Is6() && o.From.Addr().Is6():
		domain, to = unix.AF_INET6, &unix.SockaddrInet6{Addr: a.As16()}
	default:
		return fmt.Errorf("forge %s to %s: want addresses of one family", o.From, o.To)
	}
	fd, err := unix.Socket(domain, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return fmt.Errorf("open raw socket: %w", err)
	}
	defer func() { _ = unix.Close(fd) }()
	for i := range o.Count {
		if i > 0 {
			time.Sleep(o.Interval)
		}
		packet, err := o.packet(uint64(i + 1))
		if err != nil {
			return err
		}
		if err := unix.Sendto(fd, packet, 0, to); err != nil {
			return fmt.Errorf("send forged packet %d: %w", i+1, err)
		}
	}
	return nil
}

// packet is a whole IP packet.
func (o ForgeOptions) packet(counter uint64) ([]byte, error) {
	payload := o.Canary.Fill(make([]byte, max(o.Size, 64)/16*16))
	if o.Shape != Text && o.Shape != "" {
		// crypto/rand.Read never fails.
		_, _ = rand.Read(payload)
		copy(payload[len(payload)-len(o.Canary):], o.Canary)
	}
	switch o.Shape {
	case Text, "":
	case WireGuard:
		copy(payload, []byte{4, 0, 0, 0})
		binary.LittleEndian.PutUint64(payload[8:], counter)
	case ESP, ESPInUDP:
		binary.BigEndian.PutUint32(payload, 0xc0000001)
		binary.BigEndian.PutUint32(payload[4:], uint32(counter))
	case IKE:
		// RFC 7296, sections 3.1 and 3.14: both SPIs are random.
		copy(payload[16:], []byte{46, 0x20, 37, 0x08, 0, 0, 0, byte(counter)})
		binary.BigEndian.PutUint32(payload[24:], uint32(len(payload)))
		copy(payload[28:], []byte{0, 0})
		binary.BigEndian.PutUint16(payload[30:], uint16(len(payload)-28))
		if o.To.Port() != 500 {
			payload = append(make([]byte, 4), payload...)
		}
	default:
		return nil, fmt.Errorf("forge as %q: want one of %s, %s, %s, %s and %s", string(o.Shape), Text, WireGuard, IKE, ESP, ESPInUDP)
	}
	if o.Shape == ESP {
		return header(o.From.Addr(), o.To.Addr(), unix.IPPROTO_ESP, payload), nil
	}
	b := binary.BigEndian.AppendUint16(nil, o.From.Port())
	b = binary.BigEndian.AppendUint16(b, o.To.Port())
	b = binary.BigEndian.AppendUint16(b, uint16(8+len(payload)))
	b = checked(o.From.Addr(), o.To.Addr(), unix.IPPROTO_UDP, append(append(b, 0, 0), payload...), 6)
	return header(o.From.Addr(), o.To.Addr(), unix.IPPROTO_UDP, b), nil
}

// header puts a plain IP header in front (RFC 791, RFC 8200).
func header(from, to netip.Addr, protocol uint8, body []byte) []byte {
	if from.Is6() {
		b := binary.BigEndian.AppendUint16([]byte{0x60, 0, 0, 0}, uint16(len(body)))
		return slices.Concat(b, []byte{protocol, 64}, from.AsSlice(), to.AsSlice(), body)
	}
	b := binary.BigEndian.AppendUint16([]byte{0x45, 0}, uint16(20+len(body)))
	b = slices.Concat(b, []byte{0, 0, 0, 0, 64, protocol, 0, 0}, from.AsSlice(), to.AsSlice())
	binary.BigEndian.PutUint16(b[10:], ^sum(0, b))
	return append(b, body...)
}
