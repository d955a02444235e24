package scenario

import (
	"fmt"
	"slices"
	"strings"
)

// Matrix is a Markdown table of results: a row for each scenario, a column for
// each kernel, the oldest last. Of several results for one place the last
// counts. What it says depends on nothing else, so that the same results are
// the same text.
func Matrix(results []Result) string {
	type place struct{ scenario, kernel string }
	cells := map[place]string{}
	var names, kernels []string
	for _, r := range results {
		kernel := line(r.Kernel)
		cells[place{r.Scenario, kernel}] = cell(r)
		if !slices.Contains(names, r.Scenario) {
			names = append(names, r.Scenario)
		}
		if !slices.Contains(kernels, kernel) {
			kernels = append(kernels, kernel)
		}
	}
	slices.Sort(names)
	slices.SortFunc(kernels, func(a, b string) int { return -compareLines(a, b) })
	var b strings.Builder
	fmt.Fprintf(&b, "| |%s\n|---%s|\n", columns(kernels, func(k string) string { return " " + k + " |" }),
		strings.Repeat("|---", len(kernels)))
	for _, n := range names {
		fmt.Fprintf(&b, "| `%s` |%s\n", n, columns(kernels, func(k string) string {
			if c := cells[place{n, k}]; c != "" {
				return " " + c + " |"
			}
			return " not run |"
		}))
	}
	return b.String()
}

func columns(kernels []string, f func(string) string) string {
	var b strings.Builder
	for _, k := range kernels {
		b.WriteString(f(k))
	}
	return b.String()
}

// cell says what came out, what encrypted, and what the tap made of it.
func cell(r Result) string {
	words := []string{r.Result}
	for _, b := range r.Backends {
		words = append(words, strings.TrimPrefix(b, "wireguard-"))
	}
	if r.FramesInClear != nil {
		words = append(words, fmt.Sprintf("%d in clear", *r.FramesInClear))
	}
	if r.Result == Skip {
		words = []string{"no " + strings.Join(r.Lacks, ", ")}
	}
	return strings.Join(words, ", ")
}

// line is the first two numbers of a release: "6.12.117+deb12-amd64" is 6.12.
func line(release string) string {
	parts := strings.SplitN(release, ".", 3)
	if len(parts) < 3 {
		return release
	}
	return parts[0] + "." + parts[1]
}

func compareLines(a, b string) int {
	numbers := func(s string) (major, minor int) {
		if n, err := fmt.Sscanf(s, "%d.%d", &major, &minor); err != nil || n != 2 {
			return 0, 0
		}
		return major, minor
	}
	majorA, minorA := numbers(a)
	majorB, minorB := numbers(b)
	if majorA != majorB {
		return majorA - majorB
	}
	return minorA - minorB
}
