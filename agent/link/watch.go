package link

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/circuitseal/circuitseal/agent/instance"
	"github.com/circuitseal/circuitseal/agent/nlmsg"
)

// watched are the rtnetlink groups (include/uapi/linux/rtnetlink.h) of what
// this driver and the tunnel drivers write, and of the qdiscs and filters that
// older kernels keep our programs by.
var watched = []int{
	unix.RTNLGRP_LINK, unix.RTNLGRP_TC,
	unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV4_RULE,
	unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_IPV6_RULE,
}

// Watch reports that links, addresses, routes, rules, qdiscs or filters of either
// namespace changed, our own writes included. Of the main namespace's routes only ours
// count, so that a routing daemon there does not wake the agent. Reports
// coalesce: one value stands for any number of changes since the last was
// taken. The channel closes after ctx is done.
func (d *Driver) Watch(ctx context.Context) (<-chan struct{}, error) {
	circuit, err := nlmsg.Subscribe(d.config.Circuit, unix.NETLINK_ROUTE, watched...)
	if err != nil {
		return nil, fmt.Errorf("watch circuit namespace: %w", err)
	}
	main, err := nlmsg.Subscribe(d.config.Main, unix.NETLINK_ROUTE, watched...)
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
	err := nlmsg.Follow(ctx, socket, func(b []byte) bool {
		if !relevant(b, routes) {
			return false
		}
		witness(b)
		return true
	}, changed)
	if ctx.Err() == nil {
		d.config.Log.Error("changes of links are not noticed any more, but at the next pass", "error", err)
	}
}

func anyRoute(byte) bool          { return true }
func ownRoute(protocol byte) bool { return protocol == instance.RouteProtocol }

// relevant reads the messages in b (for routes struct rtmsg with the protocol at
// offset 5) and reports whether one matters. Classes and actions of traffic
// control, which come with its group, do not; messages that it cannot read do.
func relevant(b []byte, routes func(protocol byte) bool) (matters bool) {
	whole := nlmsg.Messages(b, func(kind uint16, _ uint32, payload []byte) {
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
