package identity

import (
	"crypto/rand"
	"crypto/x509"
	"math/big"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/circuitseal/circuitseal/proto/desired"
)

func TestRenew(t *testing.T) {
	now := time.Now()
	root, ca := authority(t)
	leaf := func(k Key, node string, begins, ends time.Duration) []byte {
		t.Helper()
		u, err := url.Parse(desired.NodeURI + node)
		if err != nil {
			t.Fatal(err)
		}
		der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
			SerialNumber: big.NewInt(now.UnixNano() + int64(ends)), NotBefore: now.Add(begins), NotAfter: now.Add(ends),
			URIs: []*url.URL{u}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		}, root, k.signer.Public(), ca.signer)
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	dir := filepath.Join(t.TempDir(), "identity")
	key, err := NewKey(dir)
	if err != nil {
		t.Fatal(err)
	}
	other, err := NewKey(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	controller := &url.URL{Scheme: "https", Host: "controller:8443"}
	first := leaf(key, "prem-1", -48*time.Hour, 30*time.Minute)
	id, err := Store(dir, controller, root.Raw, [][]byte{first})
	if err != nil {
		t.Fatal(err)
	}
	refused := map[string]struct {
		der  []byte
		says string
	}{
		"for another key":   {leaf(other, "prem-1", -time.Minute, 50*time.Minute), "another key"},
		"of another node":   {leaf(key, "nva-1", -time.Minute, 50*time.Minute), `of node "nva-1"`},
		"that ends earlier": {leaf(key, "prem-1", -time.Minute, 10*time.Minute), "no later"},
		"that has ended":    {leaf(key, "prem-1", -2*time.Hour, -time.Hour), "this host's clock says"},
		"that begins later": {leaf(key, "prem-1", 10*time.Minute, 50*time.Minute), "this host's clock says"},
		"that is none":      {[]byte("x"), "certificate"},
	}
	for name, tt := range refused {
		if _, err := Renew(dir, nil, id, [][]byte{tt.der}, now); err == nil || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("a certificate %s: %v, want %q", name, err, tt.says)
		}
		have, err := Load(dir, nil)
		if err != nil || string(have.chain[0]) != string(first) {
			t.Errorf("after a certificate %s the identity is another: %v", name, err)
		}
	}
	second := leaf(key, "prem-1", -time.Minute, 50*time.Minute)
	for range 2 {
		// Twice, as when the answer to the first was lost.
		if id, err = Renew(dir, nil, id, [][]byte{second}, now); err != nil {
			t.Fatal(err)
		}
	}
	if have, err := Load(dir, nil); err != nil || string(have.chain[0]) != string(second) || have.Controller.String() != controller.String() {
		t.Errorf("loaded %v, %v", have, err)
	}

	// One that a clock that was ahead has made gives way to one that ends earlier.
	late := leaf(key, "prem-1", 20*time.Minute, 55*time.Minute)
	if id, err = Renew(dir, nil, id, [][]byte{late}, now.Add(30*time.Minute)); err != nil {
		t.Fatal(err)
	}
	if id, err = Renew(dir, nil, id, [][]byte{second}, now); err != nil {
		t.Errorf("in place of one that has not begun: %v", err)
	}

	// Enrolled anew meanwhile, with another key: what was renewed is of the past.
	enrolled(t, dir+".next")
	if err := Replace(dir, dir+".next"); err != nil {
		t.Fatal(err)
	}
	if _, err := Renew(dir, nil, id, [][]byte{leaf(key, "prem-1", -time.Minute, 58*time.Minute)}, now); err == nil || !strings.Contains(err.Error(), "enrolled anew meanwhile") {
		t.Errorf("after another enrolment: %v", err)
	}
	if _, err := Load(dir, nil); err != nil {
		t.Errorf("the new enrolment is broken: %v", err)
	}
}
