package guard

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// hook is where one of the two programs goes.
type hook struct {
	name        string
	attach      ebpf.AttachType
	programName string
}

var hooks = []hook{
	{"egress", ebpf.AttachTCXEgress, programProgGuardEgress},
	{"ingress", ebpf.AttachTCXIngress, programProgGuardIngress},
}

func (h hook) program(o *programObjects) *ebpf.Program {
	if h.attach == ebpf.AttachTCXEgress {
		return o.GuardEgress
	}
	return o.GuardIngress
}

// query lists the programs on an interface of the calling thread's namespace,
// in the order in which they run.
func (h hook) query(ifindex int) ([]link.AttachedProgram, error) {
	q, err := link.QueryPrograms(link.QueryOptions{Target: ifindex, Attach: h.attach})
	if err != nil {
		return nil, fmt.Errorf("list tcx %s programs: %w", h.name, noTCX(err))
	}
	return q.Programs, nil
}

// pinned is a link that an agent of this instance left in the bpffs.
type pinned struct {
	hook    hook
	path    string
	link    link.Link
	id      link.ID
	program ebpf.ProgramID
	// ifindex is 0 when the interface is gone or the link was detached.
	ifindex int
}

// remove detaches first: the kernel does it some time after the last reference
// is gone (bpf_link_put), and here it has to be done when remove returns.
func (p pinned) remove() error {
	if err := detach(p.link); err != nil {
		return err
	}
	if err := os.Remove(p.path); err != nil {
		return fmt.Errorf("unpin link: %w", err)
	}
	return nil
}

func detach(l link.Link) error {
	// ENOLINK: it was detached before.
	if err := l.Detach(); err != nil && !errors.Is(err, unix.ENOLINK) {
		return fmt.Errorf("detach link: %w", err)
	}
	return nil
}

type pins []pinned

// readPins opens every pinned link in dir; the caller closes them. A pin that
// cannot be read is left out and reported.
func readPins(dir string) (pins, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list pins: %w", err)
	}
	var out pins
	var errs []error
	for _, e := range entries {
		i := slices.IndexFunc(hooks, func(h hook) bool { return strings.HasPrefix(e.Name(), h.name+"-") })
		if i < 0 {
			continue
		}
		p, err := readPin(hooks[i], filepath.Join(dir, e.Name()))
		if err != nil {
			errs = append(errs, err)
			continue
		}
		out = append(out, p)
	}
	return out, errors.Join(errs...)
}

func readPin(h hook, path string) (pinned, error) {
	l, err := link.LoadPinnedLink(path, nil)
	if err != nil {
		return pinned{}, fmt.Errorf("open pinned link %s: %w", path, err)
	}
	info, err := l.Info()
	if err != nil {
		return pinned{}, errors.Join(fmt.Errorf("examine pinned link %s: %w", path, err), l.Close())
	}
	p := pinned{hook: h, path: path, link: l, id: info.ID, program: info.Program}
	if tcx := info.TCX(); tcx != nil {
		p.ifindex = int(tcx.Ifindex)
	}
	return p, nil
}

func (ps pins) close() {
	for _, p := range ps {
		_ = p.link.Close()
	}
}

// on picks the pinned links among the programs of an interface: a link's own
// ifindex does not tell in which namespace it is.
func (ps pins) on(h hook, programs []link.AttachedProgram) pins {
	var out pins
	for _, p := range ps {
		if p.hook == h && slices.ContainsFunc(programs, func(a link.AttachedProgram) bool { return linkOf(a) == p.id }) {
			out = append(out, p)
		}
	}
	return out
}

func linkOf(a link.AttachedProgram) link.ID {
	id, _ := a.LinkID()
	return id
}

// secure brings both programs to the head of their chains on an interface of
// the calling thread's namespace, pinned, with the code that is loaded. ps are
// all pinned links.
func (g *Guard) secure(ifindex int, ps pins) error {
	have := make(map[string][]link.AttachedProgram, len(hooks))
	var mine int
	for _, h := range hooks {
		var err error
		if have[h.name], err = h.query(ifindex); err != nil {
			return err
		}
		mine += len(ps.on(h, have[h.name]))
	}
	if mine == 0 {
		// Flows of a former interface with the same index must not open this one.
		if err := g.forget(uint32(ifindex)); err != nil {
			return err
		}
	}
	if err := ensureCounters(g.objects.Counters, uint32(ifindex)); err != nil {
		// It guards none the less, and counts under no name.
		g.log.Warn("guard an interface without counters of its own", "error", err)
	}
	var errs []error
	for _, h := range hooks {
		errs = append(errs, g.secureHook(h, ifindex, have[h.name], ps.on(h, have[h.name])))
	}
	return errors.Join(errs...)
}

func (g *Guard) secureHook(h hook, ifindex int, have []link.AttachedProgram, mine pins) error {
	first := slices.IndexFunc(mine, func(p pinned) bool { return linkOf(have[0]) == p.id })
	if first < 0 {
		if err := g.attach(h, ifindex); err != nil {
			return err
		}
	}
	var errs []error
	for i, p := range mine {
		if i != first {
			errs = append(errs, p.remove(), p.link.Close())
		}
	}
	if first < 0 {
		return errors.Join(errs...)
	}
	want, err := programID(h.program(g.objects))
	if err == nil && mine[first].program != want {
		// One replaces the other between two packets.
		err = mine[first].link.Update(h.program(g.objects))
	}
	return errors.Join(append(errs, err)...)
}

// attach makes and pins a new link at the head. Where the interface has the
// program already, further back or by a link whose pin was lost, the kernel
// refuses the same one again, and a new copy takes its place.
func (g *Guard) attach(h hook, ifindex int) error {
	l, err := g.attachHead(h, ifindex)
	if errors.Is(err, unix.EEXIST) {
		if err := g.load(); err != nil {
			return err
		}
		l, err = g.attachHead(h, ifindex)
	}
	if err != nil {
		return fmt.Errorf("attach tcx %s program: %w", h.name, noTCX(err))
	}
	defer func() { _ = l.Close() }()
	info, err := l.Info()
	if err != nil {
		return fmt.Errorf("examine tcx %s link: %w", h.name, err)
	}
	// Not the interface's name: bpffs refuses dots. With the link's ID a pin
	// never meets a leftover's name.
	path := filepath.Join(g.pins, fmt.Sprintf("%s-%d-%d", h.name, ifindex, info.ID))
	if err := l.Pin(path); err != nil {
		return fmt.Errorf("pin tcx %s link at %s: %w", h.name, path, err)
	}
	return nil
}

func (g *Guard) attachHead(h hook, ifindex int) (link.Link, error) {
	return link.AttachTCX(link.TCXOptions{
		Interface: ifindex,
		Program:   h.program(g.objects),
		Attach:    h.attach,
		Anchor:    link.Head(),
	})
}

// sweep unpins links whose interface is gone. It detaches programs of ours whose
// pin was lost, and which therefore follow no plan any more, and of other
// layouts what this one has taken over. An interface that slipped out of the
// namespace keeps its programs, which are all that guards it there; Status
// reports it. It runs on a thread of the namespace, once every wanted interface
// is guarded.
func (g *Guard) sweep(indexes []int) error {
	ps, err := readPins(g.pins)
	defer ps.close()
	errs := []error{err}
	used := make(map[link.ID]bool)
	// guarded are all programs on interfaces that this layout guards.
	guarded := make(map[link.ID]bool)
	for _, ifindex := range indexes {
		for _, h := range hooks {
			have, err := h.query(ifindex)
			if err != nil {
				return errors.Join(append(errs, err)...)
			}
			mine := ps.on(h, have)
			for _, p := range mine {
				used[p.id] = true
			}
			if len(mine) > 0 {
				for _, a := range have {
					guarded[linkOf(a)] = true
				}
				errs = append(errs, g.dropOrphans(h, have, mine))
			}
		}
	}
	g.strayed = nil
	for _, p := range ps {
		switch {
		case used[p.id]:
		case p.ifindex == 0:
			g.log.Info("remove leftover guard link", "pin", filepath.Base(p.path))
			errs = append(errs, p.remove())
		case !slices.Contains(g.strayed, p.ifindex):
			g.strayed = append(g.strayed, p.ifindex)
		}
	}
	dirs, err := layouts(g.bpffs)
	errs = append(errs, err)
	for _, dir := range dirs {
		if dir != g.pins {
			errs = append(errs, g.sweepLayout(dir, guarded))
		}
	}
	return errors.Join(errs...)
}

// sweepLayout removes a layout but for what still guards an interface alone.
func (g *Guard) sweepLayout(dir string, guarded map[link.ID]bool) error {
	ps, err := readPins(dir)
	defer ps.close()
	errs := []error{err}
	kept := err != nil
	for _, p := range ps {
		if p.ifindex == 0 || guarded[p.id] {
			errs = append(errs, p.remove())
			continue
		}
		kept = true
		if !slices.Contains(g.strayed, p.ifindex) {
			g.strayed = append(g.strayed, p.ifindex)
		}
	}
	if !kept {
		g.log.Info("remove guard of another layout", "pins", filepath.Base(dir))
		errs = append(errs, removeLayout(dir))
	}
	return errors.Join(errs...)
}

// dropOrphans detaches programs of ours that are not among mine.
func (g *Guard) dropOrphans(h hook, have []link.AttachedProgram, mine pins) error {
	var errs []error
	for _, a := range have {
		id := linkOf(a)
		if id == 0 || slices.ContainsFunc(mine, func(p pinned) bool { return p.id == id }) || !ours(h, a.ID) {
			continue
		}
		l, err := link.NewFromID(id)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("open link %d: %w", id, err))
			continue
		}
		g.log.Info("detach guard program that lost its pin", "link", uint32(id))
		errs = append(errs, detach(l), l.Close())
	}
	return errors.Join(errs...)
}

// ours tells by its name: nothing but this package's programs has it in a
// circuit namespace.
func ours(h hook, id ebpf.ProgramID) bool {
	p, err := ebpf.NewProgramFromID(id)
	if err != nil {
		return false
	}
	defer func() { _ = p.Close() }()
	info, err := p.Info()
	return err == nil && info.Name == h.programName
}

func programID(p *ebpf.Program) (ebpf.ProgramID, error) {
	info, err := p.Info()
	if err != nil {
		return 0, fmt.Errorf("examine program: %w", err)
	}
	id, _ := info.ID()
	return id, nil
}

func noTCX(err error) error {
	if errors.Is(err, ebpf.ErrNotSupported) {
		return fmt.Errorf("this kernel has no tcx, the guard needs Linux 6.6 or later: %w", err)
	}
	return err
}
