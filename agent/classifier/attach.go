package classifier

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/cilium/ebpf"

	"github.com/circuitseal/circuitseal/agent/bpffs"
	"github.com/circuitseal/circuitseal/agent/drift"
	"github.com/circuitseal/circuitseal/agent/tchook"
)

// hook is where a program belongs.
type hook struct {
	kind      bpfPortKind
	direction tchook.Direction
}

var hooks = map[string]hook{
	bpfProgCsLanIn:     {bpfPortKindPORT_LAN, tchook.Ingress},
	bpfProgCsTunnelIn:  {bpfPortKindPORT_TUNNEL, tchook.Ingress},
	bpfProgCsTunnelOut: {bpfPortKindPORT_TUNNEL, tchook.Egress},
	bpfProgCsSlowIn:    {bpfPortKindPORT_SLOW, tchook.Ingress},
}

// at is where an attachment belongs.
func (a attachment) at() tchook.Hook {
	return tchook.Hook{Ifindex: int(a.ifindex), Direction: hooks[a.program].direction}
}

// attached is what is found of this instance: live is at work where it belongs,
// dead is all else.
type attached struct {
	live map[attachment]tchook.Attachment
	dead []tchook.Attachment
}

func (a attached) code() map[attachment]ebpf.ProgramID {
	code := map[attachment]ebpf.ProgramID{}
	for k, v := range a.live {
		code[k] = v.Program
	}
	return code
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

// pin is the path of a pinned map.
func (c *Classifier) pin(name string) string { return filepath.Join(c.directory, name) }

func pinIfMissing(m *ebpf.Map, path string) (pinned bool, err error) {
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		return false, err
	}
	// The library takes an object that it has pinned before for pinned.
	again, err := m.Clone()
	if err != nil {
		return false, fmt.Errorf("pin map %s again: %w", path, err)
	}
	defer func() { _ = again.Close() }()
	if err := again.Pin(path); err != nil {
		return false, fmt.Errorf("pin map %s again: %w", path, err)
	}
	return true, nil
}

// readAttached finds out how everything that was attached is. An error means
// that this could not be asked: what may well be at work must stay then.
func (c *Classifier) readAttached() (attached, error) {
	own, err := c.hooks.Own()
	if err != nil {
		return attached{}, err
	}
	found := attached{live: map[attachment]tchook.Attachment{}}
	for _, o := range own {
		a := attachment{o.Label, uint32(o.Ifindex)}
		_, known := hooks[a.program]
		other, taken := found.live[a]
		switch {
		case taken && other.Is(o):
			// Pinned twice.
		case o.Here && known && !taken && o.Hook == a.at():
			found.live[a] = o
		default:
			found.dead = append(found.dead, o)
		}
	}
	return found, nil
}

// attachAll attaches or replaces the programs of ports of one kind. It returns
// the interfaces that stay without one.
func (c *Classifier) attachAll(ctx context.Context, have attached, todo attachments, want state, kind bpfPortKind) (failed map[uint32]bool, err error) {
	failed = map[uint32]bool{}
	var errs []error
	for _, a := range todo.attach {
		if want.ports[a.ifindex].Kind != kind {
			continue
		}
		if err := c.attach(ctx, a); err != nil {
			failed[a.ifindex] = true
			errs = append(errs, err)
			continue
		}
		c.config.Drift.Note(drift.ClassifierProgram, programLine{"attach", a})
	}
	for _, a := range todo.replace {
		if want.ports[a.ifindex].Kind != kind {
			continue
		}
		// The old code goes on checking if this fails.
		if err := c.hooks.Take(have.live[a], a.program, c.programs()[a.program]); err != nil {
			errs = append(errs, fmt.Errorf("program %s on %s: %w", a.program, c.interfaceText(a.ifindex), err))
			continue
		}
		c.config.Drift.Note(drift.ClassifierProgram, programLine{"replace", a})
	}
	return failed, errors.Join(errs...)
}

// programLine is a change of what is attached in words.
type programLine struct {
	what string
	attachment
}

func (l programLine) String() string {
	return fmt.Sprintf("%s program %s of interface %d", l.what, l.program, l.ifindex)
}

// The kernel ends a link some time after its last pin has gone (an RCU grace
// period); until then it takes no second link of the same program.
const (
	attachAttempts = 50
	attachPause    = 20 * time.Millisecond
)

// attach leaves what is dead alone, so that what is broken is never replaced by
// nothing.
func (c *Classifier) attach(ctx context.Context, a attachment) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("program %s on %s: %w", a.program, c.interfaceText(a.ifindex), err)
		}
	}()
	for range attachAttempts {
		if adopted, err := c.adoptOrphan(a); err != nil || adopted {
			return err
		}
		if err = c.hooks.Attach(a.at(), a.program, c.programs()[a.program]); !errors.Is(err, os.ErrExist) {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(attachPause):
		}
	}
	return err
}

// adoptOrphan takes over a program of this instance that is at work and not
// known as such: an unmounted bpffs may be held by another mount namespace, and
// an agent of another layout pins elsewhere. A second program behind it would
// judge packets that the first has already released.
func (c *Classifier) adoptOrphan(a attachment) (adopted bool, err error) {
	list, err := c.hooks.Chain(a.at())
	if err != nil {
		return false, err
	}
	for _, found := range list {
		own, err := c.isOwn(found.Program, a.program)
		if err != nil {
			return false, fmt.Errorf("examine program %d: %w", found.Program, err)
		}
		if !own {
			continue
		}
		err = c.hooks.Take(found, a.program, c.programs()[a.program])
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		return err == nil, err
	}
	return false, nil
}

// isOwn tells whether a program has this name and works on maps of this
// instance: another instance on the host gives the same names.
func (c *Classifier) isOwn(id ebpf.ProgramID, name string) (bool, error) {
	if id == 0 {
		return false, nil
	}
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

// detachAll ends what is not wanted, and what is dead.
func (c *Classifier) detachAll(have attached, list []attachment) error {
	var errs []error
	for _, a := range list {
		errs = append(errs, c.hooks.Detach(have.live[a]))
	}
	for _, d := range have.dead {
		errs = append(errs, c.hooks.Detach(d))
	}
	return errors.Join(errs...)
}

func (c *Classifier) remove(ctx context.Context) error {
	have, err := c.readAttached()
	if err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("remove the classifier: %w", err)
	}
	todo := diffAttachments(nil, have.code(), nil).detach
	done := c.hooks.Many(len(todo) + len(have.dead))
	errs := []error{c.detachAll(have, todo), done()}
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
