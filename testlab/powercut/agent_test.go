package powercut_test

import (
	"crypto/ecdsa"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/circuitseal/circuitseal/agent/identity"
	"github.com/circuitseal/circuitseal/agent/lastgood"
	"github.com/circuitseal/circuitseal/agent/wireguard"
	"github.com/circuitseal/circuitseal/controller/pki"
	v1 "github.com/circuitseal/circuitseal/proto/circuitseal/v1"
	"github.com/circuitseal/circuitseal/proto/desired"
	"github.com/circuitseal/circuitseal/proto/sealed"
)

const node = "prem-1"

// secretKey is what a secret key file holds: it lies on a disk that lasts.
const secretKey = "cskey1.1700000000.AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAE"

// ring is the secret key of everything here.
var ring = func() *sealed.Ring {
	r, err := sealed.Parse([]byte(secretKey))
	if err != nil {
		panic(err)
	}
	return r
}()

// seal signs the state of a revision.
func seal(t *testing.T, by *pki.Authority, revision int) *v1.Envelope {
	t.Helper()
	state, err := desired.State{Interfaces: []desired.Interface{{Name: fmt.Sprint("er", revision), Role: desired.RoleCircuit}}}.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	e, err := by.SignState(desired.Header{Node: node, Position: desired.Position{Epoch: 1, Revision: uint64(revision)}, Issued: time.Now()}, state)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// A node that has acknowledged a state starts from it, or from a newer one that
// was under way, wherever the power was cut.
func TestLastGoodState(t *testing.T) {
	by, err := pki.Open(pki.Config{Dir: t.TempDir(), Log: slog.New(slog.DiscardHandler), Secrets: ring})
	if err != nil {
		t.Fatal(err)
	}
	root, err := x509.ParseCertificate(by.Root())
	if err != nil {
		t.Fatal(err)
	}
	d := mount(t)
	s, _, _, err := lastgood.Open(d.Path, node, root, ring)
	if err != nil {
		t.Fatal(err)
	}
	var begun, kept []promise
	for i := 1; i <= 5; i++ {
		e := seal(t, by, i)
		begun = append(begun, promise{d.Mark(), i})
		if _, _, _, err := s.Accept(e); err != nil {
			t.Fatal(err)
		}
		kept = append(kept, promise{d.Mark(), i})
	}
	if bad := atEveryCut(t, d, begun, kept, 1, func(dir string, kept, begun int) error {
		_, h, state, err := lastgood.Open(dir, node, root, ring)
		if err != nil {
			return err
		}
		have := int(h.Position.Revision)
		if have < kept || have > begun || have > 0 && state.Interfaces[0].Name != fmt.Sprint("er", have) {
			return fmt.Errorf("has %d, acknowledged %d, received %d", have, kept, begun)
		}
		return nil
	}); bad > 0 {
		t.Errorf("%d bad cuts after %d operations", bad, d.Mark())
	}

	// A disk that is full, read-only or broken keeps what there is.
	for name, fault := range faults() {
		d.Fail(fault)
		if _, _, fresh, err := s.Accept(seal(t, by, 9)); err == nil || fresh || lastgood.Refused(err) {
			t.Errorf("%s: fresh %v, %v", name, fresh, err)
		}
		if _, h, _, err := lastgood.Open(d.Path, node, root, ring); err != nil || h.Position.Revision != 5 {
			t.Errorf("%s: has %s, %v", name, h.Position, err)
		}
	}
	d.Fail(nil)
	if _, _, fresh, err := s.Accept(seal(t, by, 9)); err != nil || !fresh {
		t.Errorf("healed: fresh %v, %v", fresh, err)
	}
}

// A key whose public half may have been reported is there after a cut, and no
// cut leaves a file that the agent refuses.
func TestTunnelKeys(t *testing.T) {
	d := mount(t)
	dir := filepath.Join(d.Path, "wireguard")
	keys, err := wireguard.OpenKeys(dir, ring)
	if err != nil {
		t.Fatal(err)
	}
	var ids []string
	var kept []promise
	public := map[string]desired.PublicKey{}
	for i := 1; i <= 4; i++ {
		ids = append(ids, fmt.Sprintf("contoso/hq/er1/link%d", i))
		all, err := keys.Ensure(ids)
		if err != nil {
			t.Fatal(err)
		}
		public[ids[i-1]] = all[ids[i-1]]
		kept = append(kept, promise{d.Mark(), i})
	}
	if bad := atEveryCut(t, d, nil, kept, 1, func(dir string, kept, _ int) error {
		keys, err := wireguard.OpenKeys(filepath.Join(dir, "wireguard"), ring)
		if err != nil {
			return err
		}
		all, err := keys.Ensure(ids)
		if err != nil {
			return err
		}
		for _, id := range ids[:kept] {
			if all[id] != public[id] {
				return fmt.Errorf("key of %s, which was reported, is another", id)
			}
		}
		return nil
	}); bad > 0 {
		t.Errorf("%d bad cuts after %d operations", bad, d.Mark())
	}
	for name, fault := range faults() {
		d.Fail(fault)
		if _, err := keys.Ensure(append(ids, "contoso/hq/er1/more")); err == nil {
			t.Errorf("%s: a key was made", name)
		}
	}
}

// A session key for which a certificate may have been asked is there after a
// cut, so is the certificate, and sealing the key, or sealing it anew, loses neither.
func TestSessionKey(t *testing.T) {
	by, err := pki.Open(pki.Config{Dir: t.TempDir(), Log: slog.New(slog.DiscardHandler), Secrets: ring})
	if err != nil {
		t.Fatal(err)
	}
	keys := func(lines ...string) *sealed.Ring {
		r, err := sealed.Parse([]byte(strings.Join(lines, "\n")))
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	second, third := secretKey[:len(secretKey)-1]+"I", secretKey[:len(secretKey)-1]+"M"
	newer := keys(second, secretKey)
	d := mount(t)
	dir := func(disk string) string { return filepath.Join(disk, "main", "identity") }
	var kept []promise
	promised := func(value int) { kept = append(kept, promise{d.Mark(), value}) }
	key, err := identity.NewKey(dir(d.Path))
	if err != nil {
		t.Fatal(err)
	}
	promised(1)
	request, err := key.Request()
	if err != nil {
		t.Fatal(err)
	}
	asked, err := pki.ParseRequest(request)
	if err != nil {
		t.Fatal(err)
	}
	issued, err := by.IssueNode(asked, node)
	if err != nil {
		t.Fatal(err)
	}
	id, err := identity.Store(dir(d.Path), &url.URL{Scheme: "https", Host: "controller:8443"}, by.Root(), issued.Chain)
	if err != nil {
		t.Fatal(err)
	}
	promised(2)
	for n, r := range []*sealed.Ring{ring, newer} {
		if done, err := identity.Reseal(dir(d.Path), r); !done || err != nil {
			t.Fatalf("sealed: %t, %v", done, err)
		}
		promised(3 + n)
	}
	leaf, err := id.Leaf()
	if err != nil {
		t.Fatal(err)
	}
	if bad := atEveryCut(t, d, nil, kept, 1, func(disk string, kept, _ int) error {
		if kept == 0 {
			// Nobody was told of anything; it must be possible to begin.
			_, err := identity.NewKey(dir(disk))
			return err
		}
		if kept == 1 {
			k, err := identity.NewKey(dir(disk))
			if err != nil {
				return err
			}
			der, err := k.Request()
			if err != nil {
				return err
			}
			again, err := x509.ParseCertificateRequest(der)
			if err == nil && !leaf.PublicKey.(*ecdsa.PublicKey).Equal(again.PublicKey) {
				err = errors.New("the key, for which a certificate may have been issued, is another")
			}
			return err
		}
		with := newer
		if kept == 4 {
			with = keys(second)
		}
		id, err := identity.Load(dir(disk), with)
		if err != nil {
			return err
		}
		if id.Node != node {
			return fmt.Errorf("it is node %q", id.Node)
		}
		encrypted, err := identity.Sealed(dir(disk))
		if err == nil && kept >= 3 && !encrypted {
			err = errors.New("the key, which was sealed, is not")
		}
		return err
	}); bad > 0 {
		t.Errorf("%d bad cuts after %d operations", bad, d.Mark())
	}
	for name, fault := range faults() {
		d.Fail(fault)
		if _, err := identity.Reseal(dir(d.Path), keys(third, second)); err == nil {
			t.Errorf("%s: the key was sealed anew", name)
		}
		if _, err := identity.Load(dir(d.Path), keys(second)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}
