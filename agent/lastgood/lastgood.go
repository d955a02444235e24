// Package lastgood keeps the newest state that a node has accepted, as the
// signed bytes it came in, so that the node runs on without its controller.
// States hold secrets, so the file is sealed. It refuses what is not signed, not
// for this node or not newer; it knows nothing of what a state means.
package lastgood

import (
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"sync"

	"google.golang.org/protobuf/proto"

	"github.com/circuitseal/circuitseal/agent/durable"
	v1 "github.com/circuitseal/circuitseal/proto/circuitseal/v1"
	"github.com/circuitseal/circuitseal/proto/desired"
	"github.com/circuitseal/circuitseal/proto/sealed"
)

// Why a state that is signed and for this node is refused all the same.
var (
	ErrStale     = errors.New("state is older than one already run")
	ErrAmbiguous = errors.New("state differs from one already run at the same position")
)

// Refused reports whether Accept's error is about the state, which is as wrong
// when it comes again; any other error is this host's and may pass.
func Refused(err error) bool {
	for _, cause := range []error{ErrStale, ErrAmbiguous, desired.ErrSignature, desired.ErrOtherNode, desired.ErrFormat} {
		if errors.Is(err, cause) {
			return true
		}
	}
	return false
}

const file = "last-good-state"

// Store is the last good state of one node. Its methods may be called at once.
type Store struct {
	path    string
	node    string
	root    *x509.Certificate
	secrets *sealed.Ring

	mu    sync.Mutex
	held  desired.Header
	state desired.State
	// stale is what was read and wants to be sealed anew.
	stale []byte
}

// Open reads the last good state in dir. A node that has none yet gets the zero
// header and state. A file that is torn, forged or another node's is an error,
// and the caller decides whether to go on without: what it holds is then
// unknown, so nothing older can be refused until a newer state arrives. One that
// is sealed with another key wraps sealed.ErrOtherKey: it is whole, and should
// not be replaced. A file of before files were sealed is taken; see Reseal.
func Open(dir, node string, root *x509.Certificate, secrets *sealed.Ring) (*Store, desired.Header, desired.State, error) {
	s := &Store{path: filepath.Join(dir, file), node: node, root: root, secrets: secrets}
	raw, err := durable.ReadFile(s.path, desired.MaxEnvelope+int64(sealed.Overhead), true)
	if errors.Is(err, fs.ErrNotExist) {
		return s, desired.Header{}, desired.State{}, nil
	}
	if err != nil {
		return s, desired.Header{}, desired.State{}, err
	}
	h, state, stale, err := s.decode(raw)
	if err != nil {
		return s, desired.Header{}, desired.State{}, fmt.Errorf("read %s: %w", s.path, err)
	}
	s.held, s.state, s.stale = h, state, stale
	return s, h, state, nil
}

// decode reads a file's content; stale is the envelope where it was not sealed,
// or by an older key.
func (s *Store) decode(raw []byte) (h desired.Header, state desired.State, stale []byte, err error) {
	plain, old, err := s.secrets.Open(s.place(), raw)
	switch {
	case errors.Is(err, sealed.ErrNotSealed):
		plain, stale = raw, raw
	case err != nil:
		return desired.Header{}, desired.State{}, nil, err
	case old:
		stale = plain
	}
	var e v1.Envelope
	if err := proto.Unmarshal(plain, &e); err != nil {
		// Its error may quote what it read.
		return desired.Header{}, desired.State{}, nil, fmt.Errorf("%w: it is no envelope", desired.ErrFormat)
	}
	h, state, err = desired.OpenEnvelope(&e, s.root, s.node)
	if err != nil {
		return desired.Header{}, desired.State{}, nil, err
	}
	return h, state, stale, nil
}

// place is where the file may be opened: at the node whose state it is.
func (s *Store) place() string { return "last good state\x00" + s.node }

// Reseal seals what Open has read with the newest key, where it was not. Who
// only looks does not call it: it would race with who accepts.
func (s *Store) Reseal() (done bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stale == nil {
		return false, nil
	}
	if err := durable.WriteFile(s.path, s.secrets.Seal(s.place(), s.stale), 0o600); err != nil {
		return false, fmt.Errorf("seal the last good state: %w", err)
	}
	s.stale = nil
	return true, nil
}

// Sealed reports whether a directory holds a state that is sealed, so that some
// key was in use before.
func Sealed(dir string) (bool, error) {
	raw, err := durable.ReadFile(filepath.Join(dir, file), desired.MaxEnvelope+int64(sealed.Overhead), true)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return sealed.Is(raw), err
}

// Held is the header of the state that is kept.
func (s *Store) Held() desired.Header {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.held
}

// Accept verifies a state and keeps it if it is newer than the one held; it is
// on disk when Accept returns. Receiving the held one again is no error, and
// fresh is false then. After any error the held state is what it was, and the
// header says which state was refused, as far as its signature held.
func (s *Store) Accept(e *v1.Envelope) (h desired.Header, state desired.State, fresh bool, err error) {
	h, state, err = desired.OpenEnvelope(e, s.root, s.node)
	if err != nil {
		return h, state, false, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch h.Position.Compare(s.held.Position) {
	case -1:
		return h, state, false, fmt.Errorf("%w: %s after %s", ErrStale, h.Position, s.held.Position)
	case 0:
		if !state.Equal(s.state) {
			return h, state, false, fmt.Errorf("%w: %s", ErrAmbiguous, h.Position)
		}
		return h, state, false, nil
	}
	raw, err := proto.Marshal(e)
	if err != nil {
		return h, state, false, fmt.Errorf("keep state %s: %w", h.Position, err)
	}
	if err := durable.WriteFile(s.path, s.secrets.Seal(s.place(), raw), 0o600); err != nil {
		return h, state, false, fmt.Errorf("keep state %s: %w", h.Position, err)
	}
	s.held, s.state, s.stale = h, state, nil
	return h, state, true, nil
}
