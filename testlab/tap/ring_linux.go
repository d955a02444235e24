package tap

import (
	"errors"
	"fmt"
	"net"
	"runtime"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The ring holds 64 MiB: more than half a second of frames at a gigabit per
// second, while the reader waits for a processor.
const (
	blockSize  = 1 << 20
	blockCount = 64
	// blockPatience is how long the kernel keeps a block that is not full.
	blockPatience = 10 * time.Millisecond
	// vnetHeader is sizeof(struct virtio_net_hdr).
	vnetHeader = 10
	// vnetUDP is VIRTIO_NET_HDR_GSO_UDP_L4.
	vnetUDP = 5
)

// ring is a packet socket on one interface, both directions, with its frames
// in memory shared with the kernel (packet(7); Documentation/networking/packet_mmap.rst).
type ring struct {
	fd   int
	mem  []byte
	next int
	// name and ifindex are what the socket was bound to.
	name    string
	ifindex int
}

// openRing opens the socket in a namespace given by path. It stays bound to
// that namespace whatever thread reads it. The kernel keeps a block that is
// not full for patience.
func openRing(namespace, name string, patience time.Duration) (r *ring, err error) {
	err = inNamespace(namespace, func() error {
		r, err = newRing(name, patience)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("tap %s in %s: %w", name, namespace, err)
	}
	return r, nil
}

// inNamespace runs f on a thread of its own, which is not used again.
func inNamespace(path string, f func() error) error {
	if path == "" {
		return f()
	}
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			result <- fmt.Errorf("open namespace: %w", err)
			return
		}
		defer func() { _ = unix.Close(fd) }()
		if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
			result <- fmt.Errorf("enter namespace: %w", err)
			return
		}
		result <- f()
	}()
	return <-result
}

func newRing(name string, patience time.Duration) (*ring, error) {
	iface, err := net.InterfaceByName(name)
	if err != nil {
		return nil, fmt.Errorf("find interface: %w", err)
	}
	// Protocol 0 receives nothing until bind.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open packet socket: %w", err)
	}
	r := &ring{fd: fd, name: name, ifindex: iface.Index}
	if err := r.setup(patience); err != nil {
		r.close()
		return nil, err
	}
	return r, nil
}

func (r *ring) setup(patience time.Duration) error {
	if err := unix.SetsockoptInt(r.fd, unix.SOL_PACKET, unix.PACKET_VERSION, unix.TPACKET_V3); err != nil {
		return fmt.Errorf("set packet version: %w", err)
	}
	if err := unix.SetsockoptInt(r.fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1); err != nil {
		return fmt.Errorf("ask for segment sizes: %w", err)
	}
	const frame = 2048
	req := unix.TpacketReq3{
		Block_size: blockSize, Block_nr: blockCount,
		Frame_size: frame, Frame_nr: blockSize / frame * blockCount,
		Retire_blk_tov: uint32(patience.Milliseconds()),
	}
	if err := unix.SetsockoptTpacketReq3(r.fd, unix.SOL_PACKET, unix.PACKET_RX_RING, &req); err != nil {
		return fmt.Errorf("make the ring: %w", err)
	}
	mem, err := unix.Mmap(r.fd, 0, blockSize*blockCount, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("map the ring: %w", err)
	}
	r.mem = mem
	all := uint16(unix.ETH_P_ALL)
	if err := unix.Bind(r.fd, &unix.SockaddrLinklayer{Protocol: all<<8 | all>>8, Ifindex: r.ifindex}); err != nil {
		return fmt.Errorf("bind packet socket: %w", err)
	}
	return nil
}

func (r *ring) close() {
	if r.mem != nil {
		_ = unix.Munmap(r.mem)
		r.mem = nil
	}
	_ = unix.Close(r.fd)
}

// drops returns how many frames were lost since the last call.
func (r *ring) drops() (uint64, error) {
	s, err := unix.GetsockoptTpacketStatsV3(r.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
	if err != nil {
		return 0, fmt.Errorf("read drop counter: %w", err)
	}
	return uint64(s.Drops), nil
}

// attached reports whether the socket hears the interface that it was bound to,
// and has since then: the kernel takes the binding off when the interface goes
// away or to another namespace, for good, and never when it goes down. The name
// is asked for in the socket's namespace.
func (r *ring) attached() error {
	address, err := unix.Getsockname(r.fd)
	if err != nil {
		return fmt.Errorf("read what the packet socket is bound to: %w", err)
	}
	if l, ok := address.(*unix.SockaddrLinklayer); !ok || l.Ifindex != r.ifindex {
		return fmt.Errorf("interface %s (index %d) is gone: what crosses one that has taken its place is not seen", r.name, r.ifindex)
	}
	q, err := unix.NewIfreq(r.name)
	if err != nil {
		return fmt.Errorf("look for interface %s: %w", r.name, err)
	}
	if err := unix.IoctlIfreq(r.fd, unix.SIOCGIFINDEX, q); err != nil {
		return fmt.Errorf("look for interface %s: %w", r.name, err)
	}
	if have := int(q.Uint32()); have != r.ifindex {
		return fmt.Errorf("interface %s has index %d, and the socket looks at index %d", r.name, have, r.ifindex)
	}
	return nil
}

// block is one block and its header.
func (r *ring) block(i int) ([]byte, *unix.TpacketHdrV1) {
	b := r.mem[i%blockCount*blockSize:][:blockSize]
	desc := (*unix.TpacketBlockDesc)(unsafe.Pointer(&b[0]))
	return b, (*unix.TpacketHdrV1)(unsafe.Pointer(&desc.Hdr[0]))
}

func full(h *unix.TpacketHdrV1) bool {
	return atomic.LoadUint32(&h.Block_status)&unix.TP_STATUS_USER != 0
}

// pending returns how many blocks must be read until every frame that the
// kernel has taken is: the full ones, and the one that it fills unless that is
// empty. The kernel counts a frame in before it copies it, and hands over no
// block without frames (net/packet/af_packet.c, prb_fill_curr_block).
func (r *ring) pending() int {
	for n := range blockCount {
		_, h := r.block(r.next + n)
		if full(h) {
			continue
		}
		if atomic.LoadUint32(&h.Num_pkts) > 0 {
			return n + 1
		}
		return n
	}
	return blockCount
}

// seen is one frame; its bytes are the kernel's again when the callback returns.
type seen struct {
	frame    []byte
	meta     Meta
	outgoing bool
	at       time.Time
}

// read hands all frames of the next full block to f. It waits up to wait for
// one; ok is false when there was none.
func (r *ring) read(wait time.Duration, f func(seen)) (ok bool, err error) {
	block, head := r.block(r.next)
	if !full(head) {
		if err := r.poll(wait); err != nil {
			return false, err
		}
		if !full(head) {
			return false, nil
		}
	}
	offset := int(head.Offset_to_first_pkt)
	for range head.Num_pkts {
		h := (*unix.Tpacket3Hdr)(unsafe.Pointer(&block[offset]))
		f(decode(block, offset, h))
		offset += int(h.Next_offset)
	}
	// A block is empty from here on, even while the kernel has not opened it
	// again; pending relies on it.
	atomic.StoreUint32(&head.Num_pkts, 0)
	atomic.StoreUint32(&head.Block_status, unix.TP_STATUS_KERNEL)
	r.next = (r.next + 1) % blockCount
	return true, nil
}

func decode(block []byte, offset int, h *unix.Tpacket3Hdr) seen {
	const align = unix.TPACKET_ALIGNMENT
	link := (*unix.RawSockaddrLinklayer)(unsafe.Pointer(&block[offset+(unix.SizeofTpacket3Hdr+align-1)/align*align]))
	start := offset + int(h.Mac)
	s := seen{
		frame:    block[start : start+int(h.Snaplen)],
		outgoing: link.Pkttype == unix.PACKET_OUTGOING,
		at:       time.Unix(int64(h.Sec), int64(h.Nsec)),
		meta: Meta{VLAN: h.Status&unix.TP_STATUS_VLAN_VALID != 0,
			Tag: uint32(h.Hv1.Vlan_tpid)<<16 | h.Hv1.Vlan_tci&0xffff, Truncated: h.Snaplen < h.Len},
	}
	// The kernel puts the offload header right before the frame.
	v := block[start-vnetHeader : start]
	if v[1]&0x7f == vnetUDP {
		s.meta.Segment = int(*(*uint16)(unsafe.Pointer(&v[4])))
	}
	return s
}

// poll waits for a block. An interface that goes down, or away, raises the same
// error on the socket once; only from one that is still there frames come again.
func (r *ring) poll(wait time.Duration) error {
	fds := []unix.PollFd{{Fd: int32(r.fd), Events: unix.POLLIN}}
	if _, err := unix.Poll(fds, int(wait.Milliseconds())); err != nil && !errors.Is(err, unix.EINTR) {
		return fmt.Errorf("wait for frames: %w", err)
	}
	if fds[0].Revents&unix.POLLERR == 0 {
		return nil
	}
	n, err := unix.GetsockoptInt(r.fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err != nil {
		return fmt.Errorf("read socket error: %w", err)
	}
	if e := unix.Errno(n); e != 0 && !errors.Is(e, unix.ENETDOWN) {
		return fmt.Errorf("wait for frames: %w", e)
	}
	return r.attached()
}
