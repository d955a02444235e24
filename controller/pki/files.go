package pki

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/circuitseal/circuitseal/proto/sealed"
)

const (
	// maxFile is far above what a key or a chain takes.
	maxFile = 64 << 10
	// tempPrefix begins the names of files that are being written.
	tempPrefix = ".new-"
)

// directory holds keys and certificates, for this user only. Every file in it
// appears whole or not at all, and is on disk when the write returns.
type directory struct {
	name string
	// secrets encrypt the keys.
	secrets *sealed.Ring
}

func (d directory) path(name string) string { return filepath.Join(d.name, name) }

func (d directory) String() string { return d.name }

// make makes the directory, or checks it and removes what a write that was cut
// short has left.
func (d directory) make() error {
	err := os.Mkdir(d.name, 0o700)
	if err == nil {
		return syncDir(filepath.Dir(d.name))
	}
	if !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("make directory: %w", err)
	}
	fi, err := os.Lstat(d.name)
	if err != nil {
		return fmt.Errorf("open directory: %w", err)
	}
	if !fi.IsDir() {
		return fmt.Errorf("%s is no directory", d)
	}
	if mode := fi.Mode().Perm(); mode&0o077 != 0 {
		return fmt.Errorf("directory %s has mode %#o: others can reach its keys; run `chmod 700 %s`, if nobody else can have read them", d, mode, d)
	}
	entries, err := os.ReadDir(d.name)
	if err != nil {
		return fmt.Errorf("list directory: %w", err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), tempPrefix) {
			if err := os.Remove(d.path(e.Name())); err != nil {
				return fmt.Errorf("remove unfinished file: %w", err)
			}
		}
	}
	return nil
}

// read reads a file; fs.ErrNotExist when there is none. A secret one must be
// readable by its owner only.
func (d directory) read(name string, secret bool) (_ []byte, err error) {
	f, err := os.OpenFile(d.path(name), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	fi, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	if !fi.Mode().IsRegular() || fi.Size() > maxFile {
		return nil, fmt.Errorf("%s is no regular file of at most %d bytes", d.path(name), maxFile)
	}
	if mode := fi.Mode().Perm(); secret && mode&0o077 != 0 {
		return nil, fmt.Errorf("%s has mode %#o: others may have read the key; want 0600, and a new key if they did", d.path(name), mode)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxFile))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	return b, nil
}

// key reads a key. One that is not encrypted, as of before keys were or brought
// back by hand, or by an older secret key, is encrypted by the newest.
func (d directory) key(name string) (privateKey, error) {
	b, err := d.read(name, true)
	if err != nil {
		return privateKey{}, err
	}
	plain, stale, err := d.secrets.Open(place(name), b)
	if errors.Is(err, sealed.ErrNotSealed) {
		plain, stale, err = b, true, nil
	}
	if errors.Is(err, sealed.ErrOtherKey) {
		return privateKey{}, fmt.Errorf("read key %s: %w; add that one to the secret key file", d.path(name), err)
	}
	if err != nil {
		return privateKey{}, fmt.Errorf("read key %s: %w", d.path(name), err)
	}
	k, err := parseKey(plain)
	if err != nil {
		return privateKey{}, fmt.Errorf("parse key %s: %w", d.path(name), err)
	}
	if stale {
		err = d.writeKey(name, k)
	}
	return k, err
}

// place is where an encrypted key may be opened.
func place(name string) string { return "key of the authority\x00" + name }

// keyOrNew reads a key, or makes one that is on disk before it is used.
func (d directory) keyOrNew(name string) (privateKey, error) {
	k, err := d.key(name)
	if !errors.Is(err, fs.ErrNotExist) {
		return k, err
	}
	if k, err = newKey(); err != nil {
		return privateKey{}, err
	}
	return k, d.writeKey(name, k)
}

func (d directory) writeKey(name string, k privateKey) error {
	b, err := k.pem()
	if err != nil {
		return err
	}
	return d.write(name, d.secrets.Seal(place(name), b), 0o600)
}

func (d directory) certificate(name string) (*x509.Certificate, error) {
	b, err := d.read(name, false)
	if err != nil {
		return nil, err
	}
	block, rest := pem.Decode(b)
	if block == nil || block.Type != "CERTIFICATE" || len(rest) != 0 {
		return nil, fmt.Errorf("parse %s: want one CERTIFICATE in PEM", d.path(name))
	}
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("parse %s: %w", d.path(name), err)
	}
	return c, nil
}

func certificatesPEM(certs ...*x509.Certificate) []byte {
	var b bytes.Buffer
	for _, c := range certs {
		b.Write(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}))
	}
	return b.Bytes()
}

func (d directory) writeCertificates(name string, certs ...*x509.Certificate) error {
	return d.write(name, certificatesPEM(certs...), 0o644)
}

// write replaces a file atomically.
func (d directory) write(name string, b []byte, mode os.FileMode) (err error) {
	// CreateTemp makes it 0600.
	f, err := os.CreateTemp(d.name, tempPrefix+name+"-*")
	if err != nil {
		return fmt.Errorf("write %s: %w", d.path(name), err)
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("write %s: %w", d.path(name), errors.Join(err, ignore(os.Remove(f.Name()), fs.ErrNotExist)))
		}
	}()
	_, err = f.Write(b)
	if err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), d.path(name)); err != nil {
		return err
	}
	return syncDir(d.name)
}

func ignore(err, expected error) error {
	if errors.Is(err, expected) {
		return nil
	}
	return err
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("sync directory: %w", err)
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fmt.Errorf("sync directory %s: %w", path, err)
	}
	return nil
}
