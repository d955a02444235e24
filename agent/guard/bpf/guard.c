// SPDX-License-Identifier: Apache-2.0
//
// What may pass a circuit interface: the outer packets of configured tunnels,
// and ARP and ND with the link's own neighbour, behind the VLAN tags of the link. Judge in ../judge.go says the same in
// Go, check by check and in the same order; a test holds one against the other.
#include "layout.h"
#include "ipv6.h"
#include <linux/if_ether.h>
#include <linux/ip.h>
#include <linux/udp.h>
#include <stddef.h>

// TC_ACT_OK and TC_ACT_SHOT, by tcx as by clsact. Passing ends the chain: no
// program or filter after the guard gets to change or redirect what it has judged.
#define PASS 0
#define DROP 2

#define UDP 17
#define ESP 50
#define ICMPV6 58
#define FRAGMENT 44
// What ESP has at least (RFC 4303, section 2): its header, an initialization vector
// of 8 bytes, padding and next header, and a check value; or a longer vector
// and a shorter check value.
#define MIN_ESP 32
// Smaller SPIs are reserved (RFC 4303, section 2.1).
#define MIN_SPI 256
#define IP_DF 0x4000
#define MIN_FRAME 60
#define ETHERNET 1
#define ARP_REQUEST 1
#define ARP_REPLY 2
#define MAX_TAGS 2
#define TAG_LEN 4
#define VLAN_ID 0xfff

char __license[] SEC("license") = "Apache-2.0";

// RFC 826 for Ethernet and IPv4.
struct arp {
	__be16 hardware;
	__be16 protocol;
	__u8 hardware_len;
	__u8 protocol_len;
	__be16 operation;
	__u8 sender_mac[ETH_ALEN];
	__u8 sender[4];
	__u8 target_mac[ETH_ALEN];
	__u8 target[4];
} __attribute__((packed));

// RFC 4303, section 2, as far as it can be read.
struct esp {
	__be32 spi;
	__be32 sequence;
};

// What tunnels' packets have behind the IP header.
union transport {
	struct udphdr udp;
	struct esp esp;
} __attribute__((packed));

_Static_assert(sizeof(union transport) == sizeof(struct udphdr) && sizeof(union transport) == sizeof(struct esp), "equally long");

// All kinds of frame that can pass have at least these bytes.
struct frame {
	struct ethhdr eth;
	union {
		struct {
			struct iphdr ip;
			union transport transport;
		} __attribute__((packed));
		struct arp arp;
	};
} __attribute__((packed));

_Static_assert(sizeof(struct frame) == 42, "Ethernet, IPv4 and UDP or ESP, or Ethernet and ARP");

_Static_assert(offsetof(struct frame, eth.h_proto) == 2 * ETH_ALEN, "tags stand between addresses and type");

// The tags of a frame, whether the kernel keeps them beside it or they stand in it.
struct tags {
	// See stack_key.
	__u32 stack;
	__u32 count;
	// Bytes of tags in the frame.
	__u32 bytes;
};

static __always_inline int mac_equal(const __u8 *a, const __u8 *b)
{
	__u8 diff = 0;

	for (int i = 0; i < ETH_ALEN; i++)
		diff |= a[i] ^ b[i];
	return !diff;
}

static __always_inline int mac_all(const __u8 *a, __u8 value)
{
	__u8 diff = 0;

	for (int i = 0; i < ETH_ALEN; i++)
		diff |= a[i] ^ value;
	return !diff;
}

// A frame carries nothing behind its packet, but for the padding that a short
// one gets on the wire (IEEE 802.3, 4.2.3.3) and that is not there yet when it
// goes out. Tags do not count: they may have been put before or behind it.
static __always_inline int length_fits(__u32 frame, __u32 packet, enum direction direction)
{
	__u32 want = sizeof(struct ethhdr) + packet;

	return frame == want || (direction == DIRECTION_IN && frame > want && frame <= MIN_FRAME);
}

static __always_inline void map_address(__u8 *to, const void *ipv4)
{
	to[10] = to[11] = 0xff;
	__builtin_memcpy(to + 12, ipv4, 4);
}

// What a tunnel's packet has behind an IP header: key gets protocol and ports.
static __always_inline enum reason judge_transport(const union transport *t, __u32 length, enum direction direction, struct flow_key *key)
{
	switch (key->protocol) {
	case UDP:
		// A super-packet (UDP_SEGMENT, GRO) has the lengths of the whole in its
		// headers here (net/ipv4/udp.c, udp_send_skb; udp_offload.c,
		// udp_gro_complete_segment), so the same equations hold for it.
		if (length < sizeof(t->udp) || bpf_ntohs(t->udp.len) != length)
			return REASON_LENGTH;
		key->local_port = direction == DIRECTION_OUT ? t->udp.source : t->udp.dest;
		key->remote_port = direction == DIRECTION_OUT ? t->udp.dest : t->udp.source;
		return REASON_FLOW;
	case ESP:
		// Of a packet that is encrypted behind this hook (esp4_offload) what
		// follows the content is missing yet; it has this length all the same.
		if (length < MIN_ESP)
			return REASON_LENGTH;
		if (bpf_ntohl(t->esp.spi) < MIN_SPI)
			return REASON_SPI;
		return REASON_FLOW;
	}
	return REASON_PROTOCOL;
}

static __always_inline enum reason find_flow(struct __sk_buff *skb, const struct flow_key *key, enum direction direction)
{
	struct flow *flow = bpf_map_lookup_elem(&flows, key);

	if (!flow)
		return REASON_NO_FLOW;
	// The tuple alone is no proof that an encryptor made the packet.
	if (direction == DIRECTION_OUT && skb->mark != flow->marks[0] && skb->mark != flow->marks[1])
		return REASON_MARK;
	return REASON_FLOW;
}

static __always_inline enum reason judge_ipv4(struct __sk_buff *skb, const struct frame *f, const struct tags *tags, enum direction direction)
{
	struct flow_key key = {.ifindex = skb->ifindex, .tags = tags->stack, .protocol = f->ip.protocol, .version = 4};
	__u32 total = bpf_ntohs(f->ip.tot_len);
	enum reason why;

	// Options are on no packet of ours, and would move the ports.
	if (f->ip.version != 4 || f->ip.ihl != 5)
		return REASON_IP_HEADER;
	if (f->ip.frag_off & bpf_htons((__u16)~IP_DF))
		return REASON_FRAGMENT;
	if (f->ip.protocol != UDP && f->ip.protocol != ESP)
		return REASON_PROTOCOL;
	if (total < sizeof(struct iphdr) || !length_fits(skb->len - tags->bytes, total, direction))
		return REASON_LENGTH;
	why = judge_transport(&f->transport, total - sizeof(struct iphdr), direction, &key);
	if (why != REASON_FLOW)
		return why;
	map_address(direction == DIRECTION_OUT ? key.local : key.remote, &f->ip.saddr);
	map_address(direction == DIRECTION_OUT ? key.remote : key.local, &f->ip.daddr);
	return find_flow(skb, &key, direction);
}

static __always_inline enum reason judge_arp(struct __sk_buff *skb, const struct frame *f, const struct tags *tags, enum direction direction)
{
	struct neighbor key = {.ifindex = skb->ifindex, .tags = tags->stack, .version = 4};
	__u16 operation = bpf_ntohs(f->arp.operation);

	if (f->arp.hardware != bpf_htons(ETHERNET) || f->arp.protocol != bpf_htons(ETH_P_IP) ||
	    f->arp.hardware_len != ETH_ALEN || f->arp.protocol_len != 4 ||
	    (operation != ARP_REQUEST && operation != ARP_REPLY))
		return REASON_ARP_FORMAT;
	if (!length_fits(skb->len - tags->bytes, sizeof(struct arp), direction))
		return REASON_LENGTH;
	if ((f->eth.h_dest[0] & 1) && !mac_all(f->eth.h_dest, 0xff))
		return REASON_ARP_HARDWARE;
	// Going out, every byte that is not an address of the link is a constant,
	// so that ARP carries nothing else.
	if (direction == DIRECTION_OUT &&
	    (!mac_equal(f->arp.sender_mac, f->eth.h_source) ||
	     (operation == ARP_REQUEST && !mac_all(f->arp.target_mac, 0)) ||
	     (operation == ARP_REPLY && !mac_equal(f->arp.target_mac, f->eth.h_dest))))
		return REASON_ARP_HARDWARE;

	if (direction == DIRECTION_OUT) {
		map_address(key.local, f->arp.sender);
		map_address(key.remote, f->arp.target);
		// Only the neighbour announces itself, see neighbors.
		if (!__builtin_memcmp(f->arp.sender, f->arp.target, 4))
			return REASON_NO_NEIGHBOR;
	} else {
		map_address(key.local, f->arp.target);
		map_address(key.remote, f->arp.sender);
	}
	return bpf_map_lookup_elem(&neighbors, &key) ? REASON_NEIGHBOR : REASON_NO_NEIGHBOR;
}

// Neighbour discovery: who is asked for, and answers, is one of the link's two
// addresses, or one that follows from the hardware address that is asked; nothing in
// it is anybody's choice. Routers ask from their link-local address, and so does this
// node where it makes sure of a neighbour.
static __always_inline enum reason judge_nd(struct __sk_buff *skb, const struct ethhdr *eth, const struct ipv6 *ip, const struct tags *tags, enum direction direction)
{
	struct neighbor key = {.ifindex = skb->ifindex, .tags = tags->stack, .version = 6};
	__u32 length = bpf_ntohs(ip->length), at = sizeof(struct ethhdr) + tags->bytes + sizeof(struct ipv6);
	const __u8 *other;
	__u8 *from, *to;
	struct nd nd = {};
	int asks;

	if ((length != ND_BARE && length != sizeof(nd)) || !length_fits(skb->len - tags->bytes, sizeof(*ip) + length, direction))
		return REASON_LENGTH;
	if (bpf_skb_load_bytes(skb, at, &nd, ND_BARE) ||
	    (length == sizeof(nd) && bpf_skb_load_bytes(skb, at + ND_BARE, (__u8 *)&nd + ND_BARE, sizeof(nd) - ND_BARE)))
		return REASON_SHORT;
	asks = nd.type == ND_SOLICITATION;
	if (ip->hop_limit != ND_HOP_LIMIT || (!asks && nd.type != ND_ADVERTISEMENT) || nd.code || nd.reserved[0] | nd.reserved[1] | nd.reserved[2] ||
	    nd.flags & ~(asks ? 0 : direction == DIRECTION_OUT ? ND_FLAGS : ND_FLAGS | ND_ROUTER))
		return REASON_ND_FORMAT;
	if (length == sizeof(nd) &&
	    (nd.option != (asks ? ND_SOURCE_OPTION : ND_TARGET_OPTION) || nd.option_len != 1 || nd.mac[0] & 1 ||
	     (direction == DIRECTION_OUT && !mac_equal(nd.mac, eth->h_source))))
		return REASON_ND_FORMAT;
	// RFC 2464, section 7.
	if (eth->h_dest[0] & 1 &&
	    (ip->destination[0] != 0xff || eth->h_dest[0] != 0x33 || eth->h_dest[1] != 0x33 || __builtin_memcmp(eth->h_dest + 2, ip->destination + 12, 4)))
		return REASON_ND_FORMAT;

	if (unspecified(ip->source) || unspecified(ip->destination))
		return REASON_NO_NEIGHBOR;
	if (asks) {
		if (!address_equal(ip->destination, nd.target) && !solicited_node(ip->destination, nd.target))
			return REASON_NO_NEIGHBOR;
		other = nd.target;
	} else {
		if (!address_equal(ip->source, nd.target))
			return REASON_NO_NEIGHBOR;
		other = ip->destination;
	}
	// Only the neighbour announces itself, see neighbors, and to all.
	if (address_equal(ip->source, other))
		return REASON_NO_NEIGHBOR;
	from = direction == DIRECTION_OUT ? key.local : key.remote;
	to = direction == DIRECTION_OUT ? key.remote : key.local;
	// A link-local address stays zero. Of the neighbour's, only that which it sends
	// about can be told.
	if (!(asks && direction == DIRECTION_IN ? link_local(ip->source) : own_link_local(ip->source, eth->h_source)))
		__builtin_memcpy(from, ip->source, 16);
	if (!asks && direction == DIRECTION_IN && all_nodes(other))
		__builtin_memcpy(to, ip->source, 16);
	else if (!(!asks && direction == DIRECTION_OUT ? link_local(other) : own_link_local(other, eth->h_dest)))
		__builtin_memcpy(to, other, 16);
	return bpf_map_lookup_elem(&neighbors, &key) ? REASON_NEIGHBOR : REASON_NO_NEIGHBOR;
}

// No extension header is on any packet of ours.
static __always_inline enum reason judge_ipv6(struct __sk_buff *skb, const struct ethhdr *eth, const struct tags *tags, enum direction direction)
{
	struct flow_key key = {.ifindex = skb->ifindex, .tags = tags->stack, .version = 6};
	__u32 at = sizeof(struct ethhdr) + tags->bytes, length;
	union transport transport;
	struct ipv6 ip;
	enum reason why;

	if (bpf_skb_load_bytes(skb, at, &ip, sizeof(ip)))
		return REASON_SHORT;
	if (ip.version >> 4 != 6)
		return REASON_IP_HEADER;
	if (ip.next == FRAGMENT)
		return REASON_FRAGMENT;
	if (ip.next == ICMPV6)
		return judge_nd(skb, eth, &ip, tags, direction);
	if (ip.next != UDP && ip.next != ESP)
		return REASON_PROTOCOL;
	length = bpf_ntohs(ip.length);
	if (!length_fits(skb->len - tags->bytes, sizeof(ip) + length, direction))
		return REASON_LENGTH;
	if (bpf_skb_load_bytes(skb, at + sizeof(ip), &transport, sizeof(transport)))
		return REASON_SHORT;
	key.protocol = ip.next;
	why = judge_transport(&transport, length, direction, &key);
	if (why != REASON_FLOW)
		return why;
	__builtin_memcpy(direction == DIRECTION_OUT ? key.local : key.remote, ip.source, 16);
	__builtin_memcpy(direction == DIRECTION_OUT ? key.remote : key.local, ip.destination, 16);
	return find_flow(skb, &key, direction);
}

// REASON_FLOW, of which this is not the last word, when the tag is in order.
static __always_inline enum reason take_tag(struct tags *tags, __be16 protocol, __u16 tci, enum direction direction)
{
	__u32 vlan = tci & VLAN_ID;

	if (tags->count == MAX_TAGS)
		return REASON_TAGS;
	if (protocol != bpf_htons(ETH_P_8021Q))
		return REASON_VLAN;
	// 0 is a priority tag, the greatest is reserved (IEEE 802.1Q, table 9-2).
	if (!vlan || vlan == VLAN_ID)
		return REASON_PRIORITY_TAG;
	// The other bits carry nothing out.
	if (direction == DIRECTION_OUT && tci != vlan)
		return REASON_VLAN;
	tags->stack = tags->stack << 16 | vlan;
	tags->count++;
	return REASON_FLOW;
}

// The first tag is beside the frame where the kernel or the interface has taken
// it off, or the interface is to put it on; others are always in it.
static __always_inline enum reason take_tags(struct __sk_buff *skb, struct tags *tags, enum direction direction)
{
	struct {
		__be16 protocol;
		__be16 tci;
	} tag;
	enum reason why;

	if (skb->vlan_present) {
		why = take_tag(tags, skb->vlan_proto, skb->vlan_tci, direction);
		if (why != REASON_FLOW)
			return why;
	}
	// One more than can be in order, so that it is seen.
	for (int i = 0; i <= MAX_TAGS; i++) {
		if (bpf_skb_load_bytes(skb, offsetof(struct ethhdr, h_proto) + tags->bytes, &tag, sizeof(tag)))
			return REASON_SHORT;
		if (tag.protocol != bpf_htons(ETH_P_8021Q) && tag.protocol != bpf_htons(ETH_P_8021AD))
			break;
		why = take_tag(tags, tag.protocol, bpf_ntohs(tag.tci), direction);
		if (why != REASON_FLOW)
			return why;
		tags->bytes += TAG_LEN;
	}
	return REASON_FLOW;
}

static __always_inline enum reason judge(struct __sk_buff *skb, enum direction direction)
{
	struct stack_key key = {.ifindex = skb->ifindex};
	struct tags tags = {};
	struct frame f;
	enum reason why = take_tags(skb, &tags, direction);
	int known;

	if (why != REASON_FLOW)
		return why;
	key.tags = tags.stack;
	known = bpf_map_lookup_elem(&stacks, &key) != NULL;
	if (tags.count && !known)
		return REASON_VLAN;
	if (!tags.count && known)
		return REASON_UNTAGGED;
	// Copies, so that it does not matter how much of the frame is linear.
	if (bpf_skb_load_bytes(skb, 0, &f, offsetof(struct frame, eth.h_proto)) ||
	    bpf_skb_load_bytes(skb, offsetof(struct frame, eth.h_proto) + tags.bytes, (__u8 *)&f + offsetof(struct frame, eth.h_proto),
			       sizeof(f) - offsetof(struct frame, eth.h_proto)))
		return REASON_SHORT;
	switch (bpf_ntohs(f.eth.h_proto)) {
	case ETH_P_IP:
		return judge_ipv4(skb, &f, &tags, direction);
	case ETH_P_ARP:
		return judge_arp(skb, &f, &tags, direction);
	case ETH_P_IPV6:
		return judge_ipv6(skb, &f.eth, &tags, direction);
	}
	return REASON_ETHERTYPE;
}

// A function of its own, so that its parameters' types are in BTF for bpf2go.
static __noinline int verdict(struct __sk_buff *skb, enum direction direction, enum reason reason)
{
	__u32 ifindex = skb->ifindex, none = 0, i = direction * MAX_REASONS + reason;
	struct counts *c = bpf_map_lookup_elem(&counters, &ifindex);

	if (!c)
		c = bpf_map_lookup_elem(&counters, &none);
	if (c && i < 2 * MAX_REASONS)
		c->packets[i]++;
	// Shows the reason to whoever runs the program by hand.
	skb->cb[0] = reason;
	return reason == REASON_FLOW || reason == REASON_NEIGHBOR ? PASS : DROP;
}

// Plain "tc" asks for no attach type, which kernels without tcx would refuse.
SEC("tc")
int guard_egress(struct __sk_buff *skb)
{
	return verdict(skb, DIRECTION_OUT, judge(skb, DIRECTION_OUT));
}

SEC("tc")
int guard_ingress(struct __sk_buff *skb)
{
	return verdict(skb, DIRECTION_IN, judge(skb, DIRECTION_IN));
}
