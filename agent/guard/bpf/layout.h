// SPDX-License-Identifier: Apache-2.0
//
// What the programs and the driver share. A change of a map's key or value, or
// of the numbers below, needs a new layout version in ../programs.go.
#pragma once

#include <linux/bpf.h>
#include <linux/types.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_endian.h>

#define MAX_FLOWS 16384
#define MAX_NEIGHBORS 16384
#define MAX_STACKS 4096
#define MAX_INTERFACES 2048
#define MAX_REASONS 24

// Why a frame passes or not. The driver names counters after these.
enum reason {
	REASON_FLOW = 0,
	REASON_NEIGHBOR = 1,
	REASON_SHORT = 2,
	REASON_VLAN = 3,
	REASON_ETHERTYPE = 4,
	REASON_ND_FORMAT = 5,
	REASON_IP_HEADER = 6,
	REASON_FRAGMENT = 7,
	REASON_PROTOCOL = 8,
	REASON_LENGTH = 9,
	REASON_NO_FLOW = 10,
	REASON_MARK = 11,
	REASON_ARP_FORMAT = 12,
	REASON_ARP_HARDWARE = 13,
	REASON_NO_NEIGHBOR = 14,
	REASON_UNTAGGED = 15,
	REASON_PRIORITY_TAG = 16,
	REASON_TAGS = 17,
	REASON_SPI = 18,
};

enum direction {
	DIRECTION_OUT = 0,
	DIRECTION_IN = 1,
};

// VLAN tags as a frame has them on an interface: none is 0, one its VLAN, of two
// the outer one is in the upper half.
struct stack_key {
	__u32 ifindex;
	__u32 tags;
};

// The outer packets of a tunnel, as this node sees them: addresses and ports
// are in network byte order. An IPv4 address is a mapped one (RFC 4291, section
// 2.5.5.2), which the version tells from such a one in IPv6. ESP has ports of 0.
struct flow_key {
	__u32 ifindex;
	__u32 tags;
	__u8 local[16];
	__u8 remote[16];
	__be16 local_port;
	__be16 remote_port;
	__u8 protocol;
	__u8 version;
	__u8 zero[2];
};

// Who makes a flow's packets: each has one of these marks. Most flows have one
// maker, and the same mark twice.
struct flow {
	__u32 marks[2];
};

// With both addresses the neighbour's it is the neighbour's announcement of
// itself (RFC 5227, section 3; RFC 4861, section 7.2.6), which only comes in. In
// IPv6 zero stands for a link-local address, which hosts ask from, are answered at,
// and make sure of.
struct neighbor {
	__u32 ifindex;
	__u32 tags;
	__u8 local[16];
	__u8 remote[16];
	__u32 version;
};

struct counts {
	__u64 packets[2 * MAX_REASONS];
};

// All maps are preallocated: an insertion must not fail for want of memory.
// Tags that an interface carries. An entry without tags says that it carries
// some, so that frames without are not for it. This opens nothing: flows and
// neighbours have the tags in their keys.
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_STACKS);
	__type(key, struct stack_key);
	__type(value, __u8);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} stacks SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_FLOWS);
	__type(key, struct flow_key);
	__type(value, struct flow);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} flows SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_NEIGHBORS);
	__type(key, struct neighbor);
	__type(value, __u8);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} neighbors SEC(".maps");

// By ifindex, so that a count can be laid to one circuit and so to one
// customer. Key 0 takes what comes from an interface without an entry.
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, MAX_INTERFACES);
	__type(key, __u32);
	__type(value, struct counts);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} counters SEC(".maps");
