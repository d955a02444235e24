package identity

import (
	"bytes"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/circuitseal/circuitseal/proto/desired"
	"github.com/circuitseal/circuitseal/proto/sealed"
)

// issued is a certificate by root for the public half of k.
func issued(t *testing.T, root *x509.Certificate, by Key, k Key, uri string) []byte {
	t.Helper()
	u, err := url.Parse(uri)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(2), NotBefore: time.Now().Add(-48 * time.Hour), NotAfter: time.Now().Add(-24 * time.Hour),
		URIs: []*url.URL{u}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, c, root, k.signer.Public(), by.signer)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func authority(t *testing.T) (*x509.Certificate, Key) {
	t.Helper()
	k, err := NewKey(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-72 * time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, k.signer.Public(), k.signer)
	if err != nil {
		t.Fatal(err)
	}
	root, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return root, k
}

func TestStoreAndLoad(t *testing.T) {
	root, ca := authority(t)
	otherRoot, otherCA := authority(t)
	dir := t.TempDir()
	key, err := NewKey(dir)
	if err != nil {
		t.Fatal(err)
	}
	other, err := NewKey(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	controller := &url.URL{Scheme: "https", Host: "controller:8443"}

	if _, err := Load(dir, nil); !errors.Is(err, ErrNotEnrolled) {
		t.Errorf("before enrolment: %v", err)
	}
	for name, cert := range map[string][]byte{
		"for another key":   issued(t, root, ca, other, desired.NodeURI+"prem-1"),
		"by another root":   issued(t, otherRoot, otherCA, key, desired.NodeURI+"prem-1"),
		"that names nobody": issued(t, root, ca, key, "spiffe://elsewhere/x"),
	} {
		if _, err := Store(dir, controller, root.Raw, [][]byte{cert}); err == nil {
			t.Errorf("a certificate %s was stored", name)
		}
		if _, err := Load(dir, nil); !errors.Is(err, ErrNotEnrolled) {
			t.Errorf("after a certificate %s: %v", name, err)
		}
	}
	// An expired one still says who the node is.
	if _, err := Store(dir, controller, root.Raw, [][]byte{issued(t, root, ca, key, desired.NodeURI+"prem-1")}); err != nil {
		t.Fatal(err)
	}
	id, err := Load(dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	if id.Node != "prem-1" || id.Controller.String() != controller.String() {
		t.Errorf("loaded %s at %s", id.Node, id.Controller)
	}
	if err := os.Chmod(filepath.Join(dir, keyFile), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(dir, nil); err == nil || !strings.Contains(err.Error(), "0644") {
		t.Errorf("world-readable key: %v", err)
	}
}

// enrolled makes an identity in dir.
func enrolled(t *testing.T, dir string) Key {
	t.Helper()
	root, ca := authority(t)
	key, err := NewKey(dir)
	if err != nil {
		t.Fatal(err)
	}
	controller := &url.URL{Scheme: "https", Host: "controller:8443"}
	if _, err := Store(dir, controller, root.Raw, [][]byte{issued(t, root, ca, key, desired.NodeURI+"prem-1")}); err != nil {
		t.Fatal(err)
	}
	return key
}

// However a replacement died, the next one makes a key of its own, and an
// enrolment whose answer was lost is repeated with the same one.
func TestReplacementsThatDied(t *testing.T) {
	tests := []struct {
		name string
		// leave makes what is left in next.
		leave func(t *testing.T, dir, next string)
		keeps bool
	}{
		{"nothing is left", func(*testing.T, string, string) {}, false},
		{"after the exchange", func(t *testing.T, dir, next string) {
			enrolled(t, next)
			if err := unix.Renameat2(unix.AT_FDCWD, next, unix.AT_FDCWD, dir, unix.RENAME_EXCHANGE); err != nil {
				t.Fatal(err)
			}
		}, false},
		{"in the midst of removing", func(t *testing.T, dir, next string) {
			if err := os.Mkdir(next, 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.Link(filepath.Join(dir, keyFile), filepath.Join(next, keyFile)); err != nil {
				t.Fatal(err)
			}
		}, false},
		{"before the answer", func(t *testing.T, _, next string) {
			if _, err := NewKey(next); err != nil {
				t.Fatal(err)
			}
		}, true},
	}
	for n := range 2 * len(tests) {
		tt, encrypted := tests[n/2], n%2 == 1
		t.Run(fmt.Sprintf("%s, encrypted %t", tt.name, encrypted), func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "identity")
			next := dir + ".next"
			old := enrolled(t, dir)
			if encrypted {
				reseal(t, dir, ringA, true)
			}
			tt.leave(t, dir, next)
			left, _, _ := loadKey(next, nil)
			if err := Clear(dir, next); err != nil {
				t.Fatal(err)
			}
			key, err := NewKey(next)
			if err != nil {
				t.Fatal(err)
			}
			if key.signer.Equal(old.signer) {
				t.Error("the key that is to be replaced came back")
			}
			if left.signer != nil && key.signer.Equal(left.signer) != tt.keeps {
				t.Errorf("the key that was left is used again: %v, want %v", !tt.keeps, tt.keeps)
			}
			fresh := enrolled(t, next)
			if err := Replace(dir, next); err != nil {
				t.Fatal(err)
			}
			if now, _, err := loadKey(dir, nil); err != nil || !now.signer.Equal(fresh.signer) {
				t.Errorf("after the replacement the key is another: %v", err)
			}
			if entries, err := os.ReadDir(filepath.Dir(dir)); err != nil || len(entries) != 1 {
				t.Errorf("leftovers: %v, %v", entries, err)
			}
		})
	}
}

var ringA, ringB, ringBA = ring(2, 1), ring(1, 1), ring(1, 2)

// ring has a key of bytes of the value first, and more of lower ones.
func ring(first, n int) *sealed.Ring {
	var text string
	for i := range n {
		text += "cskey1.1700000000." + base64.RawURLEncoding.EncodeToString(bytes.Repeat([]byte{byte(first + i)}, 32)) + "\n"
	}
	r, err := sealed.Parse([]byte(text))
	if err != nil {
		panic(err)
	}
	return r
}

func reseal(t *testing.T, dir string, secrets *sealed.Ring, want bool) {
	t.Helper()
	if done, err := Reseal(dir, secrets); err != nil || done != want {
		t.Fatalf("Reseal: %t, %v, want %t", done, err, want)
	}
	b, err := os.ReadFile(filepath.Join(dir, keyFile))
	if err != nil || !sealed.Is(b) || bytes.Contains(b, []byte("PRIVATE")) {
		t.Fatalf("the key is not encrypted: %v", err)
	}
}

// The key of an identity is encrypted once an agent runs, by the newest secret key
// that it has; whoever lacks it reads all but the key.
func TestKeyIsEncrypted(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "identity")
	key := enrolled(t, dir)
	reseal(t, dir, ringA, true)
	reseal(t, dir, ringA, false)
	if _, err := Load(dir, ringB); !errors.Is(err, sealed.ErrOtherKey) {
		t.Errorf("with another secret key: %v", err)
	}
	if _, err := Load(dir, nil); err == nil || !strings.Contains(err.Error(), "it is encrypted") {
		t.Errorf("without a secret key: %v", err)
	}
	reseal(t, dir, ringBA, true)
	id, err := Load(dir, ringB)
	if err != nil || !id.key.signer.Equal(key.signer) {
		t.Errorf("after the secret key's rotation: %v", err)
	}
	if d, err := Describe(dir); err != nil || d.Node != "prem-1" {
		t.Errorf("described as %+v, %v", d, err)
	}
}

func TestKeysNeverPrint(t *testing.T) {
	k, err := NewKey(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	raw, err := k.signer.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "key", k, "nested", struct{ K Key }{k})
	text, err := json.Marshal(struct{ K Key }{k})
	if err != nil {
		t.Fatal(err)
	}
	all := log.String() + string(text) + fmt.Sprintf("%v %+v %#v %s", k, k, k, k) + fmt.Sprintf("%v %+v", struct{ K Key }{k}, &k)
	for _, form := range []string{fmt.Sprintf("%x", raw), fmt.Sprint(raw), k.signer.D.String()} { //nolint:staticcheck // the deprecated field is what must not leak
		if strings.Contains(all, form) {
			t.Errorf("the key is in %q", all)
		}
	}
}

func TestParsePin(t *testing.T) {
	good := "sha256:" + strings.Repeat("ab", 32)
	if _, err := ParsePin(good); err != nil {
		t.Error(err)
	}
	for _, bad := range []string{"", "sha256:", good + "00", good[:len(good)-1], strings.ToUpper(good[:7]) + good[7:], "sha1:" + good[7:]} {
		if _, err := ParsePin(bad); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}
