// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//
// The fast path: LAN -> tunnel, tunnel -> LAN, and a last check of what enters
// a tunnel. A packet goes where the maps say or is dropped and counted; what
// is for the node itself goes to the stack. What is too big for its tunnel goes
// to the slow path's namespace and comes back as ICMP or in fragments.
#include <linux/errno.h>

#include "layout.h"
#include "packet.h"
#include "flow.h"
#include "edit.h"

// Values of both tcx and direct-action clsact; TC_NEXT leaves the packet to
// whatever comes after this program, in the end the stack.
#define TC_NEXT (-1)
#define TC_DROP 2

#define PACKET_HOST 0

#define ICMP_DEST_UNREACH 3
#define ICMP_FRAG_NEEDED 4
#define ICMP_REDIRECT 5

#define ICMPV6_PKT_TOOBIG 2
#define ICMPV6_ECHO_REQUEST_ 128
#define ICMPV6_ECHO_REPLY_ 129
#define ICMPV6_MLD_QUERY 130
#define ICMPV6_RS 133
#define ICMPV6_RA 134
#define ICMPV6_NS 135
#define ICMPV6_NA 136
#define ICMPV6_REDIRECT 137

// bpf_check_mtu is for programs that the kernel takes for compatible with its
// own licence.
char __license[] SEC("license") = "Dual BSD/GPL";

// The /48 that holds every probe address; set by the driver at load.
const volatile __u8 probe_prefix[6] __attribute__((aligned(4)));

// The upper half of the mark of a packet between a LAN's ingress and a tunnel's
// egress; the lower half is the number of the group that its prefix names.
// Nothing but a program or a privileged socket of this host can set it, and
// both ingresses clear what a packet brings. The driver sets it at load: other
// instances on the host have others.
const volatile __u32 mark_base;

// Loads after it happen after it.
#define barrier() asm volatile("" ::: "memory")

// The compiler knows more about x than the verifier and leaves out a check;
// after this it does not.
#define forget(x) asm volatile("" : "+r"(x))

static __always_inline void count(__u32 slot, enum direction direction, enum reason reason)
{
	struct counts *c = bpf_map_lookup_elem(&counters, &slot);
	__u32 i = direction * MAX_REASONS + reason;

	forget(i);
	if (c && i < 2 * MAX_REASONS)
		c->packets[i]++;
}

// Every verdict but a redirect leaves through here. The control buffer shows it, and the
// target of a redirect, to whoever runs the program by hand.
static __noinline int verdict(struct __sk_buff *skb, __u32 slot, enum direction direction, enum reason reason)
{
	count(slot, direction, reason);
	skb->cb[0] = reason;
	return reason == REASON_PASSED ? TC_NEXT : TC_DROP;
}

// read_port copies the port of an interface and then makes sure that it was
// that interface's all the while: by now the element may belong to another key,
// perhaps another tenant's. It returns 0 if there is no such port.
static __always_inline int read_port(__u32 ifindex, enum port_kind kind, struct port *copy)
{
	const struct port *port = bpf_map_lookup_elem(&ports, &ifindex);

	if (!port)
		return 0;
	*copy = *port;
	barrier();
	return *(const volatile __u32 *)&port->ifindex == ifindex && copy->ifindex == ifindex && copy->kind == kind;
}

static __always_inline int is_probe(const union address *a)
{
	return a->words[0] == *(const volatile __u32 *)probe_prefix &&
	       *(const __u16 *)(a->bytes + 4) == *(const volatile __u16 *)(probe_prefix + 4);
}

static __always_inline struct remote *find_remote(__u32 tenant, __u32 family, const union address *a)
{
	struct prefix_key k = { .prefixlen = family == 4 ? 96 : 192, .tenant = tenant, .family = family };

	__builtin_memcpy(k.addr, a->bytes, sizeof(k.addr));
	return bpf_map_lookup_elem(&remotes, &k);
}

static __always_inline struct local *find_local(__u32 tenant, __u32 family, const union address *a)
{
	struct prefix_key k = { .prefixlen = family == 4 ? 96 : 192, .tenant = tenant, .family = family };

	__builtin_memcpy(k.addr, a->bytes, sizeof(k.addr));
	return bpf_map_lookup_elem(&locals, &k);
}

// too_big checks a packet against a device's MTU and, if mtu is not 0, against
// that too. Segments of a GSO packet count one by one. A negative number means
// that there is no such device.
static __always_inline int too_big(struct __sk_buff *skb, const struct packet *p, __u32 ifindex, __u32 mtu)
{
	__u32 length = p->length, flags = 0, got = 0;
	long r;

	if (skb->gso_size) {
		__u8 offset = 0;
		__u32 headers = p->l4;

		if (p->protocol == IPPROTO_TCP && !load_net(skb, p->l4 + 12, &offset, sizeof(offset)))
			headers += (offset >> 4) * 4;
		else if (p->protocol == IPPROTO_UDP)
			headers += 8;
		length = headers + skb->gso_size;
		// The kernel takes no length together with this flag.
		flags = BPF_MTU_CHK_SEGS;
	} else {
		got = length;
	}
	if (mtu && length > mtu)
		return 1;
	r = bpf_check_mtu(skb, ifindex, &got, 0, flags);
	// Any other error means that the kernel cannot tell: -EINVAL if nobody
	// has told it where the transport header of a GSO packet is.
	return r == -ENODEV ? -1 : r != 0;
}

// for_stack is true of the link-scope multicasts that the node's own IPv6
// needs on a LAN: neighbour and router solicitations, neighbour
// advertisements (RFC 4861) and multicast listener queries (RFC 3810).
// Router advertisements and redirects are not among them: a LAN host does not
// route the node.
static __always_inline int for_stack(struct __sk_buff *skb, struct packet *p)
{
	const union address *d = &p->dst;
	int all_nodes, all_routers, solicited;
	__u8 type;

	if (d->words[0] != bpf_htonl(0xff020000) || d->words[1] != 0)
		return 0;
	all_nodes = d->words[2] == 0 && d->words[3] == bpf_htonl(1);
	all_routers = d->words[2] == 0 && d->words[3] == bpf_htonl(2);
	solicited = d->words[2] == bpf_htonl(1) && d->bytes[12] == 0xff;

	parse_transport(skb, p);
	if (p->protocol != IPPROTO_ICMPV6 || p->fragment || !p->l4 ||
	    load_net(skb, p->l4, &type, sizeof(type)))
		return 0;
	switch (type) {
	case ICMPV6_NS:
	case ICMPV6_NA:
		return p->ttl == 255 && (all_nodes || solicited);
	case ICMPV6_RS:
		return p->ttl == 255 && all_routers;
	case ICMPV6_MLD_QUERY:
		return p->ttl == 1 && (all_nodes || solicited);
	}
	return 0;
}

static __always_inline int is_link_local6(const union address *a)
{
	return a->bytes[0] == 0xfe && (a->bytes[1] & 0xc0) == 0x80;
}

// to_node judges what a LAN host sends to an address that the node has there.
// The node's answers take the main table, which knows no tenants: they go
// wherever the source seems to be. So the source must be one that the LAN may
// use, and where several tenants are, whose prefixes may be the same, the stack
// gets neighbour discovery only, which it answers on the interface itself.
// What tells a host where to route (ICMPv4 and ICMPv6 redirects, router
// advertisements) is nobody's business here.
static __always_inline enum reason to_node(struct __sk_buff *skb, struct packet *p, int own_source, int shared)
{
	__u8 type = 0;
	int known;

	parse_transport(skb, p);
	// The stack might find what was not found here.
	if (p->family == 6 && !p->l4 && !p->later)
		return REASON_MALFORMED;
	known = p->l4 && !p->later && !load_net(skb, p->l4, &type, sizeof(type));
	if (p->family == 4 && p->protocol == IPPROTO_ICMP && known && type == ICMP_REDIRECT)
		return REASON_ROUTER_MESSAGE;
	if (p->family == 6 && p->protocol == IPPROTO_ICMPV6 && known) {
		if (type == ICMPV6_RA || type == ICMPV6_REDIRECT)
			return REASON_ROUTER_MESSAGE;
		// An advertisement gets no answer. It comes from a router on the LAN
		// too, whose own address need not be one of the site's.
		if (p->ttl == 255 && !p->fragment &&
		    (type == ICMPV6_NA || (type == ICMPV6_NS && (own_source || is_link_local6(&p->src)))))
			return REASON_PASSED;
	}
	if (!own_source)
		return REASON_SPOOFED_SOURCE;
	return shared ? REASON_NODE_IS_SHARED : REASON_PASSED;
}

static __always_inline int is_host(__u32 ifindex, __u32 family, const union address *a)
{
	struct host_key k = { .ifindex = ifindex, .family = family };

	__builtin_memcpy(k.addr, a->bytes, sizeof(k.addr));
	return bpf_map_lookup_elem(&hosts, &k) != NULL;
}

// probe_pair is true of an echo between exactly these two addresses.
static __always_inline int probe_pair(struct __sk_buff *skb, const struct packet *p, const __u8 *src, const __u8 *dst)
{
	__u8 type;

	if (p->protocol != IPPROTO_ICMPV6 || !same_address(p->src.bytes, src) || !same_address(p->dst.bytes, dst))
		return 0;
	if (load_net(skb, sizeof(struct ipv6), &type, sizeof(type)))
		return 0;
	return type == ICMPV6_ECHO_REQUEST_ || type == ICMPV6_ECHO_REPLY_;
}

// way is where a packet of a tenant's goes: in, the tenant; out, the number of
// the group that its destination names, and the member that carries its flow.
struct way {
	__u32 tenant;
	__u32 number;
	__u32 target;
	__u32 mtu;
};

// choose_tunnel returns 0, or why there is no way. parse_transport comes before
// it: flows of one group are told apart by ports. It is a global function,
// which the verifier examines once.
__noinline int choose_tunnel(struct packet *p, struct way *w)
{
	struct remote *remote;
	struct group *group;
	__u32 number, at;
	int i;

	if (!p || !w)
		return REASON_NO_REMOTE;
	remote = find_remote(w->tenant, p->family, &p->dst);
	if (!remote)
		return REASON_NO_REMOTE;
	// Read once: the lookup and the mark must mean the same group.
	number = *(const volatile __u32 *)&remote->group;
	w->number = number;
	group = bpf_map_lookup_elem(&groups, &number);
	if (!group)
		return REASON_NO_GROUP;
	i = choose_member(group, flow_hash(p));
	if (i < 0 || i >= MAX_MEMBERS)
		return REASON_NO_MEMBER;
	at = i;
	forget(at);
	at &= MAX_MEMBERS - 1;
	w->target = group->members[at].ifindex;
	w->mtu = group->members[at].mtu;
	barrier();
	// Last, for the element may have become another group's meanwhile. A group
	// of another number is found out where the mark meets the device.
	return *(const volatile __u32 *)&group->tenant == w->tenant ? 0 : REASON_NO_GROUP;
}

// enter sends a packet into its tunnel; nothing may be changed in it after.
static __always_inline int enter(struct __sk_buff *skb, __u32 slot, const struct way *w)
{
	count(slot, DIRECTION_IN, REASON_FORWARDED);
	skb->mark = mark_base | w->number;
	skb->cb[1] = w->target;
	return bpf_redirect(w->target, 0);
}

// leave_for_slow_path hands a packet that its LAN may send, and that is too big,
// to the kernel's stack in the slow path's namespace. The mark says whose it
// is there: bpf_redirect_peer keeps it, and nothing else that gets into that
// namespace has one. PMTU messages are outside the kernel's limits on ICMP, as
// on any router; each answers a packet that is greater than itself.
static __always_inline int leave_for_slow_path(struct __sk_buff *skb, const struct port *port)
{
	count(port->slot, DIRECTION_IN, REASON_SLOW_PATH);
	skb->mark = port->ifindex;
	skb->cb[0] = REASON_SLOW_PATH;
	skb->cb[1] = port->partner;
	return bpf_redirect_peer(port->partner, 0);
}

SEC("tc")
int cs_lan_in(struct __sk_buff *skb)
{
	__u32 ifindex = skb->ifindex;
	struct packet p = {};
	struct port port;
	struct way way = {};
	struct local *local;
	int r, own_source;

	skb->mark = 0;
	skb->cb[0] = skb->cb[1] = 0;
	if (!read_port(ifindex, PORT_LAN, &port))
		return verdict(skb, 0, DIRECTION_IN, REASON_UNKNOWN_INTERFACE);
	// The tag of another network; the kernel would hand it to a VLAN device.
	if (skb->vlan_present)
		return verdict(skb, port.slot, DIRECTION_IN, REASON_VLAN_TAGGED);
	if (skb->protocol == bpf_htons(ETH_P_ARP))
		return verdict(skb, port.slot, DIRECTION_IN, REASON_PASSED);

	make_linear(skb);
	r = parse_addresses(skb, ETH_HLEN, &p);
	if (r)
		return verdict(skb, port.slot, DIRECTION_IN, r == -2 ? REASON_NOT_IP : REASON_MALFORMED);
	if (p.family == 6) {
		if (is_probe(&p.src) || is_probe(&p.dst))
			return verdict(skb, port.slot, DIRECTION_IN, REASON_PROBE_ADDRESS);
		if (is_multicast6(&p.dst))
			return verdict(skb, port.slot, DIRECTION_IN,
				       for_stack(skb, &p) ? REASON_PASSED : REASON_UNROUTABLE_ADDRESS);
	}
	// A bridge or a tap may show frames that are for someone else.
	if (skb->pkt_type != PACKET_HOST)
		return verdict(skb, port.slot, DIRECTION_IN, REASON_OTHER_HOST);

	local = find_local(port.tenant, p.family, &p.src);
	own_source = local && local->ifindex == ifindex;
	if (is_host(ifindex, p.family, &p.dst))
		return verdict(skb, port.slot, DIRECTION_IN, to_node(skb, &p, own_source, port.shared));
	if (unroutable(p.family, &p.src) || unroutable(p.family, &p.dst))
		return verdict(skb, port.slot, DIRECTION_IN, REASON_UNROUTABLE_ADDRESS);
	if (!own_source)
		return verdict(skb, port.slot, DIRECTION_IN, REASON_SPOOFED_SOURCE);
	if (p.ttl <= 1)
		return verdict(skb, port.slot, DIRECTION_IN, REASON_EXPIRED);
	way.tenant = port.tenant;
	parse_transport(skb, &p);
	r = choose_tunnel(&p, &way);
	if (r)
		return verdict(skb, port.slot, DIRECTION_IN, r);

	// Before the packet can be cut into pieces.
	if (clamp_mss(skb, ETH_HLEN, &p, way.mtu))
		return verdict(skb, port.slot, DIRECTION_IN, REASON_NOT_EDITABLE);
	r = too_big(skb, &p, way.target, way.mtu);
	if (r > 0 && port.partner)
		return leave_for_slow_path(skb, &port);
	if (r)
		return verdict(skb, port.slot, DIRECTION_IN, r < 0 ? REASON_NO_MEMBER : REASON_TOO_BIG);
	if (decrement_ttl(skb, ETH_HLEN, &p))
		return verdict(skb, port.slot, DIRECTION_IN, REASON_NOT_EDITABLE);
	return enter(skb, port.slot, &way);
}

// is_mtu_message is true of what tells a sender to send less: ICMP's
// "fragmentation needed" (RFC 1191), ICMPv6's "packet too big" (RFC 8201).
static __always_inline int is_mtu_message(struct __sk_buff *skb, const struct packet *p)
{
	__u8 h[2]; // type and code

	if (p->fragment || !p->l4 || load_net(skb, p->l4, h, sizeof(h)))
		return 0;
	if (p->family == 4)
		return p->protocol == IPPROTO_ICMP && h[0] == ICMP_DEST_UNREACH && h[1] == ICMP_FRAG_NEEDED;
	return p->protocol == IPPROTO_ICMPV6 && h[0] == ICMPV6_PKT_TOOBIG;
}

// may_tell is true of the sources that the stack gives its messages: the node's
// address on the LAN, and for IPv6 the destination's own where that is the
// node's on another LAN (icmp6_send in net/ipv6/icmp.c asks all interfaces).
static __always_inline int may_tell(const struct port *port, const struct packet *p)
{
	return is_host(port->partner, p->family, &p->src) ||
	       (p->family == 6 && find_remote(port->tenant, 6, &p->src));
}

// cs_slow_in judges what comes back from the slow path of one LAN, as if that
// could be anything: a message about the MTU goes to the LAN, an IPv4 packet
// that fits by now into a tunnel, all else nowhere. The stack has decremented
// the TTL, so that this must not.
SEC("tc")
int cs_slow_in(struct __sk_buff *skb)
{
	__u32 ifindex = skb->ifindex;
	struct packet p = {};
	struct port port;
	struct way way = {};
	struct local *local;
	int r;

	skb->mark = 0;
	skb->cb[0] = skb->cb[1] = 0;
	if (!read_port(ifindex, PORT_SLOW, &port))
		return verdict(skb, 0, DIRECTION_IN, REASON_UNKNOWN_INTERFACE);
	if (skb->vlan_present)
		return verdict(skb, port.slot, DIRECTION_IN, REASON_VLAN_TAGGED);
	make_linear(skb);
	r = parse_addresses(skb, ETH_HLEN, &p);
	if (r)
		return verdict(skb, port.slot, DIRECTION_IN, r == -2 ? REASON_NOT_IP : REASON_MALFORMED);
	parse_transport(skb, &p);

	if (is_mtu_message(skb, &p) && may_tell(&port, &p)) {
		local = find_local(port.tenant, p.family, &p.dst);
		if (!local || local->ifindex != port.partner || is_host(port.partner, p.family, &p.dst))
			return verdict(skb, port.slot, DIRECTION_IN, REASON_NO_LOCAL);
		count(port.slot, DIRECTION_IN, REASON_TOLD_MTU);
		skb->cb[0] = REASON_TOLD_MTU;
		skb->cb[1] = port.partner;
		return bpf_redirect_neigh(port.partner, NULL, 0, 0);
	}
	// Routers do not fragment IPv6.
	if (p.family != 4)
		return verdict(skb, port.slot, DIRECTION_IN, REASON_NOT_SLOW_PATH);
	if (unroutable(4, &p.src) || unroutable(4, &p.dst))
		return verdict(skb, port.slot, DIRECTION_IN, REASON_UNROUTABLE_ADDRESS);
	local = find_local(port.tenant, 4, &p.src);
	if (!local || local->ifindex != port.partner)
		return verdict(skb, port.slot, DIRECTION_IN, REASON_SPOOFED_SOURCE);
	if (p.ttl == 0)
		return verdict(skb, port.slot, DIRECTION_IN, REASON_EXPIRED);
	way.tenant = port.tenant;
	r = choose_tunnel(&p, &way);
	if (r)
		return verdict(skb, port.slot, DIRECTION_IN, r);
	r = too_big(skb, &p, way.target, way.mtu);
	if (r)
		return verdict(skb, port.slot, DIRECTION_IN, r < 0 ? REASON_NO_MEMBER : REASON_TOO_BIG);
	return enter(skb, port.slot, &way);
}

SEC("tc")
int cs_tunnel_in(struct __sk_buff *skb)
{
	__u32 ifindex = skb->ifindex, target, l2;
	struct packet p = {};
	struct port port;
	struct local *local;
	struct remote *remote;
	__u16 protocol = skb->protocol;
	int r;

	skb->mark = 0;
	skb->cb[0] = skb->cb[1] = 0;
	if (!read_port(ifindex, PORT_TUNNEL, &port))
		return verdict(skb, 0, DIRECTION_IN, REASON_UNKNOWN_INTERFACE);
	l2 = port.header ? ETH_HLEN : 0;

	make_linear(skb);
	r = parse_addresses(skb, l2, &p);
	if (r)
		return verdict(skb, port.slot, DIRECTION_IN, r == -2 ? REASON_NOT_IP : REASON_MALFORMED);
	if (p.family == 6 && (is_probe(&p.src) || is_probe(&p.dst))) {
		r = probe_pair(skb, &p, port.remote_probe, port.local_probe);
		return verdict(skb, port.slot, DIRECTION_IN, r ? REASON_PASSED : REASON_PROBE_ADDRESS);
	}
	if (unroutable(p.family, &p.src) || unroutable(p.family, &p.dst))
		return verdict(skb, port.slot, DIRECTION_IN, REASON_UNROUTABLE_ADDRESS);

	// Redirects skip XFRM's inbound policy, so nothing else checks this.
	remote = find_remote(port.tenant, p.family, &p.src);
	if (!remote || remote->group != port.group)
		return verdict(skb, port.slot, DIRECTION_IN, REASON_WRONG_SELECTOR);
	local = find_local(port.tenant, p.family, &p.dst);
	if (!local)
		return verdict(skb, port.slot, DIRECTION_IN, REASON_NO_LOCAL);
	target = local->ifindex;
	// The node is no host of the site to the far end, and nobody would answer
	// on the LAN for its address.
	if (is_host(target, p.family, &p.dst))
		return verdict(skb, port.slot, DIRECTION_IN, REASON_NO_LOCAL);
	if (p.ttl <= 1)
		return verdict(skb, port.slot, DIRECTION_IN, REASON_EXPIRED);

	parse_transport(skb, &p);
	r = too_big(skb, &p, target, 0);
	if (r)
		return verdict(skb, port.slot, DIRECTION_IN, r < 0 ? REASON_NO_LOCAL : REASON_TOO_BIG);
	if (clamp_mss(skb, l2, &p, port.mtu) || decrement_ttl(skb, l2, &p))
		return verdict(skb, port.slot, DIRECTION_IN, REASON_NOT_EDITABLE);
	// bpf_redirect_neigh drops what has no link-layer header. Where there is
	// one, it is the outer packet's, and so may be its protocol.
	if (!port.header && bpf_skb_change_head(skb, ETH_HLEN, 0))
		return verdict(skb, port.slot, DIRECTION_IN, REASON_NOT_EDITABLE);
	if (bpf_skb_store_bytes(skb, 12, &protocol, sizeof(protocol), 0))
		return verdict(skb, port.slot, DIRECTION_IN, REASON_NOT_EDITABLE);
	count(port.slot, DIRECTION_IN, REASON_FORWARDED);
	skb->cb[1] = target;
	return bpf_redirect_neigh(target, NULL, 0, 0);
}

SEC("tc")
int cs_tunnel_out(struct __sk_buff *skb)
{
	__u32 ifindex = skb->ifindex, mark = skb->mark;
	struct packet p = {};
	struct port port;
	struct remote *remote;
	int r;

	skb->mark = 0;
	skb->cb[0] = skb->cb[1] = 0;
	if (!read_port(ifindex, PORT_TUNNEL, &port))
		return verdict(skb, 0, DIRECTION_OUT, REASON_UNKNOWN_INTERFACE);
	make_linear(skb);
	// Nothing is edited here, so only the network header's place matters.
	r = parse_addresses(skb, 0, &p);
	if (r)
		return verdict(skb, port.slot, DIRECTION_OUT, r == -2 ? REASON_NOT_IP : REASON_MALFORMED);
	if (p.family == 6 && (is_probe(&p.src) || is_probe(&p.dst))) {
		r = probe_pair(skb, &p, port.local_probe, port.remote_probe);
		return verdict(skb, port.slot, DIRECTION_OUT, r ? REASON_PASSED : REASON_PROBE_ADDRESS);
	}
	// The node's own stack and what it forwards come without the mark. One of
	// another group means that the member table changed while it was read;
	// addresses do not tell tenants apart.
	if (mark != (mark_base | port.group))
		return verdict(skb, port.slot, DIRECTION_OUT, REASON_NOT_CLASSIFIED);
	remote = find_remote(port.tenant, p.family, &p.dst);
	if (!remote || remote->group != port.group || !find_local(port.tenant, p.family, &p.src))
		return verdict(skb, port.slot, DIRECTION_OUT, REASON_WRONG_SELECTOR);
	// XFRM interfaces look up a route for IPv6 packets (xfrmi_xmit in
	// net/xfrm/xfrm_interface_core.c): the instance's own table has one, for this mark.
	// Who encrypts gives the outer packet its own.
	skb->mark = mark;
	count(port.slot, DIRECTION_OUT, REASON_FORWARDED);
	return TC_NEXT;
}
