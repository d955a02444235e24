package classifier

import (
	"fmt"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf"
)

// The kernel gives a map's element to another key while a program may still
// read it. What a program then sees can be another tenant's with the same
// prefixes, so every step must find out by itself.
func TestMixedUpElements(t *testing.T) {
	b := newBed(t)
	p := b.instance.DevicePrefix()
	near, far := netip.MustParseAddr("10.1.0.9"), netip.MustParseAddr("10.2.9.9")
	lan := frame{program: bpfProgCsLanIn, device: "lan7a", mac: b.mac["lan7a"], ethertype: 0x0800, data: udp4(near, far, 1, 53)}
	out := frame{program: bpfProgCsTunnelOut, device: p + "6", ethertype: 0x0800, data: lan.data, mark: b.mark(b.group(3))}
	in := frame{program: bpfProgCsTunnelIn, device: p + "6", ethertype: 0x0800, data: udp4(far, near, 53, 1)}
	slow := frame{program: bpfProgCsSlowIn, device: b.slowDevice("lan8"), ethertype: 0x0800, data: lan.data}
	foreign := out
	foreign.mark = b.mark(b.group(1))
	other := out
	other.mark = out.mark ^ 1<<16
	port := func(device, as string) func() error {
		return func() error {
			var v bpfPort
			if err := b.classifier.objects.Ports.Lookup(b.index[as], &v); err != nil {
				return err
			}
			return b.classifier.objects.Ports.Update(b.index[device], &v, ebpf.UpdateExist)
		}
	}
	for _, test := range []struct {
		name   string
		change func() error
		frame  frame
		want   bpfReason
	}{
		{"nothing, out", nil, out, bpfReasonREASON_FORWARDED},
		{"nothing, in", nil, in, bpfReasonREASON_FORWARDED},
		{"nothing, from the LAN", nil, lan, bpfReasonREASON_FORWARDED},
		{"nothing, from a slow path", nil, slow, bpfReasonREASON_FORWARDED},
		{"a packet of another tenant's group", nil, foreign, bpfReasonREASON_NOT_CLASSIFIED},
		{"a packet of another instance", nil, other, bpfReasonREASON_NOT_CLASSIFIED},
		{"a LAN's port", port("lan7a", "lan8"), lan, bpfReasonREASON_UNKNOWN_INTERFACE},
		{"a tunnel's port, out", port(p+"6", p+"1"), out, bpfReasonREASON_UNKNOWN_INTERFACE},
		{"a tunnel's port, in", port(p+"6", p+"1"), in, bpfReasonREASON_UNKNOWN_INTERFACE},
		{"a slow path's port", port(slow.device, b.slowDevice("lan7a")), slow, bpfReasonREASON_UNKNOWN_INTERFACE},
		{"a LAN's port as a slow path's", port(slow.device, "lan8"), slow, bpfReasonREASON_UNKNOWN_INTERFACE},
		{"a group", func() error {
			var g bpfGroup
			if err := b.classifier.objects.Groups.Lookup(uint32(3), &g); err != nil {
				return err
			}
			return b.classifier.objects.Groups.Update(uint32(1), &g, ebpf.UpdateExist)
		}, lan, bpfReasonREASON_NO_GROUP},
	} {
		t.Run(test.name, func(t *testing.T) {
			b.sync(b.plan, missing)
			if test.change != nil {
				must(t, test.change())
			}
			must(t, b.ns.Do(func() error {
				got, err := b.run(test.frame)
				if err == nil && got.reason != test.want {
					err = fmt.Errorf("verdict %s, want %s", reasons[got.reason], reasons[test.want])
				}
				return err
			}))
		})
	}
}

// A group whose members that are alive have no device falls back to the others.
func TestAliveWithoutDevice(t *testing.T) {
	b := newBed(t)
	g := b.group(4) // of its members the second has no device
	must(t, b.classifier.SetAlive(g.Number, masked(g, 0b10)))
	f := frame{program: bpfProgCsLanIn, device: "lan8", mac: b.mac["lan8"], ethertype: 0x0800,
		data: udp4(netip.MustParseAddr("10.1.0.9"), netip.MustParseAddr("192.0.2.1"), 1, 53)}
	must(t, b.ns.Do(func() error {
		got, err := b.run(f)
		if err == nil && got.target != g.Members[0].Device {
			err = fmt.Errorf("%s to %q, want forwarded to %s", reasons[got.reason], got.target, g.Members[0].Device)
		}
		return err
	}))
}

// A failover does not wait for a pass, however long that takes.
func TestSetAliveDuringSync(t *testing.T) {
	b := newBed(t)
	b.classifier.pass.Lock()
	defer b.classifier.pass.Unlock()
	done := make(chan error, 1)
	go func() { done <- b.classifier.SetAlive(1, masked(b.group(1), 0b001)) }()
	select {
	case err := <-done:
		must(t, err)
	case <-time.After(20 * time.Second):
		t.Fatal("waits for a pass that is under way")
	}
}

// Whatever Sync writes meanwhile, a group has the mask that was set last.
func TestSyncKeepsWhatIsSetMeanwhile(t *testing.T) {
	b := newBed(t)
	g := b.group(1)
	var passes atomic.Uint64
	written := map[uint32]bool{}
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for mtu := 1300; ; mtu = 2700 - mtu {
			select {
			case <-stop:
				return
			default:
			}
			c := b.plan
			c.Groups = slices.Clone(c.Groups)
			c.Groups[0].Members = slices.Clone(g.Members)
			c.Groups[0].Members[0].MTU = mtu
			// It says that a device of another group is not there.
			_, _ = b.classifier.Sync(t.Context(), c)
			passes.Add(1)
		}
	}()
	defer func() {
		close(stop)
		<-stopped
	}()
	for i := range uint32(500) {
		mask := i%7 + 1
		must(t, b.classifier.SetAlive(1, masked(g, mask)))
		// The pass that was under way has written by then.
		for seen := passes.Load(); passes.Load() == seen; {
			time.Sleep(50 * time.Microsecond)
		}
		if got, err := b.classifier.alive(1); err != nil || got != mask {
			t.Fatalf("alive mask %b (%v) after it was set to %b", got, err, mask)
		}
		b.classifier.mu.Lock()
		now, err := b.classifier.readGroup(1)
		b.classifier.mu.Unlock()
		must(t, err)
		written[now.Members[0].Mtu] = true
	}
	if len(written) != 2 {
		t.Errorf("the passes wrote MTUs %v, want two", written)
	}
}
