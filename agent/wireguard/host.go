package wireguard

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	wgdevice "golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/circuitseal/circuitseal/agent/instance"
)

// uapiDir is where wg(8) and wgctrl look for user-space devices.
const uapiDir = "/var/run/wireguard"

// deviceMemory is a little more than what one device adds to Go's own account:
// three batches of 128 buffers of 64 KiB, for two sockets and the TUN, and 2 MiB of
// queues. Little of it is ever touched, but a limit that leaves it out has the
// collector run all the time.
const deviceMemory = 27 << 20

// host holds the devices of one instance. Its process is in the circuit
// namespace.
type host struct {
	instance  instance.Instance
	baseLimit int64
	log       *slog.Logger

	mu      sync.Mutex
	devices map[string]*hosted
	closed  bool
}

type hosted struct {
	tun    *tunDevice
	device *wgdevice.Device
	uapi   *net.UnixListener

	// public belongs to the private key of which private is the hash.
	mu      sync.Mutex
	private [sha256.Size]byte
	public  []byte
}

func newHost(inst instance.Instance, limit int64, log *slog.Logger) *host {
	h := &host{instance: inst, baseLimit: limit, log: log, devices: map[string]*hosted{}}
	h.setLimit()
	return h
}

// setLimit is called with mu held, or before others know h.
func (h *host) setLimit() { debug.SetMemoryLimit(h.limit()) }

func (h *host) limit() int64 { return h.baseLimit + int64(len(h.devices))*deviceMemory }

// sweep removes the sockets that an earlier process left.
func (h *host) sweep() error {
	if err := os.MkdirAll(uapiDir, 0o755); err != nil {
		return fmt.Errorf("make the directory of UAPI sockets: %w", err)
	}
	entries, err := os.ReadDir(uapiDir)
	if err != nil {
		return fmt.Errorf("list UAPI sockets: %w", err)
	}
	var errs []error
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), ".sock")
		if ok && deviceOf(h.instance, name) {
			errs = append(errs, os.Remove(filepath.Join(uapiDir, e.Name())))
		}
	}
	return errors.Join(errs...)
}

// add makes a device of a TUN that receives on port at once; its peer comes over
// UAPI. Of a device that is there it changes the MTU only. file is add's to close.
func (h *host) add(q request, file *os.File) (err error) {
	defer func() {
		if file != nil {
			_ = file.Close()
		}
	}()
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return errors.New("the process is about to end")
	}
	if d, ok := h.devices[q.Device]; ok {
		d.tun.setMTU(q.MTU)
		return nil
	}
	if len(h.devices) >= maxDevices {
		return fmt.Errorf("there are %d devices already", maxDevices)
	}
	if file == nil {
		return errors.New("request add needs a TUN along with it: no such device is here")
	}
	t, err := takeTUN(file, q.Device, q.MTU)
	if err != nil {
		return err
	}
	log := h.log.With("device", q.Device)
	d := wgdevice.NewDevice(t, bind{conn.NewStdNetBind()}, &wgdevice.Logger{
		Verbosef: wgdevice.DiscardLogf,
		// What goes wrong for good shows in the tunnel's state; this repeats with
		// every packet.
		Errorf: func(format string, args ...any) { log.Debug("wireguard-go", "message", fmt.Sprintf(format, args...)) },
	})
	d.DisableSomeRoamingForBrokenMobileSemantics()
	// The port and mark come before the socket, so that there is never one
	// without a mark or on a port that nobody chose.
	if err := d.IpcSet(fmt.Sprintf("listen_port=%d\nfwmark=%d\n", q.Port, q.Mark)); err != nil {
		d.Close()
		return fmt.Errorf("configure device %s: %w", q.Device, err)
	}
	if err := d.Up(); err != nil {
		d.Close()
		return fmt.Errorf("open UDP port %d of device %s: %w", q.Port, q.Device, err)
	}
	l, err := listenPrivate(filepath.Join(uapiDir, q.Device+".sock"))
	if err != nil {
		d.Close()
		return fmt.Errorf("listen for the configuration of device %s: %w", q.Device, err)
	}
	x := &hosted{tun: t, device: d, uapi: l}
	h.devices[q.Device] = x
	h.setLimit()
	go x.serve(log)
	go h.follow(q.Device, x)
	return nil
}

// follow forgets a device that ended by itself: its interface was deleted.
func (h *host) follow(name string, x *hosted) {
	<-x.device.Wait()
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.devices[name] == x {
		h.log.Warn("the interface of a device is gone", "device", name)
		if err := h.drop(name); err != nil {
			h.log.Warn("forget device", "device", name, "error", err)
		}
	}
}

// drop is called with mu held.
func (h *host) drop(name string) error {
	x, ok := h.devices[name]
	if !ok {
		return nil
	}
	delete(h.devices, name)
	err := x.uapi.Close()
	x.device.Close()
	h.setLimit()
	return err
}

func (h *host) remove(name string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.drop(name)
}

func (h *host) list() []hostedDevice {
	h.mu.Lock()
	devices := maps.Clone(h.devices)
	h.mu.Unlock()
	all := make([]hostedDevice, 0, len(devices))
	for name, x := range devices {
		d := hostedDevice{Name: name, MTU: int(x.tun.mtu.Load())}
		d.Public, d.Settings = x.settings()
		all = append(all, d)
	}
	slices.SortFunc(all, func(a, b hostedDevice) int { return strings.Compare(a.Name, b.Name) })
	return all
}

// settings are what the configuration protocol answers to get, without the
// private key, and that key's public half. A device that is about to end has none.
func (x *hosted) settings() (public []byte, text string) {
	all, err := x.device.IpcGet()
	if err != nil {
		return nil, ""
	}
	var kept strings.Builder
	for line := range strings.Lines(all) {
		if key, ok := strings.CutPrefix(line, "private_key="); ok {
			public = x.publicOf(strings.TrimSpace(key))
			continue
		}
		_, _ = kept.WriteString(line)
	}
	return public, kept.String()
}

// publicOf computes a public half once for each key.
func (x *hosted) publicOf(private string) []byte {
	x.mu.Lock()
	defer x.mu.Unlock()
	sum := sha256.Sum256([]byte(private))
	if x.public == nil || x.private != sum {
		var k wgtypes.Key
		if n, err := hex.Decode(k[:], []byte(private)); err != nil || n != len(k) {
			return nil
		}
		public := k.PublicKey()
		x.private, x.public = sum, public[:]
	}
	return x.public
}

// close ends every device; later adds are refused.
func (h *host) close() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed = true
	var errs []error
	for name := range h.devices {
		errs = append(errs, h.drop(name))
	}
	return errors.Join(errs...)
}

// serve answers UAPI clients until the listener closes. wireguard-go's own
// listener takes an inotify instance for each device, of which a user has 128.
func (x *hosted) serve(log *slog.Logger) {
	for {
		c, err := x.uapi.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			log.Warn("accept UAPI client", "error", err)
			time.Sleep(acceptPause)
			continue
		}
		if err := fromRoot(c); err != nil {
			log.Warn("refuse UAPI client", "error", err)
			_ = c.Close()
			continue
		}
		go x.device.IpcHandle(c)
	}
}

// listenPrivate replaces a stale socket. The umask of the process keeps the new
// one to root from its first moment.
func listenPrivate(path string) (*net.UnixListener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
}
