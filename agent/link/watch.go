package link

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/circuitseal/circuitseal/agent/instance"
	"github.com/circuitseal/circuitseal/agent/netns"
)

// watched are the rtnetlink groups (include/uapi/linux/rtnetlink.h) of what
// this driver and the tunnel drivers write, and of the qdiscs and filters that
// older kernels keep our programs by.
var watched = []int{
	unix.RTNLGRP_LINK, unix.RTNLGRP_TC,
	unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV4_RULE,
	unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV6_ROUTE,
}

// Watch reports that links, addresses, routes, rules, qdiscs or filters of either
// namespace changed, our own writes included. Of the main namespace's routes only ours
// count, so that a routing daemon there does not wake the agent. Reports
// coalesce: one value stands for any number of changes since the last was
// taken. The channel closes after ctx is done.
func (d *Driver) Watch(ctx context.Context) (<-chan struct{}, error) {
	circuit, err := subscribe(d.config.Circuit)
	if err != nil {
		return nil, fmt.Errorf("watch circuit namespace: %w", err)
	}
	main, err := subscribe(d.config.Main)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("watch main namespace: %w", err), circuit.Close())
	}
	changed := make(chan struct{}, 1)
	var readers sync.WaitGroup
	// Nobody else has any business in the circuit namespace.
	readers.Go(func() { d.watch(ctx, circuit, anyRoute, d.witness, changed) })
	readers.Go(func() { d.watch(ctx, main, ownRoute, d.witnessMain, changed) })
	go func() {
		<-ctx.Done()
		if err := errors.Join(circuit.Close(), main.Close()); err != nil {
			d.config.Log.Warn("close netlink subscription", "error", err)
		}
		readers.Wait()
		close(changed)
	}()
	return changed, nil
}

func (d *Driver) watch(ctx context.Context, socket *os.File, routes func(byte) bool, witness func([]byte), changed chan<- struct{}) {
	buffer := make([]byte, 1<<16)
	for {
		n, err := socket.Read(buffer)
		switch {
		case ctx.Err() != nil:
			return
		case errors.Is(err, unix.ENOBUFS):
			// The kernel dropped messages: anything may have changed.
		case err != nil:
			d.config.Log.Error("read netlink events", "error", err)
			return
		case !relevant(buffer[:n], routes):
			continue
		default:
			witness(buffer[:n])
		}
		select {
		case changed <- struct{}{}:
		default:
		}
	}
}

func anyRoute(byte) bool          { return true }
func ownRoute(protocol byte) bool { return protocol == instance.RouteProtocol }
func align(n int) int             { return (n + unix.NLMSG_ALIGNTO - 1) &^ (unix.NLMSG_ALIGNTO - 1) }

// relevant reads the messages in b (for routes struct rtmsg with the protocol at
// offset 5) and reports whether one matters. Classes and actions of traffic
// control, which come with its group, do not; messages that it cannot read do.
func relevant(b []byte, routes func(protocol byte) bool) (matters bool) {
	whole := each(b, func(kind uint16, _ uint32, payload []byte) {
		switch kind {
		case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
			matters = matters || len(payload) < unix.SizeofRtMsg || routes(payload[5])
		case unix.RTM_NEWTCLASS, unix.RTM_DELTCLASS, unix.RTM_NEWACTION, unix.RTM_DELACTION:
		default:
			matters = true
		}
	})
	return matters || !whole
}

// each calls f for each message in b: its type, the port of who asked for the
// change, and what follows struct nlmsghdr. It reports whether all could be read.
func each(b []byte, f func(kind uint16, port uint32, payload []byte)) (whole bool) {
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

func subscribe(n netns.Namespace) (*os.File, error) {
	var socket *os.File
	err := n.Do(func() error {
		fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
		if err != nil {
			return fmt.Errorf("open netlink socket: %w", err)
		}
		f := os.NewFile(uintptr(fd), "netlink")
		if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
			return errors.Join(fmt.Errorf("bind netlink socket: %w", err), f.Close())
		}
		for _, group := range watched {
			if err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, group); err != nil {
				return errors.Join(fmt.Errorf("subscribe to rtnetlink group %d: %w", group, err), f.Close())
			}
		}
		socket = f
		return nil
	})
	return socket, err
}
