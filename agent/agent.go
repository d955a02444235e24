// Package agent is a node's agent put together: it starts from the last good
// state, keeps a session with the controller, and hands what it accepts to the
// loop that brings the host in line. It holds the wiring and no mechanism of
// its own.
package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/circuitseal/circuitseal/agent/identity"
	"github.com/circuitseal/circuitseal/agent/instance"
	"github.com/circuitseal/circuitseal/agent/lastgood"
	"github.com/circuitseal/circuitseal/agent/liveness"
	"github.com/circuitseal/circuitseal/agent/offline"
	"github.com/circuitseal/circuitseal/agent/plan"
	"github.com/circuitseal/circuitseal/agent/priority"
	"github.com/circuitseal/circuitseal/agent/reconcile"
	"github.com/circuitseal/circuitseal/agent/uplink"
	"github.com/circuitseal/circuitseal/proto/desired"
	"github.com/circuitseal/circuitseal/proto/sealed"
)

// Config is what an agent needs to know before it starts.
type Config struct {
	Instance instance.Instance
	Version  string
	// ExternalWireGuard tells that a service manager runs the WireGuard process,
	// where one is needed, and that the agent must not start it.
	ExternalWireGuard bool
	// ExternalCharon tells the same of strongSwan's charon.
	ExternalCharon bool
	// SecretKeyFile holds the key that encrypts secrets at rest; empty for the
	// service manager's credential "secret-key" or the instance's own file.
	SecretKeyFile string
	// Ready is called once, after the first pass or, on a node that has no state
	// yet, when the agent waits for one. nil is nobody.
	Ready func()
	// MetricsListen is the address on which Prometheus may scrape, in clear and
	// without authentication; empty is nowhere.
	MetricsListen string
	Log           *slog.Logger
}

// IdentityDir is where enrolment puts the node's identity.
func IdentityDir(i instance.Instance) string { return filepath.Join(i.StateDir(), identityDir) }

// identityDir is the directory of the identity in a state directory.
const identityDir = "identity"

// RequireRoot says what the agent needs root for.
func RequireRoot() error {
	if os.Geteuid() != 0 {
		return errors.New("must run as root: the agent makes network namespaces, tunnels and packet filters, and nobody else may read its files")
	}
	return nil
}

// Run is the agent until ctx ends. What it has set up in the kernel, and the
// WireGuard process, stay when it returns: that is the point.
func Run(ctx context.Context, c Config) (err error) {
	if err := RequireRoot(); err != nil {
		return err
	}
	id, err := identity.Describe(IdentityDir(c.Instance))
	if err != nil {
		return err
	}
	log := c.Log.With("instance", string(c.Instance), "node", id.Node)
	unlock, err := lock(c.Instance)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unlock()) }()

	secrets, err := openSecrets(c, log)
	if err != nil {
		return err
	}
	id, err = loadIdentity(c.Instance, secrets, log)
	if errors.Is(err, sealed.ErrOtherKey) {
		return fmt.Errorf("%w; put the key that it was encrypted with into %s, or name its file with --secret-key-file; nothing was changed", err, c.secretKeyFile())
	}
	if err != nil {
		return err
	}
	kept, header, state, unread := lastgood.Open(c.Instance.StateDir(), id.Node, id.Root, secrets)
	if errors.Is(unread, sealed.ErrOtherKey) {
		return fmt.Errorf("%w; put the key that it was encrypted with into %s, or name its file with --secret-key-file; nothing was changed", unread, c.secretKeyFile())
	}
	if unread != nil {
		// Going on closed: nothing that the guard holds is opened for it.
		log.Error("last good state is not usable; waiting for the controller", "error", unread)
	}
	contact, err := offline.Open(c.Instance.StateDir(), header.Issued, offline.Host)
	if contact == nil {
		return err
	}
	if err != nil {
		log.Error("time of the last contact with the controller is a guess: when the last good state was issued", "error", err)
	}
	if done, err := kept.Reseal(); err != nil {
		log.Warn("the last good state is not encrypted with the newest secret key", "error", err)
	} else if done {
		log.Info("the last good state is encrypted now", "secret_key", secrets.First())
	}
	keys, err := openKeys(c.Instance, secrets)
	if err != nil {
		return err
	}

	if err := priority.Yield(); err != nil {
		log.Warn("the agent may get in the way of packets", "error", err)
	}
	d, err := openDrivers(c, keys, log)
	if d != nil {
		defer func() { err = errors.Join(err, d.close()) }()
	}
	if err != nil {
		return err
	}

	n := &node{
		config: c, log: log, kept: kept, keys: keys, guard: d.guard, classifier: d.classifier, tunnels: d.tunnels, ipsec: d.ipsec, hooks: d.hooks,
		positions: map[uint64]desired.Position{}, unread: unread, scrapes: scrapes{address: c.MetricsListen, log: log},
		contact: contact, aged: make(chan struct{}, 1),
		loop: reconcile.New(d.guard, d.links, d.tunnels, d.ipsec, d.slowPaths, d.classifier, d.drift, log), drift: d.drift,
	}
	n.probes = liveness.New(liveness.Config{Namespace: d.main, OnChange: n.probed, Log: log})
	n.uplink = uplink.New(uplink.Config{
		Identity: id, Node: n, Log: log,
		Load: func() (*identity.Identity, error) { return loadIdentity(c.Instance, secrets, log) },
		Renew: func(id *identity.Identity, certificates [][]byte) (*identity.Identity, error) {
			return identity.Renew(IdentityDir(c.Instance), secrets, id, certificates, time.Now())
		},
	})
	socket, err := n.listen()
	if err != nil {
		return err
	}
	if header.Node != "" {
		log.Info("starting from the last good state", "position", header.Position.String(), "issued", header.Issued)
		n.take(header, state)
	} else {
		n.announce()
	}

	g, ctx := errgroup.WithContext(ctx)
	links, err := d.links.Watch(ctx)
	if err != nil {
		return errors.Join(fmt.Errorf("watch links: %w", err), socket.Close())
	}
	firewall, err := d.guard.Watch(ctx)
	if err != nil {
		return errors.Join(fmt.Errorf("watch the guard: %w", err), socket.Close())
	}
	g.Go(func() error { return n.loop.Run(ctx, func(changed bool) { n.passed(ctx, changed) }) })
	g.Go(func() error { return d.tunnels.Run(ctx, n.probes.Silent) })
	g.Go(func() error {
		return d.ipsec.Run(ctx, func(tunnel string, since time.Time) bool { return n.probes.Unanswered(plan.IPsecKey(tunnel), since) })
	})
	g.Go(func() error { return n.probes.Run(ctx) })
	g.Go(func() error { return n.uplink.Run(ctx) })
	g.Go(func() error { return n.watchAge(ctx) })
	g.Go(func() error { return n.serve(ctx, socket) })
	g.Go(func() error { return n.scrapes.run(ctx, n.Status) })
	for _, changes := range []<-chan struct{}{links, firewall} {
		g.Go(func() error {
			for range changes {
				n.loop.Dirty()
			}
			return ctx.Err()
		})
	}
	log.Info("agent runs", "version", c.Version)
	if err := g.Wait(); !errors.Is(err, context.Canceled) {
		return err
	}
	log.Info("agent stops; tunnels and guard stay")
	return nil
}

// lock keeps a second agent of the same instance out.
func lock(i instance.Instance) (unlock func() error, err error) {
	if err := os.MkdirAll(i.RunDir(), 0o700); err != nil {
		return nil, err
	}
	path := filepath.Join(i.RunDir(), "agent.lock")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("another agent of instance %q runs on this host (it holds %s)", i, path), f.Close())
	}
	return f.Close, nil
}
