package store

import (
	"errors"
	"log/slog"
	"strings"
	"testing"

	"go.uber.org/zap"
)

// mortal is a store whose engine is going to die.
func mortal(t *testing.T) *Store {
	t.Helper()
	s, err := Open(t.Context(), Config{Dir: dataDir(t), Log: slog.New(slog.DiscardHandler)})
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

// When a part of the engine dies under way, the store says so to everybody and
// can be closed.
func TestEngineDiesUnderWay(t *testing.T) {
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
	lg := s.server.Logger()
	go lg.Fatal("failed to save hard state and entries", zap.Error(errors.New("input/output error")))
	err := <-watched
	for what, err := range map[string]error{"Watch": err, "Snapshot": func() error { _, err := s.Snapshot(t.Context()); return err }()} {
		if !errors.Is(err, ErrClosed) || !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), "input/output error") {
			t.Errorf("%s: %v, want ErrClosed, ErrDamaged and the cause", what, err)
		}
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
