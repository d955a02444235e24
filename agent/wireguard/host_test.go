package wireguard

import (
	"errors"
	"log/slog"
	"runtime"
	"testing"
)

// Were a device's memory more than the limit grows by, the collector would run
// for nothing once there are some hundred.
func TestDeviceMemory(t *testing.T) {
	const devices = 8
	e := newEnd(t, "m", UserSpace, "192.0.2.1")
	h := newHost(e.inst, defaultMemory, slog.New(slog.DiscardHandler))
	defer func() {
		if err := h.close(); err != nil {
			t.Error(err)
		}
	}()
	live := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := live()
	// Sockets are of the thread's namespace.
	err := e.circuit.Do(func() error {
		for n := range uint16(devices) {
			q := request{Operation: opAdd, Device: e.inst.Device(n + 1), MTU: 1380, Port: 51820 + n, Mark: 1}
			f, err := makeTUN(e.main, q.Device, q.MTU)
			if err == nil {
				err = h.add(q, f)
			}
			if err != nil {
				return err
			}
		}
		return h.add(request{Operation: opAdd, Device: e.inst.Device(1), MTU: 1300}, nil)
	})
	each := (live() - before) / devices
	if err := errors.Join(err, h.add(request{Operation: opAdd, Device: e.inst.Device(devices + 1)}, nil)); err == nil {
		t.Error("a device was made of no TUN")
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%.1f MiB for a device", float64(each)/(1<<20))
	if each > deviceMemory || each < deviceMemory/2 {
		t.Errorf("a device takes %d bytes, the limit grows by %d for each", each, deviceMemory)
	}
}
