package traffic

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Port is where Serve listens unless told otherwise, UDP and TCP.
const Port = 7007

// request begins a TCP connection, as a line of JSON.
type request struct {
	// Mode is echo, sink or source.
	Mode string `json:"mode"`
	// Seconds is how long a source sends.
	Seconds float64 `json:"seconds,omitempty"`
}

// sunk is what a sink answers when the sender has closed its side.
type sunk struct {
	Bytes   int64   `json:"bytes"`
	Seconds float64 `json:"seconds"`
}

// Serve answers numbered datagrams and streams on address until ctx ends.
func Serve(ctx context.Context, address string, canary Canary, ready func()) error {
	packets, err := net.ListenPacket("udp", address)
	if err != nil {
		return fmt.Errorf("listen for datagrams: %w", err)
	}
	streams, err := net.Listen("tcp", address)
	if err != nil {
		return errors.Join(fmt.Errorf("listen for streams: %w", err), packets.Close())
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	context.AfterFunc(ctx, func() { _ = packets.Close(); _ = streams.Close() })
	if c, ok := packets.(*net.UDPConn); ok {
		roomForBursts(c)
	}
	ready()
	var wg sync.WaitGroup
	wg.Go(func() { echoDatagrams(packets) })
	wg.Go(func() { serveStreams(ctx, streams, canary) })
	wg.Wait()
	return nil
}

// roomForBursts holds what all flows send while this process waits to run: what
// the lab itself drops must not be counted as lost on the way: on a machine that has
// no time for minutes, tens of thousands. Without privilege the system's limit holds.
func roomForBursts(c *net.UDPConn) {
	const size = 128 << 20
	raw, err := c.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		if unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, size) != nil {
			_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, size)
		}
	})
}

func echoDatagrams(c net.PacketConn) {
	b := make([]byte, 64<<10)
	for {
		n, from, err := c.ReadFrom(b)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		// Sending and receiving fail while a route is gone; the peer counts.
		if err == nil {
			_, _ = c.WriteTo(b[:n], from)
		}
	}
}

func serveStreams(ctx context.Context, l net.Listener, canary Canary) {
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		wg.Go(func() {
			stop := context.AfterFunc(ctx, func() { _ = c.Close() })
			defer stop()
			// The peer sees a stream that broke, and says so.
			_ = serveStream(c, canary)
			_ = c.Close()
		})
	}
}

func serveStream(c net.Conn, canary Canary) error {
	r := bufio.NewReaderSize(c, 256<<10)
	line, err := r.ReadSlice('\n')
	if err != nil {
		return err
	}
	var q request
	if err := json.Unmarshal(line, &q); err != nil {
		return fmt.Errorf("decode request: %w", err)
	}
	switch q.Mode {
	case "echo":
		_, err = io.Copy(c, r)
		return err
	case "sink":
		start := time.Now()
		n, err := io.Copy(io.Discard, onlyReader{r})
		if err != nil {
			return err
		}
		return json.NewEncoder(c).Encode(sunk{Bytes: n, Seconds: time.Since(start).Seconds()})
	case "source":
		return pour(c, canary, time.Duration(q.Seconds*float64(time.Second)))
	}
	return fmt.Errorf("mode %q: want echo, sink or source", q.Mode)
}

// onlyReader hides WriterTo, so that large reads stay large.
type onlyReader struct{ io.Reader }

// pour writes the canary for some time.
func pour(w io.Writer, canary Canary, d time.Duration) error {
	b := canary.Fill(make([]byte, 256<<10/len(canary)*len(canary)))
	for end := time.Now().Add(d); time.Now().Before(end); {
		if _, err := w.Write(b); err != nil {
			return fmt.Errorf("send: %w", err)
		}
	}
	return nil
}
