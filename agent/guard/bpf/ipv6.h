// SPDX-License-Identifier: Apache-2.0
//
// Headers and addresses of IPv6 and its neighbour discovery.
#pragma once

#include <linux/if_ether.h>
#include <linux/ipv6.h>
#include <linux/types.h>
#include <stddef.h>

#define ND_SOLICITATION 135
#define ND_ADVERTISEMENT 136
#define ND_HOP_LIMIT 255
// Flags of an advertisement: from a router, solicited, override.
#define ND_ROUTER 0x80
#define ND_FLAGS 0x60
#define ND_SOURCE_OPTION 1
#define ND_TARGET_OPTION 2

// RFC 8200, section 3: the struct of the UAPI has bit-fields for the first bytes.
struct ipv6 {
	__u8 version;
	__u8 flow[3];
	__be16 length;
	__u8 next;
	__u8 hop_limit;
	__u8 source[16];
	__u8 destination[16];
} __attribute__((packed));

_Static_assert(sizeof(struct ipv6) == sizeof(struct ipv6hdr), "RFC 8200");

// RFC 4861, sections 4.3 and 4.4, and 4.6.1 for the option.
struct nd {
	__u8 type;
	__u8 code;
	__be16 checksum;
	__u8 flags;
	__u8 reserved[3];
	__u8 target[16];
	__u8 option;
	__u8 option_len;
	__u8 mac[ETH_ALEN];
} __attribute__((packed));

#define ND_BARE offsetof(struct nd, option)

static __always_inline int address_equal(const __u8 *a, const __u8 *b)
{
	__u64 x[2], y[2];

	__builtin_memcpy(x, a, sizeof(x));
	__builtin_memcpy(y, b, sizeof(y));
	return x[0] == y[0] && x[1] == y[1];
}

// RFC 4291, section 2.7.1.
static __always_inline int solicited_node(const __u8 *a, const __u8 *target)
{
	const __u8 prefix[13] = {0xff, 2, [11] = 1, [12] = 0xff};
	__u8 diff = 0;

	for (int i = 0; i < 13; i++)
		diff |= a[i] ^ prefix[i];
	for (int i = 13; i < 16; i++)
		diff |= a[i] ^ target[i];
	return !diff;
}

static __always_inline int all_nodes(const __u8 *a)
{
	const __u8 want[16] = {0xff, 2, [15] = 1};

	return address_equal(a, want);
}

static __always_inline int unspecified(const __u8 *a)
{
	const __u8 zero[16] = {};

	return address_equal(a, zero);
}

// RFC 4291, section 2.5.6.
static __always_inline int link_local(const __u8 *a)
{
	return a[0] == 0xfe && a[1] == 0x80 && !(a[2] | a[3] | a[4] | a[5] | a[6] | a[7]);
}

// What an interface with this hardware address makes of it (RFC 4291, appendix A).
static __always_inline int own_link_local(const __u8 *a, const __u8 *mac)
{
	return link_local(a) && a[8] == (mac[0] ^ 2) && a[9] == mac[1] && a[10] == mac[2] && a[11] == 0xff && a[12] == 0xfe &&
	       a[13] == mac[3] && a[14] == mac[4] && a[15] == mac[5];
}
