package document

import (
	"cmp"
	"slices"
	"strconv"
	"strings"

	"github.com/circuitseal/circuitseal/controller/model"
)

// Text remembers where every field of every decoded document stands. The zero
// value remembers nothing. It is safe for concurrent readers.
type Text struct {
	sources   []string
	documents map[string]*positions
	// stopped is why the text was not read to its end, if it was not.
	stopped *model.Problem
}

// position is a line of a source.
type position struct {
	source string
	line   int
}

// positions are those of one document's fields; "" is the document itself.
type positions struct {
	source string
	lines  map[string]int
	// meant are fields that unknown ones were probably meant to be.
	meant map[string]bool
	// malformed are fields that could not be decoded, told or not.
	malformed map[string]bool
	// spelled are fields of text that have what YAML takes for something else, as it is
	// written. What validation says of one goes before what was told: where it is wrong
	// in quotation marks, too, these are no help.
	spelled map[string]bool
	// items are the lines of the items of a long list, whose fields are not in
	// lines.
	items []int32
}

// Locate fills Source and Line of problems that have a Document of this text
// and no Source yet. A field that is absent has the position of the nearest
// field around it that is present.
func (t *Text) Locate(problems []model.Problem) {
	for i := range problems {
		p := &problems[i]
		if p.Source != "" || p.Line != 0 {
			continue
		}
		where, ok := t.documents[p.Document]
		if !ok {
			continue
		}
		p.Source, p.Line = where.source, where.line(p.Field)
	}
}

// line is the line of a field, or of the nearest one around it.
func (p *positions) line(field string) int {
	for {
		if line, ok := p.lines[field]; ok {
			return line
		}
		if i, ok := longIndex(field); ok && i < len(p.items) {
			return int(p.items[i])
		}
		if field == "" {
			return 0
		}
		field = parent(field)
	}
}

// longIndex is the index of an item of a long list, by its path.
func longIndex(field string) (int, bool) {
	index, ok := strings.CutPrefix(field, longKey+"[")
	if !ok {
		return 0, false
	}
	i, err := strconv.Atoi(strings.TrimSuffix(index, "]"))
	return i, err == nil && i >= 0
}

// Told reports a field of a document, by its Key.String, of which Decode has said
// enough: it, or one around it, could not be decoded.
func (t *Text) Told(document, field string) bool {
	where, ok := t.documents[document]
	if !ok {
		return false
	}
	for f := field; f != ""; f = parent(f) {
		if where.meant[f] || where.malformed[f] {
			return true
		}
	}
	return false
}

// parent is the path around a field: spec.a[1] for spec.a[1].b, spec.a for
// spec.a[1], "" for spec.
func parent(field string) string {
	return field[:max(0, strings.LastIndexAny(field, ".["))]
}

// Merge joins what Decode and model.Validate found, located and in the order of
// the text; what is not in the text comes last. A field that could not be
// decoded has a zero value, so what validation says about it, or about what is
// in it, is left out. There are at most MaxProblems, which say how many more there
// are.
func (t *Text) Merge(decoded, validated []model.Problem) []model.Problem {
	type field struct{ document, path string }
	better := map[field]bool{}
	validated = slices.DeleteFunc(slices.Clone(validated), func(p model.Problem) bool { return t.Told(p.Document, p.Field) })
	for _, p := range validated {
		if at := t.documents[p.Document]; at != nil && at.spelled[p.Field] {
			better[field{p.Document, p.Field}] = true
		}
	}
	merged := slices.DeleteFunc(slices.Clone(decoded), func(p model.Problem) bool { return better[field{p.Document, p.Field}] })
	merged = append(merged, validated...)
	t.Locate(merged)
	t.sort(merged)
	return t.cut(merged)
}

// cut keeps MaxProblems, among them why the text was not read to its end.
func (t *Text) cut(all []model.Problem) []model.Problem {
	if len(all) <= MaxProblems {
		return all
	}
	kept, last := all[:MaxProblems], MaxProblems-1
	if t.stopped != nil {
		if i := slices.Index(all, *t.stopped); i > last {
			all[i], all[last] = all[last], all[i]
		}
	}
	for _, p := range all[MaxProblems:] {
		kept[last].LeftOut += 1 + p.LeftOut
	}
	return kept
}

// sort orders problems by source, as they were given, and line; those without a
// source come last.
func (t *Text) sort(problems []model.Problem) {
	order := make(map[string]int, len(t.sources))
	for i, s := range t.sources {
		if _, twice := order[s]; !twice {
			order[s] = i
		}
	}
	rank := func(p model.Problem) int {
		if i, ok := order[p.Source]; ok && p.Line > 0 {
			return i
		}
		return len(order)
	}
	slices.SortStableFunc(problems, func(a, b model.Problem) int {
		return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(a.Line, b.Line))
	})
}
