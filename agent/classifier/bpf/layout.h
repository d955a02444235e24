// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//
// What the programs and the driver share. A change of a map's key or value
// needs a new layout version in ../classifier.go.
#pragma once

#include <linux/bpf.h>
#include <linux/types.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_endian.h>

#define MAX_MEMBERS 32
#define MAX_REASONS 32

// What became of a packet. The driver names counters after these; numbers are
// part of the layout.
enum reason {
	REASON_FORWARDED = 0,
	REASON_PASSED = 1,
	REASON_UNKNOWN_INTERFACE = 2,
	REASON_VLAN_TAGGED = 3,
	REASON_NOT_IP = 4,
	REASON_MALFORMED = 5,
	REASON_OTHER_HOST = 6,
	REASON_PROBE_ADDRESS = 7,
	REASON_UNROUTABLE_ADDRESS = 8,
	REASON_SPOOFED_SOURCE = 9,
	REASON_NO_REMOTE = 10,
	REASON_NO_LOCAL = 11,
	REASON_WRONG_SELECTOR = 12,
	REASON_EXPIRED = 13,
	REASON_NO_GROUP = 14,
	REASON_NO_MEMBER = 15,
	REASON_TOO_BIG = 16,
	REASON_NOT_CLASSIFIED = 17,
	REASON_NOT_EDITABLE = 18,
	REASON_ROUTER_MESSAGE = 19,
	REASON_NODE_IS_SHARED = 20,
	REASON_SLOW_PATH = 21,
	REASON_TOLD_MTU = 22,
	REASON_NOT_SLOW_PATH = 23,
};

// Direction halves of a port's counters: only tunnels have the second.
enum direction {
	DIRECTION_IN = 0,
	DIRECTION_OUT = 1,
};

enum port_kind {
	PORT_LAN = 1,
	PORT_TUNNEL = 2,
	// What comes back from the slow path of one LAN.
	PORT_SLOW = 3,
};

// A port is an attachment: what a program knows about the interface on which
// it runs. ifindex repeats the key and comes first: the kernel gives an element
// that was replaced to the next key at once, while programs may still read it,
// and then overwrites it from the front. See read_port.
struct port {
	__u32 ifindex;
	enum port_kind kind;
	__u32 tenant;
	// group, mtu and the probe addresses are a tunnel's.
	__u32 group;
	__u32 mtu;
	// slot is the port's place in counters, never 0.
	__u32 slot;
	// header is 1 if packets that come in begin with a link-layer header.
	__u32 header;
	// shared is a LAN's: 1 if the node serves other tenants too.
	__u32 shared;
	// partner is the device of a LAN's slow path, 0 if there is none now, and
	// the LAN of a slow path's device.
	__u32 partner;
	__u8 local_probe[16];
	__u8 remote_probe[16];
};

// IPv4 addresses are the first four bytes of addr, the rest 0.
struct prefix_key {
	__u32 prefixlen;
	__u32 tenant;
	__u32 family;
	__u8 addr[16];
};

struct host_key {
	__u32 ifindex;
	__u32 family;
	__u8 addr[16];
};

struct local {
	__u32 ifindex;
};

struct remote {
	__u32 group;
};

// A member whose ifindex is 0 has no device now and is never chosen.
struct member {
	__u32 ifindex;
	__u32 number;
	__u32 mtu;
};

// All of a group is one value, so that one update moves its flows. A program
// may see another group's in the midst, as with ports; see choose_tunnel.
struct group {
	__u32 tenant;
	// alive has bit i for members[i]; 0 means all.
	__u32 alive;
	__u32 count;
	struct member members[MAX_MEMBERS];
};

struct counts {
	__u64 packets[2 * MAX_REASONS];
};

// Ports and groups have all their memory from the start: moving a group off a
// dead tunnel must not fail for want of it.
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__type(key, __u32);
	__type(value, struct port);
} ports SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 16384);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__type(key, struct host_key);
	__type(value, __u32);
} hosts SEC(".maps");

// The kernel keeps the nodes of a trie until nobody reads them any more.
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__type(key, struct prefix_key);
	__type(value, struct local);
} locals SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 262144);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__type(key, struct prefix_key);
	__type(value, struct remote);
} remotes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__type(key, __u32);
	__type(value, struct group);
} groups SEC(".maps");

// Slot 0 counts packets of interfaces that are not in ports.
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 4097);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__type(key, __u32);
	__type(value, struct counts);
} counters SEC(".maps");
