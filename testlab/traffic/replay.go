package traffic

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// ReplayOptions are frames that somebody on the way has kept.
type ReplayOptions struct {
	Interface string
	Count     int
}

// recordTick is how long a record waits for a frame before it looks at its context.
const recordTick = 200 * time.Millisecond

// Replay keeps the next ESP packets that leave by an interface, and then sends them by
// it once more, as they were.
func Replay(ctx context.Context, o ReplayOptions) error {
	iface, err := net.InterfaceByName(o.Interface)
	if err != nil {
		return fmt.Errorf("find interface %s: %w", o.Interface, err)
	}
	everything := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, unix.ETH_P_ALL))
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(everything))
	if err != nil {
		return fmt.Errorf("open packet socket: %w", err)
	}
	defer func() { _ = unix.Close(fd) }()
	here := unix.SockaddrLinklayer{Protocol: everything, Ifindex: iface.Index}
	if err := unix.Bind(fd, &here); err != nil {
		return fmt.Errorf("bind to %s: %w", o.Interface, err)
	}
	tick := unix.NsecToTimeval(recordTick.Nanoseconds())
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tick); err != nil {
		return fmt.Errorf("set a time limit: %w", err)
	}
	var frames [][]byte
	b := make([]byte, 1<<16)
	for len(frames) < o.Count {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("record %d frames, have %d: %w", o.Count, len(frames), err)
		}
		n, from, err := unix.Recvfrom(fd, b, 0)
		if err == unix.EAGAIN || err == unix.EINTR {
			continue
		}
		if err != nil {
			return fmt.Errorf("record frames: %w", err)
		}
		if ll, ok := from.(*unix.SockaddrLinklayer); ok && ll.Pkttype == unix.PACKET_OUTGOING && isESP(b[:n]) {
			frames = append(frames, append([]byte(nil), b[:n]...))
		}
	}
	for i, frame := range frames {
		if err := unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: iface.Index}); err != nil {
			return fmt.Errorf("send frame %d again: %w", i+1, err)
		}
	}
	return nil
}

// isESP tells of a frame without tags whether it holds ESP right behind the IP header.
func isESP(frame []byte) bool {
	const header = 14
	if len(frame) < header+40 {
		return false
	}
	switch packet := frame[header:]; binary.BigEndian.Uint16(frame[header-2:]) {
	case unix.ETH_P_IP:
		return packet[9] == unix.IPPROTO_ESP
	case unix.ETH_P_IPV6:
		return packet[6] == unix.IPPROTO_ESP
	}
	return false
}
