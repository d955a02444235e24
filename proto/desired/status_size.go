package desired

import (
	"fmt"

	"google.golang.org/protobuf/proto"

	v1 "github.com/circuitseal/circuitseal/proto/circuitseal/v1"
)

// MaxStatus is how many bytes a status has on the wire at most: 1 MiB, with
// what a session's message has around it. ToWire keeps to it, and a controller
// takes that much.
const MaxStatus = 1<<20 - 64

// What is left of the texts of a status that does not fit.
const (
	shortProblem       = 256
	shortTunnelProblem = 64
)

// fit cuts a status to MaxStatus. What goes first is what operators miss least;
// what tunnels are and have counted goes last, and from the end.
func fit(w *v1.NodeStatus) {
	if proto.Size(w) <= MaxStatus {
		return
	}
	note := "the status did not fit into a message: texts are cut"
	w.Problems = append([]string{note}, most(w.GetProblems(), maxStatusProblems-1)...)
	problems := func(n int) {
		for _, t := range w.GetTunnels() {
			t.Problem = shorten(t.GetProblem(), n)
		}
	}
	for _, step := range []func(){
		func() {
			w.Problems = convert(w.GetProblems(), func(s string) string { return shorten(s, shortProblem) })
		},
		func() { problems(shortTunnelProblem) },
		func() { w.Counters, w.Problems[0] = nil, note+", counters are left out" },
		func() {
			for _, t := range w.GetTunnels() {
				t.Associations = nil
			}
		},
		func() { problems(0) },
	} {
		if step(); proto.Size(w) <= MaxStatus {
			return
		}
	}
	tunnels, guards := w.GetTunnels(), w.GetGuards()
	w.Tunnels, w.Guards = nil, nil
	// Reserved for the sentence, which gets longer.
	left := MaxStatus - proto.Size(w) - shortProblem
	w.Tunnels, left = prefix(tunnels, left)
	w.Guards, _ = prefix(guards, left)
	w.Problems[0] = fmt.Sprintf("%s, counters, %d tunnels and %d guard layers are left out", note, len(tunnels)-len(w.GetTunnels()), len(guards)-len(w.GetGuards()))
}

// prefix is as much of a list as fits into a number of bytes, and what is left
// of these.
func prefix[M proto.Message](list []M, left int) ([]M, int) {
	// A tag of one byte and a length of up to three.
	const around = 4
	for i, m := range list {
		size := proto.Size(m) + around
		if size > left {
			return list[:i], left
		}
		left -= size
	}
	return list, left
}
