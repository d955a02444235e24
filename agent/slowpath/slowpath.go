// Package slowpath keeps the way that packets take which are too big for their
// tunnel: a network namespace of its own in which the kernel routes, with one
// veth pair and one routing table for each LAN, so that it answers them with ICMP or
// fragments them. It knows netlink and the sysctls of that namespace. It knows
// neither who sends packets there nor who judges what comes back, and the main
// namespace has no route, rule or address from it, and does not forward for it.
package slowpath

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/circuitseal/circuitseal/agent/drift"
	"github.com/circuitseal/circuitseal/agent/instance"
	"github.com/circuitseal/circuitseal/agent/netns"
	"github.com/circuitseal/circuitseal/agent/plan"
)

// Config is what a Driver needs.
type Config struct {
	// Main is where the LANs are. The driver does not close it.
	Main     netns.Namespace
	Instance instance.Instance
	// Drift takes note of what was changed; nil is nobody.
	Drift *drift.Ledger
	Log   *slog.Logger
}

// Driver keeps the slow path of one instance. Its methods may be called at any
// time, by one goroutine at a time. It remembers nothing between calls.
type Driver struct {
	config Config
}

// New makes a Driver; it touches nothing.
func New(config Config) *Driver { return &Driver{config: config} }

// rounds is how many times Sync compares: a pair that was made in one round is
// configured in the next.
const rounds = 2

// Sync makes a slow path for each of these LANs and for no others. A LAN that
// does not exist, or whose tenant has no tunnel, has none. In the namespace a
// packet with the LAN's interface index as its mark is routed back where it came
// from, in pieces of the LAN's MTU, and so is an ICMP message about it; one
// without a mark goes nowhere. Packets that come back have no mark. Sync writes only
// differences, goes on after an error and joins the errors; dying at any step
// leaves a LAN without a slow path.
func (d *Driver) Sync(ctx context.Context, lans []plan.LAN) error {
	if !needed(lans) {
		return d.Remove(ctx)
	}
	slow, made, err := netns.Ensure(d.config.Instance.SlowNamespace())
	if err != nil {
		return fmt.Errorf("namespace of the slow path: %w", err)
	}
	defer func() { _ = slow.Close() }()
	if made {
		d.config.Log.Info("namespace of the slow path made", "namespace", d.config.Instance.SlowNamespace())
		d.config.Drift.Note(drift.SlowDevice, drift.Text("netns add "+d.config.Instance.SlowNamespace()))
	}
	if err := slow.Do(d.prepareNamespace); err != nil {
		return fmt.Errorf("prepare the namespace of the slow path: %w", err)
	}
	h, err := d.open(slow)
	if err != nil {
		return err
	}
	defer h.close()
	var pairs []string
	for range rounds {
		have, err := d.read(h, lans)
		if err != nil {
			return err
		}
		c := diff(d.config.Instance, lans, have)
		if err := errors.Join(d.prepareEnds(h, have, c.ready), d.apply(ctx, h, c, have)); err != nil || len(c.made) == 0 {
			return err
		}
		pairs = c.made
	}
	return fmt.Errorf("slow path: %s: made in vain in %d rounds: somebody takes it away, or one of its ends", strings.Join(pairs, ", "), rounds)
}

func needed(lans []plan.LAN) bool {
	for _, l := range lans {
		if l.MTU > 0 {
			return true
		}
	}
	return false
}

// Remove takes all slow paths of the instance away, and the namespace.
func (d *Driver) Remove(ctx context.Context) error {
	main, err := d.config.Main.Netlink()
	if err != nil {
		return fmt.Errorf("main namespace: %w", err)
	}
	defer main.Close()
	links, err := netns.Dump(main.LinkList)
	if err != nil {
		return fmt.Errorf("list interfaces: %w", err)
	}
	var errs []error
	for _, l := range links {
		if err := ctx.Err(); err != nil {
			return errors.Join(append(errs, err)...)
		}
		if !own(d.config.Instance, l.Type(), l.Attrs().Name) {
			continue
		}
		if err := gone(main.LinkDel(l)); err != nil {
			errs = append(errs, fmt.Errorf("remove the slow path's interface %s: %w", l.Attrs().Name, err))
		}
	}
	return errors.Join(append(errs, netns.Remove(d.config.Instance.SlowNamespace()))...)
}

// handles are the two ends of everything here.
type handles struct {
	main, slow   *netlink.Handle
	mainNS, away netns.Namespace
}

func (d *Driver) open(slow netns.Namespace) (h handles, err error) {
	h.mainNS, h.away = d.config.Main, slow
	if h.main, err = d.config.Main.Netlink(); err != nil {
		return h, fmt.Errorf("main namespace: %w", err)
	}
	if h.slow, err = slow.Netlink(); err != nil {
		h.main.Close()
		return h, fmt.Errorf("namespace of the slow path: %w", err)
	}
	return h, nil
}

func (h handles) close() {
	h.main.Close()
	h.slow.Close()
}

// gone takes the absence of what was to be removed for success: routes go with
// their interface, and both ends of a pair with one.
func gone(err error) error {
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EADDRNOTAVAIL) {
		return nil
	}
	return err
}
