package wireguard

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/circuitseal/circuitseal/agent/instance"
	"github.com/circuitseal/circuitseal/agent/liveness"
	"github.com/circuitseal/circuitseal/agent/netdev"
	"github.com/circuitseal/circuitseal/agent/netns"
	"github.com/circuitseal/circuitseal/agent/netns/netnstest"
	"github.com/circuitseal/circuitseal/agent/plan"
	"github.com/circuitseal/circuitseal/proto/desired"
)

// patience is how long a test waits for what has no limit of its own: the
// machine may be busy with other tests.
const patience = 20 * time.Second

// requireKernelEnv turns the skip of what the lab's kernels have into a failure.
const requireKernelEnv = "CIRCUITSEAL_REQUIRE_KERNEL"

// requireBackend skips where the kernel lacks what the backend needs.
func requireBackend(t *testing.T, b Backend) {
	t.Helper()
	_, n := netnstest.New(t)
	if b != Kernel {
		return
	}
	h, err := n.Netlink()
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	err = h.LinkAdd(&netlink.Wireguard{LinkAttrs: netlink.LinkAttrs{Name: "probe"}})
	if err == nil {
		return
	}
	if os.Getenv(requireKernelEnv) == "1" {
		t.Fatalf("%s=1, but: %v", requireKernelEnv, err)
	}
	t.Skipf("the kernel has no WireGuard: %v", err)
}

// end is one node: an instance with a main and a circuit namespace.
type end struct {
	inst          instance.Instance
	mainName      string
	main, circuit netns.Namespace
	keyDir        string
	keys          *Keys
	backend       Backend
	driver        *Driver
	address       netip.Addr
	// probes asks through the tunnels of the last sync, from run on.
	probes *liveness.Monitor
}

// pair are two ends whose circuit namespaces a cable joins.
type pair struct{ a, b *end }

func newPair(t *testing.T, b Backend) pair {
	t.Helper()
	return newPairAt(t, b, "192.0.2.1", "192.0.2.2")
}

// newPairAt is newPair with these outer addresses.
func newPairAt(t *testing.T, b Backend, first, second string) pair {
	t.Helper()
	requireBackend(t, b)
	p := pair{newEnd(t, "a", b, first), newEnd(t, "b", b, second)}
	h, err := p.a.circuit.Netlink()
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	if err := h.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "circ0"}, PeerName: "circ0", PeerNamespace: netlink.NsFd(p.b.circuit.FD())}); err != nil {
		t.Fatal(err)
	}
	for _, e := range []*end{p.a, p.b} {
		e.cable(t, true)
	}
	return p
}

func newEnd(t *testing.T, letter string, b Backend, address string) *end {
	t.Helper()
	inst, err := instance.Parse(letter + strconv.FormatInt(int64(os.Getpid()), 36))
	if err != nil {
		t.Fatal(err)
	}
	e := &end{inst: inst, backend: b, address: netip.MustParseAddr(address), keyDir: t.TempDir()}
	e.mainName, e.main = netnstest.New(t)
	circuit, _, err := netns.Ensure(inst.Namespace())
	if err != nil {
		t.Fatal(err)
	}
	e.circuit = circuit
	if e.keys, err = OpenKeys(e.keyDir, ring); err != nil {
		t.Fatal(err)
	}
	e.restart()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := errors.Join(e.driver.Remove(ctx), circuit.Close(), netns.Remove(inst.Namespace()), os.RemoveAll(inst.RunDir())); err != nil {
			t.Error(err)
		}
	})
	return e
}

// restart is what an agent that starts again has: no memory.
func (e *end) restart() {
	e.driver = New(Config{
		Main: e.main, Circuit: e.circuit, Instance: e.inst, Keys: e.keys, Backend: e.backend,
		Log: slog.New(slog.DiscardHandler),
	})
}

// cable gives circ0 its address and state.
func (e *end) cable(t *testing.T, up bool) {
	t.Helper()
	h, err := e.circuit.Netlink()
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	l, err := h.LinkByName("circ0")
	if err != nil {
		t.Fatal(err)
	}
	if !up {
		if err := h.LinkSetDown(l); err != nil {
			t.Fatal(err)
		}
		return
	}
	address := &netlink.Addr{IPNet: netdev.NetOf(netip.PrefixFrom(e.address, e.address.BitLen()-2))}
	if e.address.Is6() {
		address.Flags = unix.IFA_F_NODAD
	}
	if err := errors.Join(
		h.AddrReplace(l, address), h.LinkSetUp(l),
	); err != nil {
		t.Fatal(err)
	}
}

func id(n uint16) string { return fmt.Sprintf("contoso/hq/er1/%d", n) }

// shared are pre-shared keys of a tunnel, by generation.
func shared(tunnel string, generations ...uint64) (keys []desired.PresharedKey) {
	for _, g := range generations {
		keys = append(keys, desired.PresharedKey{Generation: g, Key: sha256.Sum256(fmt.Appendf(nil, "%s %d", tunnel, g))})
	}
	return keys
}

// tunnels are the plan of e for numbers, with the keys of far.
func (e *end) tunnels(t *testing.T, far *end, numbers ...uint16) []plan.Tunnel {
	t.Helper()
	var (
		ids []string
		all []plan.Tunnel
	)
	for _, n := range numbers {
		ids = append(ids, id(n))
	}
	if _, err := e.keys.Ensure(ids); err != nil {
		t.Fatal(err)
	}
	theirs, err := far.keys.Ensure(ids)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range numbers {
		local, remote := desired.ProbeAddresses(n)
		if e.address.Compare(far.address) > 0 {
			local, remote = remote, local
		}
		all = append(all, plan.Tunnel{
			ID: id(n), Device: e.inst.Device(n), Mark: instance.Mark(1), MTU: 1380,
			Local: netip.AddrPortFrom(e.address, 51819+n), Peer: netip.AddrPortFrom(far.address, 51819+n),
			PeerKey: theirs[id(n)],

			PresharedKeys: shared(id(n), 1),
			AllowedIPs:    []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16"), single(remote)},
			LocalProbe:    local, RemoteProbe: remote,
		})
	}
	return all
}

// sync is a pass that guards nothing.
func (e *end) sync(t *testing.T, tunnels []plan.Tunnel) {
	t.Helper()
	if err := e.trySync(t, tunnels); err != nil {
		t.Fatal(err)
	}
}

func (e *end) trySync(t *testing.T, tunnels []plan.Tunnel) error {
	t.Helper()
	err := errors.Join(e.driver.Sync(t.Context(), tunnels, func([]string) error { return nil }), e.driver.Sweep(t.Context()))
	if e.probes != nil {
		var targets []liveness.Target
		for _, x := range tunnels {
			targets = append(targets, target(x))
		}
		e.probes.Set(targets)
	}
	return err
}

func target(x plan.Tunnel) liveness.Target {
	return liveness.Target{Tunnel: x.ID, Device: x.Device, Local: x.LocalProbe, Remote: x.RemoteProbe}
}

// run hastens handshakes and probes for the rest of the test, as every agent
// does.
func (e *end) run(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 2)
	d, m := e.driver, liveness.New(liveness.Config{Namespace: e.main, Log: slog.New(slog.DiscardHandler)})
	e.probes = m
	go func() { done <- d.Run(ctx, m.Silent) }()
	go func() { done <- m.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		for range 2 {
			if err := <-done; !errors.Is(err, context.Canceled) {
				t.Errorf("Run = %v", err)
			}
		}
	})
}

// firstPacket probes a tunnel from e until the far kernel answers.
func (e *end) firstPacket(t *testing.T, x plan.Tunnel) time.Duration {
	t.Helper()
	start := time.Now()
	up := make(chan bool, 10)
	m := liveness.New(liveness.Config{Namespace: e.main, Log: slog.New(slog.DiscardHandler), OnChange: func(_ string, u bool) { up <- u }})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("probe: %v", err)
		}
	}()
	deadline := time.After(patience)
	// Set anew each time, so that the answer is to a probe of just now.
	for {
		m.Set(nil)
		m.Set([]liveness.Target{target(x)})
		select {
		case <-up:
			return time.Since(start)
		case <-deadline:
			t.Fatalf("no answer through tunnel %s within %s", x.ID, patience)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (e *end) states(t *testing.T) []TunnelState {
	t.Helper()
	s, err := e.driver.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// process is the pid of e's WireGuard process, or 0.
func (e *end) process(t *testing.T) int {
	t.Helper()
	p, running, err := e.driver.Process(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if !running {
		return 0
	}
	return p.PID
}

// kill ends the WireGuard process that this test's Sync started.
func (e *end) kill(t *testing.T) {
	t.Helper()
	if err := unix.Kill(e.process(t), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for {
		c, err := dial(t.Context(), e.inst)
		if errors.Is(err, errNotRunning) {
			return
		}
		if err == nil {
			_ = c.Close() // it was alive for the last time
		}
		time.Sleep(time.Millisecond)
	}
}
