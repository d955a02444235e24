package ipsec

import (
	"bytes"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/circuitseal/circuitseal/agent/plan"
)

func init() {
	contract["inner packets without a route arrive"] = inner
}

// inner sends packets as the classifier does: into the device, without a route.
func inner(t *testing.T, b Backend, p *pair) {
	six := [2]netip.Prefix{netip.MustParsePrefix("fd00:1::/64"), netip.MustParsePrefix("fd00:2::/64")}
	p.up(t, func(x, y *plan.IPsecTunnel) {
		x.Locals, x.Remotes = append(x.Locals, six[0]), append(x.Remotes, six[1])
		y.Locals, y.Remotes = append(y.Locals, six[1]), append(y.Remotes, six[0])
	})
	mark := p.a.inst.InnerMark() | 5
	tests := []struct {
		name     string
		from, to string
		mark     uint32
		want     bool
	}{
		{"IPv4", "10.1.0.1", "10.2.0.1", mark, true},
		{"IPv6", "fd00:1::1", "fd00:2::1", mark, true},
		// Nothing else of this host takes those routes.
		{"IPv6 without the mark", "fd00:1::1", "fd00:2::1", 0, b == Libipsec},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			packet := datagram(netip.MustParseAddr(tt.from), netip.MustParseAddr(tt.to), tt.name)
			protocol := uint16(unix.ETH_P_IP)
			if netip.MustParseAddr(tt.from).Is6() {
				protocol = unix.ETH_P_IPV6
			}
			protocol = protocol<<8 | protocol>>8
			open := func(e *end) (fd, index int) {
				err := e.main.Do(func() (err error) {
					h, err := e.main.Netlink()
					if err != nil {
						return err
					}
					defer h.Close()
					l, err := h.LinkByName(e.inst.IPsecDevice(7))
					if err != nil {
						return err
					}
					index = l.Attrs().Index
					if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, int(protocol)); err != nil {
						return err
					}
					if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 200_000}); err != nil {
						return err
					}
					return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: protocol, Ifindex: index})
				})
				if err != nil {
					t.Fatal(err)
				}
				return fd, index
			}
			from, index := open(p.a)
			defer func() { _ = unix.Close(from) }()
			to, _ := open(p.b)
			defer func() { _ = unix.Close(to) }()
			if err := unix.SetsockoptInt(from, unix.SOL_SOCKET, unix.SO_MARK, int(tt.mark)); err != nil {
				t.Fatal(err)
			}
			came := false
			for end := time.Now().Add(2 * time.Second); !came && time.Now().Before(end); {
				at := &unix.SockaddrLinklayer{Protocol: protocol, Ifindex: index, Halen: 6, Addr: [8]byte(append([]byte(pairMAC), 0, 0))}
				if err := unix.Sendto(from, packet, 0, at); err != nil {
					continue
				}
				var b [2000]byte
				if n, _, err := unix.Recvfrom(to, b[:], 0); err == nil {
					came = bytes.Contains(b[:n], []byte(tt.name+"."))
				}
			}
			if came != tt.want {
				t.Errorf("arrived: %t, want %t", came, tt.want)
			}
		})
	}
}

// datagram is a UDP packet without a checksum of UDP's, which nobody looks at here.
func datagram(from, to netip.Addr, text string) []byte {
	payload := append([]byte{0x0f, 0xa0, 0x0f, 0xa0, 0, byte(8 + len(text) + 1), 0, 0}, text+"."...)
	if from.Is6() {
		h := append([]byte{0x60, 0, 0, 0, 0, byte(len(payload)), 17, 64}, from.AsSlice()...)
		return append(append(h, to.AsSlice()...), payload...)
	}
	h := append([]byte{0x45, 0, 0, byte(20 + len(payload)), 0, 1, 0, 0, 64, 17, 0, 0}, from.AsSlice()...)
	h = append(h, to.AsSlice()...)
	sum := uint32(0)
	for i := 0; i < len(h); i += 2 {
		sum += uint32(h[i])<<8 | uint32(h[i+1])
	}
	sum = sum&0xffff + sum>>16
	sum = ^(sum&0xffff + sum>>16)
	h[10], h[11] = byte(sum>>8), byte(sum)
	return append(h, payload...)
}
