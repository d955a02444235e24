// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//
// Sharing flows over the members of a group by rendezvous hashing: every
// member scores every flow, the highest score carries it; so a member that is
// lost moves its own flows only.
#pragma once

#include "packet.h"

// The finalizer of MurmurHash3, which spreads every input bit over all output
// bits.
static __always_inline __u64 mix(__u64 x)
{
	x ^= x >> 33;
	x *= 0xff51afd7ed558ccdULL;
	x ^= x >> 33;
	x *= 0xc4ceb9fe1a85ec53ULL;
	x ^= x >> 33;
	return x;
}

static __always_inline __u64 end_hash(const union address *a, __u16 port)
{
	return mix(mix(bpf_be64_to_cpu(a->halves[0]) + 0x9e3779b97f4a7c15ULL) ^
		   bpf_be64_to_cpu(a->halves[1])) + bpf_ntohs(port);
}

// flow_hash is the same for both directions of a flow, so that both ends of a
// group choose the same tunnel, whose number they share. Fragments hash by
// addresses, so that one datagram stays together.
static __always_inline __u64 flow_hash(const struct packet *p)
{
	__u8 protocol = p->fragment ? 0 : p->protocol;

	return mix(mix(end_hash(&p->src, p->sport)) + mix(end_hash(&p->dst, p->dport)) + protocol);
}

// choose_among returns the index of the member that carries the flow, of those
// with a bit in mask, or a negative number if there is none. It is a global
// function, which the verifier examines once and not for every path that leads
// here.
__noinline int choose_among(struct group *g, __u64 hash, __u32 mask)
{
	__u64 best = 0;
	int chosen = -1;

	if (!g)
		return -1;
	for (__u32 i = 0; i < MAX_MEMBERS; i++) {
		__u64 score;

		if (i >= g->count)
			break;
		if (!(mask & (1U << i)) || g->members[i].ifindex == 0)
			continue;
		// Never 0, so that the first member wins against none.
		score = mix(hash ^ ((__u64)g->members[i].number * 0x9e3779b97f4a7c15ULL)) | 1;
		if (score > best) {
			best = score;
			chosen = i;
		}
	}
	return chosen;
}

// choose_member takes one that is alive. Where none of those has a device, as
// where none is alive, all share the flows: a member that is not alive may
// still work, one without a device can not.
static __always_inline int choose_member(struct group *g, __u64 hash)
{
	int i = choose_among(g, hash, g->alive);

	return i < 0 ? choose_among(g, hash, ~0U) : i;
}
