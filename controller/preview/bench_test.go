package preview

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"testing"

	"github.com/circuitseal/circuitseal/proto/desired"
)

// big is customers with two sites of so many prefixes each, all on one node on
// premises and each on a node of its own at the far end.
func big(customers, prefixes int) Policy {
	p := Policy{States: map[string]desired.State{}}
	var shared desired.State
	for c := range customers {
		customer := fmt.Sprintf("customer-%d", c)
		near, far := make([]netip.Prefix, prefixes), make([]netip.Prefix, prefixes)
		for i := range prefixes {
			// Apart, so that nothing can be merged.
			near[i] = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 7), byte(i<<1) & 0xfe, 0}), 24)
			far[i] = netip.PrefixFrom(netip.AddrFrom4([4]byte{11, byte(i >> 7), byte(i<<1) & 0xfe, 0}), 24)
		}
		name := fmt.Sprintf("lan%d", c)
		tunnel := func(local, remote string) desired.Tunnel {
			return desired.Tunnel{
				ID: customer + "/c/er/primary", Local: netip.MustParseAddrPort(local), Remote: netip.MustParseAddrPort(remote),
				WireGuard: &desired.WireGuard{PeerKey: desired.PublicKey{1}},
			}
		}
		section := func(locals, remotes []netip.Prefix, lan string, t desired.Tunnel) desired.Section {
			x := desired.Section{Customer: customer, Groups: []desired.Group{{ID: customer + "/c", Remotes: remotes, Tunnels: []desired.Tunnel{t}}}}
			for _, l := range locals {
				x.Locals = append(x.Locals, desired.LocalPrefix{Prefix: l, Interface: lan})
			}
			return x
		}
		shared.Interfaces = append(shared.Interfaces, desired.Interface{Name: name, Role: desired.RoleLAN, Customer: customer})
		shared.Sections = append(shared.Sections, section(near, far, name, tunnel("192.0.2.1:1", "192.0.2.2:1")))
		p.States["nva-"+customer] = desired.State{
			Interfaces: []desired.Interface{{Name: "lan0", Role: desired.RoleLAN, Customer: customer}},
			Sections:   []desired.Section{section(far, near, "lan0", tunnel("192.0.2.2:1", "192.0.2.1:1"))},
		}
	}
	p.States["shared"] = shared
	return p
}

// BenchmarkFlows compares all customers' policies with none, with ones of which
// every LAN has lost a prefix, and with ones in which only one customer's have.
func BenchmarkFlows(b *testing.B) {
	for _, size := range []struct{ customers, prefixes int }{{1, 1000}, {1, 4000}, {200, 4000}} {
		whole := big(size.customers, size.prefixes)
		less := big(size.customers, size.prefixes-1)
		one := Policy{States: maps.Clone(whole.States)}
		shared := one.States["shared"]
		shared.Sections = slices.Clone(shared.Sections)
		shared.Sections[0] = less.States["shared"].Sections[0]
		one.States["shared"], one.States["nva-customer-0"] = shared, less.States["nva-customer-0"]
		for _, bb := range []struct {
			name          string
			before, after Policy
		}{{"from-nothing", Policy{}, whole}, {"one-prefix-less-everywhere", whole, less}, {"one-prefix-less-of-one-customer", whole, one}} {
			b.Run(fmt.Sprintf("%dx%d/%s", size.customers, size.prefixes, bb.name), func(b *testing.B) {
				for b.Loop() {
					if len(Flows(bb.before, bb.after)) == 0 {
						b.Fatal("no flows")
					}
				}
			})
		}
	}
}
