package ipsec

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/circuitseal/circuitseal/agent/instance"
	"github.com/circuitseal/circuitseal/agent/plan"
)

func TestPriorities(t *testing.T) {
	policy := func(id uint32, dir netlink.Dir, priority int) netlink.XfrmPolicy {
		return netlink.XfrmPolicy{Ifid: int(id), Dir: dir, Priority: priority}
	}
	got := priorities([]netlink.XfrmPolicy{
		policy(instance.InterfaceID(7), netlink.XFRM_DIR_OUT, 1002), policy(instance.InterfaceID(7), netlink.XFRM_DIR_OUT, 1001),
		policy(instance.InterfaceID(7), netlink.XFRM_DIR_IN, 2000), policy(instance.InterfaceID(8), netlink.XFRM_DIR_FWD, 1000),
		policy(12, netlink.XFRM_DIR_OUT, 5), policy(0, netlink.XFRM_DIR_OUT, 6),
	})
	if d := cmp.Diff(map[uint16]int{7: 1002}, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

// TestPriorityIsNotInTheName: nor is that of another key, at the end that begins.
func TestPriorityIsNotInTheName(t *testing.T) {
	of := func(initiates bool, generations ...uint64) connection {
		p, _ := good()
		p.Initiates, p.PresharedKeys = initiates, shared(t, generations...)
		return connect("main", Kernel, p, []byte("certificate"), nil, 0)
	}
	c := of(false, 1)
	c.prioritize(1003)
	if c.name != of(false, 1).name {
		t.Error("a priority makes it another connection")
	}
	if got := c.child.Get("priority"); got != "1003" {
		t.Errorf("priority is %v", got)
	}
	if of(false, 1).name == of(false, 1, 2).name || of(false, 1, 2).name == of(false, 2).name {
		t.Error("at the answering end it is the same connection with another key")
	}
	if of(false, 1, 2).name != of(false, 2, 1).name {
		t.Error("at the answering end it is another connection with the same keys")
	}
	if of(true, 1).name != of(true, 1, 2).name {
		t.Error("at the end that begins it is another connection for a key that is not in use")
	}
}

// yields shows that the end which answers goes on sending by the SA that the other
// one has until that is ended, however long the other takes for the next.
func yields(t *testing.T, backend Backend, p *pair) {
	if backend != Kernel {
		t.Skip("libipsec sends by the SA that it heard last")
	}
	p.up(t)
	old := p.b.one(t)
	before := old.child().spiOut
	a, b := p.plans(t, func(a, b *plan.IPsecTunnel) { a.PresharedKeys, b.PresharedKeys = shared(t, 2, 1), shared(t, 1, 2) })
	p.b.sync(t, b)
	p.a.sync(t, a)
	sends := p.b.sendsBy(t)
	p.b.await(t, "two SAs", func(s TunnelState) bool {
		p.mustCarry(t)
		return len(s.Associations) == 2
	})
	if got := p.b.sendsBy(t); sends != before || got != before {
		t.Errorf("with two SAs it sends by SPI %#x, before the second by %#x, want %#x", got, sends, before)
	}
	p.b.await(t, "generation 2, alone", func(s TunnelState) bool {
		p.mustCarry(t)
		return isUp(s) && s.PresharedUsed == 2 && len(s.Associations) == 1
	})
	p.b.awaitOther(t, old)
	if got, want := p.b.sendsBy(t), p.b.one(t).child().spiOut; got != want {
		t.Errorf("it sends by SPI %#x, and has %#x", got, want)
	}
	p.mustCarry(t)
}

// sendsBy is the SPI in the policy by which the kernel sends.
func (e *end) sendsBy(t *testing.T) (spi uint32) {
	t.Helper()
	h, err := e.driver.config.Circuit.Netlink(unix.NETLINK_XFRM)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	policies, err := h.XfrmPolicyList(netlink.FAMILY_V4)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range policies {
		if _, ok := ours(uint32(p.Ifid)); ok && p.Dir == netlink.XFRM_DIR_OUT && len(p.Tmpls) == 1 {
			spi = uint32(p.Tmpls[0].Spi)
		}
	}
	return spi
}
