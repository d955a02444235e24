package scenario

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/circuitseal/circuitseal/testlab/kernelvm"
)

// probes try a facility of the kernel in a namespace of their own.
var probes = []struct {
	name string
	args []string
}{
	{"kernel-wireguard", []string{"ip", "link", "add", "probe0", "type", "wireguard"}},
	{"kernel-esp", []string{"ip", "xfrm", "state", "add", "src", "192.0.2.1", "dst", "192.0.2.2", "proto", "esp", "spi", "0x100", "mode", "tunnel",
		"aead", "rfc4106(gcm(aes))", "0x" + strings.Repeat("00", 36), "128"}},
	{"xfrm-interface", []string{"ip", "link", "add", "probe1", "type", "xfrm", "dev", "lo", "if_id", "1"}},
	{"vrf", []string{"ip", "link", "add", "probe2", "type", "vrf", "table", "10"}},
	// The loopback takes no VLANs.
	{"vlan", []string{"sh", "-ec", "ip link add probe3 type veth peer name probe4; ip link add link probe3 type vlan proto 802.1ad id 10"}},
	{"netem", []string{"tc", "qdisc", "add", "dev", "lo", "root", "netem", "delay", "1ms"}},
	// The clock is the whole machine's, so only the lab's own may be set.
	{"clock", []string{"grep", "-q", kernelvm.ShareParam + "=", "/proc/cmdline"}},
}

// tcx is no facility: kernels before 6.6 lack it, and the product makes do.
func tcx() (bool, error) {
	const loopback = 1
	_, err := link.QueryPrograms(link.QueryOptions{Target: loopback, Attach: ebpf.AttachTCXIngress})
	if errors.Is(err, unix.EINVAL) || errors.Is(err, ebpf.ErrNotSupported) {
		return false, nil
	}
	return err == nil, err
}

// Facilities are the names that this kernel has of what scenarios may need;
// with all set it is an error if there is any that it lacks.
func Facilities(ctx context.Context, all bool) ([]string, error) {
	ns := "labprobe-" + strings.ToLower(rand.Text()[:6])
	if out, err := exec.CommandContext(ctx, "ip", "netns", "add", ns).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("make a namespace to probe the kernel in: %w: %s", err, out)
	}
	defer func() { _ = exec.Command("ip", "netns", "del", ns).Run() }()
	var have []string
	var lacks []error
	for _, p := range probes {
		out, err := exec.CommandContext(ctx, "ip", append([]string{"netns", "exec", ns}, p.args...)...).CombinedOutput()
		if err == nil {
			have = append(have, p.name)
		} else {
			lacks = append(lacks, fmt.Errorf("this kernel has no %s: %q: %w: %s", p.name, p.args, err, bytes.TrimSpace(out)))
		}
	}
	if all {
		return have, errors.Join(lacks...)
	}
	return have, nil
}

// unknown are the needs that are no facility: a misspelt one would skip its
// scenario for ever.
func unknown(needs []string) error {
	var names []string
	for _, p := range probes {
		names = append(names, p.name)
	}
	for _, n := range needs {
		if !slices.Contains(names, n) {
			return fmt.Errorf("needs: %q is no facility; want %s", n, strings.Join(names, ", "))
		}
	}
	return nil
}

// missing are the needs that are not had.
func missing(needs, have []string) []string {
	return slices.DeleteFunc(slices.Clone(needs), func(n string) bool { return slices.Contains(have, n) })
}
