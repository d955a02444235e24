package bench

import (
	"context"
	"errors"
	"fmt"
	"net"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/ipc"
	"golang.zx2c4.com/wireguard/tun"
)

// ServeWireGuard is a user-space WireGuard as anybody would run it: one device
// with its control socket in /var/run/wireguard, until ctx ends.
func ServeWireGuard(ctx context.Context, name string, mtu int, ready func()) error {
	t, err := tun.CreateTUN(name, mtu)
	if err != nil {
		return fmt.Errorf("make device %s: %w", name, err)
	}
	d := device.NewDevice(t, conn.NewDefaultBind(), device.NewLogger(device.LogLevelError, name+": "))
	defer d.Close()
	file, err := ipc.UAPIOpen(name)
	if err != nil {
		return fmt.Errorf("open control socket of %s: %w", name, err)
	}
	l, err := ipc.UAPIListen(name, file)
	if err != nil {
		return errors.Join(fmt.Errorf("listen on control socket of %s: %w", name, err), file.Close())
	}
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	ready()
	for {
		c, err := l.Accept()
		if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("accept on control socket of %s: %w", name, err)
		}
		go d.IpcHandle(c)
	}
}
