package lastgood

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"math/big"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"

	v1 "github.com/circuitseal/circuitseal/proto/circuitseal/v1"
	"github.com/circuitseal/circuitseal/proto/desired"
)

type signer struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func authority(t *testing.T) (root, states signer) {
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

func seal(t *testing.T, by signer, node string, p desired.Position, s desired.State) *v1.Envelope {
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
	s, h, _, err := Open(dir, "prem-1", root.cert)
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
		_, h, _, err := Open(dir, "prem-1", root.cert)
		if err != nil || h.Position != st.held {
			t.Errorf("%s: on disk %v, %v; want %v", st.name, h.Position, err, st.held)
		}
	}
}

// Cut at every byte, and with every byte changed: never read as a state.
func TestTornFilesAreRefused(t *testing.T) {
	root, by := authority(t)
	dir := t.TempDir()
	s, _, _, err := Open(dir, "prem-1", root.cert)
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
		if _, h, _, err := Open(dir, "prem-1", root.cert); err == nil || h != (desired.Header{}) {
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
	s, _, _, err := Open(dir, "prem-1", root.cert)
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
