package ipsec

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/circuitseal/circuitseal/agent/plan"
	"github.com/circuitseal/circuitseal/proto/desired"
)

func identity(name string, generations ...uint64) desired.Identity {
	i := desired.Identity{Name: name}
	for _, g := range generations {
		i.Certificates = append(i.Certificates, desired.IdentityCertificate{Generation: g})
	}
	return i
}

func TestKeys(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "keys")
	k, err := OpenKeys(dir, ring)
	if err != nil {
		t.Fatal(err)
	}
	all := []desired.Identity{identity("a.example", 2, 1), identity("b.example", 1)}
	first, err := k.Ensure(all)
	if err != nil || len(first) != 3 {
		t.Fatalf("keys %v, %v", first, err)
	}
	for i, want := range []string{"a.example 2", "a.example 1", "b.example 1"} {
		if got := fmt.Sprint(first[i].Name, " ", first[i].Generation); got != want {
			t.Errorf("key %d is %s, want %s", i, got, want)
		}
		public, err := x509.ParsePKIXPublicKey(first[i].PublicKey)
		if p, ok := public.(*ecdsa.PublicKey); err != nil || !ok || p.Curve != elliptic.P384() {
			t.Errorf("public key %v, %v", public, err)
		}
	}
	if bytes.Equal(first[0].PublicKey, first[1].PublicKey) || bytes.Equal(first[1].PublicKey, first[2].PublicKey) {
		t.Error("two have one key")
	}
	again, err := OpenKeys(dir, ring)
	if err != nil {
		t.Fatal(err)
	}
	second, err := again.Ensure(all)
	if d := cmp.Diff(first, second); d != "" || err != nil {
		t.Errorf("opened again (-first +second): %s, %v", d, err)
	}
	if err := again.Forget([]desired.Identity{identity("a.example", 2)}); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(files) != 1 {
		t.Errorf("files %v are left, %v", files, err)
	}
	if info, err := os.Stat(files[0]); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if _, err := again.key(keyName{"b.example", 1}); !os.IsNotExist(err) && !strings.Contains(fmt.Sprint(err), "no such file") {
		t.Errorf("a forgotten key: %v", err)
	}
}

// A file that cannot be trusted is not replaced, and what it holds is not told.
func TestKeyFilesThatAreWrong(t *testing.T) {
	dir := t.TempDir()
	k, err := OpenKeys(dir, ring)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := k.Ensure([]desired.Identity{identity("a.example", 1, 2)}); err != nil {
		t.Fatal(err)
	}
	one, two := filepath.Join(dir, keyName{"a.example", 1}.file()), filepath.Join(dir, keyName{"a.example", 2}.file())
	good, err := os.ReadFile(one)
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{
		"cut":          good[:len(good)-1],
		"changed":      append(bytes.Clone(good[:len(good)-1]), good[len(good)-1]^1),
		"not sealed":   []byte(`{"version":1}`),
		"empty":        {},
		"another file": must(os.ReadFile(two)),
	} {
		t.Run(name, func(t *testing.T) {
			if err := os.WriteFile(one, content, 0o600); err != nil {
				t.Fatal(err)
			}
			k, err := OpenKeys(dir, ring)
			if err != nil {
				t.Fatal(err)
			}
			keys, err := k.Ensure([]desired.Identity{identity("a.example", 1, 2)})
			if err == nil || len(keys) != 1 || !strings.Contains(err.Error(), `"a.example", generation 1`) {
				t.Errorf("keys %v, %v", keys, err)
			}
			if after := must(os.ReadFile(one)); !bytes.Equal(after, content) {
				t.Error("the file was replaced")
			}
		})
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func TestKeysAreNotPrinted(t *testing.T) {
	k := must(OpenKeys(t.TempDir(), ring))
	must(k.Ensure([]desired.Identity{identity("a.example", 1)}))
	key := must(k.key(keyName{"a.example", 1}))
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%d"} {
		if s := fmt.Sprintf(verb, key); s != redactedKey {
			t.Errorf("%s prints %s", verb, s)
		}
		d := key.private.D.String() //nolint:staticcheck // it is what must not be seen
		if s := fmt.Sprintf(verb, map[string]identityKey{"a": key}); strings.Contains(s, d) {
			t.Errorf("%s prints the key in a map", verb)
		}
	}
}

func TestCertificateFits(t *testing.T) {
	ca := newAuthority(t)
	k := must(OpenKeys(t.TempDir(), ring))
	keys := must(k.Ensure([]desired.Identity{identity("a.example", 1, 2)}))
	key := must(k.key(keyName{"a.example", 1}))
	if err := key.fits(ca.issue(t, keys[0], time.Now().Add(time.Hour))); err != nil {
		t.Error(err)
	}
	if err := key.fits(ca.issue(t, keys[1], time.Now().Add(time.Hour))); err == nil || !strings.Contains(err.Error(), "another key") {
		t.Errorf("another key's certificate: %v", err)
	}
	if err := key.fits([]byte("junk")); err == nil {
		t.Error("junk fits")
	}
}

// Of two generations of which one cannot be used the other one is.
func TestTheOtherCertificateDoes(t *testing.T) {
	ca := newAuthority(t)
	k := must(OpenKeys(t.TempDir(), ring))
	keys := must(k.Ensure([]desired.Identity{identity("a.example", 2, 1)}))
	next, current := ca.issue(t, keys[0], time.Now().Add(time.Hour)), ca.issue(t, keys[1], time.Now().Add(time.Hour))
	d := &Driver{config: Config{Keys: k}, fitting: map[checked]bool{}}
	use := func(two, one []byte) ([]byte, error) {
		return d.certificate(plan.IPsec{Identities: []desired.Identity{{Name: "a.example", Certificates: []desired.IdentityCertificate{
			{Generation: 2, Certificate: two}, {Generation: 1, Certificate: one},
		}}}}, desired.IPsecPolicy{LocalID: "a.example"})
	}
	if got, err := use(next, current); err != nil || !bytes.Equal(got, next) {
		t.Errorf("the first is not used: %v", err)
	}
	if got, err := use(current, current); err != nil || !bytes.Equal(got, current) {
		t.Errorf("beside one over another key: %v", err)
	}
	if _, err := use(current, nil); err == nil || !strings.Contains(err.Error(), "generation 2") {
		t.Errorf("nothing fits: %v", err)
	}
	if _, err := use(nil, nil); err == nil || !strings.Contains(err.Error(), "there is no certificate of a.example yet") {
		t.Errorf("nothing is there: %v", err)
	}
}
