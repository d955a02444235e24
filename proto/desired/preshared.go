package desired

import (
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"fmt"
	"log/slog"
)

const redactedSecret = "(secret)"

// Secret is a symmetric key. Every way of printing it but Typed redacts; a struct that
// holds one in an unexported field must redact by itself, since fmt does not
// ask such fields. The zero value means that there is none.
type Secret [32]byte

// NewSecret draws one.
func NewSecret() (Secret, error) {
	var s Secret
	if _, err := rand.Read(s[:]); err != nil {
		return Secret{}, fmt.Errorf("draw secret: %w", err)
	}
	return s, nil
}

// SecretFromBytes takes 32 bytes that are not all zero. The error does not
// repeat them.
func SecretFromBytes(b []byte) (Secret, error) {
	var s Secret
	if len(b) != len(s) {
		return Secret{}, fmt.Errorf("secret has %d bytes, want %d", len(b), len(s))
	}
	copy(s[:], b)
	if s.IsZero() {
		return Secret{}, fmt.Errorf("secret is all zero")
	}
	return s, nil
}

// Typed is a pre-shared key as people type it at a gateway: base64 (RFC 4648, section
// 4). Those are the very bytes that IKE uses. Unlike String it shows the key.
func (s Secret) Typed() string { return base64.StdEncoding.EncodeToString(s[:]) }

// IsZero reports whether there is none.
func (s Secret) IsZero() bool { return s.Equal(Secret{}) }

// Equal compares in constant time.
func (s Secret) Equal(t Secret) bool { return subtle.ConstantTimeCompare(s[:], t[:]) == 1 }

// Format prints the placeholder for every verb, %x and %#v included.
func (Secret) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(redactedSecret)) }

// String is the placeholder.
func (Secret) String() string { return redactedSecret }

// GoString is the placeholder.
func (Secret) GoString() string { return redactedSecret }

// LogValue is the placeholder.
func (Secret) LogValue() slog.Value { return slog.StringValue(redactedSecret) }

// MarshalJSON is the placeholder.
func (Secret) MarshalJSON() ([]byte, error) { return []byte(`"` + redactedSecret + `"`), nil }

// MarshalText is the placeholder.
func (Secret) MarshalText() ([]byte, error) { return []byte(redactedSecret), nil }

// PresharedKey is a secret that both ends of a tunnel have. Generation tells
// the keys of one tunnel apart: it is never 0, and a later key has a greater
// one. Printed in any way it is its generation.
type PresharedKey struct {
	Generation uint64
	Key        Secret
}

// String is the generation in words.
func (k PresharedKey) String() string { return fmt.Sprintf("generation %d", k.Generation) }

// GoString is String.
func (k PresharedKey) GoString() string { return k.String() }

// Format prints String for every verb.
func (k PresharedKey) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(k.String())) }

// LogValue is the generation.
func (k PresharedKey) LogValue() slog.Value { return slog.Uint64Value(k.Generation) }

// MarshalJSON is the generation alone.
func (k PresharedKey) MarshalJSON() ([]byte, error) {
	return fmt.Appendf(nil, `{"generation":%d}`, k.Generation), nil
}

// Format prints the peer and the generations for every verb: fmt does not ask
// what is behind a pointer whose verb is wrong.
func (w WireGuard) Format(f fmt.State, _ rune) {
	_, _ = fmt.Fprintf(f, "peer %v, preshared keys %v", w.PeerKey, w.PresharedKeys)
}
