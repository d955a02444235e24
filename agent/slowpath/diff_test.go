package slowpath

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/circuitseal/circuitseal/agent/plan"
)

func lines(c changes) string {
	var b strings.Builder
	for _, x := range c.list {
		fmt.Fprintln(&b, x)
	}
	return b.String()
}

func TestDiff(t *testing.T) {
	fresh := func() state {
		return state{
			lans: map[string]lan{
				"lan0": {index: 11, addresses: []netip.Addr{netip.MustParseAddr("10.1.0.1"), netip.MustParseAddr("fd01::1"), netip.MustParseAddr("fe80::1")}},
				"lan1": {index: 12, addresses: []netip.Addr{netip.MustParseAddr("fe80::1")}},
			},
			rules: map[rule]bool{
				{family: 4, table: unix.RT_TABLE_LOCAL}:                 true,
				{family: 4, table: unix.RT_TABLE_MAIN, priority: 32766}: true,
			},
			routes: map[route]bool{},
			ipv6:   true,
		}
	}
	both := []plan.LAN{{Interface: "lan0", MTU: 1328}, {Interface: "lan1", MTU: 1328}, {Interface: "gone", MTU: 1328}}
	for _, test := range []struct {
		name   string
		lans   []plan.LAN
		change func(*state)
		want   string
	}{
		{"nothing there", both, func(*state) {}, `
rule del IPv4 fwmark 0x0/0x0 lookup 0xfe priority 32766
rule del IPv4 fwmark 0x0/0x0 lookup 0xff priority 0
link add cs-t_b mtu 1328 type veth
link add cs-t_c mtu 1328 type veth
`},
		{"a pair just made", both[:1], func(s *state) {
			s.rules = nil
			s.main = map[string]end{"cs-t_b": {index: 5, peer: 2, away: true, mtu: 1328, silent: true}}
			s.slow = map[string]end{"cs-t_b": {index: 2, peer: 5, away: true, mtu: 1328, silent: true}}
		}, `
link set cs-t_b up
address add 10.1.0.1/32 dev cs-t_b
address add fd01::1/128 dev cs-t_b
route add 0.0.0.0/0 via 169.254.67.83 dev cs-t_b onlink table 0x8000000b
rule add IPv4 fwmark 0xb/0xffffffff lookup 0x8000000b priority 17235
route add ::/0 via fe80::c5ea:4353 dev cs-t_b onlink table 0x8000000b
rule add IPv6 fwmark 0xb/0xffffffff lookup 0x8000000b priority 17235
`},
		{"nothing but link-local addresses, no room for IPv6", []plan.LAN{{Interface: "lan1", MTU: 1279}}, func(s *state) {
			s.rules = nil
			s.main = map[string]end{"cs-t_c": {index: 5, peer: 2, away: true, mtu: 1328, up: true}}
			s.slow = map[string]end{"cs-t_c": {index: 2, peer: 5, away: true, mtu: 1279, silent: true, up: true}}
		}, `
link set cs-t_c mtu 1279
link set cs-t_c arp off multicast off
route add 0.0.0.0/0 via 169.254.67.83 dev cs-t_c onlink table 0x8000000c
rule add IPv4 fwmark 0xc/0xffffffff lookup 0x8000000c priority 17235
`},
		{"ends with each other's indexes whose peers are elsewhere", both[:1], func(s *state) {
			s.rules = nil
			s.main = map[string]end{"cs-t_b": {index: 5, peer: 2, away: true}}
			s.slow = map[string]end{"cs-t_b": {index: 2, peer: 5}}
		}, `
link del cs-t_b
link del cs-t_b in the slow namespace
link add cs-t_b mtu 1328 type veth
`},
		{"pairs that are none, and leftovers", both[:1], func(s *state) {
			s.rules = nil
			s.main = map[string]end{"cs-t_b": {index: 5, peer: 2, away: true}, "cs-t_z": {index: 6, peer: 3, away: true}}
			s.slow = map[string]end{"cs-t_b": {index: 3, peer: 6, away: true}}
			s.routes[route{table: 0x8000000c, destination: everything[4], gateway: gateways[4], device: "cs-t_b"}] = true
		}, `
route del 0.0.0.0/0 via 169.254.67.83 dev cs-t_b onlink table 0x8000000c
link del cs-t_b
link del cs-t_z
link del cs-t_b in the slow namespace
link add cs-t_b mtu 1328 type veth
`},
	} {
		t.Run(test.name, func(t *testing.T) {
			have := fresh()
			test.change(&have)
			if d := cmp.Diff(strings.TrimPrefix(test.want, "\n"), lines(diff("t", test.lans, have))); d != "" {
				t.Errorf("changes (-want +got):\n%s", d)
			}
		})
	}
}
