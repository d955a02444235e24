package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/circuitseal/circuitseal/agent/bpffs"
	"github.com/circuitseal/circuitseal/agent/classifier"
	"github.com/circuitseal/circuitseal/agent/instance"
	"github.com/circuitseal/circuitseal/agent/netns"
	"github.com/circuitseal/circuitseal/agent/wireguard"
)

// Remove takes off the host whatever the instance's agent has set up, and with
// it all protection: tunnels and their process end, circuit interfaces return to
// the main namespace, down and without addresses, and the guard goes last.
// Identity, keys, last good state and the instance's own secret key file go only with purge. It refuses while an
// agent runs. What is gone already is no error, so that it can be repeated
// after one.
func Remove(ctx context.Context, c Config, purge bool) (err error) {
	if err := RequireRoot(); err != nil {
		return err
	}
	if there, err := installed(c.Instance); err != nil {
		return err
	} else if !there {
		return fmt.Errorf("there is nothing of instance %q on this host: see --instance", c.Instance)
	}
	unlock, err := lock(c.Instance)
	if err != nil {
		return fmt.Errorf("%w; stop it first", err)
	}
	defer func() { err = errors.Join(err, unlock()) }()
	if err := takeOff(ctx, c); err != nil {
		return err
	}
	// Its unit would have started the WireGuard process again by now.
	release, err := wireguard.Hold(c.Instance)
	if err != nil {
		return fmt.Errorf("%w; stop its unit first", err)
	}
	defer func() { err = errors.Join(err, release()) }()
	// A detached mount goes with its last user.
	if mounted, err := bpffs.Mounted(c.Instance.BPFDir()); err != nil {
		return err
	} else if mounted {
		if err := unix.Unmount(c.Instance.BPFDir(), unix.MNT_DETACH); err != nil {
			return fmt.Errorf("unmount %s: %w", c.Instance.BPFDir(), err)
		}
	}
	errs := []error{netns.Remove(c.Instance.Namespace()), os.RemoveAll(c.Instance.RunDir())}
	if purge {
		errs = append(errs, os.RemoveAll(c.Instance.StateDir()))
		// What somebody else has put elsewhere is theirs to remove.
		if err := os.Remove(c.Instance.SecretKeyFile()); !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// installed reports whether anything of an instance is on the host.
func installed(i instance.Instance) (bool, error) {
	for _, path := range []string{i.StateDir(), i.RunDir(), filepath.Join(netns.Directory, i.Namespace()), filepath.Join(netns.Directory, i.SlowNamespace())} {
		if _, err := os.Lstat(path); err == nil {
			return true, nil
		} else if !errors.Is(err, fs.ErrNotExist) {
			return false, err
		}
	}
	return false, nil
}

// takeOff goes from the top down.
func takeOff(ctx context.Context, c Config) (err error) {
	d, err := openDrivers(c, keys{}, c.Log)
	if d == nil {
		return err
	}
	defer func() { err = errors.Join(err, d.close()) }()
	if err != nil {
		// Its maps go with the bpffs.
		c.Log.Warn("the classifier cannot be opened, and is not needed for this", "error", err)
	}
	for _, step := range []struct {
		what string
		do   func(context.Context) error
	}{
		{"remove the classifier", func(ctx context.Context) error {
			if d.classifier == nil {
				return d.main.Do(func() error {
					return classifier.Detach(classifier.Config{Instance: c.Instance, Hooks: d.hooks, Log: c.Log})
				})
			}
			return d.classifier.Remove(ctx)
		}},
		{"remove slow paths", d.slowPaths.Remove},
		{"remove IPsec tunnels", d.ipsec.Remove},
		{"remove WireGuard tunnels", d.tunnels.Remove},
		{"give circuit interfaces back", d.links.Release},
		{"remove the guard", d.guard.Remove},
	} {
		if err := step.do(ctx); err != nil {
			return fmt.Errorf("%s: %w", step.what, err)
		}
	}
	return nil
}
