package desired

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
)

// Limits of one state. They bound what an agent allocates for a state, even a
// signed one.
const (
	maxInterfaces = 4_096
	maxLinks      = 1<<16 - 1
	maxSections   = 4_096
	maxPrefixes   = 20_000
	maxTunnels    = 20_000
	// MaxMembers is how many tunnels a group can have.
	MaxMembers = 32
	// MinMTU is what IPv6 needs (RFC 8200, section 5).
	MinMTU = 1280
	maxMTU = 9_000
	// MinOffline and MaxOffline bound how long a group may go on without word
	// from the controller. Less than MinOffline would take an upgrade of the
	// controller for its end.
	MinOffline = time.Hour
	MaxOffline = 10 * 365 * 24 * time.Hour
	// maxGroup is the greatest number of a group: agents mark packets with it.
	maxGroup = 1<<16 - 1
)

// Equal reports whether two states say the same.
func (s State) Equal(t State) bool { return proto.Equal(s.ToWire(), t.ToWire()) }

// Validate refuses states that no agent could bring about or that would open
// something by accident. All problems are joined, each with its field's path.
func (s State) Validate() error {
	v := &validator{
		interfaces: map[string]Interface{}, links: map[string]Link{}, numbers: map[string]string{},
		ports: map[uint16]string{}, ways: map[way]netip.Addr{}, tags: map[tag]string{}, addresses: map[netip.Addr]string{},
	}
	v.most("interfaces", len(s.Interfaces), maxInterfaces)
	v.most("links", len(s.Links), maxLinks)
	v.most("sections", len(s.Sections), maxSections)
	for i, x := range s.Interfaces {
		v.iface(fmt.Sprintf("interfaces[%d]", i), x)
	}
	for i, x := range s.Links {
		v.link(fmt.Sprintf("links[%d]", i), x)
	}
	v.identities(s)
	customers := map[string]bool{}
	for i, x := range s.Sections {
		at := fmt.Sprintf("sections[%d]", i)
		v.check(x.Customer != "" && !customers[x.Customer], at+".customer", x.Customer, "must be set and unique")
		customers[x.Customer] = true
		v.section(at, x)
	}
	return errors.Join(v.errs...)
}

type way struct {
	link string
	far  netip.Addr
}

// tag is the first tag of a link on an interface, 0 for an untagged link.
type tag struct {
	iface string
	vlan  uint16
}

type validator struct {
	interfaces map[string]Interface
	links      map[string]Link
	numbers    map[string]string
	// ports are the local ones, which are the whole node's: sockets are bound to
	// no address.
	ports map[uint16]string
	// ways have the local address from which a far one is reached over a link:
	// agents have one route for it.
	ways map[way]netip.Addr
	// tags are those by which an interface tells its links apart.
	tags map[tag]string
	// addresses are those of tagged links.
	addresses        map[netip.Addr]string
	prefixes, tunnel int
	errs             []error
}

func (v *validator) check(ok bool, field string, value any, why string) {
	if !ok {
		v.errs = append(v.errs, fmt.Errorf("%s: %.64q %s", field, fmt.Sprint(value), why))
	}
}

func (v *validator) most(field string, n, most int) {
	v.check(n <= most, field, n, fmt.Sprintf("is more than the %d that are taken", most))
}

// unique refuses 0 and a number that another thing of the same class has.
func (v *validator) unique(class string, number uint32, field string) {
	key := fmt.Sprintf("%s %d", class, number)
	v.check(number != 0, field, number, "must not be 0")
	v.check(v.numbers[key] == "", field, number, "is also the number of "+v.numbers[key])
	v.numbers[key] = field
}

func (v *validator) iface(at string, x Interface) {
	v.check(validInterfaceName(x.Name), at+".name", x.Name, "is not a Linux interface name")
	_, twice := v.interfaces[x.Name]
	v.check(!twice, at+".name", x.Name, "stands twice")
	v.interfaces[x.Name] = x
	v.check(x.Role >= RoleCircuit && x.Role <= RoleManagement, at+".role", x.Role, "is unknown to this version")
	v.check(len(x.Addresses) == 0 || x.Role == RoleCircuit, at+".addresses", len(x.Addresses), "are for circuit interfaces only")
	v.check((x.Customer != "") == (x.Role == RoleLAN), at+".customer", x.Customer, "must be set on LAN interfaces and on no others")
	v.underlay(at+".addresses", x.Addresses)
}

func (v *validator) underlay(field string, addresses []netip.Prefix) {
	for i, a := range addresses {
		v.check(a.IsValid() && usable(a.Addr()), fmt.Sprintf("%s[%d]", field, i), a, "is not a unicast address with a prefix length")
	}
}

func (v *validator) link(at string, x Link) {
	_, twice := v.links[x.ID]
	v.check(x.ID != "" && !twice, at+".id", x.ID, "must be set and unique")
	v.links[x.ID] = x
	v.unique("link", uint32(x.Number), at+".number")
	i, ok := v.interfaces[x.Interface]
	v.check(ok && i.Role == RoleCircuit, at+".interface", x.Interface, "is not a circuit interface of this state")
	v.linkTags(at, x, i)
	onLink := false
	for _, a := range v.addressesOf(x) {
		onLink = onLink || a.Masked().Contains(x.NextHop) && a.Addr() != x.NextHop
	}
	v.check(onLink, at+".next_hop", x.NextHop, "is no neighbour on the interface")
}

// maxVLAN is the last tag that names a VLAN (IEEE 802.1Q, table 9-2).
const maxVLAN = 4094

// linkTags wants every frame of an interface to belong to one link at most: an
// untagged link has its interface to itself, and of tagged ones no two have the
// same first tag. An interface of tagged links has no address, so that nothing
// untagged is ever for it.
func (v *validator) linkTags(at string, x Link, i Interface) {
	v.check(x.VLAN <= maxVLAN, at+".vlan", x.VLAN, fmt.Sprintf("is more than %d", maxVLAN))
	v.check(x.OuterVLAN <= maxVLAN, at+".outer_vlan", x.OuterVLAN, fmt.Sprintf("is more than %d", maxVLAN))
	v.check(x.OuterVLAN == 0 || x.Tagged(), at+".outer_vlan", x.OuterVLAN, "stands without the inner vlan")
	v.check(x.Tagged() || len(x.Addresses) == 0, at+".addresses", len(x.Addresses), "are for tagged links only")
	if x.Tagged() {
		v.check(len(i.Addresses) == 0, at+".interface", x.Interface, "has addresses of its own beside tagged links")
		v.underlay(at+".addresses", x.Addresses)
		for j, a := range x.Addresses {
			first, twice := v.addresses[a.Addr()]
			v.check(!twice, fmt.Sprintf("%s.addresses[%d]", at, j), a, "is an address of "+first+" as well")
			v.addresses[a.Addr()] = at
		}
		v.check(v.tags[tag{x.Interface, 0}] == "", at+".interface", x.Interface, "carries an untagged link, "+v.tags[tag{x.Interface, 0}])
		first := v.tags[tag{x.Interface, x.FirstTag()}]
		v.check(first == "", at+".vlan", x.FirstTag(), "is the first tag of "+first+" on the same interface")
	}
	v.tags[tag{x.Interface, x.FirstTag()}] = at
}

// addressesOf are those from which tunnels of a link can start.
func (v *validator) addressesOf(x Link) []netip.Prefix {
	if x.Tagged() {
		return x.Addresses
	}
	return v.interfaces[x.Interface].Addresses
}

func (v *validator) section(at string, x Section) {
	v.unique("tenant", x.Tenant, at+".tenant")
	v.prefixes += len(x.Locals)
	for i, l := range x.Locals {
		p := fmt.Sprintf("%s.locals[%d]", at, i)
		v.protected(p+".prefix", l.Prefix)
		f := v.interfaces[l.Interface]
		v.check(f.Role == RoleLAN && f.Customer == x.Customer, p+".interface", l.Interface, "is not a LAN interface of this customer")
	}
	remotes := map[netip.Prefix]bool{}
	for i, g := range x.Groups {
		p := fmt.Sprintf("%s.groups[%d]", at, i)
		v.unique("group", g.Number, p+".number")
		v.check(g.Number <= maxGroup, p+".number", g.Number, fmt.Sprintf("is more than %d", maxGroup))
		v.check(strings.HasPrefix(g.ID, x.Customer+"/"), p+".id", g.ID, "does not begin with the customer")
		v.check(len(g.Tunnels) <= MaxMembers, p+".tunnels", len(g.Tunnels), fmt.Sprintf("is more than the %d that a group can have", MaxMembers))
		v.offline(p, g)
		v.policy(p+".ipsec", g)
		v.prefixes += len(g.Remotes)
		v.tunnel += len(g.Tunnels)
		for j, r := range g.Remotes {
			f := fmt.Sprintf("%s.remotes[%d]", p, j)
			v.protected(f, r)
			v.check(!remotes[r], f, r, "belongs to two groups")
			remotes[r] = true
		}
		for j, t := range g.Tunnels {
			v.tunnelOf(fmt.Sprintf("%s.tunnels[%d]", p, j), t, g.ID)
		}
	}
	v.most("prefixes", v.prefixes, maxPrefixes)
	v.most("tunnels", v.tunnel, maxTunnels)
}

// offline wants an action where there is a limit: an agent must not guess which.
func (v *validator) offline(at string, g Group) {
	if g.MaxOffline == 0 {
		v.check(g.OfflineAction == 0, at+".offline_action", g.OfflineAction, "needs max_offline")
		return
	}
	v.check(g.MaxOffline >= MinOffline && g.MaxOffline <= MaxOffline, at+".max_offline", g.MaxOffline,
		fmt.Sprintf("is not between %s and %s", MinOffline, MaxOffline))
	v.check(g.OfflineAction == OfflineContinue || g.OfflineAction == OfflineClose, at+".offline_action", g.OfflineAction, "is unknown to this version")
}

func (v *validator) protected(field string, p netip.Prefix) {
	v.check(p.IsValid() && p.Masked() == p, field, p, "is not a prefix without host bits")
	v.check(!p.Overlaps(ProbePrefix) || p.Bits() == 0, field, p, "overlaps with the probe addresses "+ProbePrefix.String())
}

func (v *validator) tunnelOf(at string, t Tunnel, group string) {
	v.unique("tunnel", uint32(t.Number), at+".number")
	v.check(strings.HasPrefix(t.ID, group+"/"), at+".id", t.ID, "does not begin with the group")
	l, ok := v.links[t.Link]
	v.check(ok, at+".link", t.Link, "is not a link of this state")
	own := false
	for _, a := range v.addressesOf(l) {
		own = own || a.Addr() == t.Local.Addr()
	}
	v.check(own, at+".local", t.Local, "is not an address of the link or its interface")
	v.check(t.Local.Port() != 0 && t.Remote.Port() != 0, at+".local", t.Local, "needs a port at both ends")
	v.check(usable(t.Remote.Addr()) && t.Local.Addr().Is4() == t.Remote.Addr().Is4(), at+".remote", t.Remote, "is not a unicast address of the local one's family")
	v.check(!ok || l.NextHop.Is4() == t.Local.Addr().Is4(), at+".local", t.Local, "is of another family than the link's next hop "+l.NextHop.String())
	port := t.Local.Port()
	v.check(v.ports[port] == "", at+".local", t.Local, "has the same port as "+v.ports[port])
	v.ports[port] = at
	there := way{t.Link, t.Remote.Addr()}
	local, known := v.ways[there]
	v.check(!known || local == t.Local.Addr(), at+".remote", t.Remote, "is reached from "+local.String()+" over the same link already")
	v.ways[there] = t.Local.Addr()
	first, second := ProbeAddresses(t.Number)
	derived := t.LocalProbe == first && t.RemoteProbe == second || t.LocalProbe == second && t.RemoteProbe == first
	v.check(derived, at+".local_probe", t.LocalProbe, "and the remote one are not derived from the number")
	v.check(t.MTU >= MinMTU && t.MTU <= maxMTU, at+".mtu", t.MTU, fmt.Sprintf("is not between %d and %d", MinMTU, maxMTU))
	v.check(t.WireGuard != nil || t.IPsec != nil, at+".wireguard", "", "is missing: the tunnel has no protocol")
	if t.WireGuard != nil {
		v.check(len(t.WireGuard.PresharedKeys) > 0 || t.WireGuard.Pending(), at+".wireguard.preshared_keys", 0, "is no key: a tunnel with a peer needs one")
		v.preshared(at+".wireguard.preshared_keys", t.WireGuard.PresharedKeys)
	}
	if t.IPsec != nil {
		v.preshared(at+".ipsec.preshared_keys", t.IPsec.PresharedKeys)
	}
}

// preshared refuses keys that cannot be told apart. A WireGuard tunnel that came
// up without a secret of both ends would not stand against a later quantum
// attacker; what IPsec needs is the policy's to say.
func (v *validator) preshared(at string, keys []PresharedKey) {
	v.check(len(keys) <= 2, at, len(keys), "is more than the key in use and one to fall back to")
	for i, k := range keys {
		v.check(k.Generation != 0, fmt.Sprintf("%s[%d].generation", at, i), k.Generation, "must not be 0")
		v.check(!k.Key.IsZero(), fmt.Sprintf("%s[%d].key", at, i), k.Key, "is missing")
		for _, other := range keys[:i] {
			v.check(other.Generation != k.Generation, fmt.Sprintf("%s[%d].generation", at, i), k.Generation, "stands twice")
			v.check(!other.Key.Equal(k.Key), fmt.Sprintf("%s[%d].key", at, i), k.Key, "stands twice")
		}
	}
}

func usable(a netip.Addr) bool {
	return a.IsValid() && (a.Is4() || !a.IsLinkLocalUnicast()) && !a.Is4In6() && a.Zone() == "" && !a.IsMulticast() && !a.IsUnspecified() && !a.IsLoopback()
}

// validInterfaceName follows dev_valid_name in net/core/dev.c.
func validInterfaceName(s string) bool {
	return s != "" && len(s) <= 15 && s != "." && s != ".." && !strings.ContainsAny(s, "/: \t\n\v\f\r\x00")
}
