package api

import (
	"context"
	"errors"
	"log/slog"

	"connectrpc.com/connect"

	"github.com/circuitseal/circuitseal/controller/store"
)

// audit logs who did what with which outcome. Attributes never hold a secret.
func audit(ctx context.Context, log *slog.Logger, action string, err error, attributes ...any) {
	c := callOf(ctx)
	log = log.With("caller", callerName(c.caller), "address", c.address).With(attributes...)
	if err != nil {
		log.Warn(action+" refused", "code", connect.CodeOf(err), "reason", message(err))
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
	case errors.Is(err, store.ErrClosed):
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
