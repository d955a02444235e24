// Package drift counts what an agent had to put right though nothing new was
// wanted of it, and tells an accident from somebody else who manages the same
// thing. It knows kinds of things, texts and times. It refuses to know what is
// behind them: drivers note what they changed, and whoever watches the host
// notes whom they saw at work.
package drift

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/circuitseal/circuitseal/proto/desired"
)

// Kind is a driver and what it keeps.
type Kind string

// The kinds. Status and metrics have one line for each.
const (
	Namespace Kind = "link/namespace"
	Interface Kind = "link/interface"
	Address   Kind = "link/address"
	Route     Kind = "link/route"
	Rule      Kind = "link/rule"
	Sysctl    Kind = "link/sysctl"

	GuardProgram  Kind = "guard/program"
	GuardMap      Kind = "guard/map"
	GuardNFTables Kind = "guard/nftables"

	TunnelDevice  Kind = "wireguard/device"
	TunnelSetting Kind = "wireguard/setting"
	TunnelAddress Kind = "wireguard/address"
	TunnelRoute   Kind = "wireguard/route"

	IPsecDevice     Kind = "ipsec/device"
	IPsecAddress    Kind = "ipsec/address"
	IPsecRoute      Kind = "ipsec/route"
	IPsecConnection Kind = "ipsec/connection"
	IPsecSecret     Kind = "ipsec/secret"

	SlowDevice  Kind = "slowpath/device"
	SlowAddress Kind = "slowpath/address"
	SlowRoute   Kind = "slowpath/route"
	SlowRule    Kind = "slowpath/rule"
	SlowSysctl  Kind = "slowpath/sysctl"

	ClassifierProgram Kind = "classifier/program"
	ClassifierMap     Kind = "classifier/map"
	ClassifierSysctl  Kind = "classifier/sysctl"
)

const (
	// window and often make a conflict: the same thing put right so often within
	// so long. An accident takes some things along, such as routes when an address
	// goes, and people make more than one; who manages a thing does not stop.
	window = 10 * time.Second
	often  = 5
	// over is how long nothing has to happen to a thing for its conflict to end.
	over = 30 * time.Second
	// maxThings bounds the memory for single things. Who breaks more of them than
	// that within the time for which they are remembered is told by its kind.
	maxThings = 1024
)

// Text is a thing in words.
type Text string

func (t Text) String() string { return string(t) }

// Ledger is what was repaired. A nil one takes notes and forgets them. Its
// methods may be called at once and never block for long.
type Ledger struct {
	mu sync.Mutex
	// counting is set while a pass runs that should find nothing to do.
	counting bool
	pass     uint64
	kinds    map[Kind]*tally
	things   map[thing]*history
	seen     map[Kind]sighting
	// told are the kinds in conflict at the last End.
	told []Kind
}

type thing struct {
	kind Kind
	text string
}

type tally struct {
	count  uint64
	last   time.Time
	detail string
}

// history is one thing's last repairs, the newest last.
type history struct {
	times []time.Time
	// pass is the last one that repaired it: one counts once.
	pass uint64
	// conflict stays set until nothing happens for a while.
	conflict bool
}

// sighting is somebody who was seen changing things of a kind.
type sighting struct {
	who string
	at  time.Time
}

// New makes an empty ledger.
func New() *Ledger {
	return &Ledger{kinds: map[Kind]*tally{}, things: map[thing]*history{}, seen: map[Kind]sighting{}}
}

// Begin opens a pass of the drivers. What they change until End is a repair when
// counting is set: the plan is one that was brought about in full before.
func (l *Ledger) Begin(counting bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.counting = counting
	l.pass++
}

// End closes a pass, and reports whether it is news who is in conflict.
func (l *Ledger) End() (news bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.counting = false
	l.forget(time.Now())
	var now []Kind
	for t, h := range l.things {
		if h.conflict && !slices.Contains(now, t.kind) {
			now = append(now, t.kind)
		}
	}
	slices.Sort(now)
	news = !slices.Equal(now, l.told)
	l.told = now
	return news
}

// Note takes down a change that was made. x is asked for its text only when that
// counts.
func (l *Ledger) Note(k Kind, x fmt.Stringer) {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.counting {
		return
	}
	now := time.Now()
	t := l.kinds[k]
	if t == nil {
		t = &tally{}
		l.kinds[k] = t
	}
	t.count++
	t.last, t.detail = now, x.String()
	of := thing{k, t.detail}
	if _, known := l.things[of]; !known && len(l.things) >= maxThings {
		of.text = "many of them"
	}
	h := l.things[of]
	if h == nil {
		h = &history{}
		l.things[of] = h
	}
	if h.pass == l.pass && len(h.times) > 0 {
		return
	}
	h.pass = l.pass
	h.times = append(h.times, now)
	h.times = slices.DeleteFunc(h.times, func(at time.Time) bool { return now.Sub(at) > window })
	h.conflict = h.conflict || len(h.times) >= often
}

// Saw takes down that somebody else was seen changing things of a kind.
func (l *Ledger) Saw(k Kind, who string) {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.seen[k] = sighting{who, time.Now()}
}

// forget drops things that nothing has happened to for a while.
func (l *Ledger) forget(now time.Time) {
	for t, h := range l.things {
		if len(h.times) == 0 || now.Sub(h.times[len(h.times)-1]) > over {
			delete(l.things, t)
		}
	}
}

// Contested reports whether anything is being put right again and again, so that
// haste is of no use.
func (l *Ledger) Contested() bool {
	if l == nil {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.forget(time.Now())
	for _, h := range l.things {
		if h.conflict {
			return true
		}
	}
	return false
}

// Drift is what was counted, sorted by kind.
func (l *Ledger) Drift() []desired.Drift {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []desired.Drift
	for k, t := range l.kinds {
		out = append(out, desired.Drift{What: string(k), Count: t.count, Last: t.last, Detail: t.detail})
	}
	slices.SortFunc(out, func(a, b desired.Drift) int { return strings.Compare(a.What, b.What) })
	return out
}

// Conflicts are sentences, one for each kind of thing that somebody else manages
// too: what, how often, who as far as anybody was seen, and what to do.
func (l *Ledger) Conflicts() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	l.forget(now)
	type worst struct {
		text   string
		count  int
		others int
	}
	by := map[Kind]*worst{}
	for t, h := range l.things {
		if !h.conflict {
			continue
		}
		n := len(h.times)
		w := by[t.kind]
		switch {
		case w == nil:
			by[t.kind] = &worst{t.text, n, 0}
		case n > w.count, n == w.count && t.text < w.text:
			w.text, w.count, w.others = t.text, n, w.others+1
		default:
			w.others++
		}
	}
	var out []string
	for k, w := range by {
		s := fmt.Sprintf("conflict over %s: repaired %d times within %s, last by: %s", k, w.count, window, w.text)
		if w.others > 0 {
			s += fmt.Sprintf(" (and %d more)", w.others)
		}
		who := "nobody was seen at it"
		if seen, ok := l.seen[k]; ok && now.Sub(seen.at) <= over {
			who = "seen at it: " + seen.who
		}
		out = append(out, fmt.Sprintf("%s; %s; %s", s, who, advice(k)))
	}
	slices.Sort(out)
	return out
}

// advice is what an operator does about a conflict.
func advice(k Kind) string {
	driver, _, _ := strings.Cut(string(k), "/")
	switch {
	case k == GuardNFTables:
		return "a firewall manager that flushes every table does this: have it leave the circuit namespace alone, or flush its own tables only"
	case k == Sysctl || k == ClassifierSysctl:
		return "a sysctl.d file that is applied again and again, or a network manager, does this: take these settings out of it"
	case driver == "link":
		return "nothing but the agent may configure the circuit namespace: see with `ip -n NAMESPACE monitor` who does, and have it leave the interface unmanaged"
	case driver == "wireguard":
		return "have network managers leave devices unmanaged whose names begin with cs-"
	case driver == "ipsec":
		return "have network managers leave devices unmanaged whose names begin with cs-, and have nothing else load or clear what charon has under such names"
	case driver == "slowpath":
		return "nothing but the agent may configure the namespace of the slow path and its devices, whose names begin with cs-"
	}
	return "another eBPF manager on this host detaches or rewrites what is not its own: have it leave the programs and maps of circuitseal alone"
}
