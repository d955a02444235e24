package pki

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/circuitseal/circuitseal/proto/desired"
	"github.com/circuitseal/circuitseal/proto/sealed"
)

// clock is a clock that tests move.
type clock struct{ offset atomic.Int64 }

func (c *clock) now() time.Time          { return time.Now().Add(time.Duration(c.offset.Load())) }
func (c *clock) forward(d time.Duration) { c.offset.Add(int64(d)) }

// Lines of secret key files.
var lineA, lineB = line(1), line(2)

func line(b byte) string {
	return "cskey1.1700000000." + base64.RawURLEncoding.EncodeToString(bytes.Repeat([]byte{b}, 32)) + "\n"
}

func ring(lines string) *sealed.Ring {
	r, err := sealed.Parse([]byte(lines))
	if err != nil {
		panic(err)
	}
	return r
}

func open(t testing.TB, dir string, c *clock) *Authority {
	t.Helper()
	a, err := tryOpen(dir, c)
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	return a
}

func tryOpen(dir string, c *clock) (*Authority, error) {
	return Open(Config{Dir: dir, Log: slog.New(slog.DiscardHandler), Secrets: ring(lineA), Now: c.now})
}

func readAll(t *testing.T, dir string) map[string]string {
	t.Helper()
	files := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		name, relErr := filepath.Rel(dir, path)
		files[name] = string(b)
		return errors.Join(err, relErr)
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// made is what a first start makes, in its order.
var made = []string{
	"pki/root.key", "pki/root.crt", "pki/issuing.key", "pki/issuing.crt",
	"pki/state-signing.key", "pki/state-signing.crt", "admin/root.pem", "admin/identity.pem",
}

func TestFirstStart(t *testing.T) {
	dir := t.TempDir()
	a := open(t, dir, &clock{})
	for _, name := range made {
		fi, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Error(err)
			continue
		}
		want := os.FileMode(0o644)
		if strings.HasSuffix(name, ".key") || strings.HasSuffix(name, "identity.pem") {
			want = 0o600
		}
		if fi.Mode() != want {
			t.Errorf("%s has mode %v, want %v", name, fi.Mode(), want)
		}
	}
	for _, d := range []string{"pki", "admin"} {
		if fi, err := os.Stat(filepath.Join(dir, d)); err != nil || fi.Mode().Perm() != 0o700 {
			t.Errorf("%s: %v, error %v; want mode 0700", d, fi.Mode(), err)
		}
	}
	before := readAll(t, dir)
	again := open(t, dir, &clock{})
	if d := cmp.Diff(before, readAll(t, dir)); d != "" {
		t.Errorf("a second start changed files (-want +got):\n%s", d)
	}
	sum := sha256.Sum256(a.Root())
	if want := "sha256:" + hex.EncodeToString(sum[:]); a.RootPin() != want || again.RootPin() != want {
		t.Errorf("pins %s and %s, want %s", a.RootPin(), again.RootPin(), want)
	}
	if a.root.MaxPathLen != 1 || !a.issuing.cert.MaxPathLenZero || a.state.cert.IsCA {
		t.Error("path lengths are not 1, 0 and none")
	}
}

// TestFirstStartCutShort dies after each file, with a half-written one left.
func TestFirstStartCutShort(t *testing.T) {
	whole := t.TempDir()
	open(t, whole, &clock{})
	files := readAll(t, whole)
	for n := range len(made) + 1 {
		t.Run(fmt.Sprintf("after %d files", n), func(t *testing.T) {
			dir := t.TempDir()
			for _, d := range []string{"pki", "admin"} {
				if err := os.Mkdir(filepath.Join(dir, d), 0o700); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(filepath.Join(dir, d, tempPrefix+"x"), []byte("half"), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			for _, name := range made[:n] {
				if err := os.WriteFile(filepath.Join(dir, name), []byte(files[name]), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			a := open(t, dir, &clock{})
			got := readAll(t, dir)
			for _, name := range made[:n] {
				if got[name] != files[name] {
					t.Errorf("%s was made anew", name)
				}
			}
			if len(got) != len(made) {
				t.Errorf("%d files, want %d", len(got), len(made))
			}
			if _, err := a.IssueNode(request(t, nil), "prem-1"); err != nil {
				t.Error(err)
			}
		})
	}
}

// Keys of the authority are on disk as blobs of the newest secret key, those of
// before and those that were brought back by hand too.
func TestKeysAreEncrypted(t *testing.T) {
	dir := t.TempDir()
	at := func(lines string) (*Authority, error) {
		a, err := Open(Config{Dir: dir, Log: slog.New(slog.DiscardHandler), Secrets: ring(lines)})
		if err == nil {
			_, err = a.ServerTLS([]string{"controller.example"})
		}
		return a, err
	}
	first, err := at(lineA)
	if err != nil {
		t.Fatal(err)
	}
	keys := []string{"root.key", "issuing.key", "state-signing.key", "server.key"}
	sealedBy := func(what, lines string) {
		t.Helper()
		for _, k := range keys {
			b, err := os.ReadFile(filepath.Join(dir, "pki", k))
			if err != nil {
				t.Fatal(err)
			}
			if _, stale, err := ring(lines).Open(place(k), b); err != nil || stale || bytes.Contains(b, []byte("PRIVATE")) {
				t.Errorf("%s: %s: stale %t, %v", what, k, stale, err)
			}
		}
	}
	sealedBy("made", lineA)
	if _, err := at(lineB); !errors.Is(err, sealed.ErrOtherKey) || !strings.Contains(err.Error(), "add that one to the secret key file") {
		t.Errorf("with another secret key: %v", err)
	}
	sealedBy("after another secret key", lineA)
	if _, err := at(lineB + lineA); err != nil {
		t.Fatal(err)
	}
	sealedBy("with a newer secret key", lineB)

	plain, err := first.issuing.key.pem()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "pki", "issuing.key"), plain, 0o600); err != nil {
		t.Fatal(err)
	}
	again, err := at(lineB)
	if err != nil {
		t.Fatal(err)
	}
	sealedBy("of before", lineB)
	if again.RootPin() != first.RootPin() || !again.issuing.key.ecdsa.Equal(first.issuing.key.ecdsa) {
		t.Error("keys changed")
	}
	// One key cannot stand in for another.
	b, err := os.ReadFile(filepath.Join(dir, "pki", "state-signing.key"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "pki", "issuing.key"), b, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := at(lineB); !errors.Is(err, sealed.ErrDamaged) {
		t.Errorf("a key in another's place: %v", err)
	}
}

func TestOpenRefuses(t *testing.T) {
	remove := func(names ...string) func(t *testing.T, dir string) {
		return func(t *testing.T, dir string) {
			for _, n := range names {
				if err := os.Remove(filepath.Join(dir, "pki", n)); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	chmod := func(name string, mode os.FileMode) func(t *testing.T, dir string) {
		return func(t *testing.T, dir string) {
			if err := os.Chmod(filepath.Join(dir, name), mode); err != nil {
				t.Fatal(err)
			}
		}
	}
	write := func(name, text string) func(t *testing.T, dir string) {
		return func(t *testing.T, dir string) {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	foreign := func(name string) func(t *testing.T, dir string) {
		return func(t *testing.T, dir string) {
			other := t.TempDir()
			open(t, other, &clock{})
			b, err := os.ReadFile(filepath.Join(other, name))
			if err != nil {
				t.Fatal(err)
			}
			write(name, string(b))(t, dir)
		}
	}
	tests := []struct {
		name string
		harm func(t *testing.T, dir string)
		want string // empty: opens
	}{
		{"root key offline", remove("root.key"), ""},
		{"root key offline, issuing certificate lost", remove("root.key", "issuing.crt"), "put root.key back"},
		{"root key offline, state certificate lost", remove("root.key", "state-signing.crt"), "put root.key back"},
		{"issuing certificate lost", remove("issuing.crt"), ""},
		{"root certificate lost", remove("root.crt"), "restore it from a backup, agents pin it"},
		{"root lost", remove("root.crt", "root.key"), "restore it from a backup, agents pin it"},
		{"issuing key lost", remove("issuing.key"), "issuing.key is missing"},
		{"state key lost", remove("state-signing.key"), "state-signing.key is missing"},
		{"key open to the group", chmod("pki/issuing.key", 0o640), "issuing.key has mode 0640"},
		{"root key open to the world", chmod("pki/root.key", 0o604), "root.key has mode 0604"},
		{"identity open to the world", chmod("admin/identity.pem", 0o644), "identity.pem has mode 0644"},
		{"directory open to the group", chmod("pki", 0o750), "mode 0750: others can reach"},
		{"admin directory open to the group", chmod("admin", 0o710), "mode 0710: others can reach"},
		{"key is not PEM", write("pki/issuing.key", "x"), "want one PRIVATE KEY in PEM"},
		{"key is empty", write("pki/root.key", ""), "want one PRIVATE KEY in PEM"},
		{"certificate is too large", write("pki/root.crt", strings.Repeat("x", maxFile+1)), "at most 65536 bytes"},
		{"foreign issuing key", foreign("pki/issuing.key"), "do not belong together"},
		{"foreign root key", foreign("pki/root.key"), "do not belong together"},
		{"foreign identity", foreign("admin/identity.pem"), "remove it to have a new one made"},
		{"foreign root certificate", foreign("pki/root.crt"), "do not belong together"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			open(t, dir, &clock{})
			tt.harm(t, dir)
			_, err := tryOpen(dir, &clock{})
			switch {
			case tt.want == "" && err != nil:
				t.Errorf("Open: %v", err)
			case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
				t.Errorf("Open: %v, want %q", err, tt.want)
			}
			if err != nil && strings.Contains(err.Error(), "PRIVATE KEY-----") {
				t.Errorf("the error shows a key: %v", err)
			}
		})
	}
}

// Where there is policy there was an authority: a new one would disown all.
func TestNoNewAuthorityForOldPolicy(t *testing.T) {
	dir := t.TempDir()
	needed := func() error {
		_, err := Open(Config{Dir: dir, Log: slog.New(slog.DiscardHandler), Secrets: ring(lineA), Needed: true})
		return err
	}
	refused := func(what string) {
		t.Helper()
		if err := needed(); !errors.Is(err, ErrLost) || !strings.Contains(err.Error(), "holds policy and no certificate authority ("+dir+"/pki)") {
			t.Errorf("%s: %v", what, err)
		}
	}
	refused("no directory")
	if left := readAll(t, dir); len(left) > 0 {
		t.Errorf("it made %v", left)
	}
	open(t, dir, &clock{})
	if err := needed(); err != nil {
		t.Errorf("with all files: %v", err)
	}
	for _, f := range []string{"root.crt", "issuing.crt", "state-signing.crt"} {
		if err := os.Remove(filepath.Join(dir, "pki", f)); err != nil {
			t.Fatal(err)
		}
	}
	refused("no certificates")
}

func TestSignersRenewOverTheirKeys(t *testing.T) {
	dir := t.TempDir()
	var c clock
	a := open(t, dir, &c)
	issued, err := a.IssueNode(request(t, nil), "prem-1")
	if err != nil {
		t.Fatal(err)
	}
	c.forward(6 * day)
	leaf := chain(t, issued)[:1]
	c.forward(signerLife - 30*day)
	b := open(t, dir, &c)
	if b.issuing.cert.Equal(a.issuing.cert) || b.state.cert.Equal(a.state.cert) {
		t.Error("certificates near their end were not renewed")
	}
	if !b.issuing.key.ecdsa.Equal(a.issuing.key.ecdsa) || b.RootPin() != a.RootPin() {
		t.Error("keys changed")
	}
	if _, err := b.Identify(leaf, time.Now().Add(6*day)); err == nil {
		t.Error("accepted under an issuer that began later") // sanity of the next line
	}
	if err := leaf[0].CheckSignatureFrom(b.issuing.cert); err != nil {
		t.Errorf("an old certificate under the renewed issuer: %v", err)
	}
	// With the root's key away, what lasts is used and what has ended is not.
	if err := os.Rename(filepath.Join(dir, "pki/root.key"), filepath.Join(dir, "root.key")); err != nil {
		t.Fatal(err)
	}
	c.forward(signerLife - 10*day)
	open(t, dir, &c)
	c.forward(20 * day)
	if _, err := tryOpen(dir, &c); err == nil || !strings.Contains(err.Error(), "put root.key back") {
		t.Errorf("Open with an ended issuer: %v", err)
	}
	if _, err := b.IssueNode(request(t, nil), "prem-1"); err == nil || !strings.Contains(err.Error(), "ended on") {
		t.Errorf("IssueNode with an ended issuer: %v", err)
	}
	if _, err := b.SignState(desired.Header{Node: "prem-1"}, nil); err == nil || !strings.Contains(err.Error(), "ended on") {
		t.Errorf("SignState with an ended certificate: %v", err)
	}
}

func TestSignState(t *testing.T) {
	a := open(t, t.TempDir(), &clock{})
	state, err := desired.State{}.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	h := desired.Header{Node: "prem-1", Position: desired.Position{Epoch: 1, Revision: 7}, Issued: time.Now().UTC()}
	e, err := a.SignState(h, state)
	if err != nil {
		t.Fatal(err)
	}
	got, _, err := desired.OpenEnvelope(e, a.root, "prem-1")
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(h, got); d != "" {
		t.Errorf("header (-want +got):\n%s", d)
	}

	// No other certificate of this authority signs states.
	key, err := newKey()
	if err != nil {
		t.Fatal(err)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		t.Fatal(err)
	}
	r, err := ParseRequest(csr)
	if err != nil {
		t.Fatal(err)
	}
	nodeCert, err := a.IssueNode(r, "state-signer")
	if err != nil {
		t.Fatal(err)
	}
	for name, p := range map[string]struct {
		key  privateKey
		cert []byte
	}{
		"issuing":                          {a.issuing.key, a.issuing.cert.Raw},
		"node":                             {key, nodeCert.Chain[0]},
		"issuing with another's":           {a.issuing.key, a.state.cert.Raw},
		"state signer under the issuing":   {key, forge(t, a, key)},
		"node with the signer's own state": {key, a.state.cert.Raw},
	} {
		e, err := desired.Seal(h, state, p.key, p.cert)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := desired.OpenEnvelope(e, a.root, "prem-1"); !errors.Is(err, desired.ErrSignature) {
			t.Errorf("%s: OpenEnvelope: %v, want ErrSignature", name, err)
		}
	}
}

// forge is what whoever holds the issuing key alone could make.
func forge(t *testing.T, a *Authority, key privateKey) []byte {
	t.Helper()
	c, err := a.issue(stateTemplate(a.now()), key.publicKey())
	if err != nil {
		t.Fatal(err)
	}
	return c.Raw
}

func TestSecretsAreRedacted(t *testing.T) {
	a := open(t, t.TempDir(), &clock{})
	token := NewToken()
	config, err := a.ServerTLS(nil)
	if err != nil {
		t.Fatal(err)
	}
	served, err := config.GetCertificate(nil)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	values := []any{token, &token, a.issuing.key, &a.issuing.key, a.issuing, &a.issuing, a, served.PrivateKey, map[string]any{"t": token}}
	for _, v := range values {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
			_, _ = fmt.Fprintf(&out, verb+"\n", v)
		}
		if b, err := json.Marshal(v); err == nil {
			out.Write(b)
		}
		slog.New(slog.NewTextHandler(&out, nil)).Info("x", "v", v)
		slog.New(slog.NewJSONHandler(&out, nil)).Info("x", "v", v)
	}
	d := a.issuing.key.ecdsa
	raw, err := d.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	for name, secrets := range map[string][]byte{"token": token.secret[:], "issuing key": raw, "server key": serverKeyBytes(t, served.PrivateKey)} {
		for _, shown := range []string{
			string(secrets), hex.EncodeToString(secrets), tokenEncoding.EncodeToString(secrets),
			strings.Trim(fmt.Sprintf("%d", secrets), "[]"), strings.Trim(fmt.Sprintf("%#v", secrets), "[]byte{}"),
		} {
			if strings.Contains(out.String(), shown) {
				t.Errorf("the %s is shown as %.12s…", name, shown)
			}
		}
	}
}

func serverKeyBytes(t *testing.T, k any) []byte {
	t.Helper()
	p, ok := k.(privateKey)
	if !ok {
		t.Fatalf("the server's key is a %T", k)
	}
	b, err := p.ecdsa.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	return b
}
