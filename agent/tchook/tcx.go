package tchook

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/circuitseal/circuitseal/agent/netns"
)

// tcx takes interfaces of the calling thread's namespace.
type tcx struct {
	namespace netns.Namespace
	pins      string
}

func (tcx) close() {}

// pinPattern is LABEL-IFINDEX-LINK, so that a pin never meets a leftover's
// name; it has no interface's name, because bpffs refuses dots. LABEL_IFINDEX is
// how the classifier pinned before there was this package.
var pinPattern = regexp.MustCompile(`^([a-z_]+)(?:-([0-9]+)-([0-9]+)|_[0-9]+)$`)

func (t tcx) own() ([]Attachment, error) { return t.former(t.pins) }

func (t tcx) former(pins string) (all []Attachment, err error) {
	entries, err := os.ReadDir(pins)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list pins: %w", err)
	}
	err = t.namespace.Do(func() error {
		var errs []error
		seen := chains{}
		for _, e := range entries {
			name := pinPattern.FindStringSubmatch(e.Name())
			if name == nil {
				continue
			}
			if a, ok := seen.find(name[2], name[3]); ok {
				a.Label, a.pin = name[1], filepath.Join(pins, e.Name())
				all = append(all, a)
				continue
			}
			a, err := readPin(filepath.Join(pins, e.Name()), name[1])
			if err != nil {
				errs = append(errs, fmt.Errorf("examine pinned link %s: %w", filepath.Join(pins, e.Name()), err))
				continue
			}
			all = append(all, a)
		}
		return errors.Join(errs...)
	})
	return all, err
}

// chains are what was found on hooks, each asked once: of hundreds of links each
// is where its pin's name says, and needs no look of its own.
type chains map[Hook][]Attachment

// find finds a link that is at work on the interface of that number. Text that is
// no number is of none.
func (c chains) find(ifindex, id string) (Attachment, bool) {
	index, err := strconv.ParseInt(ifindex, 10, 32)
	if err != nil {
		return Attachment{}, false
	}
	number, err := strconv.ParseUint(id, 10, 32)
	if err != nil || number == 0 {
		return Attachment{}, false
	}
	for _, d := range []Direction{Ingress, Egress} {
		at := Hook{int(index), d}
		list, asked := c[at]
		if !asked {
			// What cannot be asked here is asked, and said, with the link itself.
			list, _ = query(at)
			c[at] = list
		}
		if i := slices.IndexFunc(list, Attachment{link: link.ID(number)}.Is); i >= 0 {
			return list[i], true
		}
	}
	return Attachment{}, false
}

func readPin(path, label string) (Attachment, error) {
	l, err := link.LoadPinnedLink(path, nil)
	if err != nil {
		return Attachment{}, err
	}
	a, err := examine(l)
	a.Label, a.pin = label, path
	return a, errors.Join(err, l.Close())
}

// examine asks the link, and its interface too: that may have left the
// namespace, and another may have its number.
func examine(l link.Link) (Attachment, error) {
	info, err := l.Info()
	if err != nil {
		return Attachment{}, err
	}
	if info.TCX() == nil {
		return Attachment{}, errors.New("it is not of tcx")
	}
	a := Attachment{Hook: Hook{int(info.TCX().Ifindex), Ingress}, Program: info.Program, link: info.ID}
	if ebpf.AttachType(info.TCX().AttachType) == ebpf.AttachTCXEgress {
		a.Direction = Egress
	}
	if a.Ifindex == 0 {
		return a, nil
	}
	list, err := query(a.Hook)
	if err != nil {
		return Attachment{}, err
	}
	i := slices.IndexFunc(list, a.Is)
	a.Here, a.First, a.Alone = i >= 0, i == 0, i == 0 && len(list) == 1
	return a, nil
}

func (d Direction) attachType() ebpf.AttachType {
	if d == Egress {
		return ebpf.AttachTCXEgress
	}
	return ebpf.AttachTCXIngress
}

func (t tcx) chain(at Hook) (all []Attachment, err error) {
	err = t.namespace.Do(func() error {
		all, err = query(at)
		return err
	})
	return all, err
}

func query(at Hook) ([]Attachment, error) {
	q, err := link.QueryPrograms(link.QueryOptions{Target: at.Ifindex, Attach: at.Direction.attachType()})
	if errors.Is(err, unix.ENODEV) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list tcx %s programs of interface %d: %w", at.Direction, at.Ifindex, err)
	}
	var all []Attachment
	for i, p := range q.Programs {
		id, _ := p.LinkID()
		all = append(all, Attachment{Hook: at, Program: p.ID, Here: true, First: i == 0, Alone: len(q.Programs) == 1, link: id})
	}
	return all, nil
}

func (t tcx) attach(at Hook, label string, p *ebpf.Program) error {
	var l link.Link
	err := t.namespace.Do(func() (err error) {
		l, err = link.AttachTCX(link.TCXOptions{Interface: at.Ifindex, Program: p, Attach: at.Direction.attachType(), Anchor: link.Head()})
		return err
	})
	if err != nil {
		return err
	}
	defer func() { _ = l.Close() }()
	return t.pin(l, at, label)
}

func (t tcx) pin(l link.Link, at Hook, label string) error {
	info, err := l.Info()
	if err != nil {
		return fmt.Errorf("examine link: %w", err)
	}
	path := filepath.Join(t.pins, fmt.Sprintf("%s-%d-%d", label, at.Ifindex, info.ID))
	if err := l.Pin(path); err != nil {
		return fmt.Errorf("pin link at %s: %w", path, err)
	}
	return nil
}

func (t tcx) take(a Attachment, label string, p *ebpf.Program) error {
	l, err := link.NewFromID(a.link)
	if err != nil {
		return fmt.Errorf("open link %d: %w", a.link, err)
	}
	defer func() { _ = l.Close() }()
	if err := l.Update(p); err != nil {
		return fmt.Errorf("update link %d: %w", a.link, err)
	}
	if a.pin != "" && filepath.Dir(a.pin) == t.pins {
		return nil
	}
	return t.pin(l, a.Hook, label)
}

// detach does not leave it to the last reference: the kernel ends a link some
// time after that is gone (bpf_link_put).
func (t tcx) detach(a Attachment) error {
	if a.link == 0 {
		return errors.New("it was attached without a link")
	}
	l, err := link.NewFromID(a.link)
	if err == nil {
		// ENOLINK: it was detached before.
		if err = l.Detach(); errors.Is(err, unix.ENOLINK) {
			err = nil
		}
		err = errors.Join(err, l.Close())
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("link %d: %w", a.link, err)
	}
	if a.pin == "" {
		return nil
	}
	if err := os.Remove(a.pin); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove pin: %w", err)
	}
	return nil
}
