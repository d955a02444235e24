package classifier

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/circuitseal/circuitseal/agent/plan"
)

// links are the ids of all links on the bed's interfaces, by attachment.
func (b *bed) links() map[attachment]link.ID {
	b.t.Helper()
	found := map[attachment]link.ID{}
	must(b.t, b.ns.Do(func() error {
		for name, index := range b.index {
			for program, h := range hooks {
				if program == bpfProgCsTunnelIn {
					continue // at the hook of cs_lan_in
				}
				q, err := link.QueryPrograms(link.QueryOptions{Target: int(index), Attach: h.attach})
				if err != nil {
					return err
				}
				if len(q.Programs) > 1 {
					return fmt.Errorf("%d programs on %s", len(q.Programs), name)
				}
				for _, p := range q.Programs {
					found[attachment{program, index}], _ = p.LinkID()
				}
			}
		}
		return nil
	}))
	return found
}

func (b *bed) wantLinks(what string, want map[attachment]link.ID) {
	b.t.Helper()
	got := b.links()
	for a, id := range want {
		if got[a] != id {
			b.t.Errorf("%s: link %d of %s on %s has become %d", what, id, a.program, b.name[a.ifindex], got[a])
		}
	}
	if len(got) != len(want) {
		b.t.Errorf("%s: %d links, want %d", what, len(got), len(want))
	}
}

// mute is a link that the kernel says nothing about.
type mute struct{ link.Link }

func (mute) Info() (*link.Info, error) { return nil, unix.ENOMEM }

// A link that cannot be asked about is not dead, and one without an interface
// is; a look that fails must not be the end of a program that works.
func TestUnknownIsNotDead(t *testing.T) {
	b := newBed(t)
	a := attachment{bpfProgCsLanIn, b.index["lan7a"]}
	must(t, b.ns.Do(func() error {
		p, err := b.classifier.readPin(a)
		if err != nil {
			return err
		}
		defer func() { _ = p.link.Close() }()
		if !p.condition.live {
			t.Error("a program that works is not live")
		}
		if _, err := conditionOf(mute{p.link}, a); !errors.Is(err, unix.ENOMEM) {
			t.Errorf("examine a link that cannot be asked: %v, want %v", err, unix.ENOMEM)
		}
		if err := p.link.Detach(); err != nil {
			return err
		}
		c, err := conditionOf(p.link, a)
		if c.live || err != nil {
			t.Errorf("detached link: live %t, error %v", c.live, err)
		}
		return nil
	}))
}

// An agent that has no file descriptor left for a look at its programs leaves
// them alone: they may well be at work.
func TestFailedLookKeepsPrograms(t *testing.T) {
	b := newBed(t)
	want := b.links()
	b.sync(b.plan, missing)
	var held []*os.File
	defer func() {
		for _, f := range held {
			_ = f.Close()
		}
	}()
	var limit unix.Rlimit
	must(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &limit))
	// A limit that is soon reached, but leaves what is open alone.
	few := limit
	few.Cur = 256
	must(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &few))
	defer func() { must(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &limit)) }()
	for {
		f, err := os.Open(os.DevNull)
		if errors.Is(err, unix.EMFILE) {
			break
		}
		must(t, err)
		held = append(held, f)
	}
	// There are 17 pins; listing them, and being in the namespace, take some.
	for spare := 1; spare <= 12; spare++ {
		must(t, held[0].Close())
		held = held[1:]
		checked, err := b.classifier.Sync(t.Context(), b.plan)
		if !errors.Is(err, unix.EMFILE) {
			t.Errorf("sync with %d file descriptors: %v, want %v", spare, err, unix.EMFILE)
		}
		if checked != nil {
			t.Errorf("sync with %d file descriptors: checked %q, want no answer", spare, checked)
		}
	}
	must(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &limit))
	b.wantLinks("too few file descriptors", want)
	b.sync(b.plan, missing)
	b.wantLinks("enough again", want)
}

// Two instances on one interface keep their programs apart.
func TestOtherInstance(t *testing.T) {
	b := newBed(t)
	alone := plan.Classifier{LANs: b.plan.LANs[:1]}
	programs := func() (ids []ebpf.ProgramID) {
		t.Helper()
		must(t, b.ns.Do(func() error {
			q, err := link.QueryPrograms(link.QueryOptions{Target: int(b.index["lan7a"]), Attach: ebpf.AttachTCXIngress})
			if err != nil {
				return err
			}
			for _, p := range q.Programs {
				ids = append(ids, p.ID)
			}
			return nil
		}))
		return ids
	}
	before := programs()
	other := open(t, testInstance(t), b.ns)
	for range 2 {
		_, err := other.Sync(t.Context(), alone)
		must(t, err)
		b.sync(b.plan, missing)
		if now := programs(); len(now) != 2 || now[1] != before[0] || now[0] == before[0] {
			t.Errorf("programs %v, want another one before %v", now, before)
		}
	}
	must(t, other.Remove(t.Context()))
	if now := programs(); len(now) != 1 || now[0] != before[0] {
		t.Errorf("programs %v after the other instance has gone, want %v", now, before)
	}
}

// An agent with another layout of maps takes over the links of the one before,
// without a moment without programs, and leaves nothing of it.
func TestOtherLayout(t *testing.T) {
	b := newBed(t)
	want := b.links()
	old := filepath.Join(filepath.Dir(b.classifier.directory), layoutPrefix+"0")
	must(t, b.classifier.Close())
	must(t, os.Rename(b.classifier.directory, old))
	b.classifier = open(t, b.instance, b.ns)
	c := b.plan
	c.LANs, c.Locals = c.LANs[1:], c.Locals[1:2]
	delete(want, attachment{bpfProgCsLanIn, b.index["lan7a"]})
	b.sync(c, missing)
	b.wantLinks("another layout", want)
	if _, err := os.Stat(old); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("directory of the old layout: %v", err)
	}
	b.sync(b.plan, missing)
	must(t, os.Mkdir(old, 0o700))
	must(t, b.classifier.Remove(t.Context()))
	if n := len(b.links()); n != 0 {
		t.Errorf("%d links after removal", n)
	}
	if _, err := os.Stat(old); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("directory of an old layout after removal: %v", err)
	}
	b.classifier = open(t, b.instance, b.ns)
}
