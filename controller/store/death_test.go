package store

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/circuitseal/circuitseal/controller/model"
)

// mortal is a store whose engine is going to die.
func mortal(t *testing.T) *Store {
	t.Helper()
	s, err := Open(t.Context(), Config{Dir: dataDir(t), Log: slog.New(slog.DiscardHandler), Secrets: ring})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// When a part of the engine dies under way, what was there goes on being read,
// changes are refused with the cause, and the store can be closed.
func TestEngineDiesUnderWay(t *testing.T) {
	s := mortal(t)
	before := snapshot(t, s)
	revision, err := s.Write(t.Context(), before.Revision, Change{Put: []model.Document{node("prem-1")}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	watched := make(chan error)
	ready := make(chan struct{}, 1)
	go func() {
		var last error
		for _, err := range s.Watch(ctx) {
			if last = err; err == nil {
				ready <- struct{}{}
			}
		}
		watched <- last
	}()
	<-ready
	lg := s.server.Logger()
	go lg.Fatal("failed to save hard state and entries", zap.Error(errors.New("input/output error")))
	if err := s.Await(t.Context()); !errors.Is(err, ErrClosed) || !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), "input/output error") {
		t.Errorf("Await: %v, want ErrClosed, ErrDamaged and the cause", err)
	}
	if now := snapshot(t, s); now.Revision != revision || len(now.Documents) != 1 {
		t.Errorf("read revision %d with %d documents, want what was acknowledged", now.Revision, len(now.Documents))
	}
	_, err = s.Write(t.Context(), revision, Change{Put: []model.Document{node("prem-2")}})
	if !errors.Is(err, ErrReadOnly) || !strings.Contains(err.Error(), "input/output error") {
		t.Errorf("Write: %v, want ErrReadOnly and the cause", err)
	}
	select {
	case err := <-watched:
		t.Errorf("Watch ended: %v", err)
	default:
	}
	cancel()
	if err := <-watched; err != nil {
		t.Errorf("Watch: %v", err)
	}
}

// An engine that dies while its backend commits keeps the backend's lock. Who is reading
// then does not wait for ever, and later ones get what was there.
func TestEngineDiesInACommit(t *testing.T) {
	s := mortal(t)
	before := snapshot(t, s)
	full, err := unix.Open("/dev/full", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(full) }()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	var readers sync.WaitGroup
	for range 16 {
		readers.Go(func() {
			for !s.dead() && ctx.Err() == nil {
				_, _ = s.get(ctx, changedKey)
			}
		})
	}
	if err := unix.Dup3(full, openFile(t, filepath.Join(s.dir, "etcd/member/snap/db")), unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	// It may be made before the engine dies, or not.
	_, err = s.Write(t.Context(), before.Revision, Change{Put: []model.Document{node("prem-1")}})
	if err != nil && (!errors.Is(err, ErrSlow) || errors.Is(err, ErrReadOnly)) {
		t.Errorf("Write: %v, want ErrSlow: whether it was made is not known", err)
	}
	if err := s.Await(t.Context()); !strings.Contains(err.Error(), unix.ENOSPC.Error()) {
		t.Fatalf("Await: %v", err)
	}
	over := make(chan struct{})
	go func() {
		readers.Wait()
		close(over)
	}()
	select {
	case <-over:
	case <-ctx.Done():
		t.Fatal("who was reading waits for the engine that has died")
	}
	now := snapshot(t, s)
	if _, err := s.Write(ctx, now.Revision, Change{Put: []model.Document{node("prem-2")}}); !errors.Is(err, ErrReadOnly) {
		t.Errorf("Write: %v, want ErrReadOnly", err)
	}
}

// openFile is the descriptor by which this process has a file open.
func openFile(t *testing.T, path string) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if at, err := os.Readlink(filepath.Join("/proc/self/fd", e.Name())); err == nil && at == path {
			n, err := strconv.Atoi(e.Name())
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatalf("%s is not open", path)
	return -1
}

func TestClosingEndsTheWatchOfADeadEngine(t *testing.T) {
	s := mortal(t)
	watched := make(chan error)
	ready := make(chan struct{}, 1)
	go func() {
		var last error
		for _, err := range s.Watch(t.Context()) {
			if last = err; err == nil {
				ready <- struct{}{}
			}
		}
		watched <- last
	}()
	<-ready
	go s.server.Logger().Fatal("failed to save hard state and entries")
	if err := s.Await(t.Context()); !errors.Is(err, ErrClosed) {
		t.Errorf("Await: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if err := <-watched; !errors.Is(err, ErrClosed) {
		t.Errorf("Watch: %v, want ErrClosed", err)
	}
}

// A disk that is nearly full takes no changes, and is read; when there is room
// again, it goes on by itself.
func TestDiskIsFull(t *testing.T) {
	requireMount(t)
	dir := dataDir(t)
	mkdir(t, dir, 0o700)
	if err := unix.Mount("none", dir, "tmpfs", 0, "mode=0700,size=200m"); err != nil {
		t.Fatalf("mount tmpfs: %v", err)
	}
	defer func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	}()
	s, err := Open(t.Context(), Config{Dir: dir, Log: slog.New(slog.DiscardHandler), Secrets: ring})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}()
	base := snapshot(t, s).Revision
	if err := Usable(dir); err != nil {
		t.Errorf("Usable: %v", err)
	}
	filler, err := os.Create(filepath.Join(dir, "filler"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = filler.Close() }()
	if err := unix.Fallocate(int(filler.Fd()), 0, 0, 120<<20); err != nil {
		t.Fatal(err)
	}
	_, err = s.Write(t.Context(), base, Change{Put: []model.Document{node("prem-1")}})
	if !errors.Is(err, ErrFull) || !strings.Contains(err.Error(), "MiB left") {
		t.Errorf("Write: %v, want ErrFull and how much is left", err)
	}
	if err := Usable(dir); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("Usable: %v, want ENOSPC", err)
	}
	if now := snapshot(t, s); now.Revision != base {
		t.Errorf("read revision %d, want %d", now.Revision, base)
	}
	if err := filler.Truncate(0); err != nil {
		t.Fatal(err)
	}
	if _, err = s.Write(t.Context(), base, Change{Put: []model.Document{node("prem-1")}}); err != nil {
		t.Errorf("Write with room again: %v", err)
	}
}

// The engine may die in the goroutine of whoever calls it, which then never
// returns: whoever waits for the store hears of it.
func TestEngineDiesInItsCaller(t *testing.T) {
	s := mortal(t)
	heard := make(chan error, 1)
	go func() { heard <- s.Await(t.Context()) }()
	ended := make(chan bool, 1)
	go func() {
		returned := false
		defer func() { ended <- returned }()
		for _, err := range s.Watch(t.Context()) {
			if err != nil {
				t.Errorf("Watch: %v", err)
			}
			s.server.Logger().Fatal("failed to range keys")
		}
		returned = true
	}()
	if <-ended {
		t.Error("the caller goes on with an engine that is dead")
	}
	if err := <-heard; !errors.Is(err, ErrClosed) || !errors.Is(err, ErrDamaged) {
		t.Errorf("heard %v, want ErrClosed and ErrDamaged", err)
	}
}
