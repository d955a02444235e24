package drift

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// pass is one pass of the drivers that puts these routes right.
func pass(l *Ledger, counting bool, routes ...string) (news bool) {
	l.Begin(counting)
	for _, t := range routes {
		l.Note(Route, Text(t))
	}
	return l.End()
}

func TestOnlyRepairsCount(t *testing.T) {
	l := New()
	pass(l, false, "route add a")
	if d := l.Drift(); len(d) != 0 {
		t.Errorf("what a new plan asks for was counted: %v", d)
	}
	pass(l, true, "route add a", "route add b")
	// Between two passes nobody repairs.
	l.Note(Rule, Text("rule add c"))
	d := l.Drift()
	if len(d) != 1 || d[0].What != "link/route" || d[0].Count != 2 || d[0].Detail != "route add b" || d[0].Last.IsZero() {
		t.Errorf("drift %+v, want two routes", d)
	}
	var none *Ledger
	none.Note(Route, Text("x"))
	none.Saw(Route, "x")
	if none.Contested() {
		t.Error("no ledger is contested")
	}
}

// Often within ten seconds is a conflict, as often in longer is not; it ends
// when nothing happens for half a minute.
func TestConflict(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New()
		for range 5 {
			if pass(l, true, "route add a") || l.Contested() {
				t.Fatal("once in six seconds is a conflict")
			}
			time.Sleep(6 * time.Second)
		}
		time.Sleep(over)
		for i := range often {
			if news := pass(l, true, "route add a", fmt.Sprint("route add ", i)); news != (i == often-1) {
				t.Errorf("repair %d: news %v", i, news)
			}
			time.Sleep(time.Second)
		}
		if !l.Contested() {
			t.Fatal("once in a second is no conflict")
		}
		c := l.Conflicts()
		if len(c) != 1 || !strings.Contains(c[0], "conflict over link/route: repaired 5 times within 10s, last by: route add a; nobody was seen at it; ") {
			t.Errorf("conflicts %q", c)
		}
		l.Saw(Route, "networkd (pid 7)")
		if c := l.Conflicts(); !strings.Contains(c[0], "seen at it: networkd (pid 7); ") {
			t.Errorf("conflicts %q", c)
		}
		// Damped repairs keep it alive.
		time.Sleep(3 * time.Second)
		pass(l, true, "route add a")
		if !l.Contested() {
			t.Error("a conflict ended while it went on")
		}
		time.Sleep(over + time.Second)
		if !pass(l, true) || l.Contested() || len(l.Conflicts()) != 0 {
			t.Error("a conflict does not end")
		}
	})
}

// Whoever breaks everything costs no memory, and is found all the same.
func TestManyThings(t *testing.T) {
	l := New()
	for range often {
		if l.Contested() {
			t.Error("many things that were repaired once or twice each are contested")
		}
		l.Begin(true)
		for i := range 3 * maxThings {
			l.Note(ClassifierMap, Text(fmt.Sprint("+ remote ", i)))
		}
		l.End()
	}
	if len(l.things) > maxThings+1 {
		t.Errorf("%d things are remembered", len(l.things))
	}
	if d := l.Drift(); d[0].Count != often*3*maxThings {
		t.Errorf("counted %d", d[0].Count)
	}
	if c := l.Conflicts(); len(c) != 1 || !strings.Contains(c[0], "conflict over classifier/map: repaired 5 times") {
		t.Errorf("conflicts %q", c)
	}
}

// Every kind has a word of advice and fits into a status.
func TestAdvice(t *testing.T) {
	for _, k := range []Kind{Namespace, Route, Sysctl, GuardProgram, GuardNFTables, TunnelDevice, SlowRule, ClassifierMap} {
		if a := advice(k); len(a) < 20 || len(a) > 300 {
			t.Errorf("%s: %q", k, a)
		}
	}
}
