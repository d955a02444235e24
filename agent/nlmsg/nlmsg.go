// Package nlmsg walks netlink messages and follows what the kernel tells of
// changes (netlink(7), rtnetlink(7)). It reads what it is given with care, since
// whoever is root in a namespace has a say in it, and knows neither what the
// messages are about nor which matter.
package nlmsg

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/circuitseal/circuitseal/agent/netns"
)

// Messages calls f for each message in b: its type, the port of who asked for the
// change, and what follows struct nlmsghdr. It reports whether all could be read.
func Messages(b []byte, f func(kind uint16, port uint32, payload []byte)) (whole bool) {
	for len(b) >= unix.NLMSG_HDRLEN {
		length := int(binary.NativeEndian.Uint32(b))
		if length < unix.NLMSG_HDRLEN || length > len(b) {
			return false
		}
		f(binary.NativeEndian.Uint16(b[4:]), binary.NativeEndian.Uint32(b[12:]), b[unix.NLMSG_HDRLEN:length])
		b = b[min(align(length), len(b)):]
	}
	return len(b) == 0
}

// Attributes calls see for each attribute in b, with its type without
// NLA_F_NESTED, and ends with its first error. An attribute that is cut off is an
// error that wraps EINVAL; the library's reader panics at one that ends within its
// padding.
func Attributes(b []byte, see func(kind uint16, value []byte) error) error {
	for len(b) >= unix.SizeofRtAttr {
		length := int(binary.NativeEndian.Uint16(b))
		if length < unix.SizeofRtAttr || length > len(b) {
			return fmt.Errorf("an attribute of %d bytes in %d: %w", length, len(b), unix.EINVAL)
		}
		if err := see(binary.NativeEndian.Uint16(b[2:])&^unix.NLA_F_NESTED, b[unix.SizeofRtAttr:length]); err != nil {
			return err
		}
		b = b[min(align(length), len(b)):]
	}
	return nil
}

// align is NLMSG_ALIGN, and RTA_ALIGN, which is the same.
func align(n int) int { return (n + unix.NLMSG_ALIGNTO - 1) &^ (unix.NLMSG_ALIGNTO - 1) }

// Subscribe opens a socket of a netlink protocol in a namespace that gets the
// messages of these groups, for Follow. The caller closes it.
func Subscribe(n netns.Namespace, protocol int, groups ...int) (socket *os.File, err error) {
	err = n.Do(func() error {
		fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, protocol)
		if err != nil {
			return fmt.Errorf("open netlink socket: %w", err)
		}
		f := os.NewFile(uintptr(fd), "netlink")
		if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
			return errors.Join(fmt.Errorf("bind netlink socket: %w", err), f.Close())
		}
		for _, group := range groups {
			if err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, group); err != nil {
				return errors.Join(fmt.Errorf("subscribe to netlink group %d: %w", group, err), f.Close())
			}
		}
		socket = f
		return nil
	})
	return socket, err
}

// Follow reads the socket until ctx is done, and returns its error then, or until
// it cannot be read. The caller closes it when ctx is done. Where matters says so of what came, or the kernel had to drop
// messages, changed gets a value, unless it has one.
func Follow(ctx context.Context, socket *os.File, matters func([]byte) bool, changed chan<- struct{}) error {
	buffer := make([]byte, 1<<16)
	for {
		n, err := socket.Read(buffer)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, unix.ENOBUFS):
			// Anything may have changed.
		case err != nil:
			return fmt.Errorf("read netlink events: %w", err)
		case !matters(buffer[:n]):
			continue
		}
		select {
		case changed <- struct{}{}:
		default:
		}
	}
}
