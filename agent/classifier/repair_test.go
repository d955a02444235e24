package classifier

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/circuitseal/circuitseal/agent/drift"
	"github.com/circuitseal/circuitseal/agent/plan"
	"github.com/circuitseal/circuitseal/agent/tchook"
)

// attached counts the programs on a hook of an interface.
func (b *bed) attached(device string, d tchook.Direction) int {
	b.t.Helper()
	return len(b.chain(tchook.Hook{Ifindex: int(b.index[device]), Direction: d}))
}

func (b *bed) sync(c plan.Classifier, want ...string) {
	b.t.Helper()
	_, err := b.classifier.Sync(b.t.Context(), c)
	for _, w := range want {
		if err == nil || !strings.Contains(err.Error(), w) {
			b.t.Errorf("sync: %v, want an error with %q", err, w)
		}
	}
	if err != nil && strings.Count(err.Error(), "\n") >= len(want) {
		b.t.Errorf("sync: %v, want %d errors", err, len(want))
	}
}

const missing = "-8 is not there yet"

// Sync repairs what somebody broke and notes it, and a repeat does not touch
// anything.
func TestRepair(t *testing.T) {
	b := newBed(t)
	device := b.instance.Device(1)
	intact := func(what string, repaired ...drift.Kind) {
		t.Helper()
		ledger := drift.New()
		b.classifier.config.Drift = ledger
		ledger.Begin(true)
		b.sync(b.plan, missing)
		ledger.End()
		var noted []drift.Kind
		for _, d := range ledger.Drift() {
			noted = append(noted, drift.Kind(d.What))
		}
		if !slices.Equal(noted, repaired) {
			t.Errorf("%s: noted repairs of %q, want %q", what, noted, repaired)
		}
		for d, hook := range map[string]tchook.Direction{"lan7a": tchook.Ingress, device: tchook.Egress} {
			if n := b.attached(d, hook); n != 1 {
				t.Errorf("%s: %d programs on %s, want 1", what, n, d)
			}
		}
		pins, err := os.ReadDir(b.classifier.directory)
		must(t, err)
		want := len(b.classifier.mapsByName())
		if way == tchook.TCX {
			want += 3 + 2 + 2*7
		}
		if len(pins) != want {
			t.Errorf("%s: %d pins, want %d", what, len(pins), want)
		}
	}
	intact("nothing done")

	if way == tchook.TCX {
		pin, err := filepath.Glob(filepath.Join(b.classifier.directory, fmt.Sprintf("cs_lan_in-%d-*", b.index["lan7a"])))
		must(t, err)
		must(t, os.Remove(pin[0]))
		intact("pin removed", drift.ClassifierProgram)
	}

	must(t, os.Remove(b.classifier.pin(bpfMapGroups)))
	intact("pin of a map removed", drift.ClassifierMap)

	must(t, unix.Unmount(b.instance.BPFDir(), 0))
	lost := []drift.Kind{drift.ClassifierMap, drift.ClassifierProgram}
	if way == tchook.Clsact {
		lost = lost[:1] // filters need no pins
	}
	intact("bpffs unmounted", lost...)
	for end := time.Now().Add(300 * time.Millisecond); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		intact("some time after that")
	}

	var stale uint32 = 4_000_000
	must(t, b.classifier.objects.Ports.Put(&stale, &bpfPort{Kind: bpfPortKindPORT_LAN, Tenant: 9, Slot: 700}))
	must(t, b.classifier.objects.Groups.Delete(uint32(1)))
	intact("maps changed", drift.ClassifierMap)
	if err := b.classifier.objects.Ports.Lookup(&stale, &bpfPort{}); err == nil {
		t.Error("a foreign port is still there")
	}

	h, err := b.ns.Netlink()
	must(t, err)
	defer h.Close()
	l, err := h.LinkByName(device)
	must(t, err)
	must(t, h.LinkDel(l))
	b.sync(b.plan, missing, "-1 is not there yet", "-2 is not there yet")
	b.pair(h, device, b.instance.Device(2), 9000)
	intact("devices made again", drift.ClassifierMap, drift.ClassifierProgram)
}

// The BPF file system goes while no agent runs, and with it the maps' names. The
// next agent makes others; what filters still have at work runs on the former
// maps until it is replaced in its place, and nothing runs twice.
func TestSuccessorWithoutPins(t *testing.T) {
	b := newBed(t)
	before := b.attachments()
	must(t, b.classifier.Close())
	must(t, unix.Unmount(b.instance.BPFDir(), 0))
	if way == tchook.TCX {
		// The kernel ends links some time after their last pin.
		for end := time.Now().Add(10 * time.Second); len(b.attachments()) > 0; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%d programs are at work without pins", len(b.attachments()))
			}
		}
	} else {
		b.wantSame("without pins", before)
	}
	b.classifier = open(t, b.instance, b.ns)
	b.sync(b.plan, missing)
	code, err := b.classifier.programIDs()
	must(t, err)
	found := b.attachments()
	for a, was := range before {
		is, ok := found[a]
		switch {
		case !ok:
			t.Errorf("%s on %s has not come back", a.program, b.name[a.ifindex])
		case is.Program == was.Program, !slices.Contains(slices.Collect(maps.Values(code)), is.Program):
			t.Errorf("%s on %s runs program %d, was %d, want one of %v", a.program, b.name[a.ifindex], is.Program, was.Program, code)
		case way == tchook.Clsact && !is.Is(was):
			t.Errorf("%s on %s was not replaced in its place", a.program, b.name[a.ifindex])
		}
	}
	if len(found) != len(before) {
		t.Errorf("%d attachments, want %d", len(found), len(before))
	}
}

// An interface that leaves the plan loses its programs and its port; a LAN
// that is not there stops nothing else.
func TestLeftovers(t *testing.T) {
	b := newBed(t)
	c := b.plan
	c.LANs = []plan.LAN{b.plan.LANs[0], {Interface: "lan99", Tenant: 8}}
	c.Locals = c.Locals[:1]
	c.Groups = c.Groups[:2]
	c.Remotes = c.Remotes[:5]
	b.sync(c, "LAN interface lan99: there is no such interface")
	for d, want := range map[string]int{"lan7a": 1, "lan7b": 0, "lan8": 0, b.instance.Device(1): 1, b.instance.Device(6): 0} {
		if n := b.attached(d, tchook.Ingress); n != want {
			t.Errorf("%d programs on %s, want %d", n, d, want)
		}
	}
	have, err := b.classifier.readState()
	must(t, err)
	if len(have.ports) != 1+1+5 || len(have.locals) != 1 || len(have.remotes) != 5 || len(have.groups) != 2 {
		t.Errorf("maps hold %d ports, %d locals, %d remotes, %d groups; want 7, 1, 5, 2", len(have.ports), len(have.locals), len(have.remotes), len(have.groups))
	}
	b.sync(plan.Classifier{})
	if n := b.attached("lan7a", tchook.Ingress); n != 0 {
		t.Errorf("%d programs after an empty plan", n)
	}
}

// Remove leaves neither pins nor programs; the methods of a removed or closed
// Classifier fail with a sentence.
func TestRemove(t *testing.T) {
	b := newBed(t)
	must(t, b.classifier.Remove(t.Context()))
	if n := b.attached("lan7a", tchook.Ingress) + b.attached(b.instance.Device(1), tchook.Egress); n != 0 {
		t.Errorf("%d programs after removal", n)
	}
	if _, err := os.Stat(b.classifier.directory); !os.IsNotExist(err) {
		t.Errorf("directory of pins after removal: %v", err)
	}
	b.sync(b.plan, "it has been removed")
	b.classifier = open(t, b.instance, b.ns)
	must(t, b.classifier.Close())
	if _, err := b.classifier.Counters(); err == nil || !strings.Contains(err.Error(), "it has been closed") {
		t.Errorf("counters of a closed classifier: %v", err)
	}
	b.classifier = open(t, b.instance, b.ns)
}

// A plan from elsewhere never makes the programs redirect to a foreign
// interface, also not under an alternative name.
func TestAlternativeName(t *testing.T) {
	b := newBed(t)
	h, err := b.ns.Netlink()
	must(t, err)
	defer h.Close()
	l, err := h.LinkByName("other")
	must(t, err)
	if err := h.LinkAddAltName(l, b.instance.Device(8)); err != nil {
		t.Fatalf("give an alternative name: %v", err)
	}
	b.sync(b.plan, missing)
	var g bpfGroup
	must(t, b.classifier.objects.Groups.Lookup(uint32(4), &g))
	if g.Members[1].Ifindex != 0 {
		t.Errorf("member on interface %d, which only has the name of a tunnel device", g.Members[1].Ifindex)
	}
}
