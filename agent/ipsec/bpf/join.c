// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//
// The way between libipsec's TUN and the pair that leads to the main namespace, in
// the circuit namespace: each end's packets go out of the other, and nothing else
// does, neither from nor to the stack.
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define TC_NEXT (-1)
#define TC_DROP 2

char __license[] SEC("license") = "Dual BSD/GPL";

// Where packets go: the other end's interface. Set by the driver at load.
const volatile __u32 target;
// The addresses of the pair, so that the main namespace takes packets for its own.
const volatile __u8 main_mac[ETH_ALEN];
const volatile __u8 pair_mac[ETH_ALEN];
// What a packet carries between the two hooks; only a program of this namespace can
// set it, since its sockets have others.
const volatile __u32 passing;

static __always_inline int is_ip(const struct __sk_buff *skb)
{
	return skb->protocol == bpf_htons(ETH_P_IP) || skb->protocol == bpf_htons(ETH_P_IPV6);
}

SEC("tc")
int cs_pair_in(struct __sk_buff *skb)
{
	if (!is_ip(skb))
		return TC_DROP;
	skb->mark = passing;
	return bpf_redirect(target, 0);
}

SEC("tc")
int cs_tun_in(struct __sk_buff *skb)
{
	struct ethhdr eth;

	if (!is_ip(skb))
		return TC_DROP;
	eth.h_proto = skb->protocol;
	for (int i = 0; i < ETH_ALEN; i++) {
		eth.h_dest[i] = main_mac[i];
		eth.h_source[i] = pair_mac[i];
	}
	if (bpf_skb_change_head(skb, ETH_HLEN, 0) || bpf_skb_store_bytes(skb, 0, &eth, sizeof(eth), 0))
		return TC_DROP;
	skb->mark = passing;
	return bpf_redirect(target, 0);
}

SEC("tc")
int cs_out(struct __sk_buff *skb)
{
	if (skb->mark != passing)
		return TC_DROP;
	skb->mark = 0;
	return TC_NEXT;
}
