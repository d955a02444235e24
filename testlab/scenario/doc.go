// Package scenario runs txtar scripts over the product's real binaries in a
// lab: each script builds what it needs, breaks something, and says what must
// hold. It knows the script language and the rig; what the product promises
// stands in the scripts, in testdata.
//
// The first lines of a script are comments that may hold, each on a line:
//
//	# fast                  runs in `make lab-ci` too; `fast: host`: on the host only
//	# needs: kernel-esp     skipped where the kernel lacks it
//	# limit: 15m            takes longer than the four minutes that one may take
//
// A script that starts a tap outside a control lab fails when the tap has
// counted anything at its end, whether the script asks or not.
package scenario

import (
	"bytes"
	"fmt"
	"io/fs"
	"path"
	"regexp"
	"strings"
	"time"

	"golang.org/x/tools/txtar"
)

// Scenario is one script.
type Scenario struct {
	Name string
	// Fast scenarios run in `make lab-ci`, on the host or in both labs.
	Fast Fast
	// Needs are facilities of the kernel; see Facilities.
	Needs []string
	// Limit is how long it may take on a usual machine.
	Limit   time.Duration
	archive *txtar.Archive
	// wrong is what is wrong with the script's head.
	wrong error
}

// Fast says where a scenario is among the fast ones.
type Fast int

// The places. What hardly depends on the kernel is fast on the host only.
const (
	Nowhere Fast = iota
	OnHost
	Everywhere
)

// Load reads all *.txtar of a directory, by name. What is wrong with one is told
// when that is chosen.
func Load(dir fs.FS) ([]Scenario, error) {
	files, err := fs.Glob(dir, "*.txtar")
	if err != nil {
		return nil, fmt.Errorf("list scenarios: %w", err)
	}
	var all []Scenario
	for _, f := range files {
		b, err := fs.ReadFile(dir, f)
		if err != nil {
			return nil, fmt.Errorf("read scenario: %w", err)
		}
		x, err := parse(strings.TrimSuffix(path.Base(f), ".txtar"), b)
		if err == nil {
			err = unknown(x.Needs)
		}
		if err != nil {
			x.wrong = fmt.Errorf("read scenario %s: %w", f, err)
		}
		all = append(all, x)
	}
	return all, nil
}

func parse(name string, text []byte) (Scenario, error) {
	s := Scenario{Name: name, Limit: limit, archive: txtar.Parse(text)}
	for line := range bytes.Lines(s.archive.Comment) {
		comment, ok := strings.CutPrefix(strings.TrimSpace(string(line)), "#")
		if !ok {
			break
		}
		comment = strings.TrimSpace(comment)
		key, value, _ := strings.Cut(comment, ":")
		switch {
		case comment == "fast":
			s.Fast = Everywhere
		case comment == "fast: host":
			s.Fast = OnHost
		case key == "needs":
			s.Needs = append(s.Needs, strings.Fields(value)...)
		case key == "limit":
			d, err := time.ParseDuration(strings.TrimSpace(value))
			if err != nil || d <= 0 {
				return s, fmt.Errorf("%q: want a time such as 15m", comment)
			}
			s.Limit = d
		case head.MatchString(comment):
			// Misspelt, it would be without effect for ever.
			return s, fmt.Errorf("%q: want `fast`, `fast: host`, `needs: FACILITY...` or `limit: 15m`", comment)
		}
	}
	return s, nil
}

// head is what looks like more than a comment.
var head = regexp.MustCompile(`^[a-z]+:`)
