package main

import (
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
)

// pinError is a chain without the pinned root; it is the pin.
type pinError string

func (e pinError) Error() string { return string(e) }

// pinPrefix begins every pin.
const pinPrefix = "sha256:"

// parsePin is the SHA-256 of a root certificate, as sha256:HEX.
func parsePin(s string) (pin [sha256.Size]byte, err error) {
	digits, ok := strings.CutPrefix(s, pinPrefix)
	if ok && len(digits) == hex.EncodedLen(len(pin)) {
		if _, err := hex.Decode(pin[:], []byte(digits)); err == nil {
			return pin, nil
		}
	}
	return pin, fmt.Errorf("%q: want %s and %d hexadecimal digits, as `sealctl token create` prints", s, pinPrefix, hex.EncodedLen(len(pin)))
}

// trust is how the controller is known: by its root, or by the root's pin.
func trust(p place) (*tls.Config, error) {
	if p.RootPin == "" {
		roots, err := readRoot(p.Root)
		if err != nil {
			return nil, withCode(exitIdentity, err)
		}
		return &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: roots}, nil
	}
	pin, err := parsePin(p.RootPin)
	if err != nil {
		return nil, fmt.Errorf("%w: --root-pin %w", errUsage, err)
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		// The chain is verified in VerifyConnection, from the pinned root.
		InsecureSkipVerify: true,
		VerifyConnection: func(s tls.ConnectionState) error {
			return verifyPinned(s.PeerCertificates, s.ServerName, pin)
		},
	}, nil
}

// verifyPinned wants the pinned root among the certificates that the server
// sent, and a server's certificate for the dialled name that leads to it.
func verifyPinned(chain []*x509.Certificate, host string, pin [sha256.Size]byte) error {
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	found := false
	for _, c := range chain[1:] {
		if sum := sha256.Sum256(c.Raw); subtle.ConstantTimeCompare(sum[:], pin[:]) == 1 {
			roots.AddCert(c)
			found = true
			continue
		}
		between.AddCert(c)
	}
	if !found {
		return pinError(pinPrefix + hex.EncodeToString(pin[:]))
	}
	_, err := chain[0].Verify(x509.VerifyOptions{
		DNSName: host, Roots: roots, Intermediates: between,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	})
	return err
}

func readRoot(path string) (*x509.CertPool, error) {
	if path == "" {
		return nil, errors.New("there is no root to know the controller by: name it with --root, SEALCTL_ROOT or a context (`sealctl context set --help`); it is admin/root.pem in the controller's data directory")
	}
	b, _, err := readPEM(path)
	if err != nil {
		return nil, fmt.Errorf("read root: %w", err)
	}
	pool := x509.NewCertPool()
	found := false
	for rest := b; ; {
		var block *pem.Block
		block, rest = pem.Decode(rest)
		if block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("root %s: %w", path, err)
		}
		pool.AddCert(cert)
		found = true
	}
	if !found {
		return nil, fmt.Errorf("root %s holds no certificate in PEM", path)
	}
	return pool, nil
}
