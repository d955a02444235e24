package wireguard

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/tun"

	"github.com/circuitseal/circuitseal/agent/netns"
)

// tunPath is a variable for tests.
var tunPath = "/dev/net/tun"

// errNoTUN is what an operator has to act on.
var errNoTUN = errors.New("no " + tunPath + " and no WireGuard in the kernel: load the module wireguard, or tun for WireGuard in user space " +
	"(modprobe wireguard, modprobe tun); in a container, pass the device " + tunPath + " through")

// tunDevice is a TUN whose network interface is in another namespace than its
// process. The one of wireguard-go follows the interface with a netlink
// socket and a poll once a second, each on a thread of its own; here the agent
// says what changes, so that a device is up at once and costs no thread.
type tunDevice struct {
	tun.Device
	name string
	mtu  atomic.Int32

	// mu guards the sending end of events: the device closes itself when its
	// interface is deleted, whatever others do then.
	mu     sync.Mutex
	events chan tun.Event
	closed bool
}

// queueLength is how many packets wait for the WireGuard process while it waits
// for a processor, the kernel's default being 500 (TUN_READQ_SIZE in
// drivers/net/tun.c): 64 flows of 100 packets a second fill those in 80 ms. It
// is set before the device carries, since changing it drops packets.
const queueLength = 2048

// makeTUN makes a TUN in a namespace. Its interface goes with the last handle on
// it, wherever it is then. The error is errNoTUN without /dev/net/tun.
func makeTUN(where netns.Namespace, name string, mtu int) (f *os.File, err error) {
	err = where.Do(func() error {
		// Its namespace is that of the thread that opens it (tun_chr_open).
		fd, err := unix.Open(tunPath, unix.O_RDWR|unix.O_CLOEXEC, 0)
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENXIO) {
			return errNoTUN
		}
		if err != nil {
			return fmt.Errorf("open %s: %w", tunPath, err)
		}
		if err := attachTUN(fd, name, mtu); err != nil {
			return errors.Join(fmt.Errorf("make TUN %s: %w", name, err), unix.Close(fd))
		}
		f = os.NewFile(uintptr(fd), tunPath)
		return nil
	})
	return f, err
}

// takeTUN makes a device of the TUN of that name which f is open on. f stays the
// caller's.
func takeTUN(f *os.File, name string, mtu int) (*tunDevice, error) {
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("take TUN %s: %w", name, err)
	}
	// From here on fd belongs to inner, also when there is an error.
	inner, is, err := tun.CreateUnmonitoredTUNFromFD(fd)
	if err != nil {
		return nil, fmt.Errorf("take TUN %s: %w", name, err)
	}
	if is != name {
		return nil, errors.Join(fmt.Errorf("take TUN %s: this one is %.32q", name, is), inner.Close())
	}
	t := &tunDevice{Device: inner, name: name, events: make(chan tun.Event, 1)}
	t.mtu.Store(int32(mtu))
	return t, nil
}

// attachTUN works on the calling thread's namespace.
func attachTUN(fd int, name string, mtu int) error {
	r, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	// IFF_VNET_HDR brings segmentation offload, IFF_TUN_EXCL refuses a TUN that
	// is there already (Documentation/networking/tuntap.rst).
	r.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR | unix.IFF_TUN_EXCL)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, r); err != nil {
		return err
	}
	return configureTUN(name, mtu)
}

// configureTUN is netdevice(7), SIOCSIFTXQLEN and SIOCSIFMTU.
func configureTUN(name string, mtu int) error {
	r, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	s, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	r.SetUint32(queueLength)
	err = unix.IoctlIfreq(s, unix.SIOCSIFTXQLEN, r)
	r.SetUint32(uint32(mtu))
	return errors.Join(err, unix.IoctlIfreq(s, unix.SIOCSIFMTU, r), unix.Close(s))
}

// Name is the name that the interface was made with.
func (t *tunDevice) Name() (string, error) { return t.name, nil }

// MTU is what the agent said last: asking by name works only in the namespace
// where the interface is.
func (t *tunDevice) MTU() (int, error) { return int(t.mtu.Load()), nil }

// setMTU tells the device, which pads packets up to the MTU.
func (t *tunDevice) setMTU(mtu int) {
	t.mtu.Store(int32(mtu))
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return
	}
	select {
	case t.events <- tun.EventMTUUpdate:
	default: // one is on its way and will read the new value
	}
}

// Events reports changes of the MTU only.
func (t *tunDevice) Events() <-chan tun.Event { return t.events }

// Close removes the interface. Closing again is harmless.
func (t *tunDevice) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil
	}
	t.closed = true
	close(t.events)
	if err := t.Device.Close(); !errors.Is(err, os.ErrClosed) {
		return err
	}
	return nil
}

// bind is wireguard-go's own, wrapped: for the bare one the device starts a
// netlink listener and a thread that follow changes of the route to a peer.
// Here routes hang on the mark, and no source address is remembered because
// roaming is off.
type bind struct{ conn.Bind }
