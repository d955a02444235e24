package ipsec

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"sync"

	"github.com/circuitseal/circuitseal/agent/keydir"
	"github.com/circuitseal/circuitseal/proto/desired"
	"github.com/circuitseal/circuitseal/proto/sealed"
)

const keyVersion = 1

// Keys keeps one private key (ECDSA, P-384) for each generation of an identity in a
// directory of its own, each in a file of mode 0600 that is sealed, written
// atomically and checks itself. A key is made once and stays until Forget. Methods
// may be called by several goroutines; two processes must not share a directory.
type Keys struct {
	dir keydir.Dir
	mu  sync.Mutex
	// known saves reading files again on every pass.
	known map[keyName]identityKey
}

// keyName is an identity and a generation of its key.
type keyName struct {
	identity   string
	generation uint64
}

func (n keyName) String() string {
	return fmt.Sprintf("%.253q, generation %d", n.identity, n.generation)
}

// identityKey prints without its private half.
type identityKey struct {
	private *ecdsa.PrivateKey
	// public is a SubjectPublicKeyInfo, DER; id is what charon calls the key by.
	public []byte
	id     string
}

const redactedKey = "(identity key)"

// Format prints the placeholder for every verb.
func (identityKey) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(redactedKey)) }

// LogValue is the placeholder.
func (identityKey) LogValue() slog.Value { return slog.StringValue(redactedKey) }

// keyFile is the content of a file. Sum is over the other fields.
type keyFile struct {
	Version    int    `json:"version"`
	Identity   string `json:"identity"`
	Generation uint64 `json:"generation"`
	// Key is PKCS #8, DER.
	Key []byte `json:"key"`
	Sum []byte `json:"sum"`
}

func (f keyFile) sum() []byte {
	h := sha256.New()
	_, _ = fmt.Fprintf(h, "%d\x00%s\x00%d\x00", f.Version, f.Identity, f.Generation)
	_, _ = h.Write(f.Key)
	return h.Sum(nil)
}

// OpenKeys makes the directory, of mode 0700, when it is not there. Files are
// sealed with the first key of secrets.
func OpenKeys(dir string, secrets *sealed.Ring) (*Keys, error) {
	d, err := keydir.Open(dir, secrets)
	if err != nil {
		return nil, fmt.Errorf("open IPsec keys: %w", err)
	}
	return &Keys{dir: d, known: map[keyName]identityKey{}}, nil
}

// Ensure makes the keys that are missing and returns the public halves of all, in
// the order of identities and their certificates. Errors are joined; what succeeded
// is returned. A file that cannot be trusted is an error and is not replaced: a
// certificate may be issued for its public half.
func (k *Keys) Ensure(identities []desired.Identity) ([]desired.IdentityKey, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	var (
		all  []desired.IdentityKey
		errs []error
	)
	for _, n := range keyNames(identities) {
		key, err := k.load(n)
		if errors.Is(err, os.ErrNotExist) {
			key, err = k.create(n)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("key of identity %s: %w", n, err))
			continue
		}
		all = append(all, desired.IdentityKey{Name: n.identity, Generation: n.generation, PublicKey: bytes.Clone(key.public)})
	}
	return all, errors.Join(errs...)
}

func keyNames(identities []desired.Identity) []keyName {
	var names []keyName
	for _, i := range identities {
		for _, c := range i.Certificates {
			names = append(names, keyName{i.Name, c.Generation})
		}
	}
	return names
}

// Forget removes all keys except those of the identities and generations named.
// Files that are not keys stay.
func (k *Keys) Forget(except []desired.Identity) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	keep := map[string]bool{}
	for _, n := range keyNames(except) {
		keep[n.file()] = true
	}
	maps.DeleteFunc(k.known, func(n keyName, _ identityKey) bool { return !keep[n.file()] })
	if err := k.dir.Keep(keep); err != nil {
		return fmt.Errorf("IPsec: %w", err)
	}
	return nil
}

// key is one that Ensure has been called for; the error wraps os.ErrNotExist
// otherwise.
func (k *Keys) key(n keyName) (identityKey, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.load(n)
}

func (k *Keys) load(n keyName) (identityKey, error) {
	if key, ok := k.known[n]; ok {
		return key, nil
	}
	plain, stale, err := k.dir.Read(n.file(), n.place())
	if errors.Is(err, os.ErrNotExist) {
		return identityKey{}, err
	}
	var key identityKey
	if err == nil {
		key, err = decodeKey(plain, n)
	}
	if err != nil {
		return identityKey{}, fmt.Errorf("%s: %w; restore the file from a backup, or have the identity's key replaced", k.dir.Path(n.file()), err)
	}
	if stale {
		if err := k.dir.Write(n.file(), n.place(), plain); err != nil {
			return identityKey{}, err
		}
	}
	k.known[n] = key
	return key, nil
}

// place is where a key may be opened.
func (n keyName) place() string {
	return fmt.Sprintf("ipsec private key\x00%s\x00%d", n.identity, n.generation)
}

// file is the key's file name.
func (n keyName) file() string { return keydir.FileName(n.place()) }

func (k *Keys) create(n keyName) (identityKey, error) {
	private, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		return identityKey{}, fmt.Errorf("make key: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return identityKey{}, fmt.Errorf("encode key: %w", err)
	}
	f := keyFile{Version: keyVersion, Identity: n.identity, Generation: n.generation, Key: der}
	f.Sum = f.sum()
	b, err := json.Marshal(f)
	if err != nil {
		return identityKey{}, err
	}
	if err := k.dir.Write(n.file(), n.place(), b); err != nil {
		return identityKey{}, err
	}
	key, err := newIdentityKey(private)
	if err == nil {
		k.known[n] = key
	}
	return key, err
}

// decodeKey never repeats the content in an error.
func decodeKey(b []byte, n keyName) (identityKey, error) {
	var f keyFile
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&f); err != nil || d.More() {
		return identityKey{}, errors.New("the file is not an IPsec key")
	}
	switch {
	case f.Version != keyVersion:
		return identityKey{}, fmt.Errorf("the file has version %d, this agent reads version %d", f.Version, keyVersion)
	case !slices.Equal(f.Sum, f.sum()):
		return identityKey{}, errors.New("the file is damaged: its checksum is wrong")
	case f.Identity != n.identity || f.Generation != n.generation:
		return identityKey{}, fmt.Errorf("the file holds the key of identity %s", keyName{f.Identity, f.Generation})
	}
	parsed, err := x509.ParsePKCS8PrivateKey(f.Key)
	private, ok := parsed.(*ecdsa.PrivateKey)
	if err != nil || !ok {
		return identityKey{}, errors.New("the file holds no ECDSA key")
	}
	return newIdentityKey(private)
}

func newIdentityKey(private *ecdsa.PrivateKey) (identityKey, error) {
	public, err := x509.MarshalPKIXPublicKey(&private.PublicKey)
	if err != nil {
		return identityKey{}, fmt.Errorf("encode public key: %w", err)
	}
	point, err := private.PublicKey.Bytes()
	if err != nil {
		return identityKey{}, fmt.Errorf("encode public key: %w", err)
	}
	// KEYID_PUBKEY_SHA1: of the bit string alone.
	sum := sha1.Sum(point)
	return identityKey{private: private, public: public, id: hex.EncodeToString(sum[:])}, nil
}

// der is the private key as charon takes it (RFC 5915).
func (k identityKey) der() (string, error) {
	b, err := x509.MarshalECPrivateKey(k.private)
	if err != nil {
		return "", fmt.Errorf("encode key: %w", err)
	}
	return string(b), nil
}

// fits reports whether a certificate is over the key.
func (k identityKey) fits(certificate []byte) error {
	c, err := x509.ParseCertificate(certificate)
	if err != nil {
		return fmt.Errorf("read certificate: %w", err)
	}
	if !bytes.Equal(c.RawSubjectPublicKeyInfo, k.public) {
		return errors.New("the certificate is over another key than this node's: wait for the controller to issue one for the key that it reports")
	}
	return nil
}
