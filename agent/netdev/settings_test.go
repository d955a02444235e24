package netdev

import (
	"encoding/binary"
	"errors"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/circuitseal/circuitseal/agent/netns/netnstest"
)

// newest are settings that not every kernel has.
var newest = map[string]bool{"force_forwarding": true}

// What a view tells is what the sysctl tree says, for every setting that is
// known here, before and after each was changed.
func TestViewIsTheSysctlTree(t *testing.T) {
	netnstest.RequireRoot(t)
	_, ns := netnstest.New(t)
	h, err := ns.Netlink()
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	if err := h.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "a"}, PeerName: "b"}); err != nil {
		t.Fatal(err)
	}
	known := map[Family]map[string]int{IPv4: places4, IPv6: places6}
	known[IPv6][AddrGenMode] = 0
	defer delete(known[IPv6], AddrGenMode)
	compare := func(when string) {
		t.Helper()
		v, err := Read()
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"lo", "a", "b"} {
			for family, settings := range known {
				for setting := range settings {
					b, err := os.ReadFile(Setting{family, setting, 0}.path(name))
					have, ok := v.Get(name, family, setting)
					if newest[setting] && errors.Is(err, os.ErrNotExist) && !ok {
						continue
					}
					if err != nil {
						t.Fatal(err)
					}
					if !ok || strconv.Itoa(int(have)) != strings.TrimSpace(string(b)) {
						t.Errorf("%s: %s of %s %s is %d (%v) by netlink and %s in the tree", when, setting, name, family, have, ok, b)
					}
				}
			}
		}
	}
	err = ns.Do(func() error {
		compare("at first")
		for family, settings := range known {
			for setting := range settings {
				v, err := Read()
				if err != nil {
					return err
				}
				have, ok := v.Get("a", family, setting)
				if newest[setting] && !ok {
					continue
				}
				set := 0
				want := Setting{family, setting, 1 - min(have, 1)}
				for range 2 {
					if err := v.Ensure("a", []Setting{want}, func(Setting) { set++ }); err != nil {
						return err
					}
				}
				if set != 1 {
					t.Errorf("%s was set %d times, want once", want.On("a"), set)
				}
				compare("after " + want.On("a"))
			}
		}
		v, err := Read()
		if err != nil {
			return err
		}
		if err := v.Ensure("gone", []Setting{{IPv4, "forwarding", 1}}, func(s Setting) { t.Errorf("%s was set", s.On("gone")) }); err != nil {
			t.Errorf("an interface that is gone: %v", err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte{})
	// An interface by name with one setting of each family.
	m := make([]byte, unix.SizeofIfInfomsg)
	attribute := func(kind uint16, value []byte) []byte {
		b := binary.NativeEndian.AppendUint16(nil, uint16(4+len(value)))
		b = append(binary.NativeEndian.AppendUint16(b, kind), value...)
		return append(b, make([]byte, -len(b)&3)...)
	}
	families := append(attribute(unix.AF_INET, attribute(inetConf, []byte{1, 0, 0, 0})), attribute(unix.AF_INET6, attribute(inet6Conf, []byte{1, 0, 0, 0}))...)
	f.Add(append(append(m, attribute(unix.IFLA_IFNAME, []byte("a\x00"))...), attribute(unix.IFLA_AF_SPEC, families)...))
	f.Fuzz(func(_ *testing.T, raw []byte) { _, _ = parse(raw) })
}
