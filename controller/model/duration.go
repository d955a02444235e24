package model

import (
	"strconv"
	"strings"
	"time"
)

// Duration is a length of time as operators write it: a whole number and one
// unit, ms, s, m, h or d, such as 300ms, 90m or 30d. It keeps the spelling.
type Duration string

// maxDurationDigits keeps what is parsed within an int64 of nanoseconds.
const maxDurationDigits = 5

// Parse is the length of time, false where the text is none. A day has 24 hours.
func (d Duration) Parse() (time.Duration, bool) {
	digits := strings.TrimRight(string(d), "dhms")
	unit, known := map[string]time.Duration{
		"ms": time.Millisecond, "s": time.Second, "m": time.Minute, "h": time.Hour, "d": 24 * time.Hour,
	}[string(d)[len(digits):]]
	n, err := strconv.ParseUint(digits, 10, 32)
	if !known || err != nil || len(digits) > maxDurationDigits {
		return 0, false
	}
	return time.Duration(n) * unit, true
}

// duration reports a length of time that is set and outside its range; low and
// high are spelled as operators would.
func (c *checker) duration(k Key, field string, d, low, high Duration) {
	if d == "" {
		return
	}
	least, _ := low.Parse()
	most, _ := high.Parse()
	within := func(v time.Duration, ok bool) bool { return ok && v >= least && v <= most }
	if within(d.Parse()) {
		return
	}
	if seconds := d + "s"; within(seconds.Parse()) {
		c.add(k, field, string(d), "has no unit",
			string(seconds)+" for seconds, else the number with ms, m, h or d; "+string(low)+" to "+string(high))
		return
	}
	c.add(k, field, string(d), "is no time from "+string(low)+" to "+string(high),
		"a whole number with ms, s, m, h or d, such as "+string(low))
}
