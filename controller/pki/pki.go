// Package pki is the controller's own certificate authority: a root that can be
// taken offline, an issuing intermediate for TLS, and a key for states, each
// apart. It makes them at the first start, issues the certificates of nodes,
// of the server and of the administrator, seals states, tells who a peer is,
// and makes enrolment tokens. It knows files below the data directory and
// nothing of RPC, of the store or of what an identity may do.
package pki

import (
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	v1 "github.com/circuitseal/circuitseal/proto/circuitseal/v1"
	"github.com/circuitseal/circuitseal/proto/desired"
	"github.com/circuitseal/circuitseal/proto/sealed"
)

// Config says where an authority is.
type Config struct {
	// Dir is the controller's data directory, which exists and which the
	// caller has locked: the authority is in its subdirectories pki and admin.
	Dir string
	Log *slog.Logger
	// Secrets encrypt the authority's own keys. The administrator's, which is for
	// sealctl, they do not.
	Secrets *sealed.Ring
	// Needed says that there is policy already, so that there was an authority:
	// a new one would disown every node and operator, and is not made.
	Needed bool
	// Now is the clock; time.Now when nil.
	Now func() time.Time
}

// Authority is an open authority. Its methods may be used concurrently.
type Authority struct {
	dir  directory
	log  *slog.Logger
	now  func() time.Time
	root *x509.Certificate
	// issuing signs TLS certificates, state signs states.
	issuing, state pair
}

// pair is a certificate and its key.
type pair struct {
	cert *x509.Certificate
	key  privateKey
}

// Open reads the authority, making what is missing at the first start; it also
// completes a first start that was cut short. It renews the issuing and the
// state-signing certificate, over their keys, when less than a third of their
// life is left; only then, and at the first start, is the root's key needed:
// pki/root.key may be kept elsewhere. The administrator's identity is written
// to admin/identity.pem, beside the root, when it is missing or near its end.
func Open(c Config) (*Authority, error) {
	a := &Authority{dir: directory{filepath.Join(c.Dir, "pki"), c.Secrets}, log: c.Log, now: c.Now}
	if a.now == nil {
		a.now = time.Now
	}
	if c.Needed {
		// Before anything is made, so that a backup's directory can be put there.
		if _, err := os.Lstat(a.dir.path(rootCertFile)); errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("%s holds policy and no certificate authority (%s): %w of the same time", c.Dir, a.dir, errRestore)
		}
	}
	if err := a.dir.make(); err != nil {
		return nil, fmt.Errorf("open authority: %w", err)
	}
	if err := a.openRoot(); err != nil {
		return nil, fmt.Errorf("open authority: %w", err)
	}
	var err error
	if a.issuing, err = a.openSigner("issuing", issuingTemplate); err != nil {
		return nil, fmt.Errorf("open authority: %w", err)
	}
	if a.state, err = a.openSigner("state-signing", stateTemplate); err != nil {
		return nil, fmt.Errorf("open authority: %w", err)
	}
	if err := a.writeAdmin(directory{filepath.Join(c.Dir, "admin"), c.Secrets}); err != nil {
		return nil, fmt.Errorf("write the administrator's identity: %w", err)
	}
	return a, nil
}

// Root is the root certificate in DER. Callers must not change it.
func (a *Authority) Root() []byte { return a.root.Raw }

// RootPin is what agents and operators pin: "sha256:" and the fingerprint of
// the root certificate in hexadecimal.
func (a *Authority) RootPin() string {
	sum := sha256.Sum256(a.root.Raw)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// SignState seals the bytes of a state (desired.State.Marshal) for the node
// that the header names.
func (a *Authority) SignState(h desired.Header, state []byte) (*v1.Envelope, error) {
	if now := a.now(); now.After(a.state.cert.NotAfter) {
		return nil, fmt.Errorf("sign state of node %s: the state-signing certificate ended on %s; %s",
			h.Node, a.state.cert.NotAfter.Format(time.DateOnly), bringRoot)
	}
	return desired.Seal(h, state, a.state.key, a.state.cert.Raw)
}

// String hides everything but the root's fingerprint.
func (a *Authority) String() string { return "authority " + a.RootPin() }

// LogValue is String.
func (a *Authority) LogValue() slog.Value { return slog.StringValue(a.String()) }

// bringRoot is what helps when the root's key is needed and not there.
const bringRoot = "put root.key back into the pki directory and restart the controller"

// ErrLost says that files of the authority are not what they were, and that
// only a backup has them.
var ErrLost = errors.New("files of the certificate authority are lost")

// lost is an ErrLost that says what to do.
type lost string

func (l lost) Error() string        { return string(l) }
func (l lost) Is(target error) bool { return target == ErrLost }

const (
	errRestore     = lost("restore it from a backup")
	errRestoreBoth = lost("restore them from one backup")
)

const (
	rootKeyFile  = "root.key"
	rootCertFile = "root.crt"
)

func (a *Authority) openRoot() error {
	cert, err := a.dir.certificate(rootCertFile)
	if errors.Is(err, fs.ErrNotExist) {
		return a.makeRoot()
	}
	if err != nil {
		return err
	}
	key, err := a.dir.key(rootKeyFile)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		a.log.Debug("the root's key is kept elsewhere")
	case err != nil:
		return err
	case !key.fits(cert):
		return fmt.Errorf("%s and %s do not belong together: %w", a.dir.path(rootKeyFile), a.dir.path(rootCertFile), errRestoreBoth)
	}
	if !cert.IsCA || cert.CheckSignatureFrom(cert) != nil {
		return fmt.Errorf("%s is no root certificate", a.dir.path(rootCertFile))
	}
	if a.now().After(cert.NotAfter) {
		return fmt.Errorf("%s ended on %s", a.dir.path(rootCertFile), cert.NotAfter.Format(time.DateOnly))
	}
	a.root = cert
	return nil
}

// makeRoot makes a root at the first start, also when an earlier one ended
// between key and certificate. Where a certificate of the old root is left,
// a new root would silently disown every agent.
func (a *Authority) makeRoot() error {
	for _, f := range []string{"issuing.crt", "state-signing.crt"} {
		if _, err := os.Lstat(a.dir.path(f)); err == nil {
			return fmt.Errorf("%s is missing, but %s is there: %w, agents pin it", a.dir.path(rootCertFile), f, errRestore)
		}
	}
	key, err := a.dir.keyOrNew(rootKeyFile)
	if err != nil {
		return err
	}
	t := rootTemplate(a.now())
	if a.root, err = create(t, t, key.publicKey(), key); err != nil {
		return fmt.Errorf("make root: %w", err)
	}
	if err := a.dir.writeCertificates(rootCertFile, a.root); err != nil {
		return err
	}
	a.log.Info("made a new certificate authority", "rootPin", a.RootPin())
	return nil
}

// openSigner reads a key and its certificate by the root, or makes them.
func (a *Authority) openSigner(name string, template templateFunc) (pair, error) {
	cert, err := a.dir.certificate(name + ".crt")
	missing := errors.Is(err, fs.ErrNotExist)
	if err != nil && !missing {
		return pair{}, err
	}
	var key privateKey
	if missing {
		key, err = a.dir.keyOrNew(name + ".key")
	} else {
		key, err = a.dir.key(name + ".key")
	}
	if errors.Is(err, fs.ErrNotExist) {
		return pair{}, fmt.Errorf("%s is missing: %w", a.dir.path(name+".key"), errRestore)
	}
	if err != nil {
		return pair{}, err
	}
	if !missing {
		if !key.fits(cert) {
			return pair{}, fmt.Errorf("%s.key and %s do not belong together: %w", name, a.dir.path(name+".crt"), errRestoreBoth)
		}
		if err := cert.CheckSignatureFrom(a.root); err != nil {
			return pair{}, fmt.Errorf("%s is not issued by this root: %w", a.dir.path(name+".crt"), err)
		}
		if !a.due(cert) {
			return pair{cert, key}, nil
		}
	}
	rootKey, err := a.dir.key(rootKeyFile)
	if errors.Is(err, fs.ErrNotExist) {
		if now := a.now(); !missing && now.Before(cert.NotAfter) && !now.Before(cert.NotBefore) {
			a.log.Warn("a certificate of the authority nears its end and the root's key is not here",
				"certificate", name, "expires", cert.NotAfter, "hint", bringRoot)
			return pair{cert, key}, nil
		}
		return pair{}, fmt.Errorf("%s is missing or has ended: %s", a.dir.path(name+".crt"), bringRoot)
	}
	if err != nil {
		return pair{}, err
	}
	if !rootKey.fits(a.root) {
		return pair{}, fmt.Errorf("%s is not the key of %s", a.dir.path(rootKeyFile), rootCertFile)
	}
	cert, err = create(template(a.now()), a.root, key.publicKey(), rootKey)
	if err != nil {
		return pair{}, fmt.Errorf("issue %s certificate: %w", name, err)
	}
	if err := a.dir.writeCertificates(name+".crt", cert); err != nil {
		return pair{}, err
	}
	a.log.Info("issued a certificate of the authority", "certificate", name, "expires", cert.NotAfter)
	return pair{cert, key}, nil
}

// nearEnd reports whether less than a third of a certificate's life is left.
func nearEnd(c *x509.Certificate, now time.Time) bool {
	return now.After(c.NotAfter.Add(-c.NotAfter.Sub(c.NotBefore) / 3))
}

// due reports whether a certificate of the controller's own has to be issued
// anew: near its end, or when it was made by a clock that was ahead and has not
// begun. A clock that says less than the root's beginning is itself wrong, and
// what it would issue would be worthless once it is right.
func (a *Authority) due(c *x509.Certificate) bool {
	now := a.now()
	return nearEnd(c, now) || now.Before(c.NotBefore) && !now.Before(a.root.NotBefore)
}

// issue makes a certificate by the intermediate.
func (a *Authority) issue(t *x509.Certificate, key *ecdsa.PublicKey) (*x509.Certificate, error) {
	if !a.now().Before(a.issuing.cert.NotAfter) {
		return nil, fmt.Errorf("the issuing certificate ended on %s; %s", a.issuing.cert.NotAfter.Format(time.DateOnly), bringRoot)
	}
	return create(t, a.issuing.cert, key, a.issuing.key)
}
