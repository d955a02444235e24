package tap

import (
	"encoding/hex"
	"maps"
	"time"
)

// Limits of what a summary keeps.
const (
	maxExamples    = 8
	exampleBytes   = 96
	maxProblemText = 256
)

// Summary is what the tap has seen since it started.
type Summary struct {
	// Valid is false when frames were lost or an interface could not be read:
	// then a count of 0 proves nothing.
	Valid   bool   `json:"valid"`
	Frames  uint64 `json:"frames"`
	InClear uint64 `json:"inClear"`
	// Canaries are the frames in clear that held the canary.
	Canaries uint64 `json:"canaries"`
	// Drops are frames that the kernel could not hand over.
	Drops      uint64             `json:"drops"`
	Interfaces []InterfaceSummary `json:"interfaces"`
}

// InterfaceSummary is one interface's part.
type InterfaceSummary struct {
	Label    string          `json:"label"`
	Frames   uint64          `json:"frames"`
	Bytes    uint64          `json:"bytes"`
	Allowed  map[Kind]uint64 `json:"allowed"`
	InClear  uint64          `json:"inClear"`
	ByKind   map[Kind]uint64 `json:"inClearByKind"`
	Canaries uint64          `json:"canaries"`
	Drops    uint64          `json:"drops"`
	// Examples are the first frames in clear.
	Examples []Example `json:"examples,omitempty"`
	// Problem says why the interface could not be read; empty when it could.
	Problem string `json:"problem,omitempty"`
}

// Example is a frame in clear.
type Example struct {
	Time time.Time `json:"time"`
	// Outgoing is as seen from the provider's machine.
	Outgoing bool   `json:"outgoing"`
	Reason   string `json:"reason"`
	Length   int    `json:"length"`
	// Header is the start of the frame in hexadecimal.
	Header string `json:"header"`
}

func newInterfaceSummary(label string) InterfaceSummary {
	return InterfaceSummary{Label: label, Allowed: make(map[Kind]uint64), ByKind: make(map[Kind]uint64)}
}

// count adds one frame.
func (s *InterfaceSummary) count(frame []byte, v Verdict, at time.Time, outgoing bool) {
	s.Frames++
	s.Bytes += uint64(len(frame))
	if v.Clear == "" {
		s.Allowed[v.Kind]++
		return
	}
	s.InClear++
	s.ByKind[v.Kind]++
	if v.Canary {
		s.Canaries++
	}
	if len(s.Examples) < maxExamples {
		s.Examples = append(s.Examples, Example{Time: at, Outgoing: outgoing, Reason: v.Clear, Length: len(frame),
			Header: hex.EncodeToString(frame[:min(len(frame), exampleBytes)])})
	}
}

func (s *InterfaceSummary) clone() InterfaceSummary {
	c := *s
	c.Allowed, c.ByKind = maps.Clone(s.Allowed), maps.Clone(s.ByKind)
	c.Examples = append([]Example(nil), s.Examples...)
	return c
}

func (s *InterfaceSummary) fail(err error) {
	if s.Problem == "" {
		s.Problem = err.Error()
		s.Problem = s.Problem[:min(len(s.Problem), maxProblemText)]
	}
}

// total adds the interfaces up.
func total(parts []InterfaceSummary) Summary {
	s := Summary{Valid: true, Interfaces: parts}
	for _, p := range parts {
		s.Frames += p.Frames
		s.InClear += p.InClear
		s.Canaries += p.Canaries
		s.Drops += p.Drops
		s.Valid = s.Valid && p.Drops == 0 && p.Problem == ""
	}
	return s
}
