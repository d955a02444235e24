package classifier

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
)

type entry[K, V comparable] struct {
	key   K
	value V
}

// table is what has to happen to one map, in no order.
type table[K, V comparable] struct {
	put    []entry[K, V]
	remove []K
}

// changes are what has to happen to all maps.
type changes struct {
	ports   table[uint32, bpfPort]
	hosts   table[bpfHostKey, uint32]
	locals  table[bpfPrefixKey, bpfLocal]
	remotes table[bpfPrefixKey, bpfRemote]
	groups  table[uint32, bpfGroup]
}

func diff(want, have state) changes {
	return changes{
		ports:   diffTable(want.ports, have.ports),
		hosts:   diffTable(want.hosts, have.hosts),
		locals:  diffTable(want.locals, have.locals),
		remotes: diffTable(want.remotes, have.remotes),
		groups:  diffTable(want.groups, have.groups),
	}
}

func diffTable[K, V comparable](want, have map[K]V) table[K, V] {
	var t table[K, V]
	for k, v := range want {
		if was, ok := have[k]; !ok || was != v {
			t.put = append(t.put, entry[K, V]{k, v})
		}
	}
	for k := range have {
		if _, ok := want[k]; !ok {
			t.remove = append(t.remove, k)
		}
	}
	return t
}

// size counts changes, for the log.
func (c changes) size() (puts, removes int) {
	return len(c.ports.put) + len(c.hosts.put) + len(c.locals.put) + len(c.remotes.put) + len(c.groups.put),
		len(c.ports.remove) + len(c.hosts.remove) + len(c.locals.remove) + len(c.remotes.remove) + len(c.groups.remove)
}

// String has one line a change: + for what is put, - for what is removed.
func (c changes) String() string {
	var b strings.Builder
	printTable(&b, "port", c.ports)
	printTable(&b, "host", c.hosts)
	printTable(&b, "local", c.locals)
	printTable(&b, "remote", c.remotes)
	printTable(&b, "group", c.groups)
	return b.String()
}

func printTable[K, V comparable](b *strings.Builder, name string, t table[K, V]) {
	puts, removes := make([]string, 0, len(t.put)), make([]string, 0, len(t.remove))
	for _, e := range t.put {
		puts = append(puts, fmt.Sprintf("+ %s %s %s\n", name, keyText(e.key), valueText(e.value)))
	}
	for _, k := range t.remove {
		removes = append(removes, fmt.Sprintf("- %s %s\n", name, keyText(k)))
	}
	slices.Sort(puts)
	slices.Sort(removes)
	for _, line := range append(puts, removes...) {
		b.WriteString(line)
	}
}

// attachment is one program on one interface, at the hook that belongs to the
// program.
type attachment struct {
	program string
	ifindex uint32
}

// attachments are what has to happen to them.
type attachments struct {
	attach, replace, detach []attachment
}

// wantAttachments are the hooks that ports need.
func wantAttachments(ports map[uint32]bpfPort) map[attachment]bool {
	want := map[attachment]bool{}
	for ifindex, p := range ports {
		for program, h := range hooks {
			if h.kind == p.Kind {
				want[attachment{program, ifindex}] = true
			}
		}
	}
	return want
}

// diffAttachments compares with what is at work, and the code that it runs; code
// has the programs that should run.
func diffAttachments(want map[attachment]bool, have map[attachment]ebpf.ProgramID, code map[string]ebpf.ProgramID) attachments {
	var d attachments
	for _, a := range slices.SortedFunc(maps.Keys(want), compareAttachments) {
		switch program, ok := have[a]; {
		case !ok:
			d.attach = append(d.attach, a)
		case program != code[a.program]:
			d.replace = append(d.replace, a)
		}
	}
	for _, a := range slices.SortedFunc(maps.Keys(have), compareAttachments) {
		if !want[a] {
			d.detach = append(d.detach, a)
		}
	}
	return d
}

// compareAttachments puts a tunnel's egress first: nothing may be sent into a
// tunnel that is not checked.
func compareAttachments(a, b attachment) int {
	if a.ifindex != b.ifindex {
		return int(a.ifindex) - int(b.ifindex)
	}
	return strings.Compare(b.program, a.program)
}
