package netdev

import (
	"net"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

func TestPrefixes(t *testing.T) {
	for _, s := range []string{"10.1.0.0/16", "0.0.0.0/0", "192.0.2.1/32", "fd00::/8", "::/0", "fe80::1/128"} {
		p := netip.MustParsePrefix(s)
		if got := PrefixOf(NetOf(p)); got != p {
			t.Errorf("%s comes back as %s", p, got)
		}
	}
	if p := PrefixOf(nil); p.IsValid() {
		t.Errorf("of nothing it is %s", p)
	}
	// netlink has IPv4 in 16 bytes, too.
	if p, want := PrefixOf(&net.IPNet{IP: net.IPv4(10, 1, 0, 0), Mask: net.CIDRMask(16, 32)}), netip.MustParsePrefix("10.1.0.0/16"); p != want {
		t.Errorf("got %s, want %s", p, want)
	}
}

func TestGone(t *testing.T) {
	for err, want := range map[error]error{nil: nil, unix.ESRCH: nil, unix.ENODEV: nil, unix.EADDRNOTAVAIL: nil, unix.EPERM: unix.EPERM, unix.EBUSY: unix.EBUSY} {
		if got := Gone(err); got != want { //nolint:errorlint // the same error comes back
			t.Errorf("of %v it is %v, want %v", err, got, want)
		}
	}
}
