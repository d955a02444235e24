package wireguard

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/circuitseal/circuitseal/proto/desired"
	"github.com/circuitseal/circuitseal/proto/sealed"
)

var ring = mustRing("cskey1.1700000000.AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAE")

func mustRing(lines ...string) *sealed.Ring {
	r, err := sealed.Parse([]byte(strings.Join(lines, "\n")))
	if err != nil {
		panic(err)
	}
	return r
}

func openKeys(t *testing.T) (*Keys, string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "wireguard")
	k, err := OpenKeys(dir, ring)
	if err != nil {
		t.Fatal(err)
	}
	return k, dir
}

func ensure(t *testing.T, k *Keys, ids ...string) map[string]desired.PublicKey {
	t.Helper()
	m, err := k.Ensure(ids)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestKeysLastAndDiffer(t *testing.T) {
	k, dir := openKeys(t)
	evil := "../../x\x00/" + strings.Repeat("y", 1000)
	first := ensure(t, k, "a/b/c/1", "a/b/c/2", evil)
	if first["a/b/c/1"] == first["a/b/c/2"] || first["a/b/c/1"].IsZero() {
		t.Errorf("keys %v", first)
	}
	again, err := OpenKeys(dir, ring)
	if err != nil {
		t.Fatal(err)
	}
	for id, key := range ensure(t, again, "a/b/c/1", "a/b/c/2", evil) {
		if key != first[id] {
			t.Errorf("the key of %.20q changed", id)
		}
	}
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("directory: %v, %v", info.Mode(), err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 3 {
		t.Fatalf("files: %v, %v", entries, err)
	}
	for _, e := range entries {
		if info, err := e.Info(); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", e.Name(), info.Mode(), err)
		}
	}
	pair, err := again.pair("a/b/c/1")
	if err != nil {
		t.Fatal(err)
	}
	if want := desired.PublicKey(pair.private.wg().PublicKey()); pair.public != want {
		t.Errorf("public key %s, wgctrl makes it %s", pair.public, want)
	}
}

func TestForget(t *testing.T) {
	k, dir := openKeys(t)
	before := ensure(t, k, "a", "b", "c")
	if err := os.WriteFile(filepath.Join(dir, "note.txt"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := k.Forget([]string{"b", "unknown"}); err != nil {
		t.Fatal(err)
	}
	if _, err := k.pair("a"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("pair of a forgotten tunnel: %v", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 2 {
		t.Errorf("files: %v, %v", entries, err)
	}
	after := ensure(t, k, "a", "b")
	if after["b"] != before["b"] || after["a"] == before["a"] {
		t.Error("the wrong key was forgotten")
	}
}

func TestDamagedKeysAreNotReplaced(t *testing.T) {
	for name, tt := range map[string]struct {
		damage func(f *keyFile) []byte
		mode   os.FileMode
		want   string
	}{
		"bit":          {func(f *keyFile) []byte { f.Key[5] ^= 1; return encode(f) }, 0o600, "damaged"},
		"version":      {func(f *keyFile) []byte { f.Version = 9; f.Sum = f.sum(); return encode(f) }, 0o600, "version 9"},
		"other tunnel": {func(f *keyFile) []byte { f.Tunnel = "b"; f.Sum = f.sum(); return encode(f) }, 0o600, `tunnel "b"`},
		"short":        {func(f *keyFile) []byte { f.Key = f.Key[:31]; f.Sum = f.sum(); return encode(f) }, 0o600, "length"},
		"empty":        {func(*keyFile) []byte { return nil }, 0o600, "not a WireGuard key"},
		"more":         {func(f *keyFile) []byte { return append(encode(f), '{') }, 0o600, "not a WireGuard key"},
		"readable":     {encode, 0o644, "0644"},
	} {
		t.Run(name, func(t *testing.T) {
			k, dir := openKeys(t)
			ensure(t, k, "a")
			path := filepath.Join(dir, keyName("a"))
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if b, _, err = ring.Open(keyPlace("a"), b); err != nil {
				t.Fatal(err)
			}
			var f keyFile
			if err := json.Unmarshal(b, &f); err != nil {
				t.Fatal(err)
			}
			secret := append([]byte(nil), f.Key...)
			if err := os.WriteFile(path, tt.damage(&f), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(path, tt.mode); err != nil {
				t.Fatal(err)
			}
			again, err := OpenKeys(dir, ring)
			if err != nil {
				t.Fatal(err)
			}
			got, err := again.Ensure([]string{"a", "c"})
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want one with %q", err, tt.want)
			}
			if len(got) != 1 || got["c"].IsZero() {
				t.Errorf("keys %v, want that of c", got)
			}
			for _, form := range []string{base64.StdEncoding.EncodeToString(secret), hex.EncodeToString(secret)} {
				if strings.Contains(fmt.Sprint(err), form[:20]) {
					t.Error("the error holds the key")
				}
			}
		})
	}
}

// Keys lie sealed, those of an earlier version from when they are first read;
// with another secret key they are not readable, and not replaced.
func TestKeysLieSealed(t *testing.T) {
	k, dir := openKeys(t)
	first := ensure(t, k, "a", "b")
	path := func(id string) string { return filepath.Join(dir, keyName(id)) }
	read := func(id string) []byte {
		b, err := os.ReadFile(path(id))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	plain, _, err := ring.Open(keyPlace("a"), read("a"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path("a"), plain, 0o600); err != nil {
		t.Fatal(err)
	}
	newer := mustRing("cskey1.1700000001.AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAI", "cskey1.1700000000.AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAE")
	for _, r := range []*sealed.Ring{ring, newer} {
		again, err := OpenKeys(dir, r)
		if err != nil {
			t.Fatal(err)
		}
		if got := ensure(t, again, "a", "b"); got["a"] != first["a"] || got["b"] != first["b"] {
			t.Errorf("keys %v, before %v", got, first)
		}
		for _, id := range []string{"a", "b"} {
			if _, stale, err := r.Open(keyPlace(id), read(id)); err != nil || stale {
				t.Errorf("the file of %s: stale %t, %v", id, stale, err)
			}
		}
	}
	before := read("a")
	foreign, err := OpenKeys(dir, ring)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := foreign.Ensure([]string{"a"}); !errors.Is(err, sealed.ErrOtherKey) || len(got) != 0 {
		t.Errorf("with another secret key: %v, %v", got, err)
	}
	if err := os.WriteFile(path("b"), before, 0o600); err != nil {
		t.Fatal(err)
	}
	moved, err := OpenKeys(dir, newer)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := moved.Ensure([]string{"b"}); !errors.Is(err, sealed.ErrDamaged) {
		t.Errorf("another tunnel's file: %v", err)
	}
	if !bytes.Equal(read("a"), before) {
		t.Error("a key that could not be read was replaced")
	}
}

func encode(f *keyFile) []byte {
	b, err := json.Marshal(f)
	if err != nil {
		panic(err)
	}
	return b
}

func FuzzDecodeKey(f *testing.F) {
	x := keyFile{Version: 1, Tunnel: "a", Key: make([]byte, 32)}
	x.Sum = x.sum()
	f.Add(encode(&x))
	f.Add([]byte("{}"))
	f.Fuzz(func(_ *testing.T, b []byte) { _, _ = decodeKey(b, "a") })
}

func TestPrivateKeyIsRedacted(t *testing.T) {
	k, err := newPrivateKey()
	if err != nil {
		t.Fatal(err)
	}
	if k.bytes[0]&7 != 0 || k.bytes[31]&0xc0 != 0x40 {
		t.Error("the key is not clamped")
	}
	var out bytes.Buffer
	for _, format := range []string{"%v", "%+v", "%#v", "%s", "%x", "%X", "%q", "%d"} {
		_, _ = fmt.Fprintf(&out, format, k)
		_, _ = fmt.Fprintf(&out, format, &k)
		_, _ = fmt.Fprintf(&out, format, struct{ K PrivateKey }{k})
	}
	slog.New(slog.NewJSONHandler(&out, nil)).Info("x", "key", k, "pair", struct{ K PrivateKey }{k})
	slog.New(slog.NewTextHandler(&out, nil)).Info("x", "key", k)
	b, err := json.Marshal(map[string]any{"key": k})
	if err != nil {
		t.Fatal(err)
	}
	out.Write(b)
	for _, form := range []string{
		wgtypes.Key(k.bytes).String()[:12], hex.EncodeToString(k.bytes[:])[:12],
		strings.ToUpper(hex.EncodeToString(k.bytes[:]))[:12], string(k.bytes[:8]), strings.Trim(fmt.Sprintf("%d", k.bytes[:4]), "[]"),
	} {
		if strings.Contains(out.String(), form) {
			t.Errorf("a form of the key was printed: %s", out.String())
		}
	}
}
