package sealed

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	// linePrefix begins each key in a file; sealctl knows it too, to send no
	// such file anywhere.
	linePrefix = "cskey1."
	maxFile    = 16 << 10
	maxKeys    = 16
)

// Parse reads the content of a secret key file: a line a key, in the form
// cskey1.SECONDS.BASE64URL with the time at which it was made; lines that are
// empty or begin with # are comments. Errors name the line and never repeat it.
func Parse(text []byte) (*Ring, error) {
	if len(text) > maxFile {
		return nil, fmt.Errorf("it has %d bytes, at most %d are read", len(text), maxFile)
	}
	r := &Ring{}
	for n, line := range strings.Split(string(text), "\n") {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		k, err := parseLine(line)
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", n+1, err)
		}
		for _, other := range r.keys {
			if other.id == k.id {
				return nil, fmt.Errorf("line %d: the key stands twice", n+1)
			}
		}
		r.keys = append(r.keys, k)
	}
	switch {
	case len(r.keys) == 0:
		return nil, errors.New("it holds no key")
	case len(r.keys) > maxKeys:
		return nil, fmt.Errorf("it holds %d keys, at most %d are taken", len(r.keys), maxKeys)
	}
	return r, nil
}

var errLine = errors.New("want cskey1., seconds, a dot and 43 characters, as `secret-key generate` writes them")

func parseLine(line string) (Key, error) {
	rest, ok := strings.CutPrefix(line, linePrefix)
	seconds, coded, dot := strings.Cut(rest, ".")
	if !ok || !dot {
		return Key{}, errLine
	}
	made, err := strconv.ParseInt(seconds, 10, 64)
	// Up to the year 9999, beyond which no time is written in JSON.
	if err != nil || made < 0 || made > 253402300799 {
		return Key{}, errLine
	}
	secret, err := base64.RawURLEncoding.Strict().DecodeString(coded)
	if err != nil || len(secret) != keyBytes {
		return Key{}, errLine
	}
	if bytes.Equal(secret, make([]byte, keyBytes)) {
		return Key{}, errors.New("the key is all zero")
	}
	return newKey(secret, time.Unix(made, 0).UTC())
}

// draw is the line of a new key.
func draw(now time.Time) (string, error) {
	secret := make([]byte, keyBytes)
	if _, err := rand.Read(secret); err != nil {
		return "", fmt.Errorf("draw secret key: %w", err)
	}
	return linePrefix + strconv.FormatInt(max(0, now.Unix()), 10) + "." + base64.RawURLEncoding.EncodeToString(secret), nil
}

// Credential is the path of a credential that the service manager passes
// (systemd.exec(5), LoadCredential=), empty where there is none.
func Credential(name string) string {
	dir := os.Getenv("CREDENTIALS_DIRECTORY")
	if dir == "" {
		return ""
	}
	path := filepath.Join(dir, name)
	if _, err := os.Lstat(path); err != nil {
		return ""
	}
	return path
}

// Load reads a secret key file. It has to be a regular file of this user's or
// root's that nobody else can read, and must not lie in the directory whose
// secrets it protects. An error that wraps fs.ErrNotExist means that there is
// none.
func Load(path, protects string) (*Ring, error) {
	if err := outside(path, protects); err != nil {
		return nil, err
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("secret key file: %w", err)
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("secret key file: %w", err)
	}
	if err := private(path, info); err != nil {
		return nil, err
	}
	text, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("read secret key file %s: %w", path, err)
	}
	r, err := Parse(text)
	if err != nil {
		return nil, fmt.Errorf("secret key file %s: %w", path, err)
	}
	return r, nil
}

func private(path string, info fs.FileInfo) error {
	if !info.Mode().IsRegular() {
		return fmt.Errorf("secret key file %s: it is not a regular file", path)
	}
	others := os.FileMode(0o077)
	if dir := os.Getenv("CREDENTIALS_DIRECTORY"); dir != "" && filepath.Dir(path) == filepath.Clean(dir) {
		// systemd lets the service's user in by an access list, whose mask shows
		// as the group's bits; the directory is closed to everybody else.
		others = 0o037
	}
	if info.Mode().Perm()&others != 0 {
		return fmt.Errorf("secret key file %s: its mode %04o lets others at it; make it 0600, and replace the key (`secret-key rotate`) if others use this host", path, info.Mode().Perm())
	}
	if s, ok := info.Sys().(*syscall.Stat_t); ok && int(s.Uid) != os.Geteuid() && s.Uid != 0 {
		return fmt.Errorf("secret key file %s: it belongs to user %d; make it this user's (%d) or root's", path, s.Uid, os.Geteuid())
	}
	return nil
}

// outside refuses a path in a directory, also by way of links.
func outside(path, dir string) error {
	if dir == "" {
		return nil
	}
	p, d := resolve(path), resolve(dir)
	if p == d || strings.HasPrefix(p, strings.TrimSuffix(d, "/")+"/") {
		return fmt.Errorf("secret key file %s: it lies in %s, whose secrets it protects: who copies that directory would have both; keep it elsewhere", path, dir)
	}
	return nil
}

// resolve follows links as far as the path exists.
func resolve(path string) string {
	if abs, err := filepath.Abs(path); err == nil {
		path = abs
	}
	rest := ""
	for p := path; ; p = filepath.Dir(p) {
		if real, err := filepath.EvalSymlinks(p); err == nil {
			return filepath.Join(real, rest)
		}
		if p == filepath.Dir(p) {
			return path
		}
		rest = filepath.Join(filepath.Base(p), rest)
	}
}

// Generate makes a secret key file with one new key, 0600, and its directory,
// 0700, when that is not there. It does not overwrite a file: the error wraps
// fs.ErrExist.
func Generate(path string, now time.Time) error {
	line, err := draw(now)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("make secret key file: %w", err)
	}
	text := header + line + "\n"
	err = write(path, text, func(temporary string) error {
		// A link fails where the name is taken, which a rename does not.
		return errors.Join(os.Link(temporary, path), os.Remove(temporary))
	})
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("secret key file %s: %w and is not overwritten: what it has encrypted would be lost; `secret-key rotate` adds a key", path, fs.ErrExist)
	}
	return err
}

// Rotate puts a new key before those that a file holds. What is sealed with the
// older ones still opens, and is sealed anew when it is next read.
func Rotate(path string, now time.Time) error {
	if _, err := Load(path, ""); err != nil {
		return err
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	line, err := draw(now)
	if err != nil {
		return err
	}
	all := header + line + "\n" + strings.TrimPrefix(string(text), header)
	if _, err := Parse([]byte(all)); err != nil {
		return fmt.Errorf("secret key file %s: with another key: %w", path, err)
	}
	return write(path, all, func(temporary string) error { return os.Rename(temporary, path) })
}

const header = "# Secrets of circuitseal at rest are encrypted with the first key. Keep a copy,\n# apart from backups of the data directory. Lines after the first are for what\n# was encrypted before, and may go once the program has started with this file.\n"

// write is whole or not there, like durable.WriteFile in the agent; place puts
// it at its name.
func write(path, text string, place func(temporary string) error) (err error) {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+".*")
	if err != nil {
		return fmt.Errorf("write secret key file: %w", err)
	}
	defer func() {
		if err != nil {
			_ = f.Close()
			_ = os.Remove(f.Name())
			err = fmt.Errorf("write secret key file: %w", err)
		}
	}()
	if err := f.Chmod(0o600); err != nil {
		return err
	}
	if _, err := f.WriteString(text); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := place(f.Name()); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
