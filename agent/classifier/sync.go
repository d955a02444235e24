package classifier

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"

	"github.com/cilium/ebpf"

	"github.com/circuitseal/circuitseal/agent/bpfmap"
	"github.com/circuitseal/circuitseal/agent/drift"
	"github.com/circuitseal/circuitseal/agent/netdev"
	"github.com/circuitseal/circuitseal/agent/plan"
	"github.com/circuitseal/circuitseal/agent/tchook"
)

// sync adds in the order in which packets may rely on things, and deletes in
// the reverse order. Dying at any step leaves packets dropped, never sent
// elsewhere.
func (c *Classifier) sync(ctx context.Context, p plan.Classifier) (checked []string, err error) {
	if err := c.repin(); err != nil {
		return nil, err
	}
	view, err := netdev.Read()
	if err != nil {
		return nil, err
	}
	f, err := c.readFacts(p, view)
	if err != nil {
		// Whatever works must not be taken down for want of an answer.
		return nil, err
	}
	want, renderErr := render(c.config.Instance, p, f)
	if errors.Is(renderErr, errTooMany) {
		return nil, renderErr
	}
	have, err := c.readState()
	if err != nil {
		return nil, errors.Join(renderErr, err)
	}
	found, err := c.readAttached()
	if err != nil {
		return nil, errors.Join(renderErr, err)
	}
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("sync the classifier: %w", err)
	}
	errs := []error{renderErr}
	note := func(err error) { errs = append(errs, err) }

	fresh := want.adopt(have)
	note(c.clearCounts(want, fresh))
	todo := diff(want, have)
	code, err := c.programIDs()
	if err != nil {
		return nil, errors.Join(append(errs, err)...)
	}
	hooksTodo := diffAttachments(wantAttachments(want.ports), found.code(), code)
	c.announce(ctx, todo, hooksTodo, found.dead)

	done := c.hooks.Many(len(hooksTodo.attach) + len(hooksTodo.detach) + len(found.dead))
	defer func() { err = errors.Join(err, done()) }()
	note(c.quietAll(p, want, f, view))
	// A slow path is used only when what comes back from it is judged.
	unjudged, err := c.attachAll(ctx, found, hooksTodo, want, bpfPortKindPORT_SLOW)
	note(err)
	want.withholdSlow(unjudged)
	note(putAll(c.config.Drift, c.objects.Ports, "port", diffTable(want.ports, have.ports)))
	unchecked, err := c.attachAll(ctx, found, hooksTodo, want, bpfPortKindPORT_TUNNEL)
	note(err)
	checked = want.devices(p, f, unchecked)
	want.withhold(unchecked)
	note(putAll(c.config.Drift, c.objects.Hosts, "host", todo.hosts))
	note(putAll(c.config.Drift, c.objects.Locals, "local", todo.locals))
	note(c.putGroups(want))
	note(putAll(c.config.Drift, c.objects.Remotes, "remote", todo.remotes))
	_, err = c.attachAll(ctx, found, hooksTodo, want, bpfPortKindPORT_LAN)
	note(err)
	if err == nil && len(unchecked) == 0 {
		note(c.sweepLayouts())
		note(c.sweepOther())
	}

	note(removeAll(c.config.Drift, c.objects.Remotes, "remote", todo.remotes))
	note(c.removeGroups(todo.groups))
	note(removeAll(c.config.Drift, c.objects.Locals, "local", todo.locals))
	note(c.detachAll(found, hooksTodo.detach))
	note(removeAll(c.config.Drift, c.objects.Ports, "port", todo.ports))
	note(removeAll(c.config.Drift, c.objects.Hosts, "host", todo.hosts))
	return checked, errors.Join(errs...)
}

// putGroups takes over who is alive from what is there at that moment: SetAlive
// waits for this, not for the rest of a Sync.
func (c *Classifier) putGroups(want state) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	have := map[uint32]bpfGroup{}
	if err := bpfmap.ReadAll(c.objects.Groups, have); err != nil {
		return err
	}
	want.adoptAlive(have)
	return putAll(c.config.Drift, c.objects.Groups, "group", diffTable(want.groups, have))
}

func (c *Classifier) removeGroups(t table[uint32, bpfGroup]) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return removeAll(c.config.Drift, c.objects.Groups, "group", t)
}

func (c *Classifier) announce(ctx context.Context, todo changes, h attachments, dead []tchook.Attachment) {
	puts, removes := todo.size()
	if puts+removes+len(h.attach)+len(h.replace)+len(h.detach)+len(dead) == 0 {
		return
	}
	c.log.Info("change the classifier", "puts", puts, "removes", removes,
		"attach", len(h.attach), "replace", len(h.replace), "detach", len(h.detach)+len(dead))
	// The text of many prefixes takes its time.
	if c.log.Enabled(ctx, slog.LevelDebug) {
		c.log.Debug("change the classifier", "changes", todo.String())
	}
}

func (c *Classifier) readState() (state, error) {
	s := newState()
	return s, errors.Join(
		bpfmap.ReadAll(c.objects.Ports, s.ports),
		bpfmap.ReadAll(c.objects.Hosts, s.hosts),
		bpfmap.ReadAll(c.objects.Locals, s.locals),
		bpfmap.ReadAll(c.objects.Remotes, s.remotes),
		bpfmap.ReadAll(c.objects.Groups, s.groups),
	)
}

func putAll[K, V comparable](l *drift.Ledger, m *ebpf.Map, name string, t table[K, V]) error {
	var errs []error
	for _, e := range t.put {
		if err := m.Put(&e.key, &e.value); err != nil {
			errs = append(errs, fmt.Errorf("put %s %s: %w", name, keyText(e.key), err))
			continue
		}
		l.Note(drift.ClassifierMap, mapLine{"put", name, e.key})
	}
	return joinSorted(errs)
}

func removeAll[K, V comparable](l *drift.Ledger, m *ebpf.Map, name string, t table[K, V]) error {
	var errs []error
	for _, k := range t.remove {
		if err := m.Delete(&k); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			errs = append(errs, fmt.Errorf("remove %s %s: %w", name, keyText(k), err))
			continue
		}
		l.Note(drift.ClassifierMap, mapLine{"remove", name, k})
	}
	return joinSorted(errs)
}

// joinSorted makes the same errors the same text, so that a fault that lasts is
// logged once.
func joinSorted(errs []error) error {
	slices.SortFunc(errs, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	return errors.Join(errs...)
}

// repin mounts the bpffs and pins the maps again if somebody took them away;
// links that went with them are then attached anew. By clsact nothing else is
// lost: filters keep their programs, and these their maps.
func (c *Classifier) repin() error {
	if err := c.makeDirectory(); err != nil {
		return err
	}
	for name, m := range c.mapsByName() {
		pinned, err := pinIfMissing(m, c.pin(name))
		if err != nil {
			return err
		}
		if pinned {
			c.config.Drift.Note(drift.ClassifierMap, drift.Text("pin map "+name+" again"))
		}
	}
	return nil
}

func (c *Classifier) mapsByName() map[string]*ebpf.Map {
	return map[string]*ebpf.Map{
		bpfMapPorts: c.objects.Ports, bpfMapHosts: c.objects.Hosts, bpfMapLocals: c.objects.Locals,
		bpfMapRemotes: c.objects.Remotes, bpfMapGroups: c.objects.Groups, bpfMapCounters: c.objects.Counters,
	}
}

func (c *Classifier) programs() map[string]*ebpf.Program {
	return map[string]*ebpf.Program{
		bpfProgCsLanIn: c.objects.CsLanIn, bpfProgCsTunnelIn: c.objects.CsTunnelIn, bpfProgCsTunnelOut: c.objects.CsTunnelOut,
		bpfProgCsSlowIn: c.objects.CsSlowIn,
	}
}

func (c *Classifier) programIDs() (map[string]ebpf.ProgramID, error) {
	ids := map[string]ebpf.ProgramID{}
	for name, p := range c.programs() {
		info, err := p.Info()
		if err != nil {
			return nil, fmt.Errorf("examine program %s: %w", name, err)
		}
		id, ok := info.ID()
		if !ok {
			return nil, fmt.Errorf("examine program %s: the kernel tells no id", name)
		}
		ids[name] = id
	}
	return ids, nil
}
