package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
)

// redacted stands for every secret in logs and errors.
const redacted = "(redacted)"

// privateKey is a P-384 key that shows itself to nobody. It signs
// (crypto.Signer).
type privateKey struct{ ecdsa *ecdsa.PrivateKey }

func newKey() (privateKey, error) {
	k, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		return privateKey{}, fmt.Errorf("make key: %w", err)
	}
	return privateKey{k}, nil
}

// parseKey reads one PKCS #8 key in PEM.
func parseKey(b []byte) (privateKey, error) {
	block, rest := pem.Decode(b)
	if block == nil || block.Type != "PRIVATE KEY" || len(rest) != 0 {
		return privateKey{}, errors.New("want one PRIVATE KEY in PEM")
	}
	k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		// The parser's error could quote from the key.
		return privateKey{}, errors.New("its PKCS #8 structure is malformed")
	}
	e, ok := k.(*ecdsa.PrivateKey)
	if !ok || e.Curve != elliptic.P384() {
		return privateKey{}, errors.New("want a P-384 key")
	}
	return privateKey{e}, nil
}

func (k privateKey) pem() ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(k.ecdsa)
	if err != nil {
		return nil, fmt.Errorf("encode key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

func (k privateKey) fits(c *x509.Certificate) bool { return k.ecdsa.PublicKey.Equal(c.PublicKey) }

// publicKey is Public with its type.
func (k privateKey) publicKey() *ecdsa.PublicKey { return &k.ecdsa.PublicKey }

// Public is the public half.
func (k privateKey) Public() crypto.PublicKey { return k.publicKey() }

// Sign signs a digest, in ASN.1.
func (k privateKey) Sign(r io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	return k.ecdsa.Sign(r, digest, opts)
}

// Format hides the key from every verb.
func (privateKey) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, redacted) }

// LogValue hides the key.
func (privateKey) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText hides the key, from JSON too.
func (privateKey) MarshalText() ([]byte, error) { return []byte(redacted), nil }
