package guard

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/circuitseal/circuitseal/agent/drift"
)

// A transaction of nftables ends with one message that says who made it
// (nf_tables_fill_gen_info in net/netfilter/nf_tables_api.c).
const (
	newGeneration  = unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_NEWGEN
	attributePID   = 2 // NFTA_GEN_PROC_PID
	attributeName  = 3 // NFTA_GEN_PROC_NAME
	afterNFHeader  = unix.NLMSG_HDRLEN + 4
	attributeBegin = 4
)

// Watch reports that somebody else changed nftables in the circuit namespace, and
// notes who. Reports coalesce. The channel closes after ctx is done.
func (g *Guard) Watch(ctx context.Context) (<-chan struct{}, error) {
	var socket *os.File
	err := g.namespace.Do(func() error {
		fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_NETFILTER)
		if err != nil {
			return fmt.Errorf("open netfilter socket: %w", err)
		}
		f := os.NewFile(uintptr(fd), "netfilter")
		err = unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
		if err == nil {
			err = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, unix.NFNLGRP_NFTABLES)
		}
		if err != nil {
			return errors.Join(fmt.Errorf("subscribe to nftables: %w", err), f.Close())
		}
		socket = f
		return nil
	})
	if err != nil {
		return nil, err
	}
	changed := make(chan struct{}, 1)
	go func() {
		<-ctx.Done()
		if err := socket.Close(); err != nil {
			g.log.Warn("close netfilter subscription", "error", err)
		}
	}()
	go func() {
		defer close(changed)
		g.watch(ctx, socket, changed)
	}()
	return changed, nil
}

func (g *Guard) watch(ctx context.Context, socket *os.File, changed chan<- struct{}) {
	comm, err := os.ReadFile("/proc/self/comm")
	if err != nil {
		g.log.Error("read this process's name", "error", err)
	}
	own := strings.TrimSpace(string(comm))
	buffer := make([]byte, 1<<16)
	for {
		n, err := socket.Read(buffer)
		switch {
		case ctx.Err() != nil:
			return
		case errors.Is(err, unix.ENOBUFS):
			// The kernel dropped messages: anything may have changed.
		case err != nil:
			g.log.Error("read nftables events", "error", err)
			return
		default:
			pid, name, ok := author(buffer[:n])
			if !ok || ownThread(pid) {
				continue
			}
			// A thread of ours may have ended since.
			if name != own {
				g.drift.Saw(drift.GuardNFTables, fmt.Sprintf("%.16q (pid %d)", name, pid))
			}
		}
		select {
		case changed <- struct{}{}:
		default:
		}
	}
}

// ownThread tells a thread of this process: the kernel names threads, not
// processes.
func ownThread(id uint32) bool {
	_, err := os.Stat(fmt.Sprintf("/proc/self/task/%d", id))
	return err == nil
}

// author finds in netlink messages who made the last transaction of nftables.
func author(b []byte) (pid uint32, name string, ok bool) {
	for len(b) >= unix.NLMSG_HDRLEN {
		length := int(binary.NativeEndian.Uint32(b))
		if length < unix.NLMSG_HDRLEN || length > len(b) {
			return pid, name, ok
		}
		if binary.NativeEndian.Uint16(b[4:]) == newGeneration && length >= afterNFHeader {
			pid, name = generation(b[afterNFHeader:length])
			ok = true
		}
		b = b[min(roundUp(length), len(b)):]
	}
	return pid, name, ok
}

func generation(b []byte) (pid uint32, name string) {
	for len(b) >= attributeBegin {
		length, kind := int(binary.NativeEndian.Uint16(b)), binary.NativeEndian.Uint16(b[2:])
		if length < attributeBegin || length > len(b) {
			return pid, name
		}
		switch value := b[attributeBegin:length]; {
		case kind == attributePID && len(value) == 4:
			pid = binary.BigEndian.Uint32(value)
		case kind == attributeName:
			name = strings.TrimRight(string(value), "\x00")
		}
		b = b[min(roundUp(length), len(b)):]
	}
	return pid, name
}

func roundUp(n int) int { return (n + unix.NLMSG_ALIGNTO - 1) &^ (unix.NLMSG_ALIGNTO - 1) }
