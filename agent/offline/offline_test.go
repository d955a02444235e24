package offline

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/circuitseal/circuitseal/proto/desired"
)

const day = 24 * time.Hour

var began = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// host is a machine whose clocks a test moves.
type host struct {
	now  Now
	fail error
}

func newHost() *host { return &host{now: Now{Boot: "one", Since: time.Hour, Wall: began}} }

func (h *host) clocks() (Now, error) { return h.now, h.fail }

// pass lets time go by.
func (h *host) pass(d time.Duration) {
	h.now.Since += d
	h.now.Wall = h.now.Wall.Add(d)
}

// reboot takes off of nothing but the wall clock.
func (h *host) reboot(boot string, off time.Duration) {
	h.now = Now{Boot: boot, Since: time.Second, Wall: h.now.Wall.Add(off)}
}

func (h *host) open(t *testing.T, dir string, issued time.Time) *Contact {
	t.Helper()
	c, err := Open(dir, issued, h.clocks)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func wantAge(t *testing.T, c *Contact, low, high time.Duration) {
	t.Helper()
	if age, err := c.Age(); err != nil || age < low || age > high {
		t.Errorf("age %s, %v; want %s to %s", age, err, low, high)
	}
}

func TestClockJumpsDoNotMatter(t *testing.T) {
	h, dir := newHost(), t.TempDir()
	c := h.open(t, dir, time.Time{})
	if err := c.Heard(); err != nil {
		t.Fatal(err)
	}
	for _, jump := range []time.Duration{3650 * day, -7300 * day, 3650 * day} {
		h.now.Wall = h.now.Wall.Add(jump)
		wantAge(t, c, 0, 0)
		// Nor does a restart of the agent make them matter.
		c = h.open(t, dir, time.Time{})
		wantAge(t, c, 0, 0)
	}
	h.pass(30 * day)
	wantAge(t, c, 30*day, 30*day)
	wantAge(t, h.open(t, dir, time.Time{}), 30*day, 30*day)
}

func TestReboots(t *testing.T) {
	h, dir := newHost(), t.TempDir()
	if err := h.open(t, dir, time.Time{}).Heard(); err != nil {
		t.Fatal(err)
	}
	h.pass(10 * day)
	wantAge(t, h.open(t, dir, time.Time{}), 10*day, 10*day)

	h.reboot("two", 20*day)
	c := h.open(t, dir, time.Time{})
	wantAge(t, c, 30*day, 30*day)
	// Asked once: what NTP makes of the clock later on changes nothing.
	h.now.Wall = h.now.Wall.Add(3650 * day)
	wantAge(t, c, 30*day, 30*day)
	wantAge(t, h.open(t, dir, time.Time{}), 30*day, 30*day)

	// A clock that starts in the past makes nothing younger, and the time since
	// that boot counts.
	h.reboot("three", -9000*day)
	h.now.Since = time.Hour
	wantAge(t, h.open(t, dir, time.Time{}), 30*day+time.Hour, 30*day+time.Hour)

	// One that starts in the far future ends at the longest that anybody asks for.
	h.reboot("four", 100_000*day)
	c = h.open(t, dir, time.Time{})
	wantAge(t, c, longest, longest)
	if err := c.Heard(); err != nil {
		t.Fatal(err)
	}
	wantAge(t, h.open(t, dir, time.Time{}), 0, 0)
}

// A node with a state and without a file, or with one that cannot be read, goes by the
// time at which its state was issued.
func TestWithoutAFile(t *testing.T) {
	h := newHost()
	wantAge(t, h.open(t, t.TempDir(), began.Add(-7*day)), 7*day, 7*day)
	wantAge(t, h.open(t, t.TempDir(), began.Add(7*day)), 0, time.Hour)

	dir := t.TempDir()
	if err := h.open(t, dir, time.Time{}).Heard(); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(filepath.Join(dir, file))
	if err != nil {
		t.Fatal(err)
	}
	// Without the newline at its end it is whole.
	for n := range len(whole) - 1 {
		if err := os.WriteFile(filepath.Join(dir, file), whole[:n], 0o600); err != nil {
			t.Fatal(err)
		}
		c, err := Open(dir, began.Add(-7*day), h.clocks)
		if err == nil || c == nil {
			t.Fatalf("cut at byte %d of %d: %v", n, len(whole), err)
		}
		wantAge(t, c, 7*day, 7*day)
	}
}

// What is not kept is at most some minutes, and the disk is left alone.
func TestKeptNowAndThen(t *testing.T) {
	h, dir := newHost(), t.TempDir()
	c := h.open(t, dir, time.Time{})
	writes, last := 0, time.Time{}
	for range 24 * 720 {
		h.pass(5 * time.Second)
		if err := c.Heard(); err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(filepath.Join(dir, file))
		if err != nil {
			t.Fatal(err)
		}
		if !info.ModTime().Equal(last) {
			writes, last = writes+1, info.ModTime()
		}
	}
	if writes > 24*7 {
		t.Errorf("%d writes in a day", writes)
	}
	wantAge(t, h.open(t, dir, time.Time{}), 0, saveEach)
}

func TestClocksThatCannotBeRead(t *testing.T) {
	h := newHost()
	c := h.open(t, t.TempDir(), began.Add(-day))
	h.fail = errors.New("no clock")
	if age, err := c.Age(); err == nil || age != day {
		t.Errorf("age %s, %v", age, err)
	}
	if err := c.Heard(); err == nil {
		t.Error("no error")
	}
	if _, err := Open(t.TempDir(), began, h.clocks); err == nil {
		t.Error("opened without a clock")
	}
	if n, err := Host(); err != nil || n.Boot == "" || n.Since <= 0 || n.Wall.IsZero() {
		t.Errorf("this host: %+v, %v", n, err)
	}
}

func TestOverdue(t *testing.T) {
	s := desired.State{Sections: []desired.Section{{Groups: []desired.Group{
		{ID: "c/for-ever"},
		{ID: "c/day", MaxOffline: day, OfflineAction: desired.OfflineClose},
	}}, {Groups: []desired.Group{{ID: "d/week", MaxOffline: 7 * day, OfflineAction: desired.OfflineContinue}}}}}
	for _, tt := range []struct {
		age, next time.Duration
		groups    int
	}{{0, day, 0}, {day, 1, 0}, {day + 1, 6*day - 1, 1}, {8 * day, 0, 2}} {
		groups, next := Overdue(s, tt.age)
		if len(groups) != tt.groups || next != tt.next {
			t.Errorf("after %s: %d groups, next in %s; want %d, %s", tt.age, len(groups), next, tt.groups, tt.next)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"boot":"one","sinceBootNanoseconds":1,"wall":"2026-01-01T00:00:00Z","ageNanoseconds":2}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		r, err := parse(raw)
		if err != nil {
			return
		}
		for _, now := range []Now{{"one", time.Hour, began}, {"two", 0, time.Time{}}, {"one", 1 << 62, began.Add(1 << 62)}} {
			if age := r.at(now).Age; age < 0 || age > longest {
				t.Errorf("age %s of %+v at %+v", age, r, now)
			}
		}
	})
}
