package main

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"
)

// maxPEM bounds identity, key and root files.
const maxPEM = 256 << 10

// readIdentity reads a certificate chain and its key, from one file or, where
// key is not empty, from two. Nobody else can read the key's.
func readIdentity(path, key string) (*tls.Certificate, error) {
	if path == "" {
		return nil, errors.New("there is no identity: name yours with --identity, SEALCTL_IDENTITY or a context (`sealctl context set --help`); the controller wrote the administrator's to admin/identity.pem in its data directory")
	}
	chain, mode, err := readPEM(path)
	if err != nil {
		return nil, fmt.Errorf("read identity: %w", err)
	}
	secret, secretPath := chain, path
	if key != "" {
		if secret, mode, err = readPEM(key); err != nil {
			return nil, fmt.Errorf("read key: %w", err)
		}
		secretPath = key
	}
	// What is no identity may well be readable by all.
	if lacks := missing(chain, secret); lacks != "" {
		if key != "" {
			return nil, fmt.Errorf("identity %s and key %s hold %s", path, key, lacks)
		}
		return nil, fmt.Errorf("identity %s holds %s: want both in one file, such as admin/identity.pem of the controller's data directory, or the key in the file of --key", path, lacks)
	}
	pair, err := tls.X509KeyPair(chain, secret)
	if err != nil {
		return nil, fmt.Errorf("identity %s: want a certificate, its chain and its key in PEM: %w", path, err)
	}
	if mode.Perm()&0o077 != 0 {
		return nil, fmt.Errorf("identity %s can be read by others (mode %#o): run `chmod 600 %s`, and have a new one made if somebody may have read it", secretPath, mode.Perm(), secretPath)
	}
	now := time.Now()
	if pair.Leaf != nil && now.After(pair.Leaf.NotAfter) {
		return nil, fmt.Errorf("identity %s expired on %s: restart the controller, which then writes a new one for the administrator", path, pair.Leaf.NotAfter.UTC().Format(time.RFC3339))
	}
	if pair.Leaf != nil && now.Before(pair.Leaf.NotBefore) {
		return nil, fmt.Errorf("identity %s is valid from %s on, and this host's clock says %s: set the clock right", path, pair.Leaf.NotBefore.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	return &pair, nil
}

// missing says what of an identity is not there.
func missing(chain, secret []byte) string {
	certificate := bytes.Contains(chain, []byte("-----BEGIN CERTIFICATE-----"))
	key := bytes.Contains(secret, []byte("PRIVATE KEY-----"))
	switch {
	case certificate && key:
		return ""
	case certificate:
		return "a certificate and no PRIVATE KEY"
	case key:
		return "a PRIVATE KEY and no certificate"
	}
	return "neither a certificate nor a PRIVATE KEY in PEM"
}

func readPEM(path string) ([]byte, fs.FileMode, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, 0, err
	}
	defer func() { _ = f.Close() }()
	// Of the open file, so that what is checked is what is read.
	info, err := f.Stat()
	if err != nil {
		return nil, 0, err
	}
	if !info.Mode().IsRegular() {
		return nil, 0, fmt.Errorf("%s is no file", path)
	}
	b, err := readAll(f, maxPEM)
	if err != nil {
		return nil, 0, fmt.Errorf("%s: %w", path, err)
	}
	return b, info.Mode(), nil
}
