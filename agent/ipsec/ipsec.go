// Package ipsec keeps the IPsec tunnels of an instance through strongSwan's charon,
// which is in the circuit namespace and is told everything over VICI: for each
// tunnel one connection, one IKE SA and one ESP SA, and an interface in the main
// namespace that they belong to. It runs the instance's charon and starts it again,
// keeps this node's private keys, and says what was negotiated and counted. It
// never writes SAs, and removes only those that a charon which was killed has left
// behind. It does not know which packets enter a tunnel, nor whether it is of use:
// that is for the classifier and for liveness.
package ipsec

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/circuitseal/circuitseal/agent/drift"
	"github.com/circuitseal/circuitseal/agent/instance"
	"github.com/circuitseal/circuitseal/agent/netns"
	"github.com/circuitseal/circuitseal/agent/plan"
	"github.com/circuitseal/circuitseal/proto/desired"
)

// Config is what a Driver needs.
type Config struct {
	// Main gets the devices, Circuit has charon and its SAs. The driver does not
	// close them. Circuit must be the one that Instance names, since charon opens it
	// by name.
	Main, Circuit netns.Namespace
	Instance      instance.Instance
	// Keys has a key for each identity and generation before Sync names it.
	Keys *Keys
	// Command starts charon; nil is the running program with the arguments `charon
	// --instance NAME`. With External it is never started here: a service manager
	// does, and starts it again.
	Command  []string
	External bool
	// Drift takes note of what was changed; nil is nobody.
	Drift *drift.Ledger
	Log   *slog.Logger
}

// Driver makes the tunnels of an instance what the plan says. Its methods may be
// called by several goroutines.
type Driver struct {
	config Config
	// backend is what carries ESP, Automatic until it was asked for.
	backend Backend

	mu sync.Mutex
	// want is the plan of the last Sync.
	want   plan.IPsec
	synced bool
	// tunnels are what is known of the wanted ones, by number.
	tunnels map[uint16]*tunnel
	// loaded are the pre-shared keys that charon has got from us, by id.
	loaded map[string]desired.Secret
	// laterLoads and laterDevices are what Sweep has to do.
	laterLoads   []load
	laterDevices []deviceStep
	// unswept tells that SAs may be there of tunnels that are not wanted.
	unswept bool
	// carried are the tunnels that had ESP SAs in the last list.
	carried map[uint16]bool
	// open is a session that is kept from pass to pass, socket where it leads.
	open   *client
	socket string
	// pid is whose session that was last, and stands tells that it did not answer.
	pid    int
	stands bool
	// flushed is the process id of the charon whose predecessor's SAs were looked for.
	flushed int
	// bereaved is since when there are such, zero for none.
	bereaved time.Time
	// unlimited has libipsec begin more tunnels than it can carry apart: for tests that
	// count and send nothing.
	unlimited bool
	// fitting are certificates that were found to be over their keys, in this pass.
	fitting map[checked]bool
	// kick wakes Run.
	kick chan struct{}
	// capable is what the installed charon can do, of the binary that asked tells.
	capable *desired.CharonStatus
	asked   string
}

// Format keeps secrets out of what prints a Driver.
func (d *Driver) Format(f fmt.State, _ rune) {
	_, _ = fmt.Fprintf(f, "IPsec driver of instance %s", d.config.Instance)
}

// tunnel is a wanted tunnel and what was seen of it. Times are of the monotonic
// clock.
type tunnel struct {
	plan.IPsecTunnel
	connection connection
	// from is what connection was made from: of a thousand tunnels hardly any changes.
	from inputs
	// preferred is which of its pre-shared keys a new IKE SA begins with.
	preferred int
	// next is when another attempt may be made, wait how long the last one was put
	// off, and failures how many there were since the tunnel was up.
	next     time.Time
	wait     time.Duration
	failures int
	// reason is why there is no SA, rank how much it tells, blamed the IKE SA that
	// came to nothing for it.
	reason string
	rank   int
	blamed uint64
	// problem is one of this end's own, with which nothing is tried.
	problem string
	// seen is since when SAs have been as they are.
	seen map[sighted]sighting
	// used are the generations that IKE SAs began with, as far as that was told;
	// lastUsed is the last.
	used     map[uint64]uint64
	lastUsed uint64
	// given tells that its number was another tunnel's, until it is up.
	given bool
	// changed is when the policy last did by which SAs are judged, or somebody was not
	// trusted any more.
	changed time.Time
	// sole is since when it has the same pre-shared keys.
	sole time.Time
	// weakness is in what the last SA was weaker than the policy, which was taken
	// down for that.
	weakness string
}

// inputs are what a connection is made from.
type inputs struct {
	tunnel      plan.IPsecTunnel
	certificate []byte
	authorities [][]byte
	preferred   int
	backend     Backend
}

// Format keeps secrets out of what prints a tunnel.
func (t *tunnel) Format(f fmt.State, _ rune) { _, _ = fmt.Fprintf(f, "tunnel %s", t.ID) }

// checked is a key, by charon's id, and a certificate.
type checked struct{ key, certificate string }

// sighted is an IKE SA, by its number, or all of a connection that was replaced: one whose
// keys are replaced goes on as another.
type sighted struct {
	ike        uint64
	connection connectionName
}

// sighting is a state of an IKE SA that must not last.
type sighting struct {
	what  string
	since time.Time
}

// New makes a Driver; it touches nothing.
func New(config Config) *Driver {
	return &Driver{
		config:  config,
		tunnels: map[uint16]*tunnel{},
		loaded:  map[string]desired.Secret{},
		fitting: map[checked]bool{},
		kick:    make(chan struct{}, 1),
	}
}

// Sync makes these tunnels. It writes only differences, so that a repeat touches
// nothing: a connection that is there under the name of what it is to be is not
// loaded again, and one that changes does not disturb the others. It goes on after
// an error, and joins the errors, each with its tunnel. Before it makes any device
// it calls closing, once, with all that it is going to make, since nobody judges
// their packets yet; an error of closing stops these. What is of the instance and
// not wanted stays for Sweep. Tunnels need not be up when it returns: Run sees to
// that.
func (d *Driver) Sync(ctx context.Context, want plan.IPsec, closing func(devices []string) error) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.sync(ctx, want, closing)
}

func (d *Driver) sync(ctx context.Context, want plan.IPsec, closing func(devices []string) error) error {
	d.laterLoads, d.laterDevices = nil, nil
	if len(want.Tunnels) > 0 {
		// A host without tunnels by IPsec need not load modules for them.
		backend, err := d.backend.resolve()
		if err != nil {
			return err
		}
		d.backend = backend
	}
	if want.Socket != d.want.Socket {
		d.hangUp()
		d.loaded = map[string]desired.Secret{}
		d.stands = false
		d.unswept = true
	}
	d.want = want
	before := len(d.tunnels)
	errs := d.adopt(want)
	errs = append(errs, d.syncDevices(closing))
	errs = append(errs, d.syncCharon(ctx))
	d.unswept = d.unswept || !d.synced || len(d.tunnels) < before || len(d.laterLoads) > 0 || len(d.laterDevices) > 0
	d.synced = true
	d.wake()
	return errors.Join(errs...)
}

// adopt takes a plan up. Tunnels that cannot be have a problem, which is an error,
// too.
func (d *Driver) adopt(want plan.IPsec) []error {
	var errs []error
	d.fitting = map[checked]bool{}
	tunnels := make(map[uint16]*tunnel, len(want.Tunnels))
	ends := map[string]string{}
	for _, t := range want.Tunnels {
		x := d.tunnels[t.Number]
		if x == nil || x.ID != t.ID {
			x = &tunnel{given: x != nil, seen: map[sighted]sighting{}, used: map[uint64]uint64{}}
		}
		if !slices.EqualFunc(x.PresharedKeys, t.PresharedKeys, func(a, b desired.PresharedKey) bool {
			return a.Generation == b.Generation && a.Key.Equal(b.Key)
		}) {
			x.sole = time.Now()
		}
		before, was := x.connection.name, x.IPsecTunnel
		x.IPsecTunnel, x.problem = t, ""
		x.preferred %= max(1, len(t.PresharedKeys))
		tunnels[t.Number] = x
		if err := d.prepare(x, want, ends); err != nil {
			x.problem = err.Error()
			// Whom to trust does not wait for what this end lacks.
			x.connection.name, x.from = nameOf(t, authoritiesOf(want, t.Policy)), inputs{}
			errs = append(errs, fmt.Errorf("tunnel %s: %w", t.ID, err))
		}
		// A whole name that is the same says that all is.
		now := x.connection.name
		if before.tunnel != "" && (now != before || now.whole == "") && (judgedBy(was) != judgedBy(t) || !now.trusts(before)) {
			x.changed = time.Now()
		}
	}
	d.tunnels = tunnels
	d.only()
	return errs
}

func (d *Driver) prepare(x *tunnel, want plan.IPsec, ends map[string]string) error {
	if n, ok := deviceOf(d.config.Instance, x.Device); !ok || n != x.Number {
		return fmt.Errorf("device %.32q is not one of instance %s and number %d", x.Device, d.config.Instance, x.Number)
	}
	// Who answers has nothing else to find the connection by (RFC 7296, section 2.15).
	pair := fmt.Sprintf("%s %s %s %s", x.Local, x.Remote, strings.ToLower(x.Policy.LocalID), strings.ToLower(x.Policy.RemoteID))
	if first, taken := ends[pair]; taken {
		return fmt.Errorf("IKE cannot tell it from tunnel %s: both are between %s (%s) and %s (%s); give one of them an endpoint of its own",
			first, x.Local, x.Policy.LocalID, x.Remote, x.Policy.RemoteID)
	}
	ends[pair] = x.ID
	certificate, err := d.certificate(want, x.Policy)
	if err != nil {
		return err
	}
	authorities := authoritiesOf(want, x.Policy)
	from := inputs{x.IPsecTunnel, certificate, authorities, x.preferred, d.backend}
	if reflect.DeepEqual(from, x.from) {
		return nil
	}
	x.from = from
	before := x.connection.name
	x.connection = connect(d.config.Instance, d.backend, x.IPsecTunnel, certificate, authorities, x.preferred)
	if x.connection.name != before {
		x.next, x.wait, x.failures, x.reason, x.rank, x.weakness = time.Time{}, 0, 0, "", len(reasons), ""
	}
	return nil
}

// authoritiesOf are those of the tunnel's peer.
func authoritiesOf(want plan.IPsec, p desired.IPsecPolicy) [][]byte {
	if len(p.PeerAuthorities) > 0 {
		return p.PeerAuthorities
	}
	return want.Authorities
}

// certificate is the first of this end's identity that is there, with its key.
func (d *Driver) certificate(want plan.IPsec, p desired.IPsecPolicy) ([]byte, error) {
	if p.Authentication == desired.AuthenticationPSK {
		return nil, nil
	}
	var errs []error
	for _, i := range want.Identities {
		if i.Name != p.LocalID {
			continue
		}
		for _, c := range i.Certificates {
			if len(c.Certificate) == 0 {
				continue
			}
			key, err := d.config.Keys.key(keyName{i.Name, c.Generation})
			if at := (checked{key.id, string(c.Certificate)}); err == nil && !d.fitting[at] {
				if err = key.fits(c.Certificate); err == nil {
					d.fitting[at] = true
				}
			}
			if err != nil {
				// Another generation may be as it is to be.
				errs = append(errs, fmt.Errorf("certificate of %s, generation %d: %w", i.Name, c.Generation, err))
				continue
			}
			return c.Certificate, nil
		}
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	return nil, fmt.Errorf("there is no certificate of %s yet", p.LocalID)
}

func (d *Driver) syncDevices(closing func([]string) error) error {
	h, err := d.openNetlink()
	if err != nil {
		return err
	}
	defer h.close()
	have, err := d.readDevices(h)
	if err != nil {
		return err
	}
	all := maps.Clone(have)
	var tunnels []plan.IPsecTunnel
	ids := map[string]string{}
	for _, t := range d.want.Tunnels {
		ids[t.Device] = t.ID
		switch x := d.tunnels[t.Number]; {
		case x.problem == "":
			tunnels = append(tunnels, t)
		case !x.given:
			// One that is there stays as it is.
			delete(have, t.Device)
		}
	}
	steps, later := diffDevices(tunnels, d.backend.kind(), have)
	d.laterDevices = later
	var errs []error
	if devices := made(steps); len(devices) > 0 {
		if err := closing(devices); err != nil {
			errs = append(errs, fmt.Errorf("make devices %s: %w", strings.Join(devices, ", "), err))
			steps = slices.DeleteFunc(steps, func(s deviceStep) bool { return slices.Contains(devices, s.device) })
		}
	}
	errs = append(errs, d.applyDevices(h, steps, ids))
	interfaces, err := d.innerInterfaces(h, made(steps), all)
	return errors.Join(append(errs, err, d.syncInner(h.main, interfaces))...)
}

// applyDevices takes the steps in order. After an error it leaves out the other
// steps of the same device, since each needs the one before.
func (d *Driver) applyDevices(h *hostNetlink, steps []deviceStep, ids map[string]string) error {
	var errs []error
	failed := map[string]bool{}
	for _, x := range steps {
		if failed[x.device] {
			continue
		}
		d.config.Log.Debug("IPsec", "tunnel", ids[x.device], "change", x.String())
		if err := d.takeDevice(h, x); err != nil {
			failed[x.device] = true
			errs = append(errs, fmt.Errorf("tunnel %s: %s: %w", cmp.Or(ids[x.device], "(none)"), x, err))
			continue
		}
		d.config.Drift.Note(x.verb.kind(), x)
	}
	return errors.Join(errs...)
}

// Sweep removes what of the instance the last Sync found and did not want, SAs
// included.
func (d *Driver) Sweep(ctx context.Context) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	errs := []error{d.sweepCharon(ctx)}
	if len(d.laterDevices) > 0 {
		h, err := d.openNetlink()
		if err != nil {
			return errors.Join(append(errs, err)...)
		}
		defer h.close()
		errs = append(errs, d.applyDevices(h, d.laterDevices, nil))
		d.laterDevices = nil
	}
	return errors.Join(errs...)
}

// Remove removes everything of the instance, and ends its charon.
func (d *Driver) Remove(ctx context.Context) error {
	errs := []error{d.Sync(ctx, plan.IPsec{}, nil), d.Sweep(ctx)}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.hangUp()
	errs = append(errs, d.stopCharon(ctx), d.part())
	return errors.Join(append(errs, d.flushKernel(func(uint16) bool { return false }))...)
}

// wake has Run look at once.
func (d *Driver) wake() {
	select {
	case d.kick <- struct{}{}:
	default:
	}
}

// sortedTunnels are the wanted ones by number.
func (d *Driver) sortedTunnels() []*tunnel {
	var all []*tunnel
	for _, n := range slices.Sorted(maps.Keys(d.tunnels)) {
		all = append(all, d.tunnels[n])
	}
	return all
}
