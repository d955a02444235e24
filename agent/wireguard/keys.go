package wireguard

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"sync"

	"github.com/circuitseal/circuitseal/agent/keydir"
	"github.com/circuitseal/circuitseal/proto/desired"
	"github.com/circuitseal/circuitseal/proto/sealed"
)

const keyVersion = 1

// Keys keeps one private key for each tunnel ID in a directory of its own, each
// in a file of mode 0600 that is sealed, written atomically and checks itself. A key is
// made once and stays until Forget. Methods may be called by several
// goroutines; two processes must not share a directory.
type Keys struct {
	dir keydir.Dir
	mu  sync.Mutex
	// known saves reading files again on every pass.
	known map[string]keyPair
}

type keyPair struct {
	private PrivateKey
	public  desired.PublicKey
}

// keyFile is the content of a file. Sum is over the other fields; Tunnel tells
// a person whose key it is, and finds a file that was copied over another.
type keyFile struct {
	Version int    `json:"version"`
	Tunnel  string `json:"tunnel"`
	Key     []byte `json:"key"`
	Sum     []byte `json:"sum"`
}

func (f keyFile) sum() []byte {
	h := sha256.New()
	_, _ = fmt.Fprintf(h, "%d\x00%s\x00", f.Version, f.Tunnel)
	_, _ = h.Write(f.Key)
	return h.Sum(nil)
}

// OpenKeys makes the directory, of mode 0700, when it is not there.
// Files are sealed with the first key of secrets; those of before that are not
// sealed are taken, and sealed when they are first read.
func OpenKeys(dir string, secrets *sealed.Ring) (*Keys, error) {
	d, err := keydir.Open(dir, secrets)
	if err != nil {
		return nil, fmt.Errorf("open WireGuard keys: %w", err)
	}
	return &Keys{dir: d, known: map[string]keyPair{}}, nil
}

// Ensure makes the keys that are missing and returns the public halves of all.
// Errors are joined; the map holds what succeeded. A file that cannot be
// trusted is an error and is not replaced: the peer was told its public half.
func (k *Keys) Ensure(tunnels []string) (map[string]desired.PublicKey, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	all := make(map[string]desired.PublicKey, len(tunnels))
	var errs []error
	for _, id := range tunnels {
		pair, err := k.load(id)
		if errors.Is(err, os.ErrNotExist) {
			pair, err = k.create(id)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("key of tunnel %.253q: %w", id, err))
			continue
		}
		all[id] = pair.public
	}
	return all, errors.Join(errs...)
}

// Forget removes the keys of all tunnels except those named. Files that are not
// keys stay.
func (k *Keys) Forget(except []string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	keep := map[string]bool{}
	for _, id := range except {
		keep[keyName(id)] = true
	}
	maps.DeleteFunc(k.known, func(id string, _ keyPair) bool { return !keep[keyName(id)] })
	if err := k.dir.Keep(keep); err != nil {
		return fmt.Errorf("WireGuard: %w", err)
	}
	return nil
}

// pair is the key of a tunnel that Ensure has been called for; the error wraps
// os.ErrNotExist otherwise.
func (k *Keys) pair(id string) (keyPair, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.load(id)
}

func (k *Keys) load(id string) (keyPair, error) {
	if p, ok := k.known[id]; ok {
		return p, nil
	}
	plain, stale, err := k.dir.Read(keyName(id), keyPlace(id))
	if errors.Is(err, os.ErrNotExist) {
		return keyPair{}, err
	}
	if errors.Is(err, sealed.ErrNotSealed) {
		err = nil
	}
	var p keyPair
	if err == nil {
		p, err = decodeKey(plain, id)
	}
	if err != nil {
		return keyPair{}, fmt.Errorf("%s: %w; restore the file from a backup, or remove it to have a new key made", k.dir.Path(keyName(id)), err)
	}
	if stale {
		if err := k.dir.Write(keyName(id), keyPlace(id), plain); err != nil {
			return keyPair{}, err
		}
	}
	k.known[id] = p
	return p, nil
}

// keyPlace is where a tunnel's key may be opened.
func keyPlace(id string) string { return "wireguard private key\x00" + id }

func (k *Keys) create(id string) (keyPair, error) {
	private, err := newPrivateKey()
	if err != nil {
		return keyPair{}, err
	}
	public, err := private.Public()
	if err != nil {
		return keyPair{}, err
	}
	f := keyFile{Version: keyVersion, Tunnel: id, Key: private.bytes[:]}
	f.Sum = f.sum()
	b, err := json.Marshal(f)
	if err != nil {
		return keyPair{}, err
	}
	if err := k.dir.Write(keyName(id), keyPlace(id), b); err != nil {
		return keyPair{}, err
	}
	p := keyPair{private: private, public: public}
	k.known[id] = p
	return p, nil
}

// decodeKey never repeats the content in an error.
func decodeKey(b []byte, id string) (keyPair, error) {
	var f keyFile
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&f); err != nil || d.More() {
		return keyPair{}, errors.New("the file is not a WireGuard key")
	}
	var k PrivateKey
	switch {
	case f.Version != keyVersion:
		return keyPair{}, fmt.Errorf("the file has version %d, this agent reads version %d", f.Version, keyVersion)
	case !slices.Equal(f.Sum, f.sum()):
		return keyPair{}, errors.New("the file is damaged: its checksum is wrong")
	case f.Tunnel != id:
		return keyPair{}, fmt.Errorf("the file holds the key of tunnel %.253q", f.Tunnel)
	case copy(k.bytes[:], f.Key) != len(k.bytes) || len(f.Key) != len(k.bytes):
		return keyPair{}, errors.New("the file holds a key of the wrong length")
	}
	public, err := k.Public()
	if err != nil {
		return keyPair{}, err
	}
	return keyPair{private: k, public: public}, nil
}

// keyName is a tunnel's file name.
func keyName(id string) string { return keydir.FileName(id) }
