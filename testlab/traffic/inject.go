package traffic

import (
	"encoding/binary"
	"fmt"
	"net"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// InjectOptions are frames as no stack would make them.
type InjectOptions struct {
	// ForgeOptions are the datagram in the frame; Interval is not used.
	ForgeOptions
	Interface string
	MAC       net.HardwareAddr
	// Tags are in front of the packet, the outer one first: ethertype and TCI.
	Tags []uint32
	// Mark is the packets' mark.
	Mark int
}

// Inject sends frames through a packet socket (packet(7)).
func Inject(o InjectOptions) error {
	iface, err := net.InterfaceByName(o.Interface)
	if err != nil {
		return fmt.Errorf("find interface %s: %w", o.Interface, err)
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open packet socket: %w", err)
	}
	defer func() { _ = unix.Close(fd) }()
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, o.Mark); err != nil {
		return fmt.Errorf("set the mark: %w", err)
	}
	to := unix.SockaddrLinklayer{Ifindex: iface.Index}
	for i := range o.Count {
		frame := append(append([]byte{}, o.MAC...), iface.HardwareAddr...)
		for _, t := range o.Tags {
			frame = binary.BigEndian.AppendUint32(frame, t)
		}
		packet, err := o.packet(uint64(i + 1))
		if err != nil {
			return err
		}
		kind := uint16(unix.ETH_P_IP)
		if o.To.Addr().Is6() {
			kind = unix.ETH_P_IPV6
		}
		frame = append(binary.BigEndian.AppendUint16(frame, kind), packet...)
		// A guard that drops a frame on its way out may say so.
		if err := unix.Sendto(fd, frame, 0, &to); err != nil && err != unix.ENOBUFS {
			return fmt.Errorf("send frame %d: %w", i+1, err)
		}
	}
	return nil
}

// ParseTags reads such as 300.100, the outer tag first; "ad" in front of one
// makes it a tag of 802.1ad. Nothing is no tag.
func ParseTags(text string) ([]uint32, error) {
	var tags []uint32
	if text == "" {
		return nil, nil
	}
	for t := range strings.SplitSeq(text, ".") {
		number, ad := strings.CutPrefix(t, "ad")
		n, err := strconv.ParseUint(number, 10, 16)
		if err != nil {
			return nil, fmt.Errorf("tags %q: want such as 300.100 or ad300.100", text)
		}
		kind := uint32(unix.ETH_P_8021Q)
		if ad {
			kind = unix.ETH_P_8021AD
		}
		tags = append(tags, kind<<16|uint32(n))
	}
	return tags, nil
}
