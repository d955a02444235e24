package ipsec

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/strongswan/govici/vici"
	"golang.org/x/sys/unix"

	"github.com/circuitseal/circuitseal/agent/netns"
)

const (
	// dialTimeout is long because charon takes connections when it has a thread for
	// that, and a thousand tunnels that begin take them all.
	dialTimeout = 15 * time.Second
	// callTimeout bounds one request. charon answers within milliseconds, but a
	// list of SAs waits for those that are being worked at.
	callTimeout = 20 * time.Second
	// aliveTimeout bounds a request that waits for nothing.
	aliveTimeout = 5 * time.Second
)

// errNotRunning means that nobody listens on the VICI socket.
var errNotRunning = errors.New("charon does not run")

// errElsewhere means that who listens is not in the circuit namespace.
var errElsewhere = errors.New("it is not in the circuit namespace: its SAs would be where clear packets are; start it with `ip netns exec`, or leave the socket out so that the agent runs its own")

// errStands means that charon takes what it is told and answers nothing.
var errStands = errors.New("charon does not answer: it stands, or is overloaded")

// client is a VICI session with a charon that is in the circuit namespace. It is
// for one goroutine at a time; after an error of a call it is of no use any more,
// except for one that charon answered with.
type client struct {
	session *vici.Session
	conn    *pacedConn
	pid     int
}

// dial connects, and refuses a charon elsewhere: its SAs would be elsewhere, too.
// The error wraps errNotRunning where nobody listens.
func dial(ctx context.Context, socket string, circuit netns.Namespace) (*client, error) {
	c := &client{}
	d := net.Dialer{Timeout: dialTimeout}
	conn, err := d.DialContext(ctx, "unix", socket)
	if errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %w", errNotRunning, err)
	}
	if err != nil {
		return nil, fmt.Errorf("connect to charon: %w", err)
	}
	if c.pid, err = peerOf(conn.(*net.UnixConn)); err == nil {
		err = inNamespace(c.pid, circuit)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("charon at %s: %w", socket, err), conn.Close())
	}
	c.conn = newPacedConn(conn)
	c.session, err = vici.NewSession(dialed(c.conn))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("connect to charon: %w", err), conn.Close())
	}
	return c, nil
}

// dialed has a session take a connection that is there.
func dialed(c net.Conn) vici.SessionOption {
	return vici.WithDialContext(func(context.Context, string, string) (net.Conn, error) { return c, nil })
}

func (c *client) Close() error { return c.session.Close() }

// peerOf asks the kernel who listens at the other end (unix(7), SO_PEERCRED).
func peerOf(c *net.UnixConn) (pid int, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	var (
		who  *unix.Ucred
		werr error
	)
	if err := raw.Control(func(fd uintptr) { who, werr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return 0, err
	}
	if werr != nil {
		return 0, fmt.Errorf("ask who listens: %w", werr)
	}
	if who.Uid != 0 && int(who.Uid) != os.Geteuid() {
		return 0, fmt.Errorf("who listens is user %d and not root", who.Uid)
	}
	return int(who.Pid), nil
}

func inNamespace(pid int, circuit netns.Namespace) error {
	var have, want unix.Stat_t
	path := "/proc/" + strconv.Itoa(pid) + "/ns/net"
	if err := unix.Stat(path, &have); err != nil {
		return fmt.Errorf("look for the namespace of process %d: %w", pid, err)
	}
	if err := unix.Fstat(circuit.FD(), &want); err != nil {
		return fmt.Errorf("stat the circuit namespace: %w", err)
	}
	if have.Dev != want.Dev || have.Ino != want.Ino {
		return fmt.Errorf("process %d: %w", pid, errElsewhere)
	}
	return nil
}

// call asks and waits for the answer. An error that charon answered with comes with
// that answer, and says what it was about, without the message, which may hold secrets.
func (c *client) call(ctx context.Context, command string, in *vici.Message) (*vici.Message, error) {
	return c.request(ctx, callTimeout, command, in)
}

// request is a call that waits no longer than patience. The error wraps errStands where no
// answer came until then.
func (c *client) request(ctx context.Context, patience time.Duration, command string, in *vici.Message) (*vici.Message, error) {
	within, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	out, err := c.session.Call(within, command, in)
	if unanswered(err) && ctx.Err() == nil {
		err = errStands
	}
	if err != nil {
		return out, fmt.Errorf("%s: %w", command, err)
	}
	return out, nil
}

// unanswered reports whether the error is that time has run out. govici gives the socket
// a deadline, too, which may be the first to tell.
func unanswered(err error) bool {
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded)
}

// alive asks for what costs nothing. A session ends without a word.
func (c *client) alive(ctx context.Context) error {
	_, err := c.request(ctx, aliveTimeout, "version", nil)
	return err
}

// stream asks, and gives what charon tells to each before it answers. govici keeps
// no more than 128 messages that nobody has taken and drops the others without a
// word, so that they are not read sooner than they are taken.
func (c *client) stream(ctx context.Context, command, event string, in *vici.Message, each func(*vici.Message) error) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	c.conn.pace(true)
	defer c.conn.pace(false)
	var errs []error
	for m, err := range c.session.CallStreaming(ctx, command, event, in) {
		c.conn.taken()
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", command, err))
			break
		}
		if err := m.Err(); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", command, err))
			continue
		}
		if err := each(m); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", command, err))
		}
	}
	return errors.Join(errs...)
}

// subscribe has events go to a channel, which drops them while it is full. govici
// waits for charon's answer with a lock that its reader takes for an event: one that
// comes in between would have both wait for ever. So those are not read.
func (c *client) subscribe(to chan<- vici.Event, events ...string) error {
	c.session.NotifyEvents(to)
	c.conn.deaf.Store(true)
	defer c.conn.deaf.Store(false)
	return c.session.Subscribe(events...)
}

const (
	// window is how many packets may be on their way between reader and taker; see
	// stream.
	window = 64
	// packetLimit bounds what is taken for a packet; charon's own bound is 512 KiB.
	packetLimit = 4 << 20
	lengthSize  = 4
	// packetEvent is the type of an event (src/libcharon/plugins/vici/README.md).
	packetEvent = 7
)

// pacedConn reads whole packets: a length of four bytes, then as many.
type pacedConn struct {
	net.Conn
	// deaf leaves events out.
	deaf atomic.Bool

	mu     sync.Mutex
	more   *sync.Cond
	paced  bool
	credit int
	// rest is what has not been read of a packet. One goroutine reads.
	rest []byte
}

func newPacedConn(c net.Conn) *pacedConn {
	p := &pacedConn{Conn: c}
	p.more = sync.NewCond(&p.mu)
	return p
}

func (p *pacedConn) Read(b []byte) (int, error) {
	if len(p.rest) == 0 {
		p.mu.Lock()
		for p.paced && p.credit <= 0 {
			p.more.Wait()
		}
		p.credit--
		p.mu.Unlock()
		var err error
		if p.rest, err = p.packet(); err != nil {
			return 0, err
		}
	}
	n := copy(b, p.rest)
	p.rest = p.rest[n:]
	return n, nil
}

// packet is the next one with its length.
func (p *pacedConn) packet() ([]byte, error) {
	for {
		length := make([]byte, lengthSize)
		if _, err := io.ReadFull(p.Conn, length); err != nil {
			return nil, err
		}
		n := binary.BigEndian.Uint32(length)
		if n > packetLimit {
			return nil, fmt.Errorf("charon sends a packet of %d bytes", n)
		}
		packet := append(length, make([]byte, n)...)
		if _, err := io.ReadFull(p.Conn, packet[lengthSize:]); err != nil {
			return nil, err
		}
		if n > 0 && packet[lengthSize] == packetEvent && p.deaf.Load() {
			continue
		}
		return packet, nil
	}
}

func (p *pacedConn) pace(on bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.paced, p.credit = on, window
	p.more.Broadcast()
}

func (p *pacedConn) taken() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.credit++
	p.more.Broadcast()
}

func (p *pacedConn) Close() error {
	p.pace(false)
	return p.Conn.Close()
}

// section makes a message of keys and values: strings, lists, sections. Setting
// these cannot fail.
func section(pairs ...any) *vici.Message {
	m := vici.NewMessage()
	for i := 0; i+1 < len(pairs); i += 2 {
		switch v := pairs[i+1].(type) {
		case string:
			if v == "" {
				continue
			}
		case []string:
			if len(v) == 0 {
				continue
			}
		}
		_ = m.Set(pairs[i].(string), pairs[i+1])
	}
	return m
}
