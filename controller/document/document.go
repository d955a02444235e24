// Package document turns operators' text into the values of controller/model
// and back. It reads YAML, of which JSON is a part, strictly: what it does not
// know it refuses, with the line, the field and what would be right. It decides
// what can be read and not what makes sense: that is model.Validate. It knows
// no files, no wire and no store.
package document

import (
	"bytes"
	"fmt"
	"iter"
	"strings"
	"unicode/utf8"

	"github.com/circuitseal/circuitseal/controller/model"
)

// Limits of what one Decode takes. They bound memory and time for hostile text.
const (
	// MaxDocument is the size of one document in bytes, unless a list of rules
	// makes it longer.
	MaxDocument = 1 << 20
	// MaxTotal is the size of all documents up to MaxDocument together.
	MaxTotal = 4 << 20
	// MaxLong is the size of all longer documents together.
	MaxLong = 64 << 20
	// MaxDocuments is how many documents there may be in all sources.
	MaxDocuments = 10_000
	// MaxDepth is how deeply fields may nest.
	MaxDepth = 32
	// MaxProblems is how many problems are told at once; the last one says how
	// many more there are.
	MaxProblems = 1_000
)

// Source is text with any number of documents, separated by lines that begin
// with "---".
type Source struct {
	// Name is what problems call it: a file's path, or "-".
	Name string
	Text string
}

// Decode reads all documents of all sources. It never panics and goes on after
// a problem as far as it can; every problem has its source, line, field, value
// and hint, in the order of the text.
//
// Documents whose apiVersion, kind and metadata could be read are returned even
// when fields of their spec are malformed, with zero values there, so that
// model.Validate can look at them too; Text.Merge joins what both found.
// Duplicates of a document are reported and left out.
func Decode(sources []Source) (docs []model.Document, where *Text, problems []model.Problem) {
	d := &decoder{where: &Text{documents: map[string]*positions{}}, seen: map[model.Key]position{}, long: MaxDocument}
	d.decode(sources)
	return d.docs, d.where, d.problems
}

func (d *decoder) decode(sources []Source) {
	for _, s := range sources {
		d.where.sources = append(d.where.sources, s.Name)
		if !d.readable(s) {
			continue
		}
		for c := range split(s.Text) {
			if !d.room(s.Name, c) || d.full {
				break
			}
			d.chunk(s.Name, c)
		}
	}
	d.where.sort(d.problems)
}

// room counts a document's size and reports one that there is no room for.
func (d *decoder) room(source string, c chunk) bool {
	counted, most, what := &d.total, MaxTotal, "documents"
	if len(c.text) > d.long {
		counted, most, what = &d.totalLong, MaxLong, "long documents"
	}
	if *counted += len(c.text); *counted <= most {
		return true
	}
	if !d.full {
		d.stop(model.Problem{
			Source: source, Line: 1 + c.before, Value: fmt.Sprint(*counted),
			Message: fmt.Sprintf("all %s together have %d bytes or more; at most %d are read at once", what, *counted, most),
			Hint:    "several smaller applies",
		})
	}
	return false
}

// report keeps a problem, up to MaxProblems, and counts the rest.
func (d *decoder) report(p model.Problem) {
	if len(d.problems) < MaxProblems {
		d.problems = append(d.problems, p)
		return
	}
	d.problems[MaxProblems-1].LeftOut++
}

// stop ends the reading for a reason that is told whatever else is wrong.
func (d *decoder) stop(p model.Problem) {
	d.problems = append(d.problems, p)
	d.where.stopped, d.full = &p, true
}

// readable checks a source's characters.
func (d *decoder) readable(s Source) bool {
	bad := func(offset int, value, message, hint string) bool {
		d.report(model.Problem{
			Source: s.Name, Line: 1 + strings.Count(s.Text[:offset], "\n"),
			Value: model.Shorten(value), Message: message, Hint: hint,
		})
		return false
	}
	for i, r := range s.Text {
		switch {
		case r == utf8.RuneError:
			if _, n := utf8.DecodeRuneInString(s.Text[i:]); n == 1 {
				return bad(i, s.Text[i:i+1], "is no UTF-8", "text in UTF-8")
			}
		case r == '\t', r == '\n':
		case r == '\r':
			if !strings.HasPrefix(s.Text[i:], "\r\n") {
				return bad(i, "\r", "is a carriage return without a line feed, which some readers take for a line break and others do not", "line feeds")
			}
		case r < ' ' || r == 0x7f:
			return bad(i, string(r), "is a control character", "text without it")
		case r == 0x85 || r == 0x2028 || r == 0x2029:
			return bad(i, string(r), "is a character that some readers take for a line break and others do not", "line feeds")
		}
	}
	return true
}

// chunk is the text from one "---" line to the next, and the number of lines
// before it.
type chunk struct {
	text   string
	before int
}

// split cuts a source into its documents, so that one malformed document does
// not hide what is wrong with the next. A line that begins with "---" and white
// space ends a document wherever it stands (YAML 1.2, section 9.1.2).
func split(text string) iter.Seq[chunk] {
	return func(yield func(chunk) bool) {
		start, startLine, line := 0, 0, 0
		for at := 0; at < len(text); line++ {
			next := len(text)
			if i := strings.IndexByte(text[at:], '\n'); i >= 0 {
				next = at + i + 1
			}
			rest, marker := strings.CutPrefix(text[at:next], "---")
			if marker && at > start && (rest == "" || strings.ContainsAny(rest[:1], " \t\r\n")) {
				if !yield(chunk{text[start:at], startLine}) {
					return
				}
				start, startLine = at, line
			}
			at = next
		}
		yield(chunk{text[start:], startLine})
	}
}

// Encode writes a spec as canonical JSON: the fields in the order of their
// type, without white space or empty fields.
func Encode(s model.Spec) ([]byte, error) {
	var b bytes.Buffer
	if err := encode(&b, s); err != nil {
		return nil, fmt.Errorf("encode %s spec: %w", model.KindOf(s), err)
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

// DecodeSpec reads what Encode wrote. Unknown fields, trailing bytes and kinds
// that do not exist are errors.
func DecodeSpec(kind string, b []byte) (model.Spec, error) {
	s := model.NewSpec(model.Kind(kind))
	if s == nil {
		return nil, fmt.Errorf("decode spec: there is no kind %q", model.Shorten(kind))
	}
	if err := decode(b, s); err != nil {
		return nil, fmt.Errorf("decode %s spec: %w", kind, err)
	}
	return s, nil
}
