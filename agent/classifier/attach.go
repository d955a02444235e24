package classifier

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/circuitseal/circuitseal/agent/bpffs"
)

// hook is where a program belongs.
type hook struct {
	kind   bpfPortKind
	attach ebpf.AttachType
}

var hooks = map[string]hook{
	bpfProgCsLanIn:     {bpfPortKindPORT_LAN, ebpf.AttachTCXIngress},
	bpfProgCsTunnelIn:  {bpfPortKindPORT_TUNNEL, ebpf.AttachTCXIngress},
	bpfProgCsTunnelOut: {bpfPortKindPORT_TUNNEL, ebpf.AttachTCXEgress},
}

// pinned is a link found in the directory of pins.
type pinned struct {
	link      link.Link
	condition condition
}

type pins map[attachment]pinned

func (p pins) close() {
	for _, v := range p {
		_ = v.link.Close()
	}
}

func (p pins) conditions() map[attachment]condition {
	c := map[attachment]condition{}
	for a, v := range p {
		c[a] = v.condition
	}
	return c
}

func (c *Classifier) makeDirectory() error {
	if err := bpffs.Ensure(filepath.Dir(c.directory)); err != nil {
		return err
	}
	if err := os.Mkdir(c.directory, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("make directory of pins: %w", err)
	}
	return nil
}

// pin is the path of a pinned object. bpffs refuses names with a dot, so no
// interface name is ever part of one.
func (c *Classifier) pin(name string) string { return filepath.Join(c.directory, name) }

func (a attachment) pinName() string { return fmt.Sprintf("%s_%d", a.program, a.ifindex) }

func parsePin(name string) (attachment, bool) {
	i := strings.LastIndexByte(name, '_')
	if i < 0 {
		return attachment{}, false
	}
	if _, ok := hooks[name[:i]]; !ok {
		return attachment{}, false
	}
	n, err := strconv.ParseUint(name[i+1:], 10, 32)
	return attachment{name[:i], uint32(n)}, err == nil
}

func pinIfMissing(m *ebpf.Map, path string) error {
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	// The library takes an object that it has pinned before for pinned.
	again, err := m.Clone()
	if err != nil {
		return fmt.Errorf("pin map %s again: %w", path, err)
	}
	defer func() { _ = again.Close() }()
	if err := again.Pin(path); err != nil {
		return fmt.Errorf("pin map %s again: %w", path, err)
	}
	return nil
}

// readPins finds out how every pinned link is. An error means that this could
// not be asked: what may well be at work must stay then.
func (c *Classifier) readPins() (pins, error) {
	entries, err := os.ReadDir(c.directory)
	if err != nil {
		return nil, fmt.Errorf("list pins: %w", err)
	}
	found := pins{}
	for _, e := range entries {
		a, ok := parsePin(e.Name())
		if !ok {
			continue
		}
		p, err := c.readPin(a)
		if err != nil {
			found.close()
			return nil, fmt.Errorf("examine pin %s: %w", a.pinName(), err)
		}
		found[a] = p
	}
	return found, nil
}

func (c *Classifier) readPin(a attachment) (pinned, error) {
	l, err := link.LoadPinnedLink(c.pin(a.pinName()), nil)
	if err != nil {
		return pinned{}, err
	}
	condition, err := conditionOf(l, a)
	if err != nil {
		return pinned{}, errors.Join(err, l.Close())
	}
	return pinned{l, condition}, nil
}

func conditionOf(l link.Link, a attachment) (condition, error) {
	info, err := l.Info()
	if err != nil {
		return condition{}, err
	}
	// A link has no interface any more when that has been deleted.
	if info.TCX() == nil || info.TCX().Ifindex != a.ifindex {
		return condition{}, nil
	}
	// The interface may have left this namespace and another may have its
	// number: ask the interface too.
	list, err := programsOn(a)
	if err != nil {
		return condition{}, err
	}
	return condition{program: info.Program, live: slices.ContainsFunc(list, func(ap link.AttachedProgram) bool {
		id, ok := ap.LinkID()
		return ok && id == info.ID
	})}, nil
}

// programsOn lists what is at an attachment's hook, from the first to run on;
// nothing if there is no such interface.
func programsOn(a attachment) ([]link.AttachedProgram, error) {
	q, err := link.QueryPrograms(link.QueryOptions{Target: int(a.ifindex), Attach: hooks[a.program].attach})
	if errors.Is(err, unix.ENODEV) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list programs of interface %d: %w", a.ifindex, err)
	}
	return q.Programs, nil
}

// attachAll attaches or replaces the programs of ports of one kind. It returns
// the interfaces that stay without one.
func (c *Classifier) attachAll(ctx context.Context, have pins, todo attachments, want state, kind bpfPortKind) (failed map[uint32]bool, err error) {
	failed = map[uint32]bool{}
	var errs []error
	for _, a := range todo.attach {
		if want.ports[a.ifindex].Kind != kind {
			continue
		}
		if err := c.attach(ctx, a); err != nil {
			failed[a.ifindex] = true
			errs = append(errs, err)
		}
	}
	for _, a := range todo.replace {
		if want.ports[a.ifindex].Kind != kind {
			continue
		}
		// The old code goes on checking if this fails.
		if err := have[a].link.Update(c.programs()[a.program]); err != nil {
			errs = append(errs, fmt.Errorf("replace program %s on %s: %w", a.program, c.interfaceText(a.ifindex), err))
		}
	}
	return failed, errors.Join(errs...)
}

// attach makes the new attachment before it gives up the pin of the dead one,
// so that what is broken is never replaced by nothing.
func (c *Classifier) attach(ctx context.Context, a attachment) error {
	where := c.interfaceText(a.ifindex)
	l, err := c.adoptOrCreate(ctx, a)
	if err != nil {
		return fmt.Errorf("attach program %s to %s: %w", a.program, where, err)
	}
	defer func() { _ = l.Close() }()
	path := c.pin(a.pinName())
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove dead pin %s: %w", path, err)
	}
	if err := l.Pin(path); err != nil {
		return fmt.Errorf("pin program %s of %s: %w", a.program, where, err)
	}
	return nil
}

// The kernel ends a link some time after its last pin has gone (an RCU grace
// period); until then it takes no second link of the same program.
const (
	attachAttempts = 50
	attachPause    = 20 * time.Millisecond
)

func (c *Classifier) adoptOrCreate(ctx context.Context, a attachment) (l link.Link, err error) {
	for range attachAttempts {
		if l, err = c.adoptOrphan(a); err != nil || l != nil {
			return l, err
		}
		l, err = link.AttachTCX(link.TCXOptions{
			Interface: int(a.ifindex),
			Program:   c.programs()[a.program],
			Attach:    hooks[a.program].attach,
			Anchor:    link.Head(),
		})
		if !errors.Is(err, os.ErrExist) {
			return l, err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(attachPause):
		}
	}
	return nil, err
}

// adoptOrphan finds a link of this instance that lives on without a pin in
// reach: an unmounted bpffs may be held by another mount namespace, and an agent
// of another layout pins elsewhere. A second program behind it would judge
// packets that the first has already released. There is none if the link is
// nil.
func (c *Classifier) adoptOrphan(a attachment) (link.Link, error) {
	list, err := programsOn(a)
	if err != nil {
		return nil, err
	}
	for _, p := range list {
		id, ok := p.LinkID()
		if !ok {
			continue
		}
		own, err := c.isOwn(p.ID, a.program)
		if err != nil {
			return nil, fmt.Errorf("examine program %d: %w", p.ID, err)
		}
		if !own {
			continue
		}
		l, err := link.NewFromID(id)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("open link %d: %w", id, err)
		}
		if err := l.Update(c.programs()[a.program]); err != nil {
			return nil, errors.Join(fmt.Errorf("replace program of link %d: %w", id, err), l.Close())
		}
		return l, nil
	}
	return nil, nil
}

// isOwn tells whether a program has this name and works on maps of this
// instance: another instance on the host gives the same names.
func (c *Classifier) isOwn(id ebpf.ProgramID, name string) (bool, error) {
	p, err := ebpf.NewProgramFromID(id)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer func() { _ = p.Close() }()
	info, err := p.Info()
	if err != nil || info.Name != name {
		return false, err
	}
	used, ok := info.MapIDs()
	if !ok {
		return false, nil
	}
	own, err := c.ownMaps()
	if err != nil {
		return false, err
	}
	return slices.ContainsFunc(used, func(id ebpf.MapID) bool { return own[id] }), nil
}

// ownMaps are the maps of this instance, those of other layouts too.
func (c *Classifier) ownMaps() (map[ebpf.MapID]bool, error) {
	own := map[ebpf.MapID]bool{}
	add := func(m *ebpf.Map) error {
		info, err := m.Info()
		if err != nil {
			return err
		}
		if id, ok := info.ID(); ok {
			own[id] = true
		}
		return nil
	}
	var errs []error
	for _, m := range c.mapsByName() {
		errs = append(errs, add(m))
	}
	others, err := c.otherLayouts()
	errs = append(errs, err)
	for _, directory := range others {
		for name := range c.mapsByName() {
			m, err := ebpf.LoadPinnedMap(filepath.Join(directory, name), nil)
			if errors.Is(err, os.ErrNotExist) {
				continue
			}
			if err != nil {
				errs = append(errs, err)
				continue
			}
			errs = append(errs, add(m), m.Close())
		}
	}
	return own, errors.Join(errs...)
}

func (c *Classifier) detachAll(have pins, list []attachment) error {
	var errs []error
	for _, a := range list {
		errs = append(errs, c.unpin(have[a], a))
	}
	return errors.Join(errs...)
}

// unpin ends an attachment: the pin is the only thing that holds it, beside
// the handle that the caller closes.
func (c *Classifier) unpin(p pinned, a attachment) error {
	if err := p.link.Detach(); err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, ebpf.ErrNotSupported) {
		c.log.Debug("detach link", "pin", a.pinName(), "error", err)
	}
	if err := os.Remove(c.pin(a.pinName())); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove pin of %s: %w", a.pinName(), err)
	}
	return nil
}

func (c *Classifier) removePins(ctx context.Context) error {
	have, err := c.readPins()
	if err != nil {
		return err
	}
	defer have.close()
	var errs []error
	for _, a := range diffAttachments(nil, have.conditions(), nil).detach {
		if err := ctx.Err(); err != nil {
			return errors.Join(append(errs, fmt.Errorf("remove the classifier: %w", err))...)
		}
		errs = append(errs, c.unpin(have[a], a))
	}
	for name := range c.mapsByName() {
		if err := os.Remove(c.pin(name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, fmt.Errorf("remove pin: %w", err))
		}
	}
	if err := os.Remove(c.directory); err != nil && !errors.Is(err, os.ErrNotExist) {
		errs = append(errs, fmt.Errorf("remove directory of pins: %w", err))
	}
	others, err := c.otherLayouts()
	errs = append(errs, err, c.removeLayouts(others, nil))
	return errors.Join(errs...)
}

func (c *Classifier) interfaceText(ifindex uint32) string {
	l, err := c.netlink.LinkByIndex(int(ifindex))
	if err != nil {
		return fmt.Sprintf("interface %d", ifindex)
	}
	return "interface " + l.Attrs().Name
}
