package traffic

import (
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// ForgeOptions are datagrams with a source address that is not the sender's.
type ForgeOptions struct {
	From, To netip.AddrPort
	Canary   Canary
	Count    int
	Interval time.Duration
	// WireGuard gives the payload the shape of a WireGuard data message, with
	// random content and the canary at its end.
	WireGuard bool
	Size      int
}

// Forge sends them through a raw socket (raw(7)); it needs CAP_NET_RAW.
func Forge(o ForgeOptions) error {
	if !o.From.Addr().Is4() || !o.To.Addr().Is4() {
		return fmt.Errorf("forge %s to %s: want IPv4 addresses", o.From, o.To)
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return fmt.Errorf("open raw socket: %w", err)
	}
	defer func() { _ = unix.Close(fd) }()
	to := unix.SockaddrInet4{Addr: o.To.Addr().As4()}
	for i := range o.Count {
		if i > 0 {
			time.Sleep(o.Interval)
		}
		if err := unix.Sendto(fd, o.packet(uint64(i+1)), 0, &to); err != nil {
			return fmt.Errorf("send forged datagram %d: %w", i+1, err)
		}
	}
	return nil
}

func (o ForgeOptions) packet(counter uint64) []byte {
	size := max(o.Size, 64)
	payload := o.Canary.Fill(make([]byte, size/16*16))
	if o.WireGuard {
		// crypto/rand.Read never fails.
		_, _ = rand.Read(payload)
		copy(payload, []byte{4, 0, 0, 0})
		binary.LittleEndian.PutUint64(payload[8:], counter)
		copy(payload[len(payload)-len(o.Canary):], o.Canary)
	}
	from, to := o.From.Addr().As4(), o.To.Addr().As4()
	// RFC 791; the kernel fills in the checksum and the identification.
	b := []byte{0x45, 0, 0, 0, 0, 0, 0, 0, 64, unix.IPPROTO_UDP, 0, 0}
	b = append(append(b, from[:]...), to[:]...)
	binary.BigEndian.PutUint16(b[2:], uint16(28+len(payload)))
	// RFC 768; a checksum of 0 means none.
	b = binary.BigEndian.AppendUint16(b, o.From.Port())
	b = binary.BigEndian.AppendUint16(b, o.To.Port())
	b = binary.BigEndian.AppendUint16(b, uint16(8+len(payload)))
	return append(append(b, 0, 0), payload...)
}
