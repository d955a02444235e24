package rig

import (
	"context"
	"crypto/rand"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/strongswan/govici/vici"

	"github.com/circuitseal/circuitseal/testlab/netns"
)

// AlterPPKs gives charon on an appliance another secret in place of each
// post-quantum pre-shared key (RFC 8784) that it has, under the same identity. charon
// tells nobody what secrets it has: the agent cannot know.
func (r *Rig) AlterPPKs(ctx context.Context, h netns.Host) error {
	s, err := vici.NewSession(vici.WithAddr("unix", filepath.Join("/run/circuitseal", r.Lab.Instance(h), "charon.vici")))
	if err != nil {
		return fmt.Errorf("ask charon on %s: %w", h, err)
	}
	defer func() { _ = s.Close() }()
	// Of each connection, by the part of its name that secrets share, what its PPK's
	// identities have behind the generation.
	owners := map[string]string{}
	for m, err := range s.CallStreaming(ctx, "list-conns", "list-conn", nil) {
		if err != nil {
			return fmt.Errorf("list connections on %s: %w", h, err)
		}
		for _, name := range m.Keys() {
			if c, ok := m.Get(name).(*vici.Message); ok {
				if _, owner, ok := strings.Cut(text(c, "ppk_id"), "."); ok {
					owners[tunnelPart(name)] = owner
				}
			}
		}
	}
	have, err := s.Call(ctx, "get-shared", nil)
	if err != nil {
		return fmt.Errorf("list secrets on %s: %w", h, err)
	}
	ids, _ := have.Get("keys").([]string)
	altered := 0
	for _, id := range ids {
		tunnel, generation, ok := strings.Cut(id, ".ppk.")
		owner := owners[tunnel]
		if !ok || owner == "" {
			continue
		}
		in := vici.NewMessage()
		for key, value := range map[string]any{"id": id, "type": "ppk", "data": rand.Text(), "owners": []string{generation + "." + owner}} {
			if err := in.Set(key, value); err != nil {
				return err
			}
		}
		out, err := s.Call(ctx, "load-shared", in)
		if err == nil {
			err = out.Err()
		}
		if err != nil {
			return fmt.Errorf("load another secret on %s as %s: %w", h, id, err)
		}
		altered++
	}
	if altered == 0 {
		return fmt.Errorf("charon on %s has no PPK: secrets %q, connections of tunnels %v", h, ids, owners)
	}
	return nil
}

// tunnelPart is a connection's name up to its tunnel's number: cs-main.7 of
// cs-main.7.tunnel.trust.whole.
func tunnelPart(connection string) string {
	for range 3 {
		if i := strings.LastIndexByte(connection, '.'); i >= 0 {
			connection = connection[:i]
		}
	}
	return connection
}
