package agent

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/circuitseal/circuitseal/agent/identity"
	"github.com/circuitseal/circuitseal/agent/instance"
	"github.com/circuitseal/circuitseal/agent/lastgood"
	"github.com/circuitseal/circuitseal/proto/sealed"
)

// secretKeyFile is the file with the key that encrypts the instance's secrets:
// what the configuration names, else the credential that the service manager
// passes, else the instance's own.
func (c Config) secretKeyFile() string {
	return cmp.Or(c.SecretKeyFile, sealed.Credential("secret-key"), c.Instance.SecretKeyFile())
}

// openSecrets reads the secret key file, and makes it on a node that has
// nothing sealed yet: one that was just enrolled, or that ran a version which
// sealed nothing. Where something is sealed and the key is gone, a new one would
// not open it.
func openSecrets(c Config, log *slog.Logger) (*sealed.Ring, error) {
	path := c.secretKeyFile()
	ring, err := sealed.Load(path, c.Instance.StateDir())
	if !errors.Is(err, fs.ErrNotExist) {
		return ring, err
	}
	before, err := hasSealed(c.Instance.StateDir())
	if err != nil {
		return nil, err
	}
	if before {
		return nil, fmt.Errorf("there is no secret key file %s, and what is in %s is encrypted with it: put it back, or name it with --secret-key-file; if it is lost, remove %s and %s, which the controller and this agent make anew, and enrol this host anew, with a new token and `circuitseal-agent enroll --force`; `circuitseal-agent remove --purge` would do, too, and takes the guard off",
			path, c.Instance.StateDir(), filepath.Join(c.Instance.StateDir(), "last-good-state"), keyDir(c.Instance))
	}
	if err := sealed.Generate(path, time.Now()); err != nil {
		return nil, err
	}
	log.Info("made the key that encrypts this node's secrets at rest", "file", path)
	return sealed.Load(path, c.Instance.StateDir())
}

// loadIdentity reads the node's identity, and encrypts its key where it is not: it
// is new then, or the secret key is.
func loadIdentity(i instance.Instance, secrets *sealed.Ring, log *slog.Logger) (*identity.Identity, error) {
	id, err := identity.Load(IdentityDir(i), secrets)
	if err != nil {
		return nil, err
	}
	if done, err := identity.Reseal(IdentityDir(i), secrets); err != nil {
		log.Warn("the session key is not encrypted with the newest secret key", "error", err)
	} else if done {
		log.Info("the session key is encrypted now", "secret_key", secrets.First())
	}
	return id, nil
}

// hasSealed reports whether anything in a state directory is sealed.
func hasSealed(dir string) (bool, error) {
	if found, err := lastgood.Sealed(dir); found || err != nil {
		return found, err
	}
	if found, err := identity.Sealed(filepath.Join(dir, identityDir)); found || err != nil {
		return found, err
	}
	for _, keys := range []string{wireguardKeys, ipsecKeys} {
		files, err := filepath.Glob(filepath.Join(dir, keys, "*.key"))
		if err != nil {
			return false, err
		}
		for _, k := range files {
			b, err := os.ReadFile(k)
			if err != nil {
				return false, err
			}
			if sealed.Is(b) {
				return true, nil
			}
		}
	}
	return false, nil
}
