package ipsec

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestDecide(t *testing.T) {
	current := connectionName{7, "tunnel", "trust", "new"}
	replaced := connectionName{7, "tunnel", "trust", "old"}
	distrusted := connectionName{7, "tunnel", "other", "old"}
	former := connectionName{7, "other", "trust", "old"}
	sa := func(name connectionName, id uint64, age time.Duration, change ...func(*namedSA)) namedSA {
		_, s := good()
		s.id, s.age, s.children[0].age, s.spis = id, age, age, [2]string{fmt.Sprint(id), "r"}
		x := namedSA{ikeSA: s, connection: name}
		for _, c := range change {
			c(&x)
		}
		return x
	}
	state := func(state string, initiator bool, seen time.Duration) func(*namedSA) {
		return func(s *namedSA) {
			s.state, s.established, s.initiator, s.seen, s.children = state, false, initiator, seen, nil
		}
	}
	weak := func(s *namedSA) { s.ppk = false }
	seen := func(d time.Duration) func(*namedSA) { return func(s *namedSA) { s.seen = d } }
	rekeyed := func(age time.Duration) func(*namedSA) {
		return func(s *namedSA) {
			s.children[0].age, s.children[0].suite.exchanges = age, []string{"ecp384"}
		}
	}
	replacing := func(s *namedSA) { s.state, s.initiator = ikeRekeying, false }
	bare := func(s *namedSA) { s.children = nil }
	// beside gives it one more ESP SA, of that age.
	beside := func(age time.Duration, state string) func(*namedSA) {
		return func(s *namedSA) {
			more := s.children[0]
			more.id, more.age, more.state, more.suite.exchanges = 99, age, state, []string{"ecp384"}
			s.children = append(s.children, more)
		}
	}
	tests := []struct {
		name    string
		answers bool
		silent  bool
		early   bool
		// problem tells that the connection cannot be made.
		problem   bool
		sas       []namedSA
		initiate  bool
		terminate []uint64
		// children are the ESP SAs that end.
		children []uint64
		up       uint64
	}{
		{name: "nothing", initiate: true},
		{name: "nothing, not yet", early: true},
		{name: "nothing, to answer", answers: true},
		{name: "up", sas: []namedSA{sa(current, 1, time.Minute)}, up: 1},
		{name: "connecting", sas: []namedSA{sa(current, 1, 0, state(ikeConnecting, true, time.Second))}},
		{name: "connecting for long", sas: []namedSA{sa(current, 1, 0, state(ikeConnecting, true, 2*connecting))}, initiate: true, terminate: []uint64{1}},
		{name: "connecting for long, not yet", early: true, sas: []namedSA{sa(current, 1, 0, state(ikeConnecting, true, 2*connecting))}},
		{name: "the far end is connecting", sas: []namedSA{sa(current, 1, 0, state(ikeConnecting, false, 0))}, initiate: true},
		{name: "connecting by what was replaced", sas: []namedSA{sa(replaced, 1, 0, state(ikeConnecting, true, 0))}, initiate: true, terminate: []uint64{1}},
		{name: "going", sas: []namedSA{sa(current, 1, 0, state(ikeDeleting, true, 0))}, initiate: true},
		{name: "replaced", sas: []namedSA{sa(replaced, 1, time.Hour)}, initiate: true, up: 1},
		{name: "replaced, to answer", answers: true, sas: []namedSA{sa(replaced, 1, time.Hour)}, up: 1},
		{name: "replaced long ago, and still what is asked for", sas: []namedSA{sa(replaced, 1, time.Hour, seen(time.Hour))}, initiate: true, up: 1},
		{name: "replaced, and weaker", sas: []namedSA{sa(replaced, 1, time.Hour, weak, seen(time.Minute))}, initiate: true, up: 1},
		{name: "replaced long ago, and weaker", answers: true, sas: []namedSA{sa(replaced, 1, time.Hour, weak, seen(2*handover))}, terminate: []uint64{1}},
		{name: "replaced long ago, and others are trusted", answers: true, sas: []namedSA{sa(distrusted, 1, time.Hour, seen(2*handover))}, terminate: []uint64{1}},
		{name: "taken over", sas: []namedSA{sa(replaced, 1, time.Hour), sa(current, 2, settles)}, terminate: []uint64{1}, up: 2},
		{name: "taken over, not settled", sas: []namedSA{sa(replaced, 1, time.Hour), sa(current, 2, settles/2)}, up: 2},
		{name: "taken over, to answer", answers: true, sas: []namedSA{sa(replaced, 1, time.Hour), sa(current, 2, settles)}, up: 2},
		{name: "double", sas: []namedSA{sa(current, 1, time.Minute), sa(current, 2, time.Hour), sa(current, 3, 2*time.Minute)}, terminate: []uint64{3, 2}, up: 1},
		{name: "double, of the same second", sas: []namedSA{sa(current, 2, time.Minute), sa(current, 1, time.Minute)}, terminate: []uint64{2}, up: 1},
		{name: "double, and the older one has the younger ESP SA", sas: []namedSA{sa(current, 1, time.Hour, rekeyed(settles)), sa(current, 2, time.Minute)}, terminate: []uint64{2}, up: 1},
		{name: "double, and ESP has just been rekeyed", sas: []namedSA{sa(current, 1, time.Hour, rekeyed(settles/2)), sa(current, 2, time.Minute)}, up: 1},
		{name: "its keys are replaced", answers: true, sas: []namedSA{sa(current, 1, time.Hour, replacing)}, up: 1},
		{name: "its keys are replaced, and so is its connection", sas: []namedSA{sa(replaced, 1, time.Hour, replacing)}, initiate: true, up: 1},
		{name: "weaker", sas: []namedSA{sa(current, 1, time.Minute, weak)}, initiate: true, terminate: []uint64{1}},
		{name: "without ESP", sas: []namedSA{sa(current, 1, time.Minute, bare, seen(2*childless))}, initiate: true, terminate: []uint64{1}},
		{name: "without ESP beside another", sas: []namedSA{sa(current, 1, time.Minute), sa(current, 2, time.Hour, bare, seen(2*left))}, terminate: []uint64{2}, up: 1},
		{name: "without ESP beside another, not for long", sas: []namedSA{sa(current, 1, time.Minute), sa(current, 2, time.Hour, bare, seen(left/2))}, up: 1},
		{name: "without ESP yet", sas: []namedSA{sa(current, 1, time.Second, bare)}},
		{name: "two ESP SAs", sas: []namedSA{sa(current, 1, time.Hour, beside(settles, childInstalled))}, terminate: []uint64{1}, children: []uint64{1}, up: 1},
		{name: "two ESP SAs, the last one not settled", sas: []namedSA{sa(current, 1, time.Hour, beside(settles/2, childInstalled))}, up: 1},
		{name: "two ESP SAs, and one is about to be replaced", sas: []namedSA{sa(current, 1, time.Hour, beside(time.Hour, childRekeying))}, up: 1},
		{name: "two ESP SAs, to answer", answers: true, sas: []namedSA{sa(current, 1, time.Hour, beside(settles, childInstalled))}, up: 1},
		{name: "another tunnel's", sas: []namedSA{sa(former, 1, time.Second)}, initiate: true, terminate: []uint64{1}},
		{name: "another tunnel's, to answer", answers: true, sas: []namedSA{sa(former, 1, time.Second)}, terminate: []uint64{1}},
		{name: "silent", silent: true, sas: []namedSA{sa(current, 1, time.Minute)}, initiate: true, up: 1},
		{name: "silent, to answer", answers: true, silent: true, sas: []namedSA{sa(current, 1, time.Minute)}, up: 1},
		{name: "silent, and begun anew", silent: true, sas: []namedSA{sa(current, 1, time.Minute), sa(current, 2, 0, state(ikeConnecting, true, 0))}, up: 1},
		{name: "nothing, with a problem", problem: true},
		{name: "up, with a problem", problem: true, sas: []namedSA{sa(current, 1, time.Hour, seen(time.Hour))}, up: 1},
		{name: "begun by the far end, with a problem", problem: true, sas: []namedSA{sa(current, 1, 0, state(ikeConnecting, false, 0))}},
		{name: "begun by who is not trusted any more, with a problem", problem: true, sas: []namedSA{sa(distrusted, 1, 0, state(ikeConnecting, false, 0))}, terminate: []uint64{1}},
		{name: "weaker, with a problem", problem: true, sas: []namedSA{sa(current, 1, time.Hour, weak, seen(time.Minute))}, up: 1},
		{name: "weaker for long, with a problem", problem: true, sas: []namedSA{sa(current, 1, time.Hour, weak, seen(2*handover))}, terminate: []uint64{1}},
		{name: "others are trusted for long, with a problem", problem: true, sas: []namedSA{sa(distrusted, 1, time.Hour, seen(2*handover))}, terminate: []uint64{1}},
		{name: "another tunnel's, with a problem", problem: true, sas: []namedSA{sa(former, 1, time.Second)}, terminate: []uint64{1}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p, _ := good()
			p.Initiates = !tt.answers
			name := current
			if tt.problem {
				name.whole = ""
			}
			d := decide(view{tunnel: p, backend: Kernel, name: name, sas: tt.sas, silent: tt.silent, due: !tt.early && !tt.problem})
			var ended, children []uint64
			for _, x := range d.terminate {
				ended = append(ended, x.id)
				if slices.ContainsFunc(tt.sas, func(s namedSA) bool { return s.id == x.id && len(s.children) > 1 }) {
					children = append(children, x.children...)
				}
			}
			if cmp.Diff(tt.children, children) != "" {
				t.Errorf("ESP SAs %v end, want %v", children, tt.children)
			}
			up := uint64(0)
			if d.up != nil {
				up = d.up.id
			}
			if d.initiate != tt.initiate || up != tt.up || cmp.Diff(tt.terminate, ended) != "" {
				t.Errorf("initiate %t, terminate %v, up %d; want %t, %v, %d", d.initiate, ended, up, tt.initiate, tt.terminate, tt.up)
			}
		})
	}
}

// Since when an SA has been what must not last.
func TestObserve(t *testing.T) {
	current, replaced := connectionName{7, "tunnel", "trust", "new"}, connectionName{7, "tunnel", "other", "old"}
	x := &tunnel{connection: connection{name: current}, seen: map[sighted]sighting{}}
	sa := func(name connectionName, id uint64, change ...func(*namedSA)) []namedSA {
		_, s := good()
		s.id = id
		n := namedSA{ikeSA: s, connection: name}
		for _, c := range change {
			c(&n)
		}
		return []namedSA{n}
	}
	bare := func(s *namedSA) { s.children = nil }
	now := time.Now()
	for _, step := range []struct {
		name  string
		after time.Duration
		sas   []namedSA
		want  time.Duration
	}{
		{"as it is to be", 0, sa(current, 1), 0},
		{"replaced", time.Second, sa(replaced, 1), 0},
		{"still", time.Minute, sa(replaced, 1), time.Minute},
		{"its keys were replaced: another number, the same connection", time.Minute, sa(replaced, 2), 2 * time.Minute},
		{"without an ESP SA", time.Second, sa(current, 3, bare), 0},
		{"another without one", time.Second, sa(current, 4, bare), 0},
		{"still without one", time.Second, sa(current, 4, bare), time.Second},
		{"replaced anew", time.Second, sa(replaced, 5), 0},
		{"it ends its ESP SA", time.Second, sa(replaced, 5, bare), 0},
		{"and makes another", time.Second, sa(replaced, 5), 2 * time.Second},
	} {
		now = now.Add(step.after)
		x.observe(step.sas, now)
		if got := step.sas[0].seen; got != step.want {
			t.Errorf("%s: for %s, want %s", step.name, got, step.want)
		}
	}
}
