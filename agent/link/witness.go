package link

import (
	"fmt"
	"math"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/circuitseal/circuitseal/agent/drift"
	"github.com/circuitseal/circuitseal/agent/nlmsg"
)

// witness notes who else changes the circuit namespace: its messages say by which
// netlink port a change was asked for, and the first port of a process is its
// pid (netlink_autobind in net/netlink/af_netlink.c). Later ports of a process
// are random and negative, and the kernel's own changes have 0; neither names
// anybody.
func (d *Driver) witness(b []byte) { d.witnessOf(b, subject) }

// witnessMain is witness for the main namespace, where only routes that are marked
// as ours are nobody else's business.
func (d *Driver) witnessMain(b []byte) {
	d.witnessOf(b, func(kind uint16, payload []byte) (k drift.Kind, protocol string) {
		if k, _ := subject(kind, payload); k == drift.Route && len(payload) >= unix.SizeofRtMsg && ownRoute(payload[5]) {
			return drift.TunnelRoute, ""
		}
		return "", ""
	})
}

func (d *Driver) witnessOf(b []byte, subject func(kind uint16, payload []byte) (k drift.Kind, protocol string)) {
	own := uint32(os.Getpid())
	nlmsg.Messages(b, func(kind uint16, port uint32, payload []byte) {
		if port == 0 || port == own || port > math.MaxInt32 {
			return
		}
		k, protocol := subject(kind, payload)
		if k == "" {
			return
		}
		d.config.Drift.Saw(k, actor(int(port))+protocol)
	})
}

// subject is what a message is about, and of a new route the protocol that made
// it, in words.
func subject(kind uint16, payload []byte) (k drift.Kind, protocol string) {
	switch kind {
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		if kind == unix.RTM_NEWROUTE && len(payload) >= unix.SizeofRtMsg {
			protocol = ", which puts a route of protocol " + protocolName(payload[5]) + " in its place"
		}
		return drift.Route, protocol
	case unix.RTM_NEWADDR, unix.RTM_DELADDR:
		return drift.Address, ""
	case unix.RTM_NEWRULE, unix.RTM_DELRULE:
		return drift.Rule, ""
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		return drift.Interface, ""
	case unix.RTM_NEWQDISC, unix.RTM_DELQDISC, unix.RTM_NEWTFILTER, unix.RTM_DELTFILTER:
		return drift.GuardProgram, ""
	}
	return "", ""
}

// protocolName follows include/uapi/linux/rtnetlink.h.
func protocolName(p byte) string {
	names := map[byte]string{
		unix.RTPROT_KERNEL: "kernel", unix.RTPROT_BOOT: "boot (ip(8), or a script with it)", unix.RTPROT_STATIC: "static (systemd-networkd, NetworkManager or an administrator)",
		unix.RTPROT_RA: "ra (router advertisements)", unix.RTPROT_ZEBRA: "zebra (FRR)", unix.RTPROT_BIRD: "bird", unix.RTPROT_DHCP: "dhcp (a DHCP client)",
		unix.RTPROT_KEEPALIVED: "keepalived", unix.RTPROT_BABEL: "babel", unix.RTPROT_BGP: "bgp", unix.RTPROT_ISIS: "isis", unix.RTPROT_OSPF: "ospf", unix.RTPROT_RIP: "rip", unix.RTPROT_EIGRP: "eigrp",
	}
	if n, ok := names[p]; ok {
		return n
	}
	return strconv.Itoa(int(p))
}

// actor names a process as far as it still runs.
func actor(pid int) string {
	comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	if err != nil {
		return fmt.Sprintf("a process that ended at once (pid %d), such as ip(8) in a script", pid)
	}
	return fmt.Sprintf("%.16q (pid %d)", strings.TrimSpace(string(comm)), pid)
}
