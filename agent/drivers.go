package agent

import (
	"errors"
	"fmt"
	"log/slog"

	"github.com/circuitseal/circuitseal/agent/bpffs"
	"github.com/circuitseal/circuitseal/agent/classifier"
	"github.com/circuitseal/circuitseal/agent/drift"
	"github.com/circuitseal/circuitseal/agent/guard"
	"github.com/circuitseal/circuitseal/agent/ipsec"
	"github.com/circuitseal/circuitseal/agent/link"
	"github.com/circuitseal/circuitseal/agent/netns"
	"github.com/circuitseal/circuitseal/agent/rcu"
	"github.com/circuitseal/circuitseal/agent/slowpath"
	"github.com/circuitseal/circuitseal/agent/tchook"
	"github.com/circuitseal/circuitseal/agent/wireguard"
)

// drivers are what acts on the host, and the two namespaces that most act in.
type drivers struct {
	main, circuit netns.Namespace
	// hooks is how this kernel attaches programs.
	hooks      tchook.Way
	guard      *guard.Guard
	links      *link.Driver
	tunnels    *wireguard.Driver
	ipsec      *ipsec.Driver
	slowPaths  *slowpath.Driver
	classifier *classifier.Classifier
	// drift has what they changed.
	drift *drift.Ledger
}

// openDrivers makes the circuit namespace and the bpffs when they are missing,
// and nothing else. The caller closes what it returns, which with an error of
// the classifier is all the others.
func openDrivers(c Config, keys keys, log *slog.Logger) (d *drivers, err error) {
	d = &drivers{drift: drift.New()}
	defer func() {
		if err != nil && d.tunnels == nil {
			err = errors.Join(err, d.close())
			d = nil
		}
	}()
	if d.main, err = netns.Current(); err != nil {
		return d, err
	}
	var made bool
	if d.circuit, made, err = netns.Ensure(c.Instance.Namespace()); err != nil {
		return d, fmt.Errorf("circuit namespace: %w", err)
	}
	if made {
		log.Info("circuit namespace made", "namespace", c.Instance.Namespace())
	}
	if err := bpffs.Ensure(c.Instance.BPFDir()); err != nil {
		return d, err
	}
	// Another agent of this instance may have ended in the midst of many changes.
	if err := rcu.Recover(c.Instance.HurryFile()); err != nil {
		log.Warn("the kernel goes on hurrying, which costs processor time", "error", err)
	}
	if d.hooks, err = tchook.Probe(); err != nil {
		return d, err
	}
	log.Info("programs are attached", "by", d.hooks.String())
	if d.guard, err = guard.New(guard.Config{Instance: c.Instance, Namespace: d.circuit, Hooks: d.hooks, Drift: d.drift, Log: log}); err != nil {
		return d, fmt.Errorf("guard: %w", err)
	}
	d.links = link.New(link.Config{
		Main: d.main, Circuit: d.circuit, Instance: c.Instance, Name: c.Instance.Namespace(), Drift: d.drift, Log: log,
	})
	d.tunnels = wireguard.New(wireguard.Config{
		Main: d.main, Circuit: d.circuit, Instance: c.Instance, Keys: keys.wireguard, External: c.ExternalWireGuard, Drift: d.drift, Log: log,
	})
	d.ipsec = ipsec.New(ipsec.Config{
		Main: d.main, Circuit: d.circuit, Instance: c.Instance, Keys: keys.ipsec, External: c.ExternalCharon, Drift: d.drift, Log: log,
	})
	d.slowPaths = slowpath.New(slowpath.Config{Main: d.main, Instance: c.Instance, Drift: d.drift, Log: log})
	if d.classifier, err = classifier.New(classifier.Config{Instance: c.Instance, Hooks: d.hooks, Drift: d.drift, Log: log}); err != nil {
		return d, fmt.Errorf("classifier: %w", err)
	}
	return d, nil
}

// close gives up this process's handles. What is in the kernel stays.
func (d *drivers) close() error {
	var errs []error
	if d.classifier != nil {
		errs = append(errs, d.classifier.Close())
	}
	if d.guard != nil {
		errs = append(errs, d.guard.Close())
	}
	return errors.Join(append(errs, d.circuit.Close(), d.main.Close())...)
}
