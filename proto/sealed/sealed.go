// Package sealed is how secrets lie on disk, on controllers and on nodes alike:
// the file that holds the keys which encrypt them, and the form of what is
// encrypted. It knows neither what the secrets are nor where they are kept; the
// file of keys must lie outside of the directory that they protect, so that who
// gets one does not have the other.
package sealed

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"time"
)

// What callers tell apart.
var (
	// ErrOtherKey: the blob was sealed with a key that the ring does not have.
	ErrOtherKey = errors.New("it is encrypted with another secret key")
	// ErrDamaged: the blob is torn, was changed, or was moved here from
	// somewhere else.
	ErrDamaged = errors.New("it is damaged, or belongs elsewhere")
	// ErrNotSealed: these bytes are no blob at all.
	ErrNotSealed = errors.New("it is not encrypted")
)

const (
	keyBytes = 32
	idBytes  = 8
	// magic begins every blob. No protobuf message, JSON or PEM begins so: the
	// first byte would be a field 0, which protobuf does not allow.
	magic = "\x00cs-sealed-1\x00"
	// overhead is what GCM with a random nonce adds.
	overhead = 12 + 16
)

// Overhead is how much longer a blob is than what it holds.
const Overhead = len(magic) + idBytes + overhead

// ID names a key. It is derived by a hash and tells nothing of it.
type ID [idBytes]byte

// String is the ID in hexadecimal.
func (i ID) String() string { return hex.EncodeToString(i[:]) }

// Key is one key of a ring. Every way of printing it is its ID.
type Key struct {
	id   ID
	made time.Time
	aead cipher.AEAD
}

// ID is the key's name.
func (k Key) ID() ID { return k.id }

// Made is when the key was made, to the second.
func (k Key) Made() time.Time { return k.made }

// String is the ID.
func (k Key) String() string { return "secret key " + k.id.String() }

// GoString is String.
func (k Key) GoString() string { return k.String() }

// Format prints String for every verb.
func (k Key) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(k.String())) }

// LogValue is the ID.
func (k Key) LogValue() slog.Value { return slog.StringValue(k.id.String()) }

// MarshalJSON is the ID.
func (k Key) MarshalJSON() ([]byte, error) { return []byte(`"` + k.id.String() + `"`), nil }

func newKey(secret []byte, made time.Time) (Key, error) {
	sum := sha256.Sum256(append([]byte("circuitseal secret key id\x00"), secret...))
	block, err := aes.NewCipher(secret)
	if err != nil {
		return Key{}, err
	}
	// With its nonces drawn at random, a key is good for 2^32 blobs (NIST SP
	// 800-38D, section 8.3): a thousand a second for seven weeks, a thousand an
	// hour for five hundred years.
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return Key{}, err
	}
	return Key{id: ID(sum[:idBytes]), made: made, aead: aead}, nil
}

// Ring is the keys of one secret key file. The first encrypts; all decrypt.
type Ring struct{ keys []Key }

// First is the key that encrypts.
func (r *Ring) First() Key { return r.keys[0] }

// Keys are all, in the order of the file.
func (r *Ring) Keys() []Key { return r.keys }

// Seal encrypts with the first key. The blob opens under the same place only,
// so that one cannot stand in for another; a place names what the blob is and
// which.
func (r *Ring) Seal(place string, plain []byte) []byte {
	k := r.keys[0]
	blob := make([]byte, 0, len(plain)+Overhead)
	blob = append(append(blob, magic...), k.id[:]...)
	return k.aead.Seal(blob, nil, plain, bound(k.id, place))
}

// bound is what a blob is tied to beside its content.
func bound(id ID, place string) []byte {
	return append([]byte(magic), append(id[:], place...)...)
}

// Open decrypts what Seal made under the same place. stale says that it was not
// the first key which had sealed it, so that it wants to be sealed anew. Errors
// wrap ErrNotSealed, ErrOtherKey or ErrDamaged.
func (r *Ring) Open(place string, blob []byte) (plain []byte, stale bool, err error) {
	id, rest, err := split(blob)
	if err != nil {
		return nil, false, err
	}
	for i, k := range r.keys {
		if k.id != id {
			continue
		}
		plain, err := k.aead.Open(nil, nil, rest, bound(id, place))
		if err != nil {
			return nil, false, ErrDamaged
		}
		return plain, i > 0, nil
	}
	return nil, false, fmt.Errorf("%w: with %s, at hand is %s", ErrOtherKey, id, r.keys[0].id)
}

func split(blob []byte) (id ID, rest []byte, err error) {
	if !Is(blob) {
		return ID{}, nil, ErrNotSealed
	}
	blob = blob[len(magic):]
	if len(blob) < idBytes+overhead {
		return ID{}, nil, ErrDamaged
	}
	return ID(blob[:idBytes]), blob[idBytes:], nil
}

// Is reports whether bytes claim to be a blob.
func Is(b []byte) bool { return len(b) >= len(magic) && string(b[:len(magic)]) == magic }
