package netdev

import (
	"errors"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// AddAddress gives a tunnel's device an address. Without duplicate detection it is of
// use at once; the prefix route would be one that is not marked as ours.
func AddAddress(h *netlink.Handle, l netlink.Link, p netip.Prefix) error {
	return h.AddrReplace(l, &netlink.Addr{IPNet: NetOf(p), Flags: unix.IFA_F_NODAD | unix.IFA_F_NOPREFIXROUTE})
}

// RemoveAddress takes an address away. One that is gone is no error.
func RemoveAddress(h *netlink.Handle, l netlink.Link, p netip.Prefix) error {
	return Gone(h.AddrDel(l, &netlink.Addr{IPNet: NetOf(p)}))
}

// Remove deletes the interfaces of a name in the namespaces of the handles. One that is
// gone is no error.
func Remove(name string, in ...*netlink.Handle) error {
	var errs []error
	for _, h := range in {
		l, err := h.LinkByName(name)
		if err == nil {
			err = h.LinkDel(l)
		}
		if _, none := errors.AsType[netlink.LinkNotFoundError](err); !none {
			errs = append(errs, Gone(err))
		}
	}
	return errors.Join(errs...)
}

// Gone takes the absence of what was to be removed for success: of a route, an address
// or an interface.
func Gone(err error) error {
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EADDRNOTAVAIL) {
		return nil
	}
	return err
}

// NetOf is a prefix as netlink has it.
func NetOf(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// PrefixOf is what netlink has as a prefix, IPv4 as such; the zero one of nil, which is
// how it tells a default route.
func PrefixOf(n *net.IPNet) netip.Prefix {
	if n == nil {
		return netip.Prefix{}
	}
	ones, _ := n.Mask.Size()
	a, _ := netip.AddrFromSlice(n.IP)
	return netip.PrefixFrom(a.Unmap(), ones)
}
