package traffic

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// StreamOptions are TCP streams to a server of Serve.
type StreamOptions struct {
	To       string
	Canary   Canary
	Flows    int
	Duration time.Duration
	// Reverse lets the server send.
	Reverse bool
}

// StreamReport is goodput as the receivers saw it.
type StreamReport struct {
	Bytes   int64   `json:"bytes"`
	Seconds float64 `json:"seconds"`
	Gbps    float64 `json:"gbps"`
}

// Streams sends at full speed and reports what arrived.
func Streams(ctx context.Context, o StreamOptions) (StreamReport, error) {
	var wg sync.WaitGroup
	results, errs := make([]sunk, max(1, o.Flows)), make([]error, max(1, o.Flows))
	for i := range results {
		wg.Go(func() { results[i], errs[i] = stream(ctx, o) })
	}
	wg.Wait()
	var r StreamReport
	for _, s := range results {
		r.Bytes += s.Bytes
		r.Seconds = max(r.Seconds, s.Seconds)
	}
	if r.Seconds > 0 {
		r.Gbps = float64(r.Bytes) * 8 / r.Seconds / 1e9
	}
	return r, errors.Join(errs...)
}

func stream(ctx context.Context, o StreamOptions) (sunk, error) {
	mode := request{Mode: "sink"}
	if o.Reverse {
		mode = request{Mode: "source", Seconds: o.Duration.Seconds()}
	}
	c, err := open(ctx, o.To, mode)
	if err != nil {
		return sunk{}, err
	}
	defer func() { _ = c.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer stop()
	// A stream that stands still is a result too.
	if err := c.SetDeadline(time.Now().Add(o.Duration + 10*time.Second)); err != nil {
		return sunk{}, fmt.Errorf("set deadline: %w", err)
	}
	if o.Reverse {
		start := time.Now()
		n, err := io.Copy(io.Discard, onlyReader{c})
		return sunk{Bytes: n, Seconds: time.Since(start).Seconds()}, err
	}
	if err := pour(c, o.Canary, o.Duration); err != nil {
		return sunk{}, err
	}
	if t, ok := c.(*net.TCPConn); ok {
		if err := t.CloseWrite(); err != nil {
			return sunk{}, fmt.Errorf("end the stream: %w", err)
		}
	}
	var s sunk
	if err := json.NewDecoder(c).Decode(&s); err != nil {
		return sunk{}, fmt.Errorf("read the receiver's count: %w", err)
	}
	return s, nil
}

func open(ctx context.Context, to string, q request) (net.Conn, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", to)
	if err != nil {
		return nil, fmt.Errorf("connect: %w", err)
	}
	if err := json.NewEncoder(c).Encode(q); err != nil {
		return nil, errors.Join(fmt.Errorf("send request: %w", err), c.Close())
	}
	return c, nil
}
