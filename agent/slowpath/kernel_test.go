package slowpath

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/circuitseal/circuitseal/agent/netdev"
)

const netOrder = uint16(unix.ETH_P_ALL>>8 | unix.ETH_P_ALL&0xff<<8)

// Kernels keep a mark over bpf_redirect_peer, and what comes out of a pair has
// come in by the same: answers from the LAN's address, or fragments. Both LANs
// have the same addresses.
func TestKernelAnswers(t *testing.T) {
	b := newBed(t)
	for _, l := range []string{"lan0", "lan1"} {
		b.address(l, "10.1.0.1/16")
		b.address(l, "fd01::1/64")
	}
	have := b.sync(bothLANs())
	h := b.netlink(b.main)
	out := map[string]int{}
	for i, l := range bothLANs() {
		link, err := h.LinkByName(l.Interface)
		must(t, err)
		must(t, h.LinkSetUp(link))
		host, err := h.LinkByName(fmt.Sprintf("host%d", i))
		must(t, err)
		// It is to send nothing of its own accord.
		must(t, b.main.Do(func() error {
			return netdev.Ensure(host.Attrs().Name, netdev.Setting{Family: netdev.IPv6, Name: "disable_ipv6", Value: 1}, func(netdev.Setting) {})
		}))
		must(t, h.LinkSetUp(host))
		name := b.device(have, l.Interface)
		b.redirect(h, link, have.main[name].index)
		out[l.Interface] = b.socket(name)
		must(t, unix.SetNonblock(out[l.Interface], true))
	}
	payload := bytes.Repeat([]byte("one tenant's "), 107)
	for i, l := range bothLANs() {
		other := bothLANs()[1-i].Interface
		lan, err := h.LinkByName(l.Interface)
		must(t, err)
		in := b.socket(fmt.Sprintf("host%d", i))
		send := func(ethertype uint16, packet []byte) {
			t.Helper()
			f := append(bytes.Clone(lan.Attrs().HardwareAddr), 2, 0, 0, 0, 0, 1)
			_, err := unix.Write(in, append(binary.BigEndian.AppendUint16(f, ethertype), packet...))
			must(t, err)
		}
		send(unix.ETH_P_IP, udp4(0x40, payload))
		got := packet(t, out[l.Interface], func(d []byte) bool { return d[9] == 1 })
		if src := netip.AddrFrom4([4]byte(got[12:])); src.String() != "10.1.0.1" || got[20] != 3 || got[21] != 4 {
			t.Errorf("%s: type %d code %d from %s, want fragmentation needed from 10.1.0.1", l.Interface, got[20], got[21], src)
		}
		if mtu := int(binary.BigEndian.Uint16(got[26:])); mtu != l.MTU {
			t.Errorf("%s: told the MTU %d, want %d", l.Interface, mtu, l.MTU)
		}
		send(unix.ETH_P_IPV6, udp6(payload))
		got = packet(t, out[l.Interface], func(d []byte) bool { return d[0]>>4 == 6 && d[6] == 58 })
		if src := netip.AddrFrom16([16]byte(got[8:])); src.String() != "fd01::1" || got[40] != 2 {
			t.Errorf("%s: type %d from %s, want packet too big from fd01::1", l.Interface, got[40], src)
		}
		if mtu := int(binary.BigEndian.Uint32(got[44:])); mtu != l.MTU {
			t.Errorf("%s: told the IPv6 MTU %d, want %d", l.Interface, mtu, l.MTU)
		}
		send(unix.ETH_P_IP, udp4(0, payload))
		for range 2 {
			got = packet(t, out[l.Interface], func(d []byte) bool { return d[9] == 17 })
			if len(got) > l.MTU || got[8] != 63 || binary.BigEndian.Uint16(got[6:])&0x3fff == 0 {
				t.Errorf("%s: %d bytes, TTL %d, flags %x; want a fragment that fits, one hop on", l.Interface, len(got), got[8], got[6:8])
			}
		}
		d := make([]byte, 2048)
		if n, _, err := unix.Recvfrom(out[other], d, 0); !errors.Is(err, unix.EAGAIN) {
			t.Errorf("with packets of %s this came out for %s: %x, %v", l.Interface, other, d[:max(n, 0)], err)
		}
	}
}

// redirect does on a LAN what the classifier does with what is too big. It
// attaches as every kernel can.
func (b *bed) redirect(h *netlink.Handle, lan netlink.Link, to int) {
	b.t.Helper()
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, License: "Dual BSD/GPL", Instructions: asm.Instructions{
		asm.Mov.Imm(asm.R2, int32(lan.Attrs().Index)),
		asm.StoreMem(asm.R1, 8, asm.R2, asm.Word), // __sk_buff.mark
		asm.Mov.Imm(asm.R1, int32(to)),
		asm.Mov.Imm(asm.R2, 0),
		asm.FnRedirectPeer.Call(),
		asm.Return(),
	}})
	must(b.t, err)
	b.t.Cleanup(func() { _ = p.Close() })
	index := lan.Attrs().Index
	must(b.t, h.QdiscAdd(&netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT}}))
	must(b.t, h.FilterAdd(&netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{LinkIndex: index, Parent: netlink.HANDLE_MIN_INGRESS, Handle: 1, Protocol: unix.ETH_P_ALL},
		Fd:          p.FD(), Name: "redirect", DirectAction: true,
	}))
}

// socket sees and sends frames on an interface of the main namespace.
func (b *bed) socket(name string) (fd int) {
	b.t.Helper()
	must(b.t, b.main.Do(func() error {
		i, err := net.InterfaceByName(name)
		if err != nil {
			return err
		}
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(netOrder)); err != nil {
			return err
		}
		return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: netOrder, Ifindex: i.Index})
	}))
	b.t.Cleanup(func() { _ = unix.Close(fd) })
	return fd
}

// packet waits for one of a kind, and returns it from its network header on.
func packet(t *testing.T, fd int, is func([]byte) bool) []byte {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); {
		d := make([]byte, 2048)
		n, _, err := unix.Recvfrom(fd, d, 0)
		if errors.Is(err, unix.EAGAIN) {
			time.Sleep(time.Millisecond)
			continue
		}
		must(t, err)
		if d = d[14:n]; n >= 14+48 && is(d) {
			return d
		}
		t.Errorf("something else came out: %x", d[:min(len(d), 60)])
	}
	t.Fatal("nothing came out for 20 s")
	return nil
}

func udp4(flags byte, payload []byte) []byte {
	d := append([]byte{0x45, 0, 0, 0, 0, 77, flags, 0, 64, 17, 0, 0, 10, 1, 0, 2, 10, 2, 0, 2, 0, 9, 0, 9, 0, 0, 0, 0}, payload...)
	binary.BigEndian.PutUint16(d[2:], uint16(len(d)))
	binary.BigEndian.PutUint16(d[24:], uint16(len(d)-20))
	var sum uint32
	for i := 0; i < 20; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(d[i:]))
	}
	binary.BigEndian.PutUint16(d[10:], ^uint16(sum+sum>>16))
	return d
}

func udp6(payload []byte) []byte {
	d := make([]byte, 40, 48+len(payload))
	d[0], d[6], d[7] = 0x60, 17, 64
	copy(d[8:], netip.MustParseAddr("fd01::2").AsSlice())
	copy(d[24:], netip.MustParseAddr("fd02::2").AsSlice())
	d = append(append(d, 0, 9, 0, 9, 0, 0, 0, 0), payload...)
	binary.BigEndian.PutUint16(d[4:], uint16(len(d)-40))
	binary.BigEndian.PutUint16(d[44:], uint16(len(d)-40))
	return d
}
