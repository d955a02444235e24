package desired

import (
	"encoding/base64"
	"fmt"
)

// PublicKey is a Curve25519 public key. The zero value means that there is none.
type PublicKey [32]byte

// IsZero reports whether there is no key.
func (k PublicKey) IsZero() bool { return k == PublicKey{} }

// String is the key in base64, as wg(8) prints it, or "(none)".
func (k PublicKey) String() string {
	if k.IsZero() {
		return "(none)"
	}
	return base64.StdEncoding.EncodeToString(k[:])
}

// PublicKeyFromBytes takes 32 bytes, or none for the zero key.
func PublicKeyFromBytes(b []byte) (PublicKey, error) {
	var k PublicKey
	if len(b) == 0 {
		return k, nil
	}
	if len(b) != len(k) {
		return k, fmt.Errorf("public key has %d bytes, want %d", len(b), len(k))
	}
	copy(k[:], b)
	return k, nil
}
