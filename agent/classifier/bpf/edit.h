// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//
// Changing packets as a router does: TTL and hop limit, and the MSS option of
// TCP SYNs.
#pragma once

#include "packet.h"

#define TCP_HEADER 20
#define TCP_FLAG_SYN 0x02
#define TCP_OPTION_END 0
#define TCP_OPTION_NOP 1
#define TCP_OPTION_MSS 2
#define MAX_OPTION_BYTES 40

static __always_inline int decrement_ttl(struct __sk_buff *skb, __u32 l2, const struct packet *p)
{
	if (p->family == 4) {
		struct {
			__u8 ttl;
			__u8 protocol;
			__u16 check;
		} edited = { .ttl = p->ttl - 1, .protocol = p->protocol };
		// RFC 1624: one less in the upper byte of a word is 0x100 more in
		// the complement of the sum.
		__u32 sum = (__u32)bpf_ntohs(p->check) + 0x100;

		edited.check = bpf_htons((__u16)(sum + (sum >> 16)));
		return bpf_skb_store_bytes(skb, l2 + 8, &edited, sizeof(edited), 0);
	}
	__u8 hops = p->ttl - 1;

	return bpf_skb_store_bytes(skb, l2 + 7, &hops, sizeof(hops), BPF_F_RECOMPUTE_CSUM);
}

struct option_walk {
	struct __sk_buff *skb;
	// offset of the next option and end of the options, from the network
	// header; found is the offset of the MSS value.
	__u32 offset, end, found;
};

static long next_option(__u32 index, struct option_walk *w)
{
	__u8 h[2] = {};

	(void)index;
	if (w->offset >= w->end || load_net(w->skb, w->offset, h, 1))
		return 1;
	if (h[0] == TCP_OPTION_END)
		return 1;
	if (h[0] == TCP_OPTION_NOP) {
		w->offset++;
		return 0;
	}
	if (w->offset + 1 >= w->end || load_net(w->skb, w->offset, h, 2) || h[1] < 2)
		return 1;
	if (h[0] == TCP_OPTION_MSS && h[1] == 4 && w->offset + 4 <= w->end) {
		w->found = w->offset + 2;
		return 1;
	}
	w->offset += h[1];
	return 0;
}

// clamp_mss lowers the MSS option of a SYN to what an inner packet of mtu
// bytes holds. A packet without one is left alone.
static __always_inline int clamp_mss(struct __sk_buff *skb, __u32 l2, const struct packet *p, __u32 mtu)
{
	struct option_walk w = { .skb = skb };
	__u32 headers = p->family == 4 ? 40 : 60;
	__u8 h[2]; // data offset and flags, RFC 9293, section 3.1
	__u16 was, now;

	if (p->protocol != IPPROTO_TCP || p->later || !p->l4 || mtu <= headers)
		return 0;
	if (load_net(skb, p->l4 + 12, h, sizeof(h)) || !(h[1] & TCP_FLAG_SYN))
		return 0;
	w.offset = p->l4 + TCP_HEADER;
	w.end = p->l4 + (h[0] >> 4) * 4;
	bpf_loop(MAX_OPTION_BYTES, next_option, &w, 0);
	if (!w.found || load_net(skb, w.found, &was, sizeof(was)))
		return 0;
	if (bpf_ntohs(was) <= mtu - headers)
		return 0;
	now = bpf_htons((__u16)(mtu - headers));
	if (bpf_skb_store_bytes(skb, l2 + w.found, &now, sizeof(now), 0))
		return -1;
	// A value at an odd offset lies across two words of the checksum.
	if ((w.found - p->l4) & 1) {
		was = __builtin_bswap16(was);
		now = __builtin_bswap16(now);
	}
	return bpf_l4_csum_replace(skb, l2 + p->l4 + 16, was, now, sizeof(now));
}
