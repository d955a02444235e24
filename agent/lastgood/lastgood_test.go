package lastgood

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"math/big"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	v1 "github.com/circuitseal/circuitseal/proto/circuitseal/v1"
	"github.com/circuitseal/circuitseal/proto/desired"
	"github.com/circuitseal/circuitseal/proto/sealed"
)

type signer struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

const (
	line1 = "cskey1.1700000000.AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAE"
	line2 = "cskey1.1700000001.AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAI"
)

var ring = mustRing(line1)

func mustRing(lines ...string) *sealed.Ring {
	r, err := sealed.Parse([]byte(strings.Join(lines, "\n")))
	if err != nil {
		panic(err)
	}
	return r
}

func authority(t testing.TB) (root, states signer) {
	t.Helper()
	make1 := func(parent *signer, c *x509.Certificate) signer {
		key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		c.SerialNumber = big.NewInt(time.Now().UnixNano())
		c.NotBefore, c.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
		if parent == nil {
			parent = &signer{c, key}
		}
		der, err := x509.CreateCertificate(rand.Reader, c, parent.cert, &key.PublicKey, parent.key)
		if err != nil {
			t.Fatal(err)
		}
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		return signer{cert, key}
	}
	uri, err := url.Parse(desired.StateSigner)
	if err != nil {
		t.Fatal(err)
	}
	root = make1(nil, &x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign})
	states = make1(&root, &x509.Certificate{URIs: []*url.URL{uri}, KeyUsage: x509.KeyUsageDigitalSignature})
	return root, states
}

func seal(t testing.TB, by signer, node string, p desired.Position, s desired.State) *v1.Envelope {
	t.Helper()
	raw, err := s.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	e, err := desired.Seal(desired.Header{Node: node, Position: p, Issued: time.Now()}, raw, by.key, by.cert.Raw)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func named(name string) desired.State {
	return desired.State{Interfaces: []desired.Interface{{Name: name, Role: desired.RoleCircuit}}}
}

func TestAccept(t *testing.T) {
	root, by := authority(t)
	_, stranger := authority(t)
	dir := t.TempDir()
	s, h, _, err := Open(dir, "prem-1", root.cert, ring)
	if err != nil || h != (desired.Header{}) {
		t.Fatalf("empty: %v, %v", h, err)
	}
	steps := []struct {
		name     string
		envelope *v1.Envelope
		fresh    bool
		err      error
		held     desired.Position
	}{
		{"the first", seal(t, by, "prem-1", desired.Position{Epoch: 1, Revision: 5}, named("a")), true, nil, desired.Position{Epoch: 1, Revision: 5}},
		{"the same again", seal(t, by, "prem-1", desired.Position{Epoch: 1, Revision: 5}, named("a")), false, nil, desired.Position{Epoch: 1, Revision: 5}},
		{"another at the same position", seal(t, by, "prem-1", desired.Position{Epoch: 1, Revision: 5}, named("b")), false, ErrAmbiguous, desired.Position{Epoch: 1, Revision: 5}},
		{"an older revision", seal(t, by, "prem-1", desired.Position{Epoch: 1, Revision: 4}, named("b")), false, ErrStale, desired.Position{Epoch: 1, Revision: 5}},
		{"a newer one", seal(t, by, "prem-1", desired.Position{Epoch: 1, Revision: 6}, named("b")), true, nil, desired.Position{Epoch: 1, Revision: 6}},
		{"another node's", seal(t, by, "nva-1", desired.Position{Epoch: 1, Revision: 9}, named("c")), false, desired.ErrOtherNode, desired.Position{Epoch: 1, Revision: 6}},
		{"a stranger's", seal(t, stranger, "prem-1", desired.Position{Epoch: 1, Revision: 9}, named("c")), false, desired.ErrSignature, desired.Position{Epoch: 1, Revision: 6}},
		{"a new epoch", seal(t, by, "prem-1", desired.Position{Epoch: 2, Revision: 1}, named("d")), true, nil, desired.Position{Epoch: 2, Revision: 1}},
		{"the old epoch", seal(t, by, "prem-1", desired.Position{Epoch: 1, Revision: 99}, named("c")), false, ErrStale, desired.Position{Epoch: 2, Revision: 1}},
	}
	for _, st := range steps {
		_, _, fresh, err := s.Accept(st.envelope)
		if fresh != st.fresh || !errors.Is(err, st.err) || Refused(err) != (err != nil) {
			t.Errorf("%s: fresh %v, error %v", st.name, fresh, err)
		}
		if got := s.Held().Position; got != st.held {
			t.Errorf("%s: held %v, want %v", st.name, got, st.held)
		}
		_, h, _, err := Open(dir, "prem-1", root.cert, ring)
		if err != nil || h.Position != st.held {
			t.Errorf("%s: on disk %v, %v; want %v", st.name, h.Position, err, st.held)
		}
	}
}

// Cut at every byte, and with every byte changed: never read as a state.
func TestTornFilesAreRefused(t *testing.T) {
	root, by := authority(t)
	dir := t.TempDir()
	s, _, _, err := Open(dir, "prem-1", root.cert, ring)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, _, err := s.Accept(seal(t, by, "prem-1", desired.Position{Epoch: 1, Revision: 1}, named("a"))); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(filepath.Join(dir, file))
	if err != nil {
		t.Fatal(err)
	}
	for n := range len(whole) {
		if err := os.WriteFile(filepath.Join(dir, file), whole[:n], 0o600); err != nil {
			t.Fatal(err)
		}
		if _, h, _, err := Open(dir, "prem-1", root.cert, ring); err == nil || h != (desired.Header{}) {
			t.Fatalf("cut at byte %d of %d: %v, %v", n, len(whole), h, err)
		}
	}
	if _, _, _, err := s.Accept(seal(t, by, "prem-1", desired.Position{Epoch: 1, Revision: 2}, named("b"))); err != nil {
		t.Errorf("a torn file is in the way of a newer state: %v", err)
	}
}

func TestAFullDiskKeepsTheOldState(t *testing.T) {
	root, by := authority(t)
	dir := t.TempDir()
	s, _, _, err := Open(dir, "prem-1", root.cert, ring)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, _, err := s.Accept(seal(t, by, "prem-1", desired.Position{Epoch: 1, Revision: 1}, named("a"))); err != nil {
		t.Fatal(err)
	}
	s.path = filepath.Join(dir, "gone", file)
	_, _, fresh, err := s.Accept(seal(t, by, "prem-1", desired.Position{Epoch: 1, Revision: 2}, named("b")))
	if err == nil || Refused(err) || fresh || s.Held().Position.Revision != 1 {
		t.Errorf("fresh %v, error %v, held %v", fresh, err, s.Held().Position)
	}
}

// secret is a state with a canary as pre-shared key.
func secret() (desired.State, []byte) {
	canary := desired.Secret([]byte("canary-of-thirty-two-bytes-long!"))
	first, second := desired.ProbeAddresses(1)
	s := named("circ0")
	s.Interfaces[0].Addresses = []netip.Prefix{netip.MustParsePrefix("172.16.0.1/30")}
	s.Links = []desired.Link{{ID: "contoso/er/primary", Number: 1, Interface: "circ0", NextHop: netip.MustParseAddr("172.16.0.2")}}
	s.Sections = []desired.Section{{Customer: "contoso", Tenant: 1, Groups: []desired.Group{{ID: "contoso/c", Number: 1, Tunnels: []desired.Tunnel{{
		ID: "contoso/c/er/primary", Number: 1, Link: "contoso/er/primary", LocalProbe: first, RemoteProbe: second, MTU: 1328,
		Local: netip.MustParseAddrPort("172.16.0.1:51820"), Remote: netip.MustParseAddrPort("172.20.0.1:51820"),
		WireGuard: &desired.WireGuard{PeerKey: desired.PublicKey{1}, PresharedKeys: []desired.PresharedKey{{Generation: 1, Key: canary}}},
	}}}}}}
	return s, canary[:]
}

func TestTheFileIsSealed(t *testing.T) {
	root, by := authority(t)
	dir := t.TempDir()
	path := filepath.Join(dir, file)
	state, canary := secret()
	envelope := seal(t, by, "prem-1", desired.Position{Epoch: 1, Revision: 1}, state)
	plain, err := proto.Marshal(envelope)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(plain, canary) {
		t.Fatal("the canary is not in the envelope: this test would see nothing")
	}
	s, _, _, err := Open(dir, "prem-1", root.cert, ring)
	if err != nil {
		t.Fatal(err)
	}
	if had, err := Sealed(dir); err != nil || had {
		t.Errorf("an empty directory is sealed: %t, %v", had, err)
	}
	if _, _, _, err := s.Accept(envelope); err != nil {
		t.Fatal(err)
	}
	read := func() []byte {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	if bytes.Contains(read(), canary) || !sealed.Is(read()) {
		t.Error("a pre-shared key lies on disk in clear")
	}
	if had, err := Sealed(dir); err != nil || !had {
		t.Errorf("the directory is not sealed: %t, %v", had, err)
	}

	// Another key: nothing is touched. Another node's: damaged.
	before := read()
	if _, h, _, err := Open(dir, "prem-1", root.cert, mustRing(line2)); !errors.Is(err, sealed.ErrOtherKey) || h != (desired.Header{}) || !bytes.Equal(read(), before) {
		t.Errorf("with another secret key: %v %v", h, err)
	}
	if _, _, _, err := Open(dir, "nva-1", root.cert, ring); !errors.Is(err, sealed.ErrDamaged) {
		t.Errorf("as another node: %v", err)
	}

	// A file of before, and one that an older key has sealed, are taken and
	// sealed anew by who asks for it.
	for name, tt := range map[string]struct {
		content []byte
		ring    *sealed.Ring
	}{"plain": {plain, ring}, "older key": {before, mustRing(line2, line1)}} {
		if err := os.WriteFile(path, tt.content, 0o600); err != nil {
			t.Fatal(err)
		}
		s, h, got, err := Open(dir, "prem-1", root.cert, tt.ring)
		if err != nil || h.Position.Revision != 1 || !got.Equal(state) {
			t.Fatalf("%s: %v, %v", name, h, err)
		}
		if !bytes.Equal(read(), tt.content) {
			t.Errorf("%s: who only opens it changes it", name)
		}
		for _, want := range []bool{true, false} {
			if done, err := s.Reseal(); err != nil || done != want {
				t.Errorf("%s: sealed anew %t, want %t, %v", name, done, want, err)
			}
		}
		if _, stale, err := tt.ring.Open(s.place(), read()); err != nil || stale {
			t.Errorf("%s: on disk stale %t, %v", name, stale, err)
		}
	}
}

func FuzzDecode(f *testing.F) {
	root, by := authority(f)
	s := &Store{node: "prem-1", root: root.cert, secrets: ring}
	state, _ := secret()
	plain, err := proto.Marshal(seal(f, by, "prem-1", desired.Position{Epoch: 1, Revision: 1}, state))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(plain)
	f.Add(ring.Seal(s.place(), plain))
	f.Add(ring.Seal("elsewhere", plain))
	f.Fuzz(func(t *testing.T, raw []byte) {
		h, got, _, err := s.decode(raw)
		if err != nil && (h != (desired.Header{}) || !got.Equal(desired.State{})) {
			t.Errorf("something is held of what was refused: %v", h)
		}
		if err == nil && !got.Equal(state) {
			t.Error("a state that nobody signed was read")
		}
	})
}
