package store

import "go.uber.org/zap"

func zapLogger(c slogCore) *zap.Logger { return zap.New(c).With(zap.String("node", "n")) }

func zapString(k, v string) zap.Field { return zap.String(k, v) }
