// Package offline knows how long ago a node last heard of its controller,
// whatever its clocks are set to meanwhile, and which groups have to care. It
// keeps one small file. It refuses to know what a controller is and what is done
// about a group.
//
// Time within one boot is counted by CLOCK_BOOTTIME, which nobody can set and
// which runs on while the machine sleeps: a wall clock that jumps by ten years
// changes nothing. How long a machine was off nothing tells but the wall clock,
// so it is asked once for each boot, when the agent starts: forwards only, and
// never for less than the time since the boot. A clock that is slow then counts
// too little, by at most the time that the machine was off; one that is fast
// counts too much, which closes what may be closed.
package offline

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/circuitseal/circuitseal/agent/durable"
	"github.com/circuitseal/circuitseal/proto/desired"
)

const (
	file     = "last-contact"
	maxFile  = 4096
	saveEach = 10 * time.Minute
	// longest bounds what one boot's wall clock can add: more makes no difference.
	longest = desired.MaxOffline
)

// Now is what the host's clocks say.
type Now struct {
	// Boot names the boot that Since counts from.
	Boot  string
	Since time.Duration
	Wall  time.Time
}

// Host reads the clocks of this host.
func Host() (Now, error) {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return Now{}, fmt.Errorf("read which boot this is: %w", err)
	}
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		return Now{}, fmt.Errorf("read the time since boot: %w", err)
	}
	return Now{Boot: strings.TrimSpace(string(id)), Since: time.Duration(t.Nano()), Wall: time.Now().Round(0)}, nil
}

// record is what is kept: at that moment of that boot the last contact was so
// long ago.
type record struct {
	Boot  string        `json:"boot"`
	Since time.Duration `json:"sinceBootNanoseconds"`
	Wall  time.Time     `json:"wall"`
	Age   time.Duration `json:"ageNanoseconds"`
}

// at is the record as of now.
func (r record) at(now Now) record {
	passed := now.Since - r.Since
	if r.Boot != now.Boot || passed < 0 {
		// Sub saturates.
		passed = min(max(now.Wall.Sub(r.Wall), now.Since), longest)
	}
	return record{Boot: now.Boot, Since: now.Since, Wall: now.Wall, Age: min(r.Age+passed, longest)}
}

func parse(raw []byte) (record, error) {
	var r record
	if err := json.Unmarshal(raw, &r); err != nil {
		return record{}, err
	}
	if r.Boot == "" || r.Since < 0 || r.Age < 0 || r.Age > longest || r.Wall.IsZero() {
		return record{}, errors.New("a field is missing or out of range")
	}
	return r, nil
}

// Contact is the last contact of one node. Its methods may be called at once.
type Contact struct {
	path string
	now  func() (Now, error)

	mu   sync.Mutex
	last record
	// kept is what the file says.
	kept record
}

// Open reads when the node of that state directory was last in contact. Where no
// file says so, and with an error, it was when its last good state was issued, at
// the latest; a zero time is now. The error is for people: the Contact is good.
func Open(dir string, issued time.Time, now func() (Now, error)) (*Contact, error) {
	n, err := now()
	if err != nil {
		return nil, err
	}
	c := &Contact{path: filepath.Join(dir, file), now: now}
	raw, err := durable.ReadFile(c.path, maxFile, true)
	if err == nil {
		c.kept, err = parse(raw)
	}
	switch {
	case err == nil:
		c.last = c.kept.at(n)
		return c, c.save()
	case issued.IsZero():
		c.last = record{Boot: n.Boot, Since: n.Since, Wall: n.Wall}
	default:
		c.last = record{Wall: issued}.at(n)
	}
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	} else {
		err = fmt.Errorf("read %s: %w", c.path, err)
	}
	return c, errors.Join(err, c.save())
}

// Heard notes a contact at this moment. It keeps that now and then; an error is
// about the file.
func (c *Contact) Heard() error {
	n, err := c.now()
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last = record{Boot: n.Boot, Since: n.Since, Wall: n.Wall}
	// The first contact for long is kept at once.
	if c.kept.at(n).Age > 2*saveEach {
		return c.save()
	}
	return c.saveSometimes()
}

// Age is how long ago the last contact was. It keeps that now and then.
func (c *Contact) Age() (time.Duration, error) {
	n, err := c.now()
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil {
		return c.last.Age, err
	}
	c.last = c.last.at(n)
	return c.last.Age, c.saveSometimes()
}

func (c *Contact) saveSometimes() error {
	if c.kept.Boot == c.last.Boot && c.last.Since-c.kept.Since < saveEach {
		return nil
	}
	return c.save()
}

func (c *Contact) save() error {
	raw, err := json.Marshal(c.last)
	if err != nil {
		return err
	}
	// Whatever comes of it, the next try is not at once.
	c.kept = c.last
	if err := durable.WriteFile(c.path, append(raw, '\n'), 0o600); err != nil {
		return fmt.Errorf("keep the time of the last contact: %w", err)
	}
	return nil
}

// Overdue are the groups of a state that have been without their controller for
// longer than they may, and how long it takes until there are more; 0 is never.
func Overdue(s desired.State, age time.Duration) (groups []desired.Group, next time.Duration) {
	for _, section := range s.Sections {
		for _, g := range section.Groups {
			switch left := g.MaxOffline - age; {
			case g.MaxOffline == 0:
			case left < 0:
				groups = append(groups, g)
			case next == 0 || left < next:
				next = max(left, 1)
			}
		}
	}
	return groups, next
}
