package main

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"
)

// tone is what a colour means.
type tone uint8

const (
	toneNone tone = iota
	toneHead
	toneGood
	toneWarn
	toneBad
)

// sequences are SGR parameters (ECMA-48, section 8.3.117).
var sequences = map[tone]string{toneHead: "1", toneGood: "32", toneWarn: "33", toneBad: "31"}

var colourModes = []string{"auto", "always", "never"}

// palette colours text, or leaves it as it is. The zero value has no colours.
type palette struct{ on bool }

// palette is that of a stream: colours on a terminal, unless somebody says
// otherwise (no-color.org).
func (o *options) palette(w io.Writer) palette {
	switch o.colour {
	case "always":
		return palette{true}
	case "never":
		return palette{}
	}
	return palette{o.getenv("NO_COLOR") == "" && o.getenv("TERM") != "dumb" && isTerminal(w)}
}

func (p palette) paint(t tone, s string) string {
	code, ok := sequences[t]
	if !p.on || !ok {
		return s
	}
	return "\x1b[" + code + "m" + s + "\x1b[0m"
}

// isTerminal reports a character device that is not the null device.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	if err != nil || info.Mode()&os.ModeCharDevice == 0 {
		return false
	}
	null, err := os.Stat(os.DevNull)
	return err != nil || !os.SameFile(info, null)
}

const (
	// clearScreen is home, and clear to the end (ECMA-48, sections 8.3.21 and 8.3.39).
	clearScreen = "\x1b[H\x1b[J"
	clearLine   = "\r\x1b[K"
)

// progress is one line on a terminal that says what takes long. On anything
// else it says nothing.
type progress struct {
	w    io.Writer
	mu   sync.Mutex
	text string
	stop chan struct{}
	done chan struct{}
}

// progressAfter is how long something takes before it is said.
const progressAfter = 300 * time.Millisecond

// startProgress begins to say text, with the seconds since; end is called once.
func startProgress(w io.Writer, text string) *progress {
	p := &progress{w: w, text: text, stop: make(chan struct{}), done: make(chan struct{})}
	if !isTerminal(w) {
		close(p.done)
		return p
	}
	go p.run()
	return p
}

func (p *progress) run() {
	defer close(p.done)
	began := time.Now()
	tick := time.NewTicker(progressAfter)
	defer tick.Stop()
	said := false
	for {
		select {
		case <-p.stop:
			if said {
				_, _ = io.WriteString(p.w, clearLine)
			}
			return
		case <-tick.C:
			p.mu.Lock()
			text := p.text
			p.mu.Unlock()
			_, _ = fmt.Fprintf(p.w, "%s%s (%s)", clearLine, line(text), time.Since(began).Round(time.Second))
			said = true
		}
	}
}

// say changes the text.
func (p *progress) say(format string, a ...any) {
	p.mu.Lock()
	p.text = fmt.Sprintf(format, a...)
	p.mu.Unlock()
}

// end takes the line away.
func (p *progress) end() {
	close(p.stop)
	<-p.done
}
