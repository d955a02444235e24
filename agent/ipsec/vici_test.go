package ipsec

import (
	"context"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"github.com/strongswan/govici/vici"
)

// mute is a client of a charon that takes everything and answers nothing.
func mute(t *testing.T) *client {
	here, there := net.Pipe()
	go func() { _, _ = io.Copy(io.Discard, there) }()
	conn := newPacedConn(here)
	c := &client{conn: conn}
	var err error
	if c.session, err = vici.NewSession(dialed(conn)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// govici gives up reading 5 s after a question, whatever its context says, so that either
// may tell first.
func TestUnanswered(t *testing.T) {
	t.Parallel()
	errs := make(chan error)
	const n = 500
	for range n {
		c := mute(t)
		go func() { errs <- c.alive(t.Context()) }()
	}
	for range n {
		if err := <-errs; !errors.Is(err, errStands) {
			t.Errorf("error %v", err)
		}
	}
}

func TestGivenUp(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if _, err := mute(t).request(ctx, time.Hour, "version", nil); err == nil || errors.Is(err, errStands) {
		t.Fatalf("error %v", err)
	}
}
