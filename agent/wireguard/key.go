package wireguard

import (
	"crypto/ecdh"
	"crypto/rand"
	"fmt"
	"log/slog"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/circuitseal/circuitseal/proto/desired"
)

const redacted = "(private key)"

// PrivateKey is a Curve25519 private key. It prints as a placeholder in every
// form and does not compare with ==: compare public keys.
type PrivateKey struct {
	_     [0]func()
	bytes [32]byte
}

// newPrivateKey draws a key and clamps it (RFC 7748, section 5).
func newPrivateKey() (PrivateKey, error) {
	var k PrivateKey
	if _, err := rand.Read(k.bytes[:]); err != nil {
		return PrivateKey{}, fmt.Errorf("draw private key: %w", err)
	}
	k.bytes[0] &= 248
	k.bytes[31] = k.bytes[31]&127 | 64
	return k, nil
}

// Public is the public half.
func (k PrivateKey) Public() (desired.PublicKey, error) {
	p, err := ecdh.X25519().NewPrivateKey(k.bytes[:])
	if err != nil {
		return desired.PublicKey{}, fmt.Errorf("derive public key: %w", err)
	}
	return desired.PublicKeyFromBytes(p.PublicKey().Bytes())
}

func (k PrivateKey) wg() *wgtypes.Key {
	w := wgtypes.Key(k.bytes)
	return &w
}

// Format prints the placeholder for every verb, %x and %#v included.
func (PrivateKey) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(redacted)) }

// String is the placeholder.
func (PrivateKey) String() string { return redacted }

// GoString is the placeholder.
func (PrivateKey) GoString() string { return redacted }

// LogValue is the placeholder.
func (PrivateKey) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalJSON is the placeholder.
func (PrivateKey) MarshalJSON() ([]byte, error) { return []byte(`"` + redacted + `"`), nil }
