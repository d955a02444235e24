package guard

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/circuitseal/circuitseal/agent/drift"
	"github.com/circuitseal/circuitseal/agent/nlmsg"
)

// A transaction of nftables ends with one message that says who made it
// (nf_tables_fill_gen_info in net/netfilter/nf_tables_api.c).
const (
	newGeneration = unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_NEWGEN
	attributePID  = 2 // NFTA_GEN_PROC_PID
	attributeName = 3 // NFTA_GEN_PROC_NAME
	nfHeader      = 4 // struct nfgenmsg
)

// Watch reports that somebody else changed nftables in the circuit namespace, and
// notes who. Reports coalesce. The channel closes after ctx is done.
func (g *Guard) Watch(ctx context.Context) (<-chan struct{}, error) {
	socket, err := nlmsg.Subscribe(g.namespace, unix.NETLINK_NETFILTER, unix.NFNLGRP_NFTABLES)
	if err != nil {
		return nil, fmt.Errorf("watch nftables: %w", err)
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
	err = nlmsg.Follow(ctx, socket, func(b []byte) bool {
		pid, name, ok := author(b)
		if !ok || ownThread(pid) {
			return false
		}
		// A thread of ours may have ended since.
		if name != own {
			g.drift.Saw(drift.GuardNFTables, fmt.Sprintf("%.16q (pid %d)", name, pid))
		}
		return true
	}, changed)
	if ctx.Err() == nil {
		g.log.Error("changes of nftables are not noticed any more, but at the next pass", "error", err)
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
	nlmsg.Messages(b, func(kind uint16, _ uint32, payload []byte) {
		if kind == newGeneration && len(payload) >= nfHeader {
			pid, name = generation(payload[nfHeader:])
			ok = true
		}
	})
	return pid, name, ok
}

// generation reads as far as attributes can be read.
func generation(b []byte) (pid uint32, name string) {
	_ = nlmsg.Attributes(b, func(kind uint16, value []byte) error {
		switch {
		case kind == attributePID && len(value) == 4:
			pid = binary.BigEndian.Uint32(value)
		case kind == attributeName:
			name = strings.TrimRight(string(value), "\x00")
		}
		return nil
	})
	return pid, name
}
