package ipsec

import (
	"context"
	"errors"
	"fmt"

	"github.com/strongswan/govici/vici"

	"github.com/circuitseal/circuitseal/proto/desired"
)

func (d *Driver) socketPath() string {
	if d.want.Socket != "" {
		return d.want.Socket
	}
	return d.config.Instance.CharonSocket()
}

// session is the open one, or a new one. It starts charon when none runs and that
// is for the driver to do; start tells that it is needed. It is called with mu
// held.
func (d *Driver) session(ctx context.Context, start bool) (*client, error) {
	if d.stands {
		return nil, errStands
	}
	socket := d.socketPath()
	if d.open != nil && d.socket == socket {
		switch err := d.alive(ctx); {
		case err == nil:
			return d.open, nil
		case d.stands:
			return nil, err
		}
	}
	d.hangUp()
	c, err := dial(ctx, socket, d.config.Circuit)
	if errors.Is(err, errNotRunning) && start {
		switch {
		case d.want.Socket != "":
			return nil, fmt.Errorf("%w; the policy names the charon at %s, which is not the agent's to start", err, socket)
		case d.config.External:
			return nil, fmt.Errorf("%w, and the agent does not start it, since a service manager does: see that its unit circuitseal-charon@%s runs", err, d.config.Instance)
		}
		if err := d.spawn(ctx); err != nil {
			return nil, err
		}
		c, err = dial(ctx, socket, d.config.Circuit)
	}
	if err != nil {
		return nil, err
	}
	if err := c.alive(ctx); err != nil {
		d.stands = errors.Is(err, errStands)
		return nil, errors.Join(err, c.Close())
	}
	if c.pid != d.pid {
		// Another charon knows none of them.
		d.loaded = map[string]desired.Secret{}
		d.pid = c.pid
	}
	d.open, d.socket = c, socket
	return c, nil
}

// alive hangs up where no answer comes.
func (d *Driver) alive(ctx context.Context) error {
	err := d.open.alive(ctx)
	if err != nil {
		d.stands = errors.Is(err, errStands)
		d.hangUp()
	}
	return err
}

// goesOn reports whether charon answers again, after it has not. It waits without mu, so
// that nobody else has to.
func (d *Driver) goesOn(ctx context.Context) bool {
	d.mu.Lock()
	stands, socket := d.stands, d.socketPath()
	d.mu.Unlock()
	if !stands {
		return true
	}
	c, err := dial(ctx, socket, d.config.Circuit)
	if err == nil {
		err = errors.Join(c.alive(ctx), c.Close())
	}
	if errors.Is(err, errStands) || unanswered(err) {
		return false
	}
	d.mu.Lock()
	d.stands = false
	d.mu.Unlock()
	return true
}

// hangUp ends the session after an error, with which its answers would not be to
// the questions any more.
func (d *Driver) hangUp() {
	if d.open != nil {
		_ = d.open.Close()
		d.open = nil
	}
	d.carried = nil
}

// ask is a call of which an error that charon did not answer with ends the session.
func (d *Driver) ask(ctx context.Context, command string, in *vici.Message) (*vici.Message, error) {
	if d.open == nil {
		return nil, errNotRunning
	}
	out, err := d.open.call(ctx, command, in)
	if err != nil && out == nil {
		d.stands = errors.Is(err, errStands)
		d.hangUp()
	}
	return out, err
}
