// Package store keeps the model: documents, the numbers that stand for names
// in kernels, the keys and enrolments that nodes have, and enrolment tokens. It
// hands out the whole at a revision, takes changes as fenced transactions and
// says when there is something newer. It sits on an etcd server inside this
// process that has no listener of any kind. Secrets are sealed before they get
// there, with a key that lies elsewhere. It knows neither RPC nor policy:
// whether a set of documents is valid, who may change it, when a secret is
// replaced and what a certificate says is for others to judge.
package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/etcdserver"

	"github.com/circuitseal/circuitseal/controller/model"
	"github.com/circuitseal/circuitseal/proto/chunk"
	"github.com/circuitseal/circuitseal/proto/sealed"
)

// What callers tell apart. Errors of this package wrap at most one of these,
// except that an engine that dies under way wraps ErrClosed and ErrDamaged, and
// ErrReadOnly for what comes later.
var (
	// ErrInUse: another process has the data directory.
	ErrInUse = errors.New("in use")
	// ErrNoParent: the directory in which the data directory is to be made does
	// not exist.
	ErrNoParent = errors.New("does not exist")
	// ErrFile: what should be the data directory is a file.
	ErrFile = errors.New("is a file")
	// ErrExposed: others may read or enter the data directory.
	ErrExposed = errors.New("others can reach its keys")
	// ErrConflict: a document or number has changed since the base revision.
	// Read a new snapshot, judge the change again, and repeat it.
	ErrConflict = errors.New("documents have changed meanwhile")
	// ErrUnknownNode: there is no Node document of that name.
	ErrUnknownNode = errors.New("there is no such node")
	// ErrTokenUnknown: no such token, or its secret is another, or it was
	// voided by a newer one or with its node.
	ErrTokenUnknown = errors.New("enrolment token is unknown or was voided")
	// ErrTokenUsed: another key has redeemed the token.
	ErrTokenUsed = errors.New("enrolment token is used")
	// ErrTokenExpired: the token's time is over.
	ErrTokenExpired = errors.New("enrolment token has expired")
	// ErrOtherNode: the token is good, but for another node than was asked for.
	ErrOtherNode = errors.New("enrolment token is for another node")
	// ErrNotEnrolled: the node has no identity, or another key's.
	ErrNotEnrolled = errors.New("this key is not the node's")
	// ErrRevoked: the key was revoked.
	ErrRevoked = errors.New("this key was revoked")
	// ErrTooLarge: the change does not fit into one transaction.
	ErrTooLarge = errors.New("change is too large for one transaction")
	// ErrCompacted: the revision is older than what the store keeps, or newer than
	// what it has.
	ErrCompacted = errors.New("that revision is not kept")
	// ErrNoChunk: the document has no such chunk at that revision.
	ErrNoChunk = errors.New("there is no such chunk")
	// ErrFull: the store has reached its quota, or its disk has too little room.
	// Reads go on. Opening the store anew drops its history, which usually frees
	// enough of the quota.
	ErrFull = errors.New("store is full")
	// ErrSlow: the engine did not answer in time, nearly always because of the
	// disk. A read may be repeated; a write may have taken effect or may still.
	ErrSlow = errors.New("the store's disk is too slow")
	// ErrDamaged: the engine has found files that it cannot use.
	ErrDamaged = errors.New("the store's files cannot be used")
	// ErrSecretKey: the store's secrets were sealed with another secret key.
	ErrSecretKey = errors.New("the store is another secret key's")
	// ErrClosed: the store was closed or has stopped by itself.
	ErrClosed = errors.New("store is closed")
	// ErrReadOnly: the store has stopped by itself before this change, which was
	// not made. What was there can be read. It comes with ErrClosed.
	ErrReadOnly = errors.New("store can only be read until the controller was started again")
)

// Config says where a store is.
type Config struct {
	// Dir is the controller's data directory. It is made when it does not
	// exist (its parent has to), must be this user's own with mode 0700, and is
	// locked from Open to Close. The store itself is in its subdirectory etcd.
	Dir string
	// Log takes what etcd warns of.
	Log *slog.Logger
	// Secrets seals what is secret; it is never nil.
	Secrets *sealed.Ring
}

// Store is an open store. Its methods may be used concurrently.
type Store struct {
	log     *slog.Logger
	secrets *sealed.Ring
	// dir is the data directory.
	dir    string
	lock   *dirLock
	server *etcdserver.EtcdServer
	client *clientv3.Client
	died   *death
	// epoch rises with every restore or migration of the store.
	epoch uint64
	// tokens counts those made since the start.
	tokens atomic.Uint64

	// life is held for reading during every use of the engine, which must not
	// be used once it has stopped.
	life   sync.RWMutex
	closed bool

	// reading is held while the newest view is fetched; it guards last.
	reading sync.Mutex
	last    *view

	// past guards the documents of the past revision that was asked for last.
	past          sync.Mutex
	pastRevision  uint64
	pastDocuments map[model.Key]model.Document

	// flight guards inFlight: how many writes under way need a chunk.
	flight   sync.Mutex
	inFlight map[chunk.Sum]int
}

// Open locks the data directory and starts the store, which takes some tenths
// of a second; ctx bounds the wait. The first start sets the epoch to 1. The
// caller closes the store.
func Open(ctx context.Context, c Config) (*Store, error) { return open(ctx, c, defaultQuota) }

func open(ctx context.Context, c Config, quota int64) (_ *Store, err error) {
	lock, err := lockDir(c.Dir)
	if err != nil {
		return nil, err
	}
	s := &Store{
		log: c.Log, secrets: c.Secrets, dir: c.Dir, lock: lock, died: &death{done: make(chan struct{})}, inFlight: map[chunk.Sum]int{},
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	dir, err := firstStart(ctx, c, quota)
	if err != nil {
		return nil, err
	}
	if err := s.start(ctx, c, dir, quota); err != nil {
		return nil, err
	}
	return s, nil
}

// start starts the engine on its files in dir and waits until it can be used.
func (s *Store) start(ctx context.Context, c Config, dir string, quota int64) (err error) {
	if s.server, s.client, err = startEngine(ctx, c, dir, quota, s.died); err != nil {
		return err
	}
	// The engine ends the goroutine in which it dies: not the caller's.
	prepared := make(chan error, 1)
	go func() { prepared <- s.prepare(ctx) }()
	select {
	case err = <-prepared:
	case <-s.died.done:
		err = s.died.err
	}
	return err
}

func (s *Store) prepare(ctx context.Context) error {
	if err := s.reclaim(ctx); err != nil {
		return err
	}
	if err := s.unlock(ctx); err != nil {
		return err
	}
	if err := s.initialise(ctx); err != nil {
		return err
	}
	// What a write left behind that did not come to its end.
	if err := s.collectChunks(ctx); err != nil {
		return err
	}
	_, err := s.read(ctx)
	return err
}

// Await blocks until the store has died, and says of what: the error wraps
// ErrClosed. It returns ctx's error when ctx is done first. Some who used the
// store then never return, so whoever runs it has to wait here.
func (s *Store) Await(ctx context.Context) error {
	select {
	case <-s.died.done:
		return fmt.Errorf("%w: %w", ErrClosed, s.died.err)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Close stops the store and unlocks the data directory. It waits for calls
// under way; watchers end with ErrClosed. Closing twice is harmless.
func (s *Store) Close() error {
	s.life.Lock()
	defer s.life.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	s.stop()
	return s.lock.Close()
}

// stop stops the engine, as far as it has started.
func (s *Store) stop() {
	if s.client != nil {
		// It has no connection: all that it can return is that its own
		// context is cancelled now.
		_ = s.client.Close()
	}
	if s.server != nil {
		stopped := make(chan struct{})
		go func() {
			defer close(stopped)
			s.server.Stop()
		}()
		select {
		case <-stopped:
		case <-s.died.done:
			// It may wait for the part that died, for ever.
			select {
			case <-stopped:
			case <-time.After(time.Second):
			}
		}
	}
}

// initialise makes the keys that every store has, once.
func (s *Store) initialise(ctx context.Context) error {
	r, err := s.txn(ctx,
		[]clientv3.Cmp{absent(epochKey)},
		[]clientv3.Op{
			clientv3.OpPut(epochKey, "1"),
			clientv3.OpPut(changedKey, ""),
			clientv3.OpPut(writtenKey, ""),
		},
		// A version that compiles otherwise than the one before it must not
		// give a node another state at the same position.
		[]clientv3.Op{clientv3.OpGet(epochKey), clientv3.OpPut(changedKey, "")})
	if err != nil {
		return fmt.Errorf("read epoch of the store: %w", err)
	}
	if r.Succeeded {
		s.epoch = 1
		return nil
	}
	s.epoch, err = parseNumber(string(r.Responses[0].GetResponseRange().Kvs[0].Value), 64)
	if err != nil {
		return fmt.Errorf("read epoch of the store: %w", err)
	}
	return nil
}

// dead reports whether the engine has died while the store was open.
func (s *Store) dead() bool {
	s.life.RLock()
	defer s.life.RUnlock()
	select {
	case <-s.died.done:
		return !s.closed
	default:
		return false
	}
}

// over is why the engine cannot be used any more; nil while it can.
func (s *Store) over() error {
	if s.closed {
		return ErrClosed
	}
	select {
	case <-s.died.done:
		return fmt.Errorf("%w: %w: %w", ErrReadOnly, ErrClosed, s.died.err)
	default:
		return nil
	}
}

// txn runs one transaction, atomic and on disk when it returns.
func (s *Store) txn(ctx context.Context, when []clientv3.Cmp, then, otherwise []clientv3.Op) (*clientv3.TxnResponse, error) {
	s.life.RLock()
	defer s.life.RUnlock()
	if err := s.over(); err != nil {
		return nil, err
	}
	if slices.ContainsFunc(slices.Concat(then, otherwise), func(o clientv3.Op) bool { return !o.IsGet() }) {
		if err := roomIn(s.dir); err != nil {
			return nil, err
		}
	}
	return ask(s, func() (*clientv3.TxnResponse, error) {
		return s.client.Txn(ctx).If(when...).Then(then...).Else(otherwise...).Commit()
	})
}

// get reads one key, or all that start with it.
func (s *Store) get(ctx context.Context, key string, opts ...clientv3.OpOption) (*clientv3.GetResponse, error) {
	s.life.RLock()
	defer s.life.RUnlock()
	if err := s.over(); err != nil {
		return nil, err
	}
	return ask(s, func() (*clientv3.GetResponse, error) { return s.client.Get(ctx, key, opts...) })
}

// ask calls the engine. The call has a goroutine of its own, since the part of the engine
// that has died may have held a lock, for which the call then waits for ever: who dies in a
// commit of the backend shuts all readers out. Whether a change was made that was under way
// then is not known, until the store was opened again.
func ask[R any](s *Store, call func() (R, error)) (R, error) {
	type answer struct {
		r   R
		err error
	}
	answers := make(chan answer, 1)
	go func() {
		r, err := call()
		answers <- answer{r, err}
	}()
	select {
	case a := <-answers:
		return a.r, engineError(a.err)
	case <-s.died.done:
		var none R
		return none, fmt.Errorf("%w: %w: %w", ErrSlow, ErrClosed, s.died.err)
	}
}

func engineError(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, rpctypes.ErrNoSpace):
		return fmt.Errorf("%w: %w", ErrFull, err)
	case errors.Is(err, rpctypes.ErrCompacted), errors.Is(err, rpctypes.ErrFutureRev):
		return fmt.Errorf("%w: %w", ErrCompacted, err)
	case errors.Is(err, rpctypes.ErrRequestTooLarge), errors.Is(err, rpctypes.ErrTooManyOps):
		return fmt.Errorf("%w: %w", ErrTooLarge, err)
	case errors.Is(err, rpctypes.ErrTimeout), errors.Is(err, rpctypes.ErrTimeoutDueToLeaderFail),
		errors.Is(err, rpctypes.ErrNoLeader), errors.Is(err, rpctypes.ErrTooManyRequests):
		return fmt.Errorf("%w: %w", ErrSlow, err)
	case errors.Is(err, rpctypes.ErrStopped):
		return fmt.Errorf("%w: %w", ErrClosed, err)
	}
	return err
}
