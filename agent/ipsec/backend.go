package ipsec

import (
	"errors"
	"fmt"
	"net"
	"runtime"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/circuitseal/circuitseal/proto/desired"
)

// Backend is what carries ESP.
type Backend uint8

// The backends. The zero value asks the kernel.
const (
	Automatic Backend = iota
	Kernel
	Libipsec
)

// String is the word that status output uses.
func (b Backend) String() string {
	switch b {
	case Kernel:
		return desired.BackendKernel
	case Libipsec:
		return desired.BackendLibipsec
	case Automatic:
	}
	return "automatic"
}

// kind is that of the devices in the main namespace.
func (b Backend) kind() string {
	if b == Libipsec {
		return kindVeth
	}
	return kindXFRM
}

var probed struct {
	sync.Mutex
	backend Backend
}

// probe asks the kernel until it has answered once: what it can do stays as it is, and an
// error says nothing of that.
func probe() (Backend, error) {
	probed.Lock()
	defer probed.Unlock()
	if probed.backend != Automatic {
		return probed.backend, nil
	}
	b, err := probeKernel()
	probed.backend = b
	return b, err
}

// resolve turns Automatic into what the kernel can do.
func (b Backend) resolve() (Backend, error) {
	if b != Automatic {
		return b, nil
	}
	return probe()
}

// probeKernel has the kernel make an ESP SA with AES-GCM and an XFRM interface, in
// a network namespace that ends with its thread: whether it is able to, nothing else
// tells, and what it lacks may be a module that it loads for that.
func probeKernel() (Backend, error) {
	type result struct {
		backend Backend
		err     error
	}
	done := make(chan result)
	go func() {
		// Never unlocked: the thread ends, and with it its namespace.
		runtime.LockOSThread()
		b, err := probeHere()
		done <- result{b, err}
	}()
	r := <-done
	return r.backend, r.err
}

func probeHere() (Backend, error) {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return Automatic, fmt.Errorf("ask the kernel for ESP: make a network namespace: %w", err)
	}
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE, unix.NETLINK_XFRM)
	if err != nil {
		return Automatic, fmt.Errorf("ask the kernel for ESP: %w", err)
	}
	defer h.Close()
	err = h.XfrmStateAdd(&netlink.XfrmState{
		Src: net.IPv4(192, 0, 2, 1), Dst: net.IPv4(192, 0, 2, 2), Proto: netlink.XFRM_PROTO_ESP, Mode: netlink.XFRM_MODE_TUNNEL, Spi: 0x1000,
		Aead: &netlink.XfrmStateAlgo{Name: "rfc4106(gcm(aes))", Key: make([]byte, 36), ICVLen: 128},
	})
	if err == nil {
		err = h.LinkAdd(&netlink.Xfrmi{LinkAttrs: netlink.LinkAttrs{Name: "probe", ParentIndex: 1}, Ifid: 1})
	}
	switch {
	case err == nil:
		return Kernel, nil
	// It has no ESP (xfrm_get_type in net/xfrm/xfrm_state.c), no such interface (__rtnl_newlink
	// in net/core/rtnetlink.c), no such algorithm (crypto_alloc_tfm in crypto/api.c).
	case errors.Is(err, unix.EPROTONOSUPPORT), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOSYS):
		return Libipsec, nil
	}
	return Automatic, fmt.Errorf("ask the kernel for ESP: %w", err)
}
