// Package lastgood keeps the newest state that a node has accepted, as the
// signed bytes it came in, so that the node runs on without its controller. It
// refuses what is not signed, not for this node or not newer; it knows nothing
// of what a state means.
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
	path string
	node string
	root *x509.Certificate

	mu    sync.Mutex
	held  desired.Header
	state desired.State
}

// Open reads the last good state in dir. A node that has none yet gets the zero
// header and state. A file that is torn, forged or another node's is an error,
// and the caller decides whether to go on without: what it holds is then
// unknown, so nothing older can be refused until a newer state arrives.
func Open(dir, node string, root *x509.Certificate) (*Store, desired.Header, desired.State, error) {
	s := &Store{path: filepath.Join(dir, file), node: node, root: root}
	raw, err := durable.ReadFile(s.path, desired.MaxEnvelope, true)
	if errors.Is(err, fs.ErrNotExist) {
		return s, desired.Header{}, desired.State{}, nil
	}
	if err != nil {
		return s, desired.Header{}, desired.State{}, err
	}
	var e v1.Envelope
	if err := proto.Unmarshal(raw, &e); err != nil {
		return s, desired.Header{}, desired.State{}, fmt.Errorf("read %s: %w", s.path, err)
	}
	h, state, err := desired.OpenEnvelope(&e, root, node)
	if err != nil {
		return s, desired.Header{}, desired.State{}, fmt.Errorf("read %s: %w", s.path, err)
	}
	s.held, s.state = h, state
	return s, h, state, nil
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
	if err := durable.WriteFile(s.path, raw, 0o600); err != nil {
		return h, state, false, fmt.Errorf("keep state %s: %w", h.Position, err)
	}
	s.held, s.state = h, state
	return h, state, true, nil
}
