package pki

import (
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"time"
)

// NodeLife is how long a node's certificate is good.
const NodeLife = nodeLife

// Held is one of the authority's own keys, as its certificate has it.
type Held struct {
	Purpose  Purpose
	Serial   string
	From, To time.Time
	// Elsewhere is set where the key itself is not in the data directory.
	Elsewhere bool
}

// Purpose is what a key of the authority is for.
type Purpose uint8

// The purposes.
const (
	ForRoot Purpose = iota + 1
	ForIssuing
	ForStates
	ForServer
)

// Inventory is the authority's own keys, root first.
func (a *Authority) Inventory() ([]Held, error) {
	held := func(p Purpose, c *x509.Certificate) Held {
		// Certificates begin a little before they are made.
		return Held{Purpose: p, Serial: c.SerialNumber.Text(16), From: c.NotBefore.Add(backdate), To: c.NotAfter}
	}
	all := []Held{held(ForRoot, a.root), held(ForIssuing, a.issuing.cert), held(ForStates, a.state.cert)}
	_, err := a.dir.key(rootKeyFile)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		all[0].Elsewhere = true
	case err != nil:
		return nil, fmt.Errorf("list keys of the authority: %w", err)
	}
	server, err := a.dir.certificate(serverCertFile)
	if err != nil {
		return nil, fmt.Errorf("list keys of the authority: %w", err)
	}
	return append(all, held(ForServer, server)), nil
}
