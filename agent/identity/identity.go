// Package identity keeps who a node is: its key, its certificate, the root that
// it pinned at enrolment and where its controller is. It knows files and X.509,
// and neither dials nor enrols.
package identity

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/circuitseal/circuitseal/agent/durable"
	"github.com/circuitseal/circuitseal/proto/desired"
	"github.com/circuitseal/circuitseal/proto/sealed"
)

// ErrNotEnrolled says that a directory holds no identity.
var ErrNotEnrolled = errors.New("this node is not enrolled")

// maxFile bounds what is read from disk.
const maxFile = 256 << 10

// Identity is an enrolled node. Its key never leaves it.
type Identity struct {
	Node       string
	Controller *url.URL
	Root       *x509.Certificate
	key        Key
	chain      [][]byte
}

// Key is a node's private key. Every way of printing it redacts.
type Key struct{ signer *ecdsa.PrivateKey }

// String redacts.
func (Key) String() string { return "(private key)" }

// GoString redacts.
func (Key) GoString() string { return "(private key)" }

// LogValue redacts.
func (Key) LogValue() slog.Value { return slog.StringValue("(private key)") }

// MarshalJSON redacts.
func (Key) MarshalJSON() ([]byte, error) { return []byte(`"(private key)"`), nil }

// Request is a certificate request (PKCS #10, DER) for the key. It asks for no
// name: the token says whose certificate this will be.
func (k Key) Request() ([]byte, error) {
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{}}, k.signer)
	if err != nil {
		return nil, fmt.Errorf("create certificate request: %w", err)
	}
	return der, nil
}

// Certificate is what the node presents in TLS.
func (i *Identity) Certificate() tls.Certificate {
	return tls.Certificate{Certificate: i.chain, PrivateKey: i.key.signer}
}

// Request is a certificate request over the identity's key, for its renewal.
func (i *Identity) Request() ([]byte, error) { return i.key.Request() }

// Leaf is the node's own certificate.
func (i *Identity) Leaf() (*x509.Certificate, error) { return x509.ParseCertificate(i.chain[0]) }

// ParsePin reads a root's fingerprint: "sha256:" and 64 hexadecimal digits.
func ParsePin(s string) ([sha256.Size]byte, error) {
	var pin [sha256.Size]byte
	digits, ok := strings.CutPrefix(s, "sha256:")
	b, err := hex.DecodeString(digits)
	if !ok || err != nil || len(b) != len(pin) {
		return pin, fmt.Errorf("root pin %.80q: want sha256: and 64 hexadecimal digits, as `sealctl token create` prints it", s)
	}
	copy(pin[:], b)
	return pin, nil
}

// Replace puts the identity in next in the place of the one in dir, at once:
// whoever loads finds the old one or the new one. next is gone after it.
func Replace(dir, next string) error {
	unlock, err := lock(dir)
	if err != nil {
		return err
	}
	defer unlock()
	err = unix.Renameat2(unix.AT_FDCWD, next, unix.AT_FDCWD, dir, unix.RENAME_EXCHANGE)
	if err == nil {
		// The new identity is on disk before the old one goes.
		err = durable.SyncDir(filepath.Dir(dir))
	}
	if err == nil {
		err = discard(next)
	}
	if err != nil {
		return fmt.Errorf("replace identity in %s: %w", dir, err)
	}
	return nil
}

// Clear removes what a Replace that died has left in next: its key must not
// come back. A key for which no certificate came stays: asking for that again
// needs it.
func Clear(dir, next string) error {
	if err := os.RemoveAll(next + goneSuffix); err != nil {
		return fmt.Errorf("clear %s: %w", next, err)
	}
	whole, err := exists(filepath.Join(next, metaFile))
	if err == nil && (whole || oldKey(dir, next)) {
		err = discard(next)
	}
	if err != nil {
		return fmt.Errorf("clear %s: %w", next, err)
	}
	return nil
}

func exists(path string) (bool, error) {
	_, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// oldKey reports whether next holds the key of the identity in dir. One that is
// encrypted no enrolment made.
func oldKey(dir, next string) bool {
	if encrypted, err := Sealed(next); encrypted || err != nil {
		return encrypted
	}
	k, _, err := loadKey(next, nil)
	if err != nil {
		return false
	}
	i, err := Describe(dir)
	if err != nil {
		return false
	}
	leaf, err := i.Leaf()
	return err == nil && k.signer.PublicKey.Equal(leaf.PublicKey)
}

// goneSuffix marks a directory that is being removed.
const goneSuffix = ".gone"

// discard removes a directory, all or nothing: under its own name it is never
// there in part.
func discard(dir string) error {
	gone := dir + goneSuffix
	if err := os.RemoveAll(gone); err != nil {
		return err
	}
	if err := os.Rename(dir, gone); err != nil {
		return err
	}
	if err := durable.SyncDir(filepath.Dir(dir)); err != nil {
		return err
	}
	if err := os.RemoveAll(gone); err != nil {
		return err
	}
	return durable.SyncDir(filepath.Dir(dir))
}

const (
	keyFile  = "key.pem"
	metaFile = "identity.json"
)

// meta is one file, so that certificate, root and controller change together.
type meta struct {
	Controller   string   `json:"controller"`
	Root         []byte   `json:"root"`
	Certificates [][]byte `json:"certificates"`
}

// NewKey returns the key in dir, and makes one where there is none: it is on
// disk before it is used, so that an enrolment whose answer was lost can be
// repeated with the same key.
// It is not encrypted until an agent runs: who enrols may not have the secret key,
// which a service manager can pass to the agent alone.
func NewKey(dir string) (Key, error) {
	k, _, err := loadKey(dir, nil)
	if !errors.Is(err, fs.ErrNotExist) {
		return k, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return Key{}, err
	}
	signer, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		return Key{}, err
	}
	k = Key{signer}
	block, err := k.pem()
	if err != nil {
		return Key{}, err
	}
	return k, durable.WriteFile(filepath.Join(dir, keyFile), block, 0o600)
}

// keyPlace is where an encrypted key may be opened.
const keyPlace = "session key of a node"

func (k Key) pem() ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(k.signer)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// loadKey takes a key that is not encrypted, too; stale says that it is not, or not
// with the newest secret key. Without secrets, nil, it takes no other.
func loadKey(dir string, secrets *sealed.Ring) (k Key, stale bool, err error) {
	path := filepath.Join(dir, keyFile)
	text, err := durable.ReadFile(path, maxFile, true)
	if err != nil {
		return Key{}, false, err
	}
	plain, stale := text, true
	switch {
	case !sealed.Is(text):
	case secrets == nil:
		return Key{}, false, fmt.Errorf("read %s: it is encrypted with the node's secret key", path)
	default:
		if plain, stale, err = secrets.Open(keyPlace, text); err != nil {
			return Key{}, false, fmt.Errorf("read %s: %w", path, err)
		}
	}
	block, _ := pem.Decode(plain)
	if block == nil {
		return Key{}, false, fmt.Errorf("read %s: it holds no PEM block", path)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		// The parser's error could quote from the key.
		return Key{}, false, fmt.Errorf("read %s: its PKCS #8 structure is malformed", path)
	}
	signer, ok := parsed.(*ecdsa.PrivateKey)
	if !ok {
		return Key{}, false, fmt.Errorf("read %s: it holds a %T, want an ECDSA key", path, parsed)
	}
	return Key{signer}, stale, nil
}

// Sealed reports whether the key in dir is encrypted; false without a key.
func Sealed(dir string) (bool, error) {
	text, err := durable.ReadFile(filepath.Join(dir, keyFile), maxFile, true)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return sealed.Is(text), err
}

// Reseal encrypts the key of an identity with the newest secret key, where it is
// not. It is for who runs the node; others only read.
func Reseal(dir string, secrets *sealed.Ring) (done bool, err error) {
	unlock, err := lock(dir)
	if err != nil {
		return false, err
	}
	defer unlock()
	k, stale, err := loadKey(dir, secrets)
	if err != nil || !stale {
		return false, err
	}
	block, err := k.pem()
	if err != nil {
		return false, err
	}
	return true, durable.WriteFile(filepath.Join(dir, keyFile), secrets.Seal(keyPlace, block), 0o600)
}

// Store writes an identity into dir, which holds its key already, and returns
// it. The certificates (DER, leaf first) must be for that key and lead to root.
func Store(dir string, controller *url.URL, root []byte, certificates [][]byte) (*Identity, error) {
	m := meta{Controller: controller.String(), Root: root, Certificates: certificates}
	i, err := assemble(dir, nil, m)
	if err != nil {
		return nil, err
	}
	return i, write(dir, m)
}

func write(dir string, m meta) error {
	text, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	return durable.WriteFile(filepath.Join(dir, metaFile), append(text, '\n'), 0o600)
}

// Renew puts certificates (DER, leaf first) over the same key in the place of
// those of an identity in dir, on disk when it returns. It refuses what is not
// good at now or ends no later than what is there, unless that has not begun,
// and when the host was enrolled anew meanwhile.
func Renew(dir string, secrets *sealed.Ring, id *Identity, certificates [][]byte, now time.Time) (*Identity, error) {
	unlock, err := lock(dir)
	if err != nil {
		return nil, err
	}
	defer unlock()
	have, err := Load(dir, secrets)
	if err != nil {
		return nil, err
	}
	if have.Node != id.Node || !have.Root.Equal(id.Root) || !have.key.signer.Equal(id.key.signer) {
		return nil, fmt.Errorf("renew identity in %s: this host was enrolled anew meanwhile", dir)
	}
	m := meta{Controller: have.Controller.String(), Root: have.Root.Raw, Certificates: certificates}
	next, err := assemble(dir, secrets, m)
	if err != nil {
		return nil, err
	}
	leaf, err := next.Leaf()
	if err != nil {
		return nil, err
	}
	before, err := have.Leaf()
	if err != nil {
		return nil, err
	}
	switch {
	case next.Node != have.Node:
		return nil, fmt.Errorf("renew identity in %s: the certificate is of node %q", dir, next.Node)
	case now.Before(leaf.NotBefore) || now.After(leaf.NotAfter):
		return nil, fmt.Errorf("renew identity in %s: the certificate is good from %s to %s and this host's clock says %s: set the clock that is wrong",
			dir, leaf.NotBefore.UTC().Format(time.RFC3339), leaf.NotAfter.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	case leaf.Equal(before):
		return have, nil
	case !leaf.NotAfter.After(before.NotAfter) && !now.Before(before.NotBefore):
		return nil, fmt.Errorf("renew identity in %s: the certificate ends no later than the one that is there, at %s", dir, before.NotAfter.UTC().Format(time.RFC3339))
	}
	return next, write(dir, m)
}

// lock keeps others from changing the identity in dir meanwhile. The directory
// itself may be exchanged, so it is the one around it that is locked.
func lock(dir string) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Dir(dir), os.O_RDONLY|unix.O_CLOEXEC|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, fmt.Errorf("lock identity: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		return nil, errors.Join(fmt.Errorf("lock identity in %s: %w", dir, err), f.Close())
	}
	return func() { _ = f.Close() }, nil
}

// Load reads the identity in dir; ErrNotEnrolled when there is none. Without
// secrets, nil, its key must not be encrypted yet.
func Load(dir string, secrets *sealed.Ring) (*Identity, error) {
	m, err := read(dir)
	if err != nil {
		return nil, err
	}
	return assemble(dir, secrets, m)
}

// Describe is Load without the key, for who has no need of it.
func Describe(dir string) (*Identity, error) {
	m, err := read(dir)
	if err != nil {
		return nil, err
	}
	return check(dir, m)
}

func read(dir string) (m meta, err error) {
	path := filepath.Join(dir, metaFile)
	text, err := durable.ReadFile(path, maxFile, true)
	if errors.Is(err, fs.ErrNotExist) {
		return m, fmt.Errorf("%w: there is no %s; run `circuitseal-agent enroll` first", ErrNotEnrolled, path)
	}
	if err != nil {
		return m, err
	}
	if err := json.Unmarshal(text, &m); err != nil {
		return m, fmt.Errorf("read %s: %w", path, err)
	}
	return m, nil
}

func assemble(dir string, secrets *sealed.Ring, m meta) (*Identity, error) {
	key, _, err := loadKey(dir, secrets)
	if err != nil {
		return nil, err
	}
	i, err := check(dir, m)
	if err != nil {
		return nil, err
	}
	leaf, err := i.Leaf()
	if err != nil {
		return nil, err
	}
	if public, ok := leaf.PublicKey.(interface{ Equal(crypto.PublicKey) bool }); !ok || !public.Equal(key.signer.Public()) {
		return nil, fmt.Errorf("identity in %s: the certificate is for another key than %s", dir, keyFile)
	}
	i.key = key
	return i, nil
}

// check reads all of an identity but its key.
func check(dir string, m meta) (*Identity, error) {
	controller, err := url.Parse(m.Controller)
	if err != nil {
		return nil, fmt.Errorf("identity in %s: controller: %w", dir, err)
	}
	root, err := x509.ParseCertificate(m.Root)
	if err != nil {
		return nil, fmt.Errorf("identity in %s: root: %w", dir, err)
	}
	if len(m.Certificates) == 0 {
		return nil, fmt.Errorf("identity in %s: it has no certificate", dir)
	}
	leaf, err := x509.ParseCertificate(m.Certificates[0])
	if err != nil {
		return nil, fmt.Errorf("identity in %s: certificate: %w", dir, err)
	}
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(root)
	for _, der := range m.Certificates[1:] {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("identity in %s: certificate chain: %w", dir, err)
		}
		between.AddCert(c)
	}
	// At its own time of issue: an expired certificate is still this node's
	// name, with which it runs its last good state.
	_, err = leaf.Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: between, CurrentTime: leaf.NotBefore,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	if err != nil {
		return nil, fmt.Errorf("identity in %s: certificate: %w", dir, err)
	}
	if len(leaf.URIs) != 1 || !strings.HasPrefix(leaf.URIs[0].String(), desired.NodeURI) {
		return nil, fmt.Errorf("identity in %s: the certificate names no node", dir)
	}
	return &Identity{
		Node:       strings.TrimPrefix(leaf.URIs[0].String(), desired.NodeURI),
		Controller: controller, Root: root, chain: m.Certificates,
	}, nil
}
