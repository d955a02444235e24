package classifier

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/circuitseal/circuitseal/agent/plan"
	"github.com/circuitseal/circuitseal/agent/tchook"
)

// chain is what is on a hook of an interface, ours or not.
func (b *bed) chain(at tchook.Hook) []tchook.Attachment {
	b.t.Helper()
	tc, err := tchook.Open(tchook.Config{Way: way, Namespace: b.ns, Pins: b.instance.BPFDir(), Owner: "nobody"})
	must(b.t, err)
	defer tc.Close()
	list, err := tc.Chain(at)
	must(b.t, err)
	return list
}

// attachments are all that are on the bed's interfaces.
func (b *bed) attachments() map[attachment]tchook.Attachment {
	b.t.Helper()
	found := map[attachment]tchook.Attachment{}
	for name, index := range b.index {
		for program := range hooks {
			if program == bpfProgCsTunnelIn || program == bpfProgCsSlowIn {
				continue // at the hook of cs_lan_in
			}
			a := attachment{program, index}
			list := b.chain(a.at())
			if len(list) > 1 {
				b.t.Errorf("%d programs on %s", len(list), name)
			}
			for _, p := range list {
				found[a] = p
			}
		}
	}
	return found
}

func (b *bed) wantSame(what string, want map[attachment]tchook.Attachment) {
	b.t.Helper()
	got := b.attachments()
	for a, w := range want {
		if !w.Is(got[a]) {
			b.t.Errorf("%s: %v of %s on %s has become %v", what, w, a.program, b.name[a.ifindex], got[a])
		}
	}
	if len(got) != len(want) {
		b.t.Errorf("%s: %d attachments, want %d", what, len(got), len(want))
	}
}

// An agent that has no file descriptor left for a look at its programs leaves
// them alone: they may well be at work.
func TestFailedLookKeepsPrograms(t *testing.T) {
	b := newBed(t)
	want := b.attachments()
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
	// A look at hooks takes none, by either way; to be in the namespace takes two.
	must(t, held[0].Close())
	held = held[1:]
	checked, err := b.classifier.Sync(t.Context(), b.plan)
	if !errors.Is(err, unix.EMFILE) {
		t.Errorf("sync with one file descriptor: %v, want %v", err, unix.EMFILE)
	}
	if checked != nil {
		t.Errorf("sync with one file descriptor: checked %q, want no answer", checked)
	}
	must(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &limit))
	b.wantSame("too few file descriptors", want)
	b.sync(b.plan, missing)
	b.wantSame("enough again", want)
}

// Two instances on one interface keep their programs apart.
func TestOtherInstance(t *testing.T) {
	b := newBed(t)
	alone := plan.Classifier{LANs: b.plan.LANs[:1]}
	programs := func() (ids []ebpf.ProgramID) {
		t.Helper()
		for _, p := range b.chain(attachment{bpfProgCsLanIn, b.index["lan7a"]}.at()) {
			ids = append(ids, p.Program)
		}
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

// An agent with another layout of maps takes over the attachments of the one
// before, without a moment without programs, and leaves nothing of it.
func TestOtherLayout(t *testing.T) {
	b := newBed(t)
	want := b.attachments()
	old := filepath.Join(filepath.Dir(b.classifier.directory), layoutPrefix+"0")
	must(t, b.classifier.Close())
	must(t, os.Rename(b.classifier.directory, old))
	b.classifier = open(t, b.instance, b.ns)
	c := b.plan
	c.LANs, c.Locals = c.LANs[1:], c.Locals[1:2]
	delete(want, attachment{bpfProgCsLanIn, b.index["lan7a"]})
	delete(want, attachment{bpfProgCsLanIn, b.index[b.slowDevice("lan7a")]}) // at its hook
	b.sync(c, missing)
	b.wantSame("another layout", want)
	if _, err := os.Stat(old); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("directory of the old layout: %v", err)
	}
	b.sync(b.plan, missing)
	must(t, os.Mkdir(old, 0o700))
	must(t, b.classifier.Remove(t.Context()))
	if n := len(b.attachments()); n != 0 {
		t.Errorf("%d attachments after removal", n)
	}
	if _, err := os.Stat(old); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("directory of an old layout after removal: %v", err)
	}
	b.classifier = open(t, b.instance, b.ns)
}
