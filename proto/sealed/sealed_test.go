package sealed

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

var made = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func ring(t testing.TB, n int) *Ring {
	t.Helper()
	var text string
	for range n {
		line, err := draw(made)
		if err != nil {
			t.Fatal(err)
		}
		text += line + "\n"
	}
	r, err := Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestBlobsOpenInTheirPlaceOnly(t *testing.T) {
	r, other := ring(t, 2), ring(t, 1)
	blob := r.Seal("tunnel a\x007", []byte("canary"))
	if bytes.Contains(blob, []byte("canary")) || len(blob) != len("canary")+Overhead {
		t.Errorf("blob of %d bytes", len(blob))
	}
	if again := r.Seal("tunnel a\x007", []byte("canary")); bytes.Equal(blob, again) {
		t.Error("two blobs of the same are equal")
	}
	plain, stale, err := r.Open("tunnel a\x007", blob)
	if err != nil || stale || string(plain) != "canary" {
		t.Errorf("opened %q stale %t, %v", plain, stale, err)
	}
	old := &Ring{keys: []Key{r.keys[1], r.keys[0]}}
	if plain, stale, err := old.Open("tunnel a\x007", blob); err != nil || !stale || string(plain) != "canary" {
		t.Errorf("with a newer key before it: %q stale %t, %v", plain, stale, err)
	}
	for _, tt := range []struct {
		name string
		ring *Ring
		at   string
		blob []byte
		want error
	}{
		{"another place", r, "tunnel a\x008", blob, ErrDamaged},
		{"another key", other, "tunnel a\x007", blob, ErrOtherKey},
		{"torn", r, "tunnel a\x007", blob[:len(blob)-1], ErrDamaged},
		{"torn to nothing", r, "tunnel a\x007", blob[:len(magic)+3], ErrDamaged},
		{"longer", r, "tunnel a\x007", append(bytes.Clone(blob), 0), ErrDamaged},
		{"empty", r, "tunnel a\x007", nil, ErrNotSealed},
		{"plain", r, "tunnel a\x007", []byte("-----BEGIN PRIVATE KEY-----"), ErrNotSealed},
	} {
		if _, _, err := tt.ring.Open(tt.at, tt.blob); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v, want %v", tt.name, err, tt.want)
		}
	}
	for i := range blob {
		bad := bytes.Clone(blob)
		bad[i] ^= 1
		if _, _, err := r.Open("tunnel a\x007", bad); err == nil {
			t.Errorf("opens with byte %d changed", i)
		}
	}
}

func TestFiles(t *testing.T) {
	dir := t.TempDir()
	data, path := filepath.Join(dir, "data"), filepath.Join(dir, "etc", "key")
	if err := os.Mkdir(data, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(path, data); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	if err := Generate(path, made); err != nil {
		t.Fatal(err)
	}
	if err := Generate(path, made); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a second key over the first: %v", err)
	}
	r, err := Load(path, data)
	if err != nil {
		t.Fatal(err)
	}
	if !r.First().Made().Equal(made) || len(r.Keys()) != 1 {
		t.Errorf("loaded %v made at %s", r.Keys(), r.First().Made())
	}
	blob := r.Seal("x", []byte("y"))
	if err := Rotate(path, made.Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	rotated, err := Load(path, data)
	if err != nil {
		t.Fatal(err)
	}
	if _, stale, err := rotated.Open("x", blob); err != nil || !stale || len(rotated.Keys()) != 2 || rotated.First().ID() == r.First().ID() {
		t.Errorf("after a rotation: stale %t, %v, keys %v", stale, err, rotated.Keys())
	}
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(entries) != 1 {
		t.Errorf("left beside the file: %v %v", entries, err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode() != 0o600 {
		t.Errorf("mode %v %v", info.Mode(), err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}

	inside := filepath.Join(data, "key")
	link := filepath.Join(dir, "link")
	if err := errors.Join(os.WriteFile(inside, text, 0o600), os.Symlink(data, link)); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ name, path, want string }{
		{"inside", inside, "it lies in"},
		{"inside by a link", filepath.Join(link, "key"), "it lies in"},
		{"group may read", path, "mode 0640"},
		{"directory", dir, "not a regular file"},
	} {
		if _, err := Load(tt.path, data); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.want)
		}
	}
	// As systemd passes credentials to a service with a user of its own.
	t.Setenv("CREDENTIALS_DIRECTORY", filepath.Dir(path))
	if _, err := Load(Credential("key"), data); err != nil {
		t.Errorf("credential: %v", err)
	}
	if Credential("other") != "" {
		t.Error("a credential that is not there")
	}
}

func TestParseRefuses(t *testing.T) {
	line, err := draw(made)
	if err != nil {
		t.Fatal(err)
	}
	secret := line[strings.LastIndex(line, ".")+1:]
	for _, text := range []string{
		"", "# nothing\n", "x", secret, "cskey1." + secret, "cskey1.-1." + secret, "cskey1.9999999999999." + secret,
		line[:len(line)-1], line + "A", line + "\n" + line, line + "\nnonsense",
		"cskey1.1." + strings.Repeat("A", 43), strings.Repeat("#", maxFile+1),
	} {
		_, err := Parse([]byte(text))
		if err == nil {
			t.Errorf("%.80q is taken", text)
		} else if strings.Contains(err.Error(), secret) {
			t.Errorf("the error repeats the key: %v", err)
		}
	}
}

func TestKeysNeverPrint(t *testing.T) {
	line, err := draw(made)
	if err != nil {
		t.Fatal(err)
	}
	r, err := Parse([]byte(line))
	if err != nil {
		t.Fatal(err)
	}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%d"} {
		if got := fmt.Sprintf(verb, r.First()); got != "secret key "+r.First().ID().String() {
			t.Errorf("%s prints %q", verb, got)
		}
	}
}

func FuzzParse(f *testing.F) {
	line, err := draw(made)
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte(header + line + "\n"))
	f.Add([]byte(line + "\r\n" + "cskey1.0.x"))
	f.Fuzz(func(t *testing.T, text []byte) {
		r, err := Parse(text)
		if err != nil {
			return
		}
		blob := r.Seal("a", text)
		if plain, stale, err := r.Open("a", blob); err != nil || stale || !bytes.Equal(plain, text) {
			t.Errorf("a ring that was parsed does not seal: %v", err)
		}
	})
}

func FuzzOpen(f *testing.F) {
	r := ring(f, 2)
	f.Add("place", r.Seal("place", []byte("content")))
	f.Add("", []byte(magic))
	f.Fuzz(func(t *testing.T, place string, blob []byte) {
		plain, _, err := r.Open(place, blob)
		switch {
		case err == nil && len(plain)+Overhead != len(blob):
			t.Errorf("%d bytes came out of %d", len(plain), len(blob))
		case err != nil && !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrNotSealed) && !errors.Is(err, ErrOtherKey):
			t.Errorf("unexpected error %v", err)
		}
	})
}
