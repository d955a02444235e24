package controller

import (
	"container/list"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"
)

// guardedListener bounds connections. Those of strangers, which have shown no
// identity, are bounded apart, whatever they have asked for: when there are too
// many, the oldest goes. So strangers, however many, keep out nobody who is
// known, and delay those who are not yet.
type guardedListener struct {
	net.Listener
	log             *slog.Logger
	most, mostFresh int
	// known says whether a connection's peer has shown an identity that counts.
	known func(net.Conn) bool

	mu    sync.Mutex
	open  int
	fresh *list.List // of *guardedConn, the strangers', oldest first
	// told is when a refusal was last logged.
	told time.Time
}

type guardedConn struct {
	net.Conn
	listener *guardedListener
	// place is in listener.fresh; nil once the peer is known.
	place *list.Element
	once  sync.Once
}

func newGuardedListener(l net.Listener, most, mostFresh int, known func(net.Conn) bool, log *slog.Logger) *guardedListener {
	return &guardedListener{Listener: l, log: log, most: most, mostFresh: mostFresh, known: known, fresh: list.New()}
}

// Accept waits for a connection for which there is room.
func (g *guardedListener) Accept() (net.Conn, error) {
	for {
		c, err := g.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if made := g.take(c); made != nil {
			return made, nil
		}
	}
}

// take counts a connection in, or closes it.
func (g *guardedListener) take(c net.Conn) net.Conn {
	g.mu.Lock()
	var oldest *guardedConn
	full := g.open >= g.most
	if g.fresh.Len() >= g.mostFresh || full && g.fresh.Len() > 0 {
		oldest = g.fresh.Front().Value.(*guardedConn)
		g.settle(oldest)
		full = false
	}
	if full || oldest != nil {
		g.tell()
	}
	var made *guardedConn
	if !full {
		g.open++
		made = &guardedConn{Conn: c, listener: g}
		made.place = g.fresh.PushBack(made)
	}
	g.mu.Unlock()

	if oldest != nil {
		_ = oldest.Close()
	}
	if made == nil {
		_ = c.Close()
		return nil
	}
	return made
}

// tell logs that there is no room, now and then.
func (g *guardedListener) tell() {
	if now := time.Now(); now.Sub(g.told) > time.Minute {
		g.told = now
		g.log.Warn("too many connections; some are closed", "open", g.open, "most", g.most,
			"without_identity", g.fresh.Len(), "most_without_identity", g.mostFresh)
	}
}

// settle takes a connection off the list of strangers.
func (g *guardedListener) settle(c *guardedConn) {
	if c.place != nil {
		g.fresh.Remove(c.place)
		c.place = nil
	}
}

// state is http.Server.ConnState. A connection becomes active when its handshake
// is over, and again with every request.
func (g *guardedListener) state(c net.Conn, s http.ConnState) {
	if s != http.StateActive {
		return
	}
	inner := c
	if t, ok := c.(interface{ NetConn() net.Conn }); ok {
		inner = t.NetConn()
	}
	mine, ok := inner.(*guardedConn)
	if !ok {
		return
	}
	g.mu.Lock()
	stranger := mine.place != nil
	g.mu.Unlock()
	if !stranger || !g.known(c) {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.settle(mine)
}

// Close counts the connection out.
func (c *guardedConn) Close() error {
	c.once.Do(func() {
		c.listener.mu.Lock()
		defer c.listener.mu.Unlock()
		c.listener.settle(c)
		c.listener.open--
	})
	return c.Conn.Close()
}
