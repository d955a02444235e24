// Package controller wires the controller together: the store, the authority,
// the agents' sessions and the API, on one TLS listener. It is the only package
// that sees all of them; it decides how they start, what they listen on and how
// they stop, and nothing else.
package controller

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/circuitseal/circuitseal/controller/api"
	"github.com/circuitseal/circuitseal/controller/certify"
	"github.com/circuitseal/circuitseal/controller/handover"
	"github.com/circuitseal/circuitseal/controller/pki"
	"github.com/circuitseal/circuitseal/controller/rotate"
	"github.com/circuitseal/circuitseal/controller/session"
	"github.com/circuitseal/circuitseal/controller/store"
	"github.com/circuitseal/circuitseal/proto/sealed"
)

// openTimeout bounds how long the store may take to start: a large log is
// replayed in seconds.
const openTimeout = 60 * time.Second

// Config says what a controller has.
type Config struct {
	// DataDir holds everything that the controller keeps. It is made at the
	// first start, and one controller uses it at a time.
	DataDir string
	// Listen is a host and a port, such as ":8443".
	Listen string
	// Names are host names and addresses by which agents and operators reach
	// the controller, beside the host's own and the loopback ones.
	Names []string
	// Advertise is the address by which agents reach the controller, such as
	// https://controller.example:8443, for who makes a token; its host is one more
	// of Names. Empty for the first of Names with the port that is listened on, or
	// where there is none for nothing.
	Advertise string
	Version   string
	// SecretKeyFile holds the key that encrypts secrets at rest. It is not made
	// here and lies outside of DataDir; see proto/sealed.
	SecretKeyFile string
	Log           *slog.Logger
	// Restored says that DataDir was restored from a backup: the epoch is raised
	// and unused enrolment tokens are voided before anything is compiled.
	Restored bool
	// MetricsListen is where Prometheus may scrape, in clear and without
	// authentication; empty is nowhere.
	MetricsListen string
	// Now is the clock by which certificates are judged and made; time.Now when
	// nil.
	Now func() time.Time
	// Ready, when set, is called once the controller serves.
	Ready func(address net.Addr, rootPin string)
}

// Check says what is wrong with a configuration by itself, before anything is
// touched.
func (c Config) Check() error {
	if c.DataDir == "" {
		return errors.New("--data-dir is empty: name the directory that holds everything")
	}
	if c.SecretKeyFile == "" {
		return errors.New("--secret-key-file is empty: name the file with the key that encrypts secrets at rest")
	}
	if err := checkAddress("--listen", c.Listen); err != nil {
		return err
	}
	if c.MetricsListen != "" {
		if err := checkAddress("--metrics-listen", c.MetricsListen); err != nil {
			return err
		}
	}
	if err := pki.CheckNames(c.Names); err != nil {
		return fmt.Errorf("--name: %w", err)
	}
	if c.Advertise != "" {
		if _, err := advertisedHost(c.Advertise); err != nil {
			return err
		}
	}
	return nil
}

// Run runs a controller until ctx is done, which is no error, and returns within
// three seconds of that. An error says in one sentence what to do.
func Run(ctx context.Context, c Config) (err error) {
	if err := c.Check(); err != nil {
		return err
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	secrets, err := openSecrets(c)
	if err != nil {
		return err
	}
	listener, err := listen(ctx, "--listen", c.Listen)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closed(listener)) }()
	var scrapes net.Listener
	if c.MetricsListen != "" {
		if scrapes, err = listen(ctx, "--metrics-listen", c.MetricsListen); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, closed(scrapes)) }()
	}

	opening, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	kept, err := store.Open(opening, store.Config{Dir: c.DataDir, Log: c.Log.With("part", "store"), Secrets: secrets})
	if err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return explainDir(c, err)
	}
	defer func() { err = errors.Join(err, kept.Close()) }()

	authority, err := openAuthority(ctx, c, kept, secrets)
	if ctx.Err() != nil {
		return nil
	}
	if err != nil {
		return err
	}
	names, advertised := advertise(c, listener.Addr())
	config, err := authority.ServerTLS(slices.Concat(pki.DefaultNames(), names))
	if err != nil {
		return err
	}

	group, ctx := errgroup.WithContext(ctx)
	hub := session.New(kept, authority, c.Log.With("part", "session"))
	rotator := rotate.New(rotate.Config{Store: kept, Sessions: hub, Log: c.Log.With("part", "rotate"), Now: c.Now})
	if err := kept.PutAuthorities(ctx, authority.Authorities()); err != nil {
		return err
	}
	certifier := certify.New(certify.Config{Store: kept, Sessions: hub, Issuer: authority, Log: c.Log.With("part", "certify"), Now: c.Now})
	mover := handover.New(kept, hub, c.Log.With("part", "handover"))
	metrics := newMetrics(c.Version)
	countWork(metrics, hub.Work)
	handler := api.New(api.Config{
		Store: kept, Authority: authority, Sessions: hub, Advertised: advertised,
		Inventory: authority, Rotation: rotator, Certificates: certifier, Handover: mover, Secrets: secrets,
		Log: c.Log.With("part", "api"), Now: c.Now, Metrics: metrics, Stopping: ctx,
	})

	group.Go(func() error { return hub.Run(ctx) })
	group.Go(func() error { return rotator.Run(ctx) })
	group.Go(func() error { return certifier.Run(ctx) })
	group.Go(func() error { return mover.Run(ctx) })
	group.Go(func() error {
		if err := kept.Await(ctx); ctx.Err() == nil {
			return outlive(ctx, c, err)
		}
		return nil
	})
	identify := func(chain []*x509.Certificate) bool {
		_, err := authority.Identify(chain, c.Now())
		return err == nil
	}
	group.Go(func() error { return serve(ctx, listener, config, handler, identify, c.Log.With("part", "http")) })
	if scrapes != nil {
		c.Log.Info("metrics can be scraped", "url", "http://"+scrapes.Addr().String()+"/metrics")
		group.Go(func() error { return serveMetrics(ctx, scrapes, metrics, c.Log.With("part", "metrics")) })
	}
	c.Log.Info("ready", "address", listener.Addr().String(), "root_pin", authority.RootPin(),
		"admin_identity", filepath.Join(c.DataDir, "admin", "identity.pem"))
	if c.Ready != nil {
		c.Ready(listener.Addr(), authority.RootPin())
	}
	err = group.Wait()
	c.Log.Info("stopped")
	return err
}

// usableEvery is how often a controller looks whether its disk can be used again.
const usableEvery = 2 * time.Second

// outlive keeps a controller whose store has died of its disk up as long as the
// disk cannot be used: what was there goes on being read, and nodes get the
// states that they had. It returns what the store died of when starting anew
// would help.
func outlive(ctx context.Context, c Config, died error) error {
	for told := false; ; told = true {
		unusable := store.Usable(c.DataDir)
		if unusable == nil {
			return died
		}
		if !told {
			c.Log.Error("the disk of the data directory cannot be used; reading goes on, changes are refused, "+
				"and this controller ends, to be started anew, when the disk can be used again",
				"data_dir", c.DataDir, "died", died, "disk", unusable)
		}
		select {
		case <-time.After(usableEvery):
		case <-ctx.Done():
			return nil
		}
	}
}

// openAuthority opens the authority that belongs to a store, and raises the
// store's epoch where it was restored from a backup. It returns when the store
// dies meanwhile, too.
func openAuthority(ctx context.Context, c Config, kept *store.Store, secrets *sealed.Ring) (*pki.Authority, error) {
	waiting, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	opened := make(chan struct{})
	var (
		made   *pki.Authority
		failed error
	)
	go func() {
		made, failed = fitAuthority(ctx, c, kept, secrets)
		close(opened)
	}()
	died := make(chan error, 1)
	go func() { died <- kept.Await(waiting) }()
	select {
	case <-opened:
		return made, failed
	case err := <-died:
		return nil, explainDir(c, err)
	}
}

func fitAuthority(ctx context.Context, c Config, kept *store.Store, secrets *sealed.Ring) (*pki.Authority, error) {
	s, err := kept.Snapshot(ctx)
	if err != nil {
		return nil, err
	}
	authority, err := pki.Open(pki.Config{Dir: c.DataDir, Log: c.Log.With("part", "pki"), Secrets: secrets, Needed: len(s.Documents) > 0, Now: c.Now})
	if errors.Is(err, pki.ErrLost) {
		return nil, fmt.Errorf("%w; %s", err, afterBackup)
	}
	if err != nil || !c.Restored {
		return authority, err
	}
	epoch, voided, err := kept.Restored(ctx, time.Now())
	if err != nil {
		return nil, err
	}
	c.Log.Info("raised the epoch, since the data directory was restored from a backup", "before", s.Epoch, "epoch", epoch, "voided_tokens", voided)
	return authority, nil
}

// afterBackup is what a backup of the whole directory needs.
const afterBackup = "if you restore the whole data directory, start with --restored then"

// openSecrets reads the secret key file; where there is none, it says how one
// is made and does not make it: a data directory of another key, on a host that
// lost that, would only be the harder to open.
func openSecrets(c Config) (*sealed.Ring, error) {
	ring, err := sealed.Load(c.SecretKeyFile, c.DataDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("there is no secret key file %s, with which secrets are encrypted at rest: make one with `circuitseal-controller secret-key generate %s`, or put there the one that %s was used with; --secret-key-file names another", c.SecretKeyFile, c.SecretKeyFile, c.DataDir)
	}
	return ring, err
}

// explainDir says what to do about a data directory that cannot be used.
func explainDir(c Config, err error) error {
	dir := c.DataDir
	hint := fmt.Sprintf("see that %s is on a writable disk and belongs to this user, or name another with --data-dir", dir)
	switch {
	case errors.Is(err, store.ErrInUse):
		hint = "stop that controller first, or name another directory with --data-dir"
	case errors.Is(err, store.ErrNoParent):
		hint = "make it, or name another directory with --data-dir"
	case errors.Is(err, store.ErrSecretKey):
		hint = fmt.Sprintf("put the key that %s was used with into %s, or name its file with --secret-key-file; nothing was changed", dir, c.SecretKeyFile)
	case errors.Is(err, store.ErrDamaged):
		hint = fmt.Sprintf("see that this user may read and write all files in %s and that the disk is sound, or restore the directory from a backup and start with --restored", dir)
	case errors.Is(err, store.ErrExposed):
		hint = fmt.Sprintf("run `chmod 700 %s`, if nobody else can have read it", dir)
	case errors.Is(err, store.ErrFile):
		hint = "name a directory with --data-dir"
	}
	return fmt.Errorf("%w; %s", err, hint)
}
