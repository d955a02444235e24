package store

import (
	"context"
	"log/slog"
	"slices"
	"strings"

	"go.uber.org/zap/zapcore"
)

// slogCore hands etcd's warnings and errors to a slog.Logger. What etcd says
// below that is about its own workings.
type slogCore struct {
	log    *slog.Logger
	fields []zapcore.Field
}

// expected reports whether a warning is about what this package chose on
// purpose (see maxRequestBytes), or about a start under load, which mends
// itself: a member that is alone and not yet done with its log asks for its own
// vote a moment later, a new store has no version until its first commit, and
// one that is stopped while it starts does not get done with that.
func expected(message string, fields map[string]any) bool {
	cause, _ := fields["error"].(string)
	return message == "exceeded recommended request limit" ||
		strings.Contains(message, "cannot campaign at term") ||
		strings.HasSuffix(cause, "missing term information") ||
		strings.HasSuffix(cause, "etcdserver: server stopped")
}

func (c slogCore) Enabled(l zapcore.Level) bool {
	return l >= zapcore.WarnLevel && c.log.Enabled(context.Background(), level(l))
}

func (c slogCore) With(fields []zapcore.Field) zapcore.Core {
	return slogCore{log: c.log, fields: slices.Concat(c.fields, fields)}
}

func (c slogCore) Check(e zapcore.Entry, to *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if !c.Enabled(e.Level) {
		return to
	}
	return to.AddCore(e, c)
}

func (c slogCore) Write(e zapcore.Entry, fields []zapcore.Field) error {
	enc := zapcore.NewMapObjectEncoder()
	for _, f := range slices.Concat(c.fields, fields) {
		f.AddTo(enc)
	}
	if expected(e.Message, enc.Fields) {
		return nil
	}
	attrs := make([]slog.Attr, 0, len(enc.Fields))
	for k, v := range enc.Fields {
		attrs = append(attrs, slog.Any(k, v))
	}
	slices.SortFunc(attrs, func(a, b slog.Attr) int { return strings.Compare(a.Key, b.Key) })
	c.log.LogAttrs(context.Background(), level(e.Level), "etcd: "+e.Message, attrs...)
	return nil
}

func (slogCore) Sync() error { return nil }

func level(l zapcore.Level) slog.Level {
	switch {
	case l >= zapcore.ErrorLevel:
		return slog.LevelError
	case l == zapcore.WarnLevel:
		return slog.LevelWarn
	case l == zapcore.InfoLevel:
		return slog.LevelInfo
	}
	return slog.LevelDebug
}
