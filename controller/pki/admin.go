package pki

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"slices"
)

const (
	adminFile = "identity.pem"
	pinFile   = "root.pem"
)

// writeAdmin writes the administrator's certificate with its key, and the root
// to know the controller by, where they are missing or near their end.
func (a *Authority) writeAdmin(d directory) error {
	if err := d.make(); err != nil {
		return err
	}
	root := certificatesPEM(a.root)
	have, err := d.read(pinFile, false)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if !slices.Equal(have, root) {
		if err := d.write(pinFile, root, 0o644); err != nil {
			return err
		}
	}
	have, err = d.read(adminFile, true)
	if err == nil {
		err = a.checkAdmin(have)
		if err == nil {
			return nil
		}
		if !errors.Is(err, errRenew) {
			return fmt.Errorf("%s: %w; remove it to have a new one made", d.path(adminFile), err)
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	key, err := newKey()
	if err != nil {
		return err
	}
	cert, err := a.issue(clientTemplate("administrator", adminURI+adminName, a.now(), adminLife), key.publicKey())
	if err != nil {
		return err
	}
	secret, err := key.pem()
	if err != nil {
		return err
	}
	if err := d.write(adminFile, slices.Concat(certificatesPEM(cert, a.issuing.cert), secret), 0o600); err != nil {
		return err
	}
	a.log.Info("wrote an administrator's identity", "file", d.path(adminFile), "expires", cert.NotAfter)
	return nil
}

// errRenew: the identity is good, or was, and it is time for another.
var errRenew = errors.New("identity is near its end")

func (a *Authority) checkAdmin(b []byte) error {
	pair, err := tls.X509KeyPair(b, b)
	if err != nil {
		return fmt.Errorf("parse identity: %w", err)
	}
	var certs []*x509.Certificate
	for _, der := range pair.Certificate {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return fmt.Errorf("parse identity: %w", err)
		}
		certs = append(certs, c)
	}
	if a.due(certs[0]) {
		return errRenew
	}
	at := a.now()
	if at.Before(certs[0].NotBefore) {
		// This clock is behind, which is no reason not to start.
		at = certs[0].NotBefore
	}
	_, err = a.Identify(certs, at)
	return err
}
