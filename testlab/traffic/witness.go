package traffic

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Sighted counts the fuzz packets that a host received, by sender.
type Sighted map[string]int

// see finds the senders of fuzz packets in a frame: behind at least two canaries
// in a row, where other traffic of the lab has only more of them.
func (c Canary) see(frame []byte) (sender string, ok bool) {
	canary := c[:16]
	i := bytes.Index(frame, bytes.Repeat(canary, 2))
	if i < 0 {
		return "", false
	}
	rest := frame[i:]
	for bytes.HasPrefix(rest, canary) {
		rest = rest[len(canary):]
	}
	if len(rest) < senderSize {
		return "", false
	}
	name := bytes.TrimRight(rest[:senderSize], "\x00")
	return string(name), validSender(name)
}

func validSender(name []byte) bool {
	for _, c := range name {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return len(name) > 0 && len(name) <= senderSize
}

// Witness counts what every interface of the namespace receives until ctx ends.
// What the host sends itself does not count. An error means that a frame may
// have been missed.
func Witness(ctx context.Context, canary Canary, ready func()) (Sighted, error) {
	f, err := packetSocket()
	if err != nil {
		return nil, fmt.Errorf("open packet socket: %w", err)
	}
	defer func() { _ = f.Close() }()
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() {
		// What is on its way still counts.
		_ = f.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
	})
	defer stop()
	ready()
	seen := Sighted{}
	b := make([]byte, 1<<16)
	for {
		var n int
		var from unix.Sockaddr
		var received error
		err := raw.Read(func(fd uintptr) bool {
			n, from, received = unix.Recvfrom(int(fd), b, 0)
			return !errors.Is(received, unix.EAGAIN)
		})
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return seen, dropped(raw)
		}
		if err := errors.Join(err, received); err != nil {
			return seen, fmt.Errorf("receive frames: %w", err)
		}
		if l, ok := from.(*unix.SockaddrLinklayer); ok && l.Pkttype == unix.PACKET_OUTGOING {
			continue
		}
		if sender, ok := canary.see(b[:n]); ok {
			seen[sender]++
		}
	}
}

func packetSocket() (*os.File, error) {
	protocol := uint16(unix.ETH_P_ALL)<<8 | uint16(unix.ETH_P_ALL)>>8
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, int(protocol))
	if err != nil {
		return nil, err
	}
	const room = 16 << 20
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, room); err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), "packet"), nil
}

// dropped asks what the kernel had no room for (packet(7), PACKET_STATISTICS).
func dropped(raw interface {
	Control(func(uintptr)) error
}) error {
	var stats *unix.TpacketStats
	var err error
	if e := raw.Control(func(fd uintptr) {
		stats, err = unix.GetsockoptTpacketStats(int(fd), unix.SOL_PACKET, unix.PACKET_STATISTICS)
	}); e != nil {
		return e
	}
	if err == nil && stats.Drops > 0 {
		err = fmt.Errorf("%d frames were lost before they could be looked at", stats.Drops)
	}
	return err
}

// Send puts packets on an interface's wire, addressed to the gateway's hardware
// address, whatever their addresses say. It asks for that address first.
func Send(ctx context.Context, name string, gateway netip.Addr, packets [][]byte, pace time.Duration) error {
	in, err := net.InterfaceByName(name)
	if err != nil {
		return fmt.Errorf("find interface %s: %w", name, err)
	}
	mac, err := hardwareAddress(ctx, name, gateway)
	if err != nil {
		return err
	}
	f, err := packetSocket()
	if err != nil {
		return fmt.Errorf("open packet socket: %w", err)
	}
	defer func() { _ = f.Close() }()
	to := &unix.SockaddrLinklayer{Ifindex: in.Index, Halen: 6}
	copy(to.Addr[:], mac)
	for i, p := range packets {
		kind := []byte{0x08, 0x00}
		if p[0]>>4 == 6 {
			kind = []byte{0x86, 0xdd}
		}
		frame := bytes.Join([][]byte{mac, in.HardwareAddr, kind, p}, nil)
		if err := unix.Sendto(int(f.Fd()), frame, 0, to); err != nil && !errors.Is(err, unix.ENOBUFS) {
			return fmt.Errorf("send packet %d: %w", i, err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pace):
		}
	}
	return nil
}

// hardwareAddress has the kernel ask, and reads its answer (proc(5)).
func hardwareAddress(ctx context.Context, name string, gateway netip.Addr) (net.HardwareAddr, error) {
	for range 100 {
		if c, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(gateway, 9))); err == nil {
			_, _ = c.Write([]byte{0})
			_ = c.Close()
		}
		b, err := os.ReadFile("/proc/thread-self/net/arp")
		if err != nil {
			return nil, err
		}
		for line := range bytes.Lines(b) {
			w := bytes.Fields(line)
			if len(w) < 6 || string(w[0]) != gateway.String() || string(w[5]) != name || string(w[2]) == "0x0" {
				continue
			}
			return net.ParseMAC(string(w[3]))
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
	return nil, fmt.Errorf("gateway %s does not answer on %s", gateway, name)
}
