// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//
// Reading packets: addresses, from the network header only, and as much of
// what follows as flow hashing and MSS clamping need. Nothing after the fixed
// IP header can change where a packet may go.
#pragma once

#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/in6.h>

#include "layout.h"

#define MAX_EXTENSIONS 8

// Bytes that are made linear before parsing: an Ethernet header and what a
// usual stack of headers needs.
#define LINEAR_BYTES 142

union address {
	__u8 bytes[16];
	__u32 words[4];
	__u64 halves[2];
};

struct packet {
	union address src, dst;
	__u32 family;
	// length is of the network header and all behind it.
	__u32 length;
	// l4 is where the transport header begins, counted from the network
	// header; 0 if that was not found.
	__u32 l4;
	// protocol is of the transport header, or the first next header if that
	// has not been looked for.
	__u8 protocol;
	__u8 ttl;
	// fragment is set for every fragment, later for all but the first.
	__u8 fragment;
	__u8 later;
	// check is the IPv4 header's checksum as it stands in the packet.
	__u16 check;
	__u16 sport, dport;
};

struct ipv4 {
	__u8 version_ihl;
	__u8 tos;
	__u16 total;
	__u16 id;
	__u16 fragment;
	__u8 ttl;
	__u8 protocol;
	__u16 check;
	__u8 src[4];
	__u8 dst[4];
};

struct ipv6 {
	__u8 version_class;
	__u8 class_flow;
	__u16 flow;
	__u16 payload;
	__u8 next;
	__u8 hops;
	__u8 src[16];
	__u8 dst[16];
};

static __always_inline long load_net(struct __sk_buff *skb, __u32 offset, void *to, __u32 size)
{
	return bpf_skb_load_bytes_relative(skb, offset, to, size, BPF_HDR_START_NET);
}

// Loads relative to the network header see the linear part only.
static __always_inline void make_linear(struct __sk_buff *skb)
{
	__u32 linear = skb->data_end - skb->data;
	__u32 want = skb->len;

	if (want > LINEAR_BYTES)
		want = LINEAR_BYTES;
	if (linear < want)
		bpf_skb_pull_data(skb, want);
}

// parse_addresses reads the fixed header. l2 is the number of bytes before the
// network header. It returns 0, or a negative number for what is no sound
// IPv4 or IPv6 header.
static __always_inline int parse_addresses(struct __sk_buff *skb, __u32 l2, struct packet *p)
{
	if (skb->len <= l2)
		return -1;
	p->length = skb->len - l2;

	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		struct ipv4 h;
		__u32 total, ihl;

		if (load_net(skb, 0, &h, sizeof(h)))
			return -1;
		ihl = (h.version_ihl & 0xf) * 4;
		total = bpf_ntohs(h.total);
		if (h.version_ihl >> 4 != 4 || ihl < sizeof(h) || ihl > p->length)
			return -1;
		// A GSO packet of more than 64 KiB has no total length.
		if (total == 0 && skb->gso_size)
			total = p->length;
		if (total < ihl || total > p->length)
			return -1;
		p->family = 4;
		p->l4 = ihl;
		p->protocol = h.protocol;
		p->ttl = h.ttl;
		p->check = h.check;
		p->fragment = (h.fragment & bpf_htons(0x3fff)) != 0;
		p->later = (h.fragment & bpf_htons(0x1fff)) != 0;
		__builtin_memcpy(p->src.bytes, h.src, 4);
		__builtin_memcpy(p->dst.bytes, h.dst, 4);
		return 0;
	}

	if (skb->protocol == bpf_htons(ETH_P_IPV6)) {
		struct ipv6 h;
		__u32 payload;

		if (load_net(skb, 0, &h, sizeof(h)))
			return -1;
		payload = bpf_ntohs(h.payload);
		if (h.version_class >> 4 != 6 || payload + sizeof(h) > p->length)
			return -1;
		// Only GSO packets may leave their length open: a jumbogram
		// (RFC 2675) does not fit any device here.
		if (payload == 0 && h.next == 0 && !skb->gso_size)
			return -1;
		p->family = 6;
		p->protocol = h.next;
		p->ttl = h.hops;
		__builtin_memcpy(p->src.bytes, h.src, 16);
		__builtin_memcpy(p->dst.bytes, h.dst, 16);
		return 0;
	}
	return -2;
}

// parse_transport finds protocol, l4 and, for TCP and UDP that is whole, the
// ports. It is a global function, which the verifier examines once.
__noinline int parse_transport(struct __sk_buff *skb, struct packet *p)
{
	if (!p)
		return 0;
	if (p->family == 6) {
		__u32 offset = sizeof(struct ipv6);
		__u8 next = p->protocol;
		int found = 0;

		for (int i = 0; i < MAX_EXTENSIONS; i++) {
			__u8 h[4];
			__u32 size;

			switch (next) {
			case IPPROTO_HOPOPTS:
			case IPPROTO_ROUTING:
			case IPPROTO_DSTOPTS:
			case IPPROTO_AH:
			case IPPROTO_MH:
			case 139: // HIP, RFC 7401
			case 140: // Shim6, RFC 5533
			case IPPROTO_FRAGMENT:
				break;
			default:
				found = 1;
			}
			if (found)
				break;
			if (load_net(skb, offset, h, sizeof(h)))
				break;
			size = ((__u32)h[1] + 1) * 8;
			if (next == IPPROTO_AH)
				size = ((__u32)h[1] + 2) * 4;
			if (next == IPPROTO_FRAGMENT) {
				size = 8;
				p->fragment = 1;
				if (h[2] || h[3] & 0xf8)
					p->later = 1;
			}
			next = h[0];
			offset += size;
			if (p->later)
				break;
		}
		p->protocol = found ? next : 0;
		p->l4 = found && !p->later ? offset : 0;
	}
	if (p->fragment || !p->l4)
		return 0;
	if (p->protocol == IPPROTO_TCP || p->protocol == IPPROTO_UDP) {
		__u16 ports[2];

		if (load_net(skb, p->l4, ports, sizeof(ports)))
			return 0;
		p->sport = ports[0];
		p->dport = ports[1];
	}
	return 0;
}

static __always_inline int same_address(const __u8 *a, const __u8 *b)
{
	const __u32 *x = (const __u32 *)a, *y = (const __u32 *)b;

	return x[0] == y[0] && x[1] == y[1] && x[2] == y[2] && x[3] == y[3];
}

static __always_inline int is_multicast6(const union address *a)
{
	return a->bytes[0] == 0xff;
}

// unroutable is true of addresses that no router may forward from or to,
// whatever prefixes a policy names: this-network, loopback, link-local,
// multicast, reserved (RFC 6890, RFC 4291).
static __always_inline int unroutable(__u32 family, const union address *a)
{
	if (family == 4)
		return a->bytes[0] == 0 || a->bytes[0] == 127 || a->bytes[0] >= 224 ||
		       (a->bytes[0] == 169 && a->bytes[1] == 254);
	if (a->bytes[0] == 0xff || (a->bytes[0] == 0xfe && (a->bytes[1] & 0xc0) == 0x80))
		return 1;
	if (a->halves[0] != 0)
		return 0;
	return a->words[2] == bpf_htonl(0xffff) ||
	       (a->words[2] == 0 && bpf_ntohl(a->words[3]) <= 1);
}
