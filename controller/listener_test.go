package controller

import (
	"log/slog"
	"net"
	"net/http"
	"testing"
)

// wire is a connection that only knows whether it was closed.
type wire struct {
	net.Conn
	closed bool
}

func (w *wire) Close() error { w.closed = true; return nil }

// However many strangers connect, and whatever they ask for, they have a small
// room of their own and make way for each other.
func TestStrangersMakeWay(t *testing.T) {
	friends := map[net.Conn]bool{}
	g := newGuardedListener(nil, 10, 3, func(c net.Conn) bool { return friends[c] }, slog.New(slog.DiscardHandler))
	arrive := func(friend bool) (*wire, net.Conn) {
		w := &wire{}
		c := g.take(w)
		if c != nil {
			friends[c] = friend
			g.state(c, http.StateNew)
			g.state(c, http.StateActive)
			g.state(c, http.StateIdle)
		}
		return w, c
	}
	friend, _ := arrive(true)
	var strangers []*wire
	for range 5 {
		w, c := arrive(false)
		if c == nil {
			t.Fatal("a stranger found no room, although older ones could make way")
		}
		strangers = append(strangers, w)
	}
	for i, w := range strangers {
		if want := i < 2; w.closed != want {
			t.Errorf("stranger %d closed: %v, want %v", i, w.closed, want)
		}
	}
	// All other room is for those who are known; strangers make way for them, too.
	for range 9 {
		if _, c := arrive(true); c == nil {
			t.Fatal("there is no room for one who is known")
		}
	}
	if friend.closed || g.open != 10 || g.fresh.Len() != 0 {
		t.Errorf("known one closed: %v; %d are open, %d of them strangers", friend.closed, g.open, g.fresh.Len())
	}
	if _, c := arrive(true); c != nil {
		t.Error("there is room for more than the most")
	}
}
