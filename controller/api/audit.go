package api

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"connectrpc.com/connect"

	"github.com/circuitseal/circuitseal/controller/store"
)

// unknownOutcome is an error of a write that may have taken effect all the same.
type unknownOutcome struct{ error }

func (u unknownOutcome) Unwrap() error { return u.error }

// audit logs who did what with which outcome. Attributes never hold a secret.
func audit(ctx context.Context, log *slog.Logger, action string, err error, attributes ...any) {
	c := callOf(ctx)
	log = log.With("caller", callerName(c.caller), "address", c.address).With(attributes...)
	if err != nil {
		outcome := "refused"
		if errors.As(err, &unknownOutcome{}) {
			outcome = "outcome unknown"
		}
		log.Warn(action+" "+outcome, "code", connect.CodeOf(err), "reason", message(err))
		return
	}
	log.Info(action)
}

// message is an error without connect's code, which stands beside it.
func message(err error) string {
	if c := new(connect.Error); errors.As(err, &c) {
		return c.Message()
	}
	return err.Error()
}

// storeError is what a caller is told of an error of the store that is not
// about what it asked for.
func storeError(err error) error {
	code := connect.CodeInternal
	switch {
	case errors.Is(err, context.Canceled):
		code = connect.CodeCanceled
	case errors.Is(err, context.DeadlineExceeded):
		code = connect.CodeDeadlineExceeded
	case errors.Is(err, store.ErrClosed), errors.Is(err, store.ErrSlow):
		code = connect.CodeUnavailable
	case errors.Is(err, store.ErrFull):
		code = connect.CodeResourceExhausted
	case errors.Is(err, store.ErrConflict):
		code = connect.CodeAborted
	case errors.Is(err, store.ErrTooLarge):
		code = connect.CodeInvalidArgument
	}
	return connect.NewError(code, err)
}

// writeError is storeError for a write: of one that was not answered nobody
// knows whether it took effect. Every write is safe to repeat.
func writeError(err error) error {
	code := connect.CodeOf(storeError(err))
	switch {
	case errors.Is(err, store.ErrReadOnly):
		err = fmt.Errorf("nothing was changed: %w", err)
	case errors.Is(err, store.ErrSlow):
		err = unknownOutcome{fmt.Errorf("%w; whether the change was written is not known; look with `sealctl get` and repeat", store.ErrSlow)}
	case errors.Is(err, store.ErrClosed), errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		err = unknownOutcome{fmt.Errorf("%w; whether the change was written is not known; look with `sealctl get` and repeat", err)}
	}
	return connect.NewError(code, err)
}
