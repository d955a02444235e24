// Package tchook attaches eBPF programs to the ingress and egress hooks of an
// interface, first among what is there, so that they outlive the process. It
// knows the two ways in which kernels do that, tcx links and clsact filters,
// and how one owner's attachments are told from all others. It refuses to know
// what the programs do and which interfaces should have them.
//
// The two ways differ in what ends an attachment. Both outlive the process and
// go with the interface. A tcx link also ends with its last pin, so with the
// BPF file system, and stays on an interface that moves to another namespace. A
// filter needs no BPF file system, and is lost when its interface moves or when
// anybody deletes the clsact qdisc.
package tchook

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/circuitseal/circuitseal/agent/netns"
	"github.com/circuitseal/circuitseal/agent/rcu"
)

// Way is how a kernel attaches programs. The zero value is none.
type Way int

const (
	// TCX is by links that are pinned in a BPF file system; from Linux 6.6 on.
	TCX Way = iota + 1
	// Clsact is by direct-action filters on the clsact qdisc.
	Clsact
)

func (w Way) String() string {
	switch w {
	case TCX:
		return "tcx"
	case Clsact:
		return "clsact"
	}
	return fmt.Sprintf("way %d", int(w))
}

// Probe asks the kernel for the better way that it has. Clsact is the other,
// not asked for: a kernel without it says so when something is attached.
func Probe() (Way, error) {
	const loopback = 1
	_, err := link.QueryPrograms(link.QueryOptions{Target: loopback, Attach: ebpf.AttachTCXIngress})
	switch {
	case err == nil:
		return TCX, nil
	case errors.Is(err, unix.EINVAL), errors.Is(err, ebpf.ErrNotSupported):
		// An attach type that the kernel does not know.
		return Clsact, nil
	}
	return 0, fmt.Errorf("ask the kernel for tcx: %w", err)
}

// Direction is that of packets, as the interface sees them.
type Direction int

// The hooks of an interface.
const (
	Ingress Direction = iota + 1
	Egress
)

func (d Direction) String() string {
	if d == Egress {
		return "egress"
	}
	return "ingress"
}

// Hook is a place for programs.
type Hook struct {
	Ifindex   int
	Direction Direction
}

// Attachment is a program on a hook, as it was found.
type Attachment struct {
	// Hook has the Ifindex 0 where a link has outlived its interface.
	Hook
	// Label is the owner's name for it, empty for what is not the owner's.
	Label   string
	Program ebpf.ProgramID
	// Here tells that it is on Hook in this namespace: an interface that left
	// takes tcx links along.
	Here bool
	// First tells that no other program or filter runs before it on Hook, Alone
	// that there is no other at all.
	First, Alone bool

	link   link.ID
	pin    string
	filter filter
}

// Is reports whether both are the same attachment, whatever its program.
func (a Attachment) Is(b Attachment) bool {
	if a.link != 0 || b.link != 0 {
		return a.link == b.link
	}
	return a.Hook == b.Hook && a.filter == b.filter
}

// Config is what Open needs.
type Config struct {
	Way Way
	// Namespace is where the interfaces are. It stays the caller's, who closes
	// it after the Hooks.
	Namespace netns.Namespace
	// Pins is the owner's directory in a BPF file system. It may be missing
	// while nothing is attached, and may hold other things.
	Pins string
	// Owner names the owner's filters. No two owners in one namespace have the
	// same.
	Owner string
	// HurryFile is where Many leaves its mark; empty for an owner that does not
	// hurry.
	HurryFile string
}

// Hooks are those of all interfaces of one namespace, as one owner sees them.
// Its methods may be called on any thread, one at a time.
type Hooks struct {
	config Config
	way    way
	// hurry is nil but while Many lasts.
	hurry *rcu.Hurry
}

// many is how many changes are worth to hurry for.
const many = 8

// way is what tcx and clsact have in common; Hooks says what each is to do.
type way interface {
	own() ([]Attachment, error)
	former(pins string) ([]Attachment, error)
	chain(at Hook) ([]Attachment, error)
	attach(at Hook, label string, p *ebpf.Program) error
	take(a Attachment, label string, p *ebpf.Program) error
	detach(a Attachment) error
	close()
}

// Open makes Hooks and changes nothing.
func Open(c Config) (*Hooks, error) {
	switch {
	case c.Namespace.FD() < 0:
		return nil, errors.New("open hooks: no namespace")
	case c.Pins == "" || c.Owner == "":
		return nil, errors.New("open hooks: no owner")
	}
	switch c.Way {
	case TCX:
		return &Hooks{config: c, way: tcx{c.Namespace, c.Pins}}, nil
	case Clsact:
		w, err := openClsact(c.Namespace, c.Owner)
		if err != nil {
			return nil, fmt.Errorf("open hooks: %w", err)
		}
		return &Hooks{config: c, way: w}, nil
	}
	return nil, fmt.Errorf("open hooks: there is no %s", c.Way)
}

// Close gives the handles up; attachments stay.
func (h *Hooks) Close() { h.way.close() }

// Own lists what the owner has attached, on interfaces of the namespace, and of
// links also where those interfaces are gone or have left. With an error the
// list lacks what could not be examined, which may well be at work.
func (h *Hooks) Own() ([]Attachment, error) { return h.way.own() }

// Former is Own for what is pinned in another directory, by an owner of the
// same name: one that cannot use the maps which are pinned beside it. Filters
// have no such place and are Own, whoever attached them.
func (h *Hooks) Former(pins string) ([]Attachment, error) { return h.way.former(pins) }

// Chain lists what is on a hook, the owner's or not, in the order in which it
// runs; nothing if there is no such interface. Labels of links are not told.
func (h *Hooks) Chain(at Hook) ([]Attachment, error) { return h.way.chain(at) }

// Many says that so many attachments are about to come and go, until done is
// called: each waits for a grace period, with all network configuration of the
// host waiting for it (tcx_entry_sync in include/net/tcx.h).
func (h *Hooks) Many(changes int) (done func() error) {
	if changes < many || h.hurry != nil || h.config.HurryFile == "" {
		return func() error { return nil }
	}
	h.hurry = rcu.Begin(h.config.HurryFile)
	return func() error {
		hurry := h.hurry
		h.hurry = nil
		return hurry.End()
	}
}

func (h *Hooks) keepHurrying() {
	if h.hurry != nil {
		h.hurry.Again()
	}
}

// Attach puts a program before everything else on a hook, to stay. The error
// wraps os.ErrExist where tcx has that very program there already.
func (h *Hooks) Attach(at Hook, label string, p *ebpf.Program) error {
	h.keepHurrying()
	if err := h.way.attach(at, label, p); err != nil {
		return fmt.Errorf("attach by %s %s: %w", h.config.Way, at.Direction, err)
	}
	return nil
}

// Take gives an attachment another program between two packets, where it is,
// and makes it the owner's if it is not. The error wraps os.ErrNotExist when a
// link has gone meanwhile, or somebody else's filter has the place of one that
// has; a filter that has gone is put back.
func (h *Hooks) Take(a Attachment, label string, p *ebpf.Program) error {
	if err := h.way.take(a, label, p); err != nil {
		return fmt.Errorf("replace program by %s %s: %w", h.config.Way, a.Direction, err)
	}
	return nil
}

// Detach ends an attachment before it returns. One that has gone is no error.
func (h *Hooks) Detach(a Attachment) error {
	h.keepHurrying()
	if err := h.way.detach(a); err != nil {
		return fmt.Errorf("detach by %s %s: %w", h.config.Way, a.Direction, err)
	}
	return nil
}

// DetachAll detaches what the owner has in the namespace, and everything that
// it has pinned.
func (h *Hooks) DetachAll() error {
	own, err := h.Own()
	errs := []error{err}
	done := h.Many(len(own))
	for _, a := range own {
		errs = append(errs, h.Detach(a))
	}
	return errors.Join(append(errs, done())...)
}

// DetachOther detaches what the owner has left by the way that is not in use.
// Call it when everything stands. Without tcx there is nothing: the kernel that
// had links was another.
func (h *Hooks) DetachOther() error {
	if h.config.Way != TCX {
		return nil
	}
	c := h.config
	c.Way = Clsact
	other, err := Open(c)
	if err != nil {
		return err
	}
	defer other.Close()
	return other.DetachAll()
}
