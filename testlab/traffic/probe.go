package traffic

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"time"
)

// ProbeOptions ask whether a server of Serve can be reached.
type ProbeOptions struct {
	To     string
	Canary Canary
	// UDP asks with datagrams instead of a stream.
	UDP bool
	// Deadline bounds all attempts together.
	Deadline time.Duration
	// Attempt bounds one; the next begins right after.
	Attempt time.Duration
}

// ProbeReport says how it went.
type ProbeReport struct {
	Reached  bool `json:"reached"`
	Attempts int  `json:"attempts"`
	// ElapsedSeconds is from the start to the first success, or to giving up.
	ElapsedSeconds float64 `json:"elapsedSeconds"`
	// Problem is of the last attempt.
	Problem string `json:"problem,omitempty"`
}

// pause is between two attempts: a refusal may come at once.
const pause = 5 * time.Millisecond

// Probe tries until an attempt succeeds, the deadline passes or ctx ends.
func Probe(ctx context.Context, o ProbeOptions) ProbeReport {
	start := time.Now()
	ctx, stop := context.WithTimeout(ctx, o.Deadline)
	defer stop()
	var r ProbeReport
	for {
		r.Attempts++
		err := attempt(ctx, o)
		r.ElapsedSeconds = time.Since(start).Seconds()
		if err == nil {
			r.Reached, r.Problem = true, ""
			return r
		}
		r.Problem = err.Error()
		select {
		case <-ctx.Done():
			return r
		case <-time.After(pause):
		}
	}
}

func attempt(ctx context.Context, o ProbeOptions) error {
	ctx, stop := context.WithTimeout(ctx, o.Attempt)
	defer stop()
	var c net.Conn
	var err error
	if o.UDP {
		var d net.Dialer
		c, err = d.DialContext(ctx, "udp", o.To)
	} else {
		c, err = open(ctx, o.To, request{Mode: "echo"})
	}
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	deadline, _ := ctx.Deadline()
	if err := c.SetDeadline(deadline); err != nil {
		return fmt.Errorf("set deadline: %w", err)
	}
	want := o.Canary.Fill(make([]byte, 256))
	if _, err := c.Write(want); err != nil {
		return fmt.Errorf("send: %w", err)
	}
	got := make([]byte, len(want))
	if _, err := io.ReadFull(c, got); err != nil {
		return fmt.Errorf("receive: %w", err)
	}
	if !bytes.Equal(got, want) {
		return fmt.Errorf("another answer than what was sent came back")
	}
	return nil
}

// String is the report as JSON.
func (r ProbeReport) String() string {
	b, err := json.Marshal(r)
	if err != nil {
		return err.Error()
	}
	return string(b)
}
