package ipsec

import (
	"fmt"
	"strings"

	"github.com/circuitseal/circuitseal/agent/instance"
)

// plugins is what a charon of ours loads, in this order: nothing that would do
// anything of its own accord, such as routes, scripts, resolvers or shunts. An
// implementation that comes first is preferred: aesni before gcm has libipsec
// encrypt ten times as fast.
func plugins(backend Backend) []string {
	list := []string{
		"aesni", "openssl", "random", "nonce", "x509", "constraints", "pubkey", "pkcs1", "pkcs8", "pem",
		"hmac", "kdf", "drbg", "gcm", "chapoly", "curve25519", "ml",
	}
	if backend == Libipsec {
		// Before kernel-netlink, which would take the SAs otherwise.
		list = append(list, "kernel-libipsec")
	}
	return append(list, "kernel-netlink", "socket-default", "vici")
}

// threads is enough for some answers that wait beside those that work.
const threads = 16

// libipsec has a route by its TUN for each policy, or no policy. They are put into a
// table that only packets with the mark nowhere look at, and there are none: it is
// that of the greatest number of a link, which no link has.
const (
	libipsecTable        = 220
	nowhere       uint32 = instance.ControlMark | 0xffff
)

// configuration is strongswan.conf of a charon of ours (strongswan.conf(5)). It
// holds no secret. Each setting has a line of its own, since its parser wants
// that.
func configuration(backend Backend, socket string) string {
	table := 0
	if backend == Libipsec {
		table = libipsecTable
	}
	return fmt.Sprintf(`charon-systemd {
	load = %s
	threads = %d

	# Routes, addresses and interfaces are the agent's.
	install_routes = no
	install_virtual_ip = no
	process_route = no

	# A tunnel is pinned to its link.
	make_before_break = yes
	# Each SA is initiated for itself: a new one beside one that is to go must not
	# become a child of it.
	reuse_ikesa = no
	# The old ESP SA still takes what is on its way.
	delete_rekeyed_delay = 10

	# Hundreds of tunnels between two addresses begin at once, so that the limits for
	# one address do not fit: to refuse more than five of it would let a forger of
	# the far end's address keep its tunnels down. Cookies come late, and what is
	# half open is bounded.
	dos_protection = yes
	cookie_threshold = 2048
	cookie_threshold_ip = 2048
	block_threshold = 8192
	init_limit_half_open = 8192
	half_open_timeout = 30

	# Dead within 31 s: 1, 1.4, 2, 2.7, 3.8 and four times 5 s.
	retransmit_timeout = 1.0
	retransmit_base = 1.4
	retransmit_limit = 5
	retransmit_tries = 8
	retransmit_jitter = 20

	# A fragment fits into the smallest MTU of IPv6, in UDP.
	fragment_size = 1232
	max_packet = 20000

	ikesa_table_size = 1024
	ikesa_table_segments = 16

	# Nobody is told which version this is.
	send_vendor_id = no
	# A peer's redirect would lead elsewhere.
	follow_redirects = no

	journal {
		default = -1
	}
	filelog {
		agent {
			path = stderr
			default = 1
			# A line for each packet would be too many.
			net = 0
			enc = 0
			time_format = %%Y-%%m-%%dT%%H:%%M:%%S
			time_add_ms = yes
			ike_name = yes
			flush_line = yes
		}
	}

	# Routes that libipsec insists on go where nothing looks them up; without them
	# there is no table and no rule.
	routing_table = %d

	plugins {
		openssl {
			load_legacy = no
		}
		socket-default {
			fwmark = %#x
			set_source = yes
		}
		kernel-netlink {
			roam_events = no
			mtu = 0
			mss = 0
			port_bypass = no
			process_rules = no
			fwmark = %#x
		}
		kernel-libipsec {
			allow_peer_ts = no
		}
		vici {
			socket = unix://%s
		}
	}
}
`, strings.Join(plugins(backend), " "), threads, table, instance.ControlMark, nowhere, socket)
}
