package ipsec

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/circuitseal/circuitseal/agent/drift"
	"github.com/circuitseal/circuitseal/agent/instance"
	"github.com/circuitseal/circuitseal/agent/netdev"
	"github.com/circuitseal/circuitseal/agent/netns"
	"github.com/circuitseal/circuitseal/agent/netns/netnstest"
	"github.com/circuitseal/circuitseal/agent/plan"
	"github.com/circuitseal/circuitseal/proto/desired"
	"github.com/circuitseal/circuitseal/proto/sealed"
)

// patience is how long a test waits for what has no limit of its own: the machine
// may be busy with other tests.
const patience = 40 * time.Second

// requireKernelEnv turns the skip of what the lab's kernels have into a failure.
const requireKernelEnv = "CIRCUITSEAL_REQUIRE_KERNEL"

// requireBackend skips where charon or the kernel's ESP is missing.
func requireBackend(t *testing.T, b Backend) {
	t.Helper()
	netnstest.RequireRoot(t)
	if _, err := findDaemon(); err != nil {
		if os.Getenv(netnstest.RequireEnv) == "1" {
			t.Fatalf("%s=1, but: %v", netnstest.RequireEnv, err)
		}
		t.Skip(err)
	}
	have, err := Automatic.resolve()
	if err != nil {
		t.Fatal(err)
	}
	if have != b {
		if b == Kernel && os.Getenv(requireKernelEnv) == "1" {
			t.Fatalf("%s=1, but the kernel has no ESP", requireKernelEnv)
		}
		t.Skipf("this kernel carries ESP by %s", have)
	}
}

// backends runs a test with what this kernel has.
func backends(t *testing.T, f func(t *testing.T, b Backend)) {
	for _, b := range []Backend{Kernel, Libipsec} {
		t.Run(b.String(), func(t *testing.T) {
			requireBackend(t, b)
			f(t, b)
		})
	}
}

// authority is a CA.
type authority struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"}, NotBefore: time.Now().Add(-48 * time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return authority{c, key}
}

// issue signs the public key that a node has reported.
func (a authority) issue(t *testing.T, k desired.IdentityKey, until time.Time) []byte {
	t.Helper()
	public, err := x509.ParsePKIXPublicKey(k.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: k.Name}, DNSNames: []string{k.Name},
		NotBefore: time.Now().Add(-24 * time.Hour), NotAfter: until, KeyUsage: x509.KeyUsageDigitalSignature,
	}, a.certificate, public, a.key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

var ring = mustRing("cskey1.1700000000.AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAE")

func mustRing(lines ...string) *sealed.Ring {
	r, err := sealed.Parse([]byte(strings.Join(lines, "\n")))
	if err != nil {
		panic(err)
	}
	return r
}

// end is one node: an instance with a main and a circuit namespace.
type end struct {
	inst          instance.Instance
	main, circuit netns.Namespace
	keys          *Keys
	driver        *Driver
	drift         *drift.Ledger
	address       netip.Addr
	identity      desired.Identity
	// silent is what the driver is told of its tunnels.
	silent func(string, time.Time) bool
	log    *slog.Logger
}

// pair are two ends whose circuit namespaces a cable joins.
type pair struct {
	a, b *end
	ca   authority
}

var pairs atomic.Uint64

func newPair(t *testing.T) *pair {
	t.Helper()
	// A number of one letter, for pairs that stand at once.
	n := strconv.FormatUint(pairs.Add(1)%36, 36)
	p := &pair{newEnd(t, "a"+n, "192.0.2.1"), newEnd(t, "b"+n, "192.0.2.2"), newAuthority(t)}
	h, err := p.a.circuit.Netlink()
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	if err := h.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "circ0"}, PeerName: "circ0", PeerNamespace: netlink.NsFd(p.b.circuit.FD())}); err != nil {
		t.Fatal(err)
	}
	for _, e := range []*end{p.a, p.b} {
		e.cable(t)
		e.issue(t, p.ca, time.Now().Add(time.Hour))
	}
	return p
}

func newEnd(t *testing.T, name, address string) *end {
	t.Helper()
	letter := name[:1]
	inst, err := instance.Parse(name + strconv.FormatInt(int64(os.Getpid()), 36))
	if err != nil {
		t.Fatal(err)
	}
	e := &end{inst: inst, address: netip.MustParseAddr(address), identity: desired.Identity{Name: letter + ".customer.example"}}
	e.log = slog.New(slog.DiscardHandler)
	if os.Getenv("CIRCUITSEAL_TEST_LOG") != "" {
		e.log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})).With("end", letter)
	}
	_, e.main = netnstest.New(t)
	circuit, _, err := netns.Ensure(inst.Namespace())
	if err != nil {
		t.Fatal(err)
	}
	e.circuit = circuit
	if e.keys, err = OpenKeys(t.TempDir(), ring); err != nil {
		t.Fatal(err)
	}
	e.restart()
	t.Cleanup(func() {
		if t.Failed() {
			if b, err := os.ReadFile(filepath.Join(inst.RunDir(), "charon.log")); err == nil {
				lines := strings.Split(string(b), "\n")
				t.Logf("charon of %s:\n%s", letter, strings.Join(lines[max(0, len(lines)-120):], "\n"))
			}
		}
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		errs := e.driver.Remove(ctx)
		_ = unix.Unmount(inst.BPFDir(), unix.MNT_DETACH)
		if err := errors.Join(errs, circuit.Close(), netns.Remove(inst.Namespace()), os.RemoveAll(inst.RunDir())); err != nil {
			t.Error(err)
		}
	})
	return e
}

// restart is what an agent that starts again has: no memory.
func (e *end) restart() {
	e.drift = drift.New()
	e.driver = New(Config{Main: e.main, Circuit: e.circuit, Instance: e.inst, Keys: e.keys, Drift: e.drift, Log: e.log})
}

func (e *end) cable(t *testing.T) {
	t.Helper()
	h, l := e.openCable(t)
	for _, a := range []netip.Prefix{netip.PrefixFrom(e.address, 24), netip.PrefixFrom(e.six(), 64)} {
		if err := h.AddrReplace(l, &netlink.Addr{IPNet: netdev.NetOf(a), Flags: unix.IFA_F_NODAD}); err != nil {
			t.Fatal(err)
		}
	}
	if err := h.LinkSetUp(l); err != nil {
		t.Fatal(err)
	}
}

// unplug has nothing come and go any more.
func (e *end) unplug(t *testing.T) {
	t.Helper()
	h, l := e.openCable(t)
	if err := h.LinkSetDown(l); err != nil {
		t.Fatal(err)
	}
}

// openCable is its circuit interface, and a handle that lives as long as the test.
func (e *end) openCable(t *testing.T) (*netlink.Handle, netlink.Link) {
	t.Helper()
	h, err := e.circuit.Netlink()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.Close)
	l, err := h.LinkByName("circ0")
	if err != nil {
		t.Fatal(err)
	}
	return h, l
}

// six is its other outer address.
func (e *end) six() netip.Addr {
	a := netip.MustParseAddr("2001:db8::").As16()
	a[15] = e.address.As4()[3]
	return netip.AddrFrom16(a)
}

// issue gives the end a certificate for another generation of its key.
func (e *end) issue(t *testing.T, ca authority, until time.Time) {
	t.Helper()
	g := uint64(len(e.identity.Certificates) + 1)
	e.identity.Certificates = append([]desired.IdentityCertificate{{Generation: g}}, e.identity.Certificates...)
	keys, err := e.keys.Ensure([]desired.Identity{e.identity})
	if err != nil {
		t.Fatal(err)
	}
	e.identity.Certificates[0].Certificate = ca.issue(t, keys[0], until)
}

// current is the certificate that the end shows.
func (e *end) current() []byte { return e.identity.Certificates[0].Certificate }

func shared(t *testing.T, generations ...uint64) []desired.PresharedKey {
	t.Helper()
	var keys []desired.PresharedKey
	for _, g := range generations {
		k := desired.PresharedKey{Generation: g}
		for i := range k.Key {
			k.Key[i] = byte(g)
		}
		keys = append(keys, k)
	}
	return keys
}

// plans is what both ends are to have: one tunnel by certificates and a PPK.
func (p *pair) plans(t *testing.T, change ...func(a, b *plan.IPsecTunnel)) (a, b plan.IPsec) {
	t.Helper()
	local, remote := desired.ProbeAddresses(7)
	of := func(e, other *end, initiates bool, local, remote netip.Addr, mine, theirs string) plan.IPsec {
		return plan.IPsec{
			Identities: []desired.Identity{e.identity}, Authorities: [][]byte{p.ca.certificate.Raw},
			Tunnels: []plan.IPsecTunnel{{
				ID: "customer/connection/circuit/link", Device: e.inst.IPsecDevice(7), Number: 7,
				InterfaceID: instance.InterfaceID(7), Mark: instance.Mark(1), MTU: 1360,
				Local: e.address, Remote: other.address, Initiates: initiates,
				Policy: desired.IPsecPolicy{
					Profile: "test", LocalID: e.identity.Name, RemoteID: other.identity.Name,
					Authentication: desired.AuthenticationCertificate, PeerCertificates: [][]byte{other.current()},
					IKEProposals: []string{"aes256gcm16-prfsha384-ecp384"}, ESPProposals: []string{espProposal()},
					PPKRequired: true, IKELifetime: 4 * time.Hour, ESPLifetime: time.Hour, DPDDelay: 2 * time.Second,
				},
				PresharedKeys: shared(t, 1), LocalProbe: local, RemoteProbe: remote,
				Locals: []netip.Prefix{netip.MustParsePrefix(mine)}, Remotes: []netip.Prefix{netip.MustParsePrefix(theirs)},
			}},
		}
	}
	a = of(p.a, p.b, true, local, remote, "10.1.0.0/16", "10.2.0.0/16")
	b = of(p.b, p.a, false, remote, local, "10.2.0.0/16", "10.1.0.0/16")
	for _, c := range change {
		c(&a.Tunnels[0], &b.Tunnels[0])
	}
	return a, b
}

// espProposal is one that the backend of this kernel can do.
func espProposal() string {
	if b, _ := Automatic.resolve(); b == Libipsec {
		return "aes256gcm16-ecp384"
	}
	return "aes256gcm16-ecp384-esn"
}

func (e *end) sync(t *testing.T, want plan.IPsec) {
	t.Helper()
	if err := e.trySync(want); err != nil {
		t.Fatal(err)
	}
}

func (e *end) trySync(want plan.IPsec) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return errors.Join(e.driver.Sync(ctx, want, func([]string) error { return nil }), e.driver.Sweep(ctx))
}

// run has the driver of the end run until the test ends.
func (e *end) run(t *testing.T) { e.start(t) }

// start does so until stop is called, or the test ends.
func (e *end) start(t *testing.T) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	driver := e.driver
	go func() {
		defer close(done)
		_ = driver.Run(ctx, func(id string, since time.Time) bool { return e.silent != nil && e.silent(id, since) })
	}()
	stop = func() { cancel(); <-done }
	t.Cleanup(stop)
	return stop
}

func (e *end) status(t *testing.T) TunnelState {
	t.Helper()
	s, err := e.driver.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(s) != 1 {
		t.Fatalf("status has %d tunnels", len(s))
	}
	return s[0]
}

// await waits until ok says so of the end's tunnel.
func (e *end) await(t *testing.T, what string, ok func(TunnelState) bool) TunnelState {
	t.Helper()
	return e.awaitFor(t, patience, what, ok)
}

func (e *end) awaitFor(t *testing.T, limit time.Duration, what string, ok func(TunnelState) bool) TunnelState {
	t.Helper()
	var s TunnelState
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if s = e.status(t); ok(s) {
			return s
		}
	}
	t.Fatalf("%s: waited for %s in vain: %+v", e.inst, what, s)
	return s
}

func isUp(s TunnelState) bool { return s.Up && s.Problem == "" && len(s.Associations) == 1 }

func (p *pair) awaitUp(t *testing.T) {
	t.Helper()
	p.a.await(t, "a tunnel that is up", isUp)
	p.b.await(t, "a tunnel that is up", isUp)
}

// carries sends a packet from probe address to probe address, and back.
func (p *pair) carries(t *testing.T) error {
	t.Helper()
	local, remote := desired.ProbeAddresses(7)
	open := func(e *end, at netip.Addr) (fd int, err error) {
		err = e.main.Do(func() error {
			fd, err = unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return err
			}
			if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 300_000}); err != nil {
				return err
			}
			return unix.Bind(fd, &unix.SockaddrInet6{Port: 4000, Addr: at.As16()})
		})
		return fd, err
	}
	x, err := open(p.a, local)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(x) }()
	y, err := open(p.b, remote)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(y) }()
	for i, end := 0, time.Now().Add(patience/4); time.Now().Before(end); i++ {
		text := fmt.Sprintf("packet %d", i)
		if err = unix.Sendto(x, []byte(text), 0, &unix.SockaddrInet6{Port: 4000, Addr: remote.As16()}); err != nil {
			time.Sleep(100 * time.Millisecond)
			continue
		}
		var b [100]byte
		n, _, rerr := unix.Recvfrom(y, b[:], 0)
		if rerr != nil {
			err = fmt.Errorf("forward: %w", rerr)
			continue
		}
		if err = unix.Sendto(y, b[:n], 0, &unix.SockaddrInet6{Port: 4000, Addr: local.As16()}); err != nil {
			continue
		}
		if _, _, err = unix.Recvfrom(x, b[:], 0); err == nil {
			return nil
		}
		err = fmt.Errorf("back: %w", err)
	}
	return err
}

// stream sends numbered packets through the tunnel until lost is called, which
// tells how many did not arrive.
func (p *pair) stream(t *testing.T) (lost func() (n, all int)) {
	t.Helper()
	local, remote := desired.ProbeAddresses(7)
	socket := func(e *end, at netip.Addr) (fd int) {
		err := e.main.Do(func() (err error) {
			if fd, err = unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
				return err
			}
			if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 500_000}); err != nil {
				return err
			}
			return unix.Bind(fd, &unix.SockaddrInet6{Port: 4001, Addr: at.As16()})
		})
		if err != nil {
			t.Fatal(err)
		}
		return fd
	}
	from, to := socket(p.a, local), socket(p.b, remote)
	stop, sent, got := make(chan struct{}), make(chan int), make(chan int)
	go func() {
		n := 0
		for {
			select {
			case <-stop:
				sent <- n
				return
			case <-time.After(2 * time.Millisecond):
				_ = unix.Sendto(from, []byte(strconv.Itoa(n)), 0, &unix.SockaddrInet6{Port: 4001, Addr: remote.As16()})
				n++
			}
		}
	}()
	over := make(chan struct{})
	go func() {
		n := 0
		var b [100]byte
		for {
			if _, _, err := unix.Recvfrom(to, b[:], 0); err == nil {
				n++
				continue
			}
			select {
			case <-over:
				got <- n
				return
			default:
			}
		}
	}()
	return func() (int, int) {
		close(stop)
		all := <-sent
		close(over)
		n := <-got
		_, _ = unix.Close(from), unix.Close(to)
		return all - n, all
	}
}
