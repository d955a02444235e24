package guard

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/circuitseal/circuitseal/agent/drift"
	"github.com/circuitseal/circuitseal/agent/tchook"
)

// hook is where one of the two programs goes.
type hook struct {
	label       string
	direction   tchook.Direction
	programName string
}

var hooks = []hook{
	{"egress", tchook.Egress, programProgGuardEgress},
	{"ingress", tchook.Ingress, programProgGuardIngress},
}

func (h hook) program(o *programObjects) *ebpf.Program {
	if h.direction == tchook.Egress {
		return o.GuardEgress
	}
	return o.GuardIngress
}

func (h hook) at(ifindex int) tchook.Hook {
	return tchook.Hook{Ifindex: ifindex, Direction: h.direction}
}

// attachments are what an agent of this instance has attached.
type attachments []tchook.Attachment

// on picks those that are on an interface of the namespace.
func (as attachments) on(h hook, ifindex int) attachments {
	var out attachments
	for _, a := range as {
		if a.Here && a.Hook == h.at(ifindex) && a.Label == h.label {
			out = append(out, a)
		}
	}
	return out
}

// byIndex sorts them by the interface that they are on.
func (as attachments) byIndex() map[int]attachments {
	out := map[int]attachments{}
	for _, a := range as {
		out[a.Ifindex] = append(out[a.Ifindex], a)
	}
	return out
}

func (as attachments) has(a tchook.Attachment) bool { return slices.ContainsFunc(as, a.Is) }

// openHooks opens those of the namespace; the caller closes them.
func (g *Guard) openHooks() (*tchook.Hooks, error) {
	hooks, err := tchook.Open(tchook.Config{Way: g.way, Namespace: g.namespace, Pins: g.pins, Owner: g.filters, HurryFile: g.hurryFile})
	if err != nil {
		return nil, fmt.Errorf("look into the circuit namespace: %w", err)
	}
	return hooks, nil
}

// secure brings both programs to the head of their chains on an interface, with
// the code that is loaded. own are all attachments
// on it.
func (g *Guard) secure(tc *tchook.Hooks, ifindex int, own attachments) error {
	if len(own.on(hooks[0], ifindex))+len(own.on(hooks[1], ifindex)) == 0 {
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
		errs = append(errs, g.secureHook(tc, h, ifindex, own.on(h, ifindex)))
	}
	return errors.Join(errs...)
}

func (g *Guard) secureHook(tc *tchook.Hooks, h hook, ifindex int, mine attachments) error {
	first := slices.IndexFunc(mine, func(a tchook.Attachment) bool { return a.First })
	if first < 0 {
		if err := g.attach(tc, h, ifindex); err != nil {
			return err
		}
		g.noteProgram("attach", h, ifindex)
	}
	var errs []error
	for i, a := range mine {
		if i != first {
			errs = append(errs, tc.Detach(a))
		}
	}
	if first >= 0 && mine[first].Program != g.ids[h.direction] {
		err := tc.Take(mine[first], h.label, h.program(g.objects))
		if err == nil {
			g.noteProgram("replace", h, ifindex)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func (g *Guard) noteProgram(what string, h hook, ifindex int) {
	g.drift.Note(drift.GuardProgram, drift.Text(fmt.Sprintf("%s %s program of interface %d", what, h.label, ifindex)))
}

// attach attaches at the head. Where the interface has the program already,
// further back or by a link whose pin was lost, tcx refuses the same one again,
// and a new copy takes its place.
func (g *Guard) attach(tc *tchook.Hooks, h hook, ifindex int) error {
	err := tc.Attach(h.at(ifindex), h.label, h.program(g.objects))
	if errors.Is(err, unix.EEXIST) {
		if err := g.load(); err != nil {
			return err
		}
		err = tc.Attach(h.at(ifindex), h.label, h.program(g.objects))
	}
	return err
}

// sweep gives up what has no interface any more. It detaches programs of ours
// whose pin was lost, and which therefore follow no plan any more, and of other
// layouts what this one has taken over. An interface that slipped out of the
// namespace keeps what it could take along, which is all that guards it there;
// Status reports it. It runs once every wanted interface is guarded.
func (g *Guard) sweep() error {
	tc, err := g.openHooks()
	if err != nil {
		return err
	}
	defer tc.Close()
	own, err := tc.Own()
	errs := []error{err}
	// guarded are the hooks on which this layout is at work.
	guarded := make(map[tchook.Hook]bool)
	var shared []tchook.Hook
	g.strayed = nil
	for _, a := range own {
		switch {
		case a.Here:
			guarded[a.Hook] = true
			if !a.Alone {
				shared = append(shared, a.Hook)
			}
		case a.Ifindex == 0:
			g.log.Info("remove leftover guard link", "label", a.Label)
			errs = append(errs, tc.Detach(a))
		default:
			g.stray(a.Ifindex)
		}
	}
	for _, h := range hooks {
		for _, at := range shared {
			if at.Direction == h.direction {
				errs = append(errs, g.dropOrphans(tc, h, at, own))
			}
		}
	}
	dirs, err := layouts(g.bpffs)
	errs = append(errs, err)
	for _, dir := range dirs {
		if dir != g.pins {
			errs = append(errs, g.sweepLayout(tc, dir, guarded))
		}
	}
	if !g.swept {
		err := tc.DetachOther()
		errs = append(errs, err)
		g.swept = err == nil
	}
	return errors.Join(errs...)
}

func (g *Guard) stray(ifindex int) {
	if !slices.Contains(g.strayed, ifindex) {
		g.strayed = append(g.strayed, ifindex)
	}
}

// sweepLayout removes a layout but for what still guards an interface alone.
func (g *Guard) sweepLayout(tc *tchook.Hooks, dir string, guarded map[tchook.Hook]bool) error {
	former, err := tc.Former(dir)
	errs := []error{err}
	kept := err != nil
	for _, a := range former {
		if a.Ifindex == 0 || a.Here && guarded[a.Hook] {
			errs = append(errs, tc.Detach(a))
			continue
		}
		kept = true
		g.stray(a.Ifindex)
	}
	if !kept {
		g.log.Info("remove guard of another layout", "pins", filepath.Base(dir))
		errs = append(errs, removeLayout(tc, dir))
	}
	return errors.Join(errs...)
}

// dropOrphans detaches programs of ours that are not among own.
func (g *Guard) dropOrphans(tc *tchook.Hooks, h hook, at tchook.Hook, own attachments) error {
	chain, err := tc.Chain(at)
	errs := []error{err}
	for _, a := range chain {
		if !own.has(a) && ours(h, a.Program) {
			g.log.Info("detach guard program that lost its pin", "interface", at.Ifindex, "program", uint32(a.Program))
			errs = append(errs, tc.Detach(a))
		}
	}
	return errors.Join(errs...)
}

// ours tells by its name: nothing but this package's programs has it in a
// circuit namespace.
func ours(h hook, id ebpf.ProgramID) bool {
	if id == 0 {
		return false
	}
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
