// Package instance derives every name that an agent gives to something on its
// host from --instance, so that two nodes share a host without meeting and a
// restarted agent recognises its own leftovers without memory. It touches
// nothing.
package instance

import (
	"fmt"
	"hash/fnv"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

// Instance is the name of one agent on a host: 1 to 6 characters a-z and 0-9,
// starting with a letter. The bound comes from Linux interface names, which
// have 15 characters at most (IFNAMSIZ in include/uapi/linux/if.h).
type Instance string

// Default is the instance of a host that has only one.
const Default Instance = "main"

var pattern = regexp.MustCompile(`^[a-z][a-z0-9]{0,5}$`)

// Parse refuses names that are not an Instance.
func Parse(s string) (Instance, error) {
	if !pattern.MatchString(s) {
		return "", fmt.Errorf("instance %.64q: want 1 to 6 characters a-z and 0-9, the first a letter, such as %q", s, Default)
	}
	return Instance(s), nil
}

// StateDir keeps what must survive a reboot: identity, keys, last good state.
func (i Instance) StateDir() string { return filepath.Join("/var/lib/circuitseal", string(i)) }

// SecretKeyFile is where the key lies that encrypts what is secret in StateDir,
// unless somebody says otherwise: elsewhere, so that who copies the one does not
// have the other.
func (i Instance) SecretKeyFile() string { return filepath.Join("/etc/circuitseal", string(i)+".key") }

// RunDir keeps sockets and the bpffs; it goes with a reboot.
func (i Instance) RunDir() string { return filepath.Join("/run/circuitseal", string(i)) }

// BPFDir is where the instance's own bpffs is mounted. It lies outside /sys,
// which `ip netns exec` remounts.
func (i Instance) BPFDir() string { return filepath.Join(i.RunDir(), "bpf") }

// HurryFile is there while the instance has the kernel hurry.
func (i Instance) HurryFile() string { return filepath.Join(i.RunDir(), "hurry") }

// AgentSocket answers `circuitseal-agent status`.
func (i Instance) AgentSocket() string { return filepath.Join(i.RunDir(), "agent.sock") }

// WireGuardSocket controls the WireGuard process.
func (i Instance) WireGuardSocket() string { return filepath.Join(i.RunDir(), "wireguard.sock") }

// Namespace is the name of the circuit namespace, as `ip netns` lists it.
func (i Instance) Namespace() string { return "cs-" + string(i) }

// Device is the interface name of a tunnel.
func (i Instance) Device(tunnel uint16) string { return fmt.Sprintf("%s%d", i.DevicePrefix(), tunnel) }

// DevicePrefix begins the name of every tunnel device of this instance.
func (i Instance) DevicePrefix() string { return "cs-" + string(i) + "-" }

// IPsecDevice is the interface name of a tunnel by IPsec. A tunnel that changes its
// protocol has both for a while.
func (i Instance) IPsecDevice(tunnel uint16) string {
	return fmt.Sprintf("%s%d", i.IPsecDevicePrefix(), tunnel)
}

// IPsecDevicePrefix begins the name of every IPsec device of this instance. No
// other device's begins like that.
func (i Instance) IPsecDevicePrefix() string { return i.Namespace() + "~" }

// IsTunnelDevice reports whether a name is one of Device or IPsecDevice.
func (i Instance) IsTunnelDevice(name string) bool {
	return strings.HasPrefix(name, i.DevicePrefix()) || strings.HasPrefix(name, i.IPsecDevicePrefix())
}

// CharonSocket is where the instance's own charon answers (VICI).
func (i Instance) CharonSocket() string { return filepath.Join(i.RunDir(), "charon.vici") }

// LibipsecTUN is what strongSwan's kernel-libipsec calls the TUN that it makes in
// the circuit namespace.
const LibipsecTUN = "ipsec0"

// CharonPrefix begins the name of everything of this instance in a charon. No other
// instance's begins like that.
func (i Instance) CharonPrefix() string { return i.Namespace() + "." }

// VLANDevice is the name of a tagged link's interface.
func (i Instance) VLANDevice(link uint16) string { return fmt.Sprintf("%s.%d", i.Namespace(), link) }

// OuterVLANDevice is the name of the interface below VLANDevice, for a link's
// outer tag.
func (i Instance) OuterVLANDevice(link uint16) string {
	return fmt.Sprintf("%s+%d", i.Namespace(), link)
}

// IsVLANDevice reports whether a name is one of VLANDevice or OuterVLANDevice. No
// tunnel's device is called so, and no other instance's.
func (i Instance) IsVLANDevice(name string) bool {
	rest, ok := strings.CutPrefix(name, i.Namespace())
	return ok && rest != "" && (rest[0] == '.' || rest[0] == '+')
}

// SlowNamespace is the name of the namespace of the slow path.
func (i Instance) SlowNamespace() string { return i.Namespace() + "-slow" }

// SlowDevicePrefix begins the names of the slow path's devices. No tunnel
// device begins like that, and no other instance's.
func (i Instance) SlowDevicePrefix() string { return i.Namespace() + "_" }

// SlowDevice is the name of both ends of a LAN's slow path, made from the LAN's
// interface index; ok is false for an index that the name has no room for.
func (i Instance) SlowDevice(lan uint32) (name string, ok bool) {
	name = i.SlowDevicePrefix() + strconv.FormatUint(uint64(lan), 36)
	return name, lan != 0 && len(name) <= maxDevice
}

// maxDevice is IFNAMSIZ without the zero that ends a name.
const maxDevice = 15

// SlowTable is the routing table of a LAN in the namespace of the slow path. An
// interface index is below it, and so are the kernel's own tables.
func SlowTable(lan uint32) uint32 { return 1<<31 | lan }

// NFTable is the nftables table in the circuit namespace.
func (i Instance) NFTable() string { return "circuitseal_" + string(i) }

// Filters is the name of a part's traffic-control filters, as `tc filter` lists
// it before a slash.
func (i Instance) Filters(part string) string { return "circuitseal/" + string(i) + "/" + part }

const (
	markBase  = 0x43530000 // "CS"
	tableBase = 0x43530000
)

// Mark is the mark that encryptors and control sockets of a link carry: node
// bits in the upper half, the link's number in the lower.
func Mark(link uint16) uint32 { return markBase | uint32(link) }

// ControlMark is the mark of control sockets that serve several links: charon's.
// No link has the number 0.
const ControlMark uint32 = markBase

// InnerMark is the upper half of the marks of packets that were judged fit to be
// encrypted, never 0 and never that of outer packets; the lower half is their
// group's number. Nothing breaks when two instances have the same: their groups are
// on different devices.
func (i Instance) InnerMark() uint32 {
	h := fnv.New32a()
	_, _ = h.Write([]byte(i)) // never fails
	base := h.Sum32()<<16 ^ h.Sum32()&0xffff0000
	for base == 0 || base == markBase {
		base += 1 << 16
	}
	return base
}

// InnerTable is the routing table of the main namespace for packets with InnerMark.
func (i Instance) InnerTable() uint32 { return i.InnerMark() }

// InterfaceID is what a tunnel's IPsec interface, SAs and policies are told by
// (XFRMA_IF_ID).
func InterfaceID(tunnel uint16) uint32 { return markBase | uint32(tunnel) }

// Table is the routing table of a link in the circuit namespace.
func Table(link uint16) uint32 { return tableBase | uint32(link) }

// RouteProtocol marks every route and rule that an agent makes (rtm_protocol;
// values of 0 to 15 and those named in rtnetlink.h are taken).
const RouteProtocol = 0xC5
