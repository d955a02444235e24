package controller

import (
	"container/list"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"
)

// guardedListener bounds connections. Those that have not finished their TLS
// handshake and spoken HTTP are bounded apart: when there are too many, the
// oldest goes, so that idle handshakes, however many, do not keep out a peer
// that is quick.
type guardedListener struct {
	net.Listener
	log             *slog.Logger
	most, mostFresh int

	mu    sync.Mutex
	open  int
	fresh *list.List // of *guardedConn, oldest first
	// told is when a refusal was last logged.
	told time.Time
}

type guardedConn struct {
	net.Conn
	listener *guardedListener
	// place is in listener.fresh; nil once the connection is established.
	place *list.Element
	once  sync.Once
}

func newGuardedListener(l net.Listener, most, mostFresh int, log *slog.Logger) *guardedListener {
	return &guardedListener{Listener: l, log: log, most: most, mostFresh: mostFresh, fresh: list.New()}
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
	if g.fresh.Len() >= g.mostFresh {
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
			"unfinished_handshakes", g.fresh.Len(), "most_unfinished", g.mostFresh)
	}
}

// settle takes a connection off the list of fresh ones.
func (g *guardedListener) settle(c *guardedConn) {
	if c.place != nil {
		g.fresh.Remove(c.place)
		c.place = nil
	}
}

// state is http.Server.ConnState: a connection that has a request has finished
// its handshake.
func (g *guardedListener) state(c net.Conn, s http.ConnState) {
	if t, ok := c.(interface{ NetConn() net.Conn }); ok {
		c = t.NetConn()
	}
	if mine, ok := c.(*guardedConn); ok && s != http.StateNew {
		g.mu.Lock()
		g.settle(mine)
		g.mu.Unlock()
	}
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
