package rig

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// hopeless is an error that waiting does not cure.
type hopeless struct{ error }

func (h hopeless) Unwrap() error { return h.error }

// stop makes until give up at once.
func stop(err error) error { return hopeless{err} }

// until calls f until it succeeds; what says what is waited for.
func until(ctx context.Context, limit time.Duration, what string, f func() error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		err := f()
		if err == nil {
			return nil
		}
		if errors.As(err, new(hopeless)) {
			return fmt.Errorf("wait until %s: %w", what, err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait until %s: not within %s: %w", what, limit, err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}
