package main

import (
	"strings"

	v1 "github.com/circuitseal/circuitseal/proto/circuitseal/v1"
)

// findings is everything wrong that a status tells of, nodes first. A connection
// repeats nothing of its nodes, and gives its advice once: one cause may well be
// behind everything.
func findings(s *v1.GetStatusResponse) []*v1.Finding {
	var all []*v1.Finding
	told := map[string]bool{}
	for _, n := range s.GetNodes() {
		told[n.GetNode()] = len(n.GetFindings()) > 0
		all = append(all, n.GetFindings()...)
	}
	for _, c := range s.GetConnections() {
		var last *v1.Finding
		for i, f := range c.GetFindings() {
			if aboutNode(c, i, told) {
				continue
			}
			if last != nil && last.GetNext() == f.GetNext() && last.GetSee() == f.GetSee() {
				last.Next, last.See = "", ""
			}
			last = &v1.Finding{What: f.GetWhat(), Next: f.GetNext(), See: f.GetSee()}
			all = append(all, last)
		}
	}
	return all
}

// aboutNode reports a connection's finding about a node of which it is told.
func aboutNode(c *v1.ConnectionReport, i int, told map[string]bool) bool {
	if i >= len(c.GetProblems()) {
		return false
	}
	word, rest, _ := strings.Cut(c.GetProblems()[i], " ")
	node, _, _ := strings.Cut(rest, " ")
	return word == "node" && told[node]
}

// writeFindings writes the section PROBLEMS where there are some. With deep, who
// reads has what shows more before them.
func writeFindings(b *strings.Builder, colours palette, all []*v1.Finding, deep bool) {
	if len(all) == 0 {
		return
	}
	b.WriteString("\n" + colours.paint(toneHead, "PROBLEMS") + "\n")
	for _, f := range all {
		b.WriteString(colours.paint(toneBad, line(f.GetWhat())) + "\n")
		var next []string
		for _, s := range []string{f.GetNext(), f.GetSee()} {
			if s != "" && (s != f.GetSee() || !deep) {
				next = append(next, s)
			}
		}
		if len(next) > 0 {
			b.WriteString("    next: " + line(strings.Join(next, "; ")) + "\n")
		}
	}
}
