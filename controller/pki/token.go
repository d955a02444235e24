package pki

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
)

// ErrToken says that a text is no enrolment token. It does not quote the text.
var ErrToken = errors.New("malformed enrolment token: want cst1.ID.SECRET as `sealctl token create` printed it")

const (
	tokenVersion = "cst1"
	tokenIDBytes = 8
	secretBytes  = 32
)

// tokenEncoding refuses what is not canonical: one token has one text.
var tokenEncoding = base64.RawURLEncoding.Strict()

// tokenLength is of a token's text in bytes.
var tokenLength = len(tokenVersion) + 1 + hex.EncodedLen(tokenIDBytes) + 1 + tokenEncoding.EncodedLen(secretBytes)

// Token is a one-time enrolment token. Only Reveal shows its secret; every way
// of printing hides it.
type Token struct {
	id     string
	secret [secretBytes]byte
	// No == that leaks by its timing.
	_ [0]func()
}

// NewToken makes a token with a secret of 256 random bits.
func NewToken() Token {
	var t Token
	id := make([]byte, tokenIDBytes)
	// It never fails: see crypto/rand.Read.
	_, _ = rand.Read(id)
	_, _ = rand.Read(t.secret[:])
	t.id = hex.EncodeToString(id)
	return t
}

// ParseToken reads what Reveal wrote, and nothing else. Errors are ErrToken.
func ParseToken(text string) (Token, error) {
	if len(text) != tokenLength {
		return Token{}, ErrToken
	}
	version, rest, _ := strings.Cut(text, ".")
	id, secret, ok := strings.Cut(rest, ".")
	if !ok || version != tokenVersion || len(id) != hex.EncodedLen(tokenIDBytes) || strings.Trim(id, "0123456789abcdef") != "" {
		return Token{}, ErrToken
	}
	t := Token{id: id}
	// The decoder skips line ends wherever they stand, so a text with one
	// decodes to fewer bytes.
	b, err := tokenEncoding.DecodeString(secret)
	if err != nil || len(b) != secretBytes {
		return Token{}, ErrToken
	}
	copy(t.secret[:], b)
	return t, nil
}

// ID finds the token in the store. It is no secret.
func (t Token) ID() string { return t.id }

// Hash is what the store keeps of the secret: its SHA-256.
func (t Token) Hash() [32]byte { return sha256.Sum256(t.secret[:]) }

// Reveal is the whole token. It goes to the operator, once.
func (t Token) Reveal() string {
	return tokenVersion + "." + t.id + "." + tokenEncoding.EncodeToString(t.secret[:])
}

// String hides the secret.
func (t Token) String() string { return tokenVersion + "." + t.id + "." + redacted }

// Format hides the secret from every verb.
func (t Token) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, t.String()) }

// LogValue hides the secret.
func (t Token) LogValue() slog.Value { return slog.StringValue(t.String()) }

// MarshalText hides the secret, from JSON too.
func (t Token) MarshalText() ([]byte, error) { return []byte(t.String()), nil }
