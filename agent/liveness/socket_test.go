package liveness

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/circuitseal/circuitseal/agent/netns"
	"github.com/circuitseal/circuitseal/agent/netns/netnstest"
)

// TestKernelAnswers probes from one namespace to another over a veth, deletes
// the device and makes it anew.
func TestKernelAnswers(t *testing.T) {
	_, near := netnstest.New(t)
	_, far := netnstest.New(t)
	x := one()
	connect(t, near, far, x)

	changes := make(chan bool, 10)
	m := New(Config{Namespace: near, Log: slog.New(slog.DiscardHandler), OnChange: func(_ string, up bool) { changes <- up }})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	m.Set([]Target{x})
	wantChange(t, changes, true)
	if h := m.Snapshot()[x.Tunnel]; h.RTT <= 0 || h.RTT > time.Second || h.LastReply.IsZero() {
		t.Errorf("health = %+v", h)
	}

	h, err := near.Netlink()
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	l, err := h.LinkByName(x.Device)
	if err != nil {
		t.Fatal(err)
	}
	if err := h.LinkDel(l); err != nil {
		t.Fatal(err)
	}
	wantChange(t, changes, false)
	connect(t, near, far, x)
	m.Set(nil) // as new, it needs one answer
	m.Set([]Target{x})
	wantChange(t, changes, true)

	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("Run = %v", err)
	}
}

func wantChange(t *testing.T, changes <-chan bool, want bool) {
	t.Helper()
	select {
	case got := <-changes:
		if got != want {
			t.Fatalf("up = %t, want %t", got, want)
		}
	case <-time.After(10 * time.Second):
		t.Fatalf("no change to up = %t", want)
	}
}

func connect(t *testing.T, near, far netns.Namespace, x Target) {
	t.Helper()
	a, err := near.Netlink()
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	b, err := far.Netlink()
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: x.Device}, PeerName: "far", PeerNamespace: netlink.NsFd(far.FD())}
	if err := a.LinkAdd(veth); err != nil {
		t.Fatal(err)
	}
	for _, end := range []struct {
		h             *netlink.Handle
		name          string
		local, remote netip.Addr
	}{{a, x.Device, x.Local, x.Remote}, {b, "far", x.Remote, x.Local}} {
		l, err := end.h.LinkByName(end.name)
		if err != nil {
			t.Fatal(err)
		}
		one := func(a netip.Addr) *net.IPNet {
			return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(128, 128)}
		}
		if err := errors.Join(
			end.h.AddrAdd(l, &netlink.Addr{IPNet: one(end.local), Flags: unix.IFA_F_NODAD}),
			end.h.LinkSetUp(l),
			end.h.RouteReplace(&netlink.Route{Family: netlink.FAMILY_V6, LinkIndex: l.Attrs().Index, Dst: one(end.remote)}),
		); err != nil {
			t.Fatal(err)
		}
	}
}
