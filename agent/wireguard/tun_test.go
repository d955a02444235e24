package wireguard

import (
	"errors"
	"testing"

	"github.com/circuitseal/circuitseal/agent/netns/netnstest"
)

// A TUN has room for what comes while nobody reads, and may be told its MTU
// whenever its interface was deleted from outside.
func TestTUN(t *testing.T) {
	_, n := netnstest.New(t)
	f, err := makeTUN(n, "tun-test", 1380)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := takeTUN(f, "another", 1380); err == nil {
		t.Error("a TUN was taken for another")
	}
	d, err := takeTUN(f, "tun-test", 1380)
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	h, err := n.Netlink()
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	l, err := h.LinkByName("tun-test")
	if err != nil {
		t.Fatal(err)
	}
	if got := l.Attrs().TxQLen; got != queueLength {
		t.Errorf("%d packets may wait, want %d", got, queueLength)
	}
	told := make(chan struct{})
	go func() {
		defer close(told)
		for mtu := range 1000 {
			d.setMTU(1280 + mtu)
		}
	}()
	for range 2 {
		if err := d.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	}
	<-told
	if _, err := h.LinkByName("tun-test"); err == nil {
		t.Error("the interface stays")
	}
}
