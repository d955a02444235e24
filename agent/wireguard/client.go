package wireguard

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"github.com/circuitseal/circuitseal/agent/instance"
)

// controlTimeout bounds one request. Making a device takes milliseconds.
const controlTimeout = 5 * time.Second

// endTimeout bounds the wait for a process that hangs up: one that ends stops
// listening right away.
const (
	endTimeout = time.Second
	endPause   = 5 * time.Millisecond
)

// errNotRunning means that nobody listens on the control socket.
var errNotRunning = errors.New("the WireGuard process does not run")

// client talks to the WireGuard process over one connection.
type client struct {
	conn   *net.UnixConn
	reader *bufio.Reader
	hello  Process
}

// dial connects and asks who is there. The error is errNotRunning when there is
// nobody. A process that ends resets the connections that it has not accepted
// any more; who comes again finds it gone, or another one.
func dial(ctx context.Context, inst instance.Instance) (*client, error) {
	for deadline := time.Now().Add(endTimeout); ; {
		c, err := dialOnce(ctx, inst)
		if !hungUp(err) || time.Now().After(deadline) {
			return c, err
		}
		pause(ctx, endPause)
	}
}

// hungUp reports that the other end closed the connection without an answer.
func hungUp(err error) bool {
	return errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.EPIPE) || errors.Is(err, io.EOF)
}

func dialOnce(ctx context.Context, inst instance.Instance) (*client, error) {
	d := net.Dialer{Timeout: controlTimeout}
	conn, err := d.DialUnix(ctx, "unix", nil, &net.UnixAddr{Name: inst.WireGuardSocket(), Net: "unix"})
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ECONNREFUSED) {
		return nil, errNotRunning
	}
	if err != nil {
		return nil, fmt.Errorf("reach the WireGuard process: %w", err)
	}
	c := &client{conn: conn, reader: bufio.NewReader(conn)}
	r, err := c.ask(request{Operation: opHello})
	if err == nil && r.Process == nil {
		err = errors.New("ask the WireGuard process: no answer to hello")
	}
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	c.hello = *r.Process
	return c, nil
}

// Close may be called again.
func (c *client) Close() error {
	if err := c.conn.Close(); !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

// ask sends one request and waits for its answer, at most controlTimeout. After
// an error of the connection it is of no use any more: a late answer would be
// taken for that of the next request. files go along; they stay the caller's.
func (c *client) ask(q request, files ...*os.File) (response, error) {
	r, err := c.exchange(q, files)
	if err != nil {
		return response{}, errors.Join(fmt.Errorf("ask the WireGuard process: %w", err), c.Close())
	}
	if r.Error != "" {
		return r, fmt.Errorf("WireGuard process: %s", r.Error)
	}
	return r, nil
}

func (c *client) exchange(q request, files []*os.File) (r response, err error) {
	b, err := json.Marshal(q)
	if err != nil {
		return response{}, err
	}
	if err := c.conn.SetDeadline(time.Now().Add(controlTimeout)); err != nil {
		return response{}, err
	}
	if err := c.write(append(b, '\n'), files); err != nil {
		return response{}, err
	}
	line, err := readLine(c.reader, responseLimit)
	if err != nil {
		return response{}, err
	}
	return r, json.Unmarshal(line, &r)
}

func (c *client) write(line []byte, files []*os.File) error {
	if len(files) == 0 {
		_, err := c.conn.Write(line)
		return err
	}
	var fds []int
	for _, f := range files {
		fds = append(fds, int(f.Fd()))
	}
	n, _, err := c.conn.WriteMsgUnix(line, unix.UnixRights(fds...), nil)
	runtime.KeepAlive(files)
	if err == nil && n < len(line) {
		_, err = c.conn.Write(line[n:])
	}
	return err
}
