// Package keydir keeps what a node must not lose and nobody else may read: one
// sealed file for each key, in a directory of its own. It knows files and how they
// are sealed; what is in them, and what a damaged one means, is its users' to say.
package keydir

import (
	"crypto/sha256"
	"encoding/base32"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/circuitseal/circuitseal/agent/durable"
	"github.com/circuitseal/circuitseal/proto/sealed"
)

const (
	suffix = ".key"
	limit  = 64 << 10
)

// Dir is a directory of keys. Two processes must not share one, and its user keeps
// calls apart.
type Dir struct {
	path    string
	secrets *sealed.Ring
}

// Open makes the directory, of mode 0700, when it is not there. Files are sealed
// with the first key of secrets.
func Open(path string, secrets *sealed.Ring) (Dir, error) {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return Dir{}, err
	}
	info, err := os.Stat(path)
	if err == nil && info.Mode().Perm() != 0o700 {
		err = os.Chmod(path, 0o700)
	}
	return Dir{path, secrets}, err
}

// FileName is a file's name for any text, which has slashes or worse.
func FileName(text string) string {
	sum := sha256.Sum256([]byte(text))
	return strings.ToLower(base32.HexEncoding.WithPadding(base32.NoPadding).EncodeToString(sum[:20])) + suffix
}

// Path is where a file is.
func (d Dir) Path(name string) string { return filepath.Join(d.path, name) }

// Read opens a file at the place that it was sealed for; stale tells that it was
// sealed with a key that is not the first any more. One that is not sealed at all
// comes as it is, with an error that wraps sealed.ErrNotSealed; one that is not there
// is an error that wraps os.ErrNotExist.
func (d Dir) Read(name, place string) (plain []byte, stale bool, err error) {
	b, err := durable.ReadFile(d.Path(name), limit, true)
	if err != nil {
		return nil, false, err
	}
	plain, stale, err = d.secrets.Open(place, b)
	if errors.Is(err, sealed.ErrNotSealed) {
		return b, true, err
	}
	return plain, stale, err
}

// Write seals a file for a place. It is there whole or not at all.
func (d Dir) Write(name, place string, plain []byte) error {
	return durable.WriteFile(d.Path(name), d.secrets.Seal(place, plain), 0o600)
}

// Keep removes all keys but these, by name. Files that are no keys stay.
func (d Dir) Keep(names map[string]bool) error {
	entries, err := os.ReadDir(d.path)
	if err != nil {
		return fmt.Errorf("forget keys: %w", err)
	}
	var errs []error
	removed := false
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), suffix) && !strings.HasPrefix(e.Name(), ".") && !names[e.Name()] {
			if err := os.Remove(d.Path(e.Name())); err != nil {
				errs = append(errs, fmt.Errorf("forget key: %w", err))
				continue
			}
			removed = true
		}
	}
	if removed {
		errs = append(errs, durable.SyncDir(d.path))
	}
	return errors.Join(errs...)
}
