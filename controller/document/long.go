package document

import (
	"errors"
	"fmt"
	"io"
	"reflect"
	"strings"

	"go.yaml.in/yaml/v3"
)

// A long document is one whose spec has a list of rules that makes it longer
// than MaxDocument. A YAML parser would hold all of it as a tree that takes many
// times its text, so the list is read apart, some items at a time. That needs the
// list in the plain form in which most programs write it: "spec:" at the start of
// a line, "rules:" on a line by itself, and each item from a "- " on, all of them
// indented alike.

// longField is the list of a spec that may be long, and longKey its path.
const (
	longField = "rules"
	longKey   = "spec." + longField
	// batchSize is about how much text of a list is parsed at once.
	batchSize = 64 << 10
)

// longList is the list of a long document.
type longList struct {
	// lines are those of the items, first is the number of the first of them in
	// the chunk, from 0 on.
	text  string
	first int
	// key is the line of the field's name.
	key int
	// indent is how deep the items are.
	indent int
}

var errNotLong = errors.New("a document as long as this has to have its rules as a list with one \"- \" item after the other, indented alike, under a line \"rules:\" in \"spec:\"")

// cutLong takes the long list out of a document and leaves empty lines there, so
// that whatever follows keeps its line.
func cutLong(text string) (head string, list longList, err error) {
	var b strings.Builder
	inSpec, found, ended := false, false, false
	field := 0
	start, end := 0, 0
	line, offset := 0, 0
	for l := range strings.Lines(text) {
		body, indent := content(l)
		switch {
		case found && !ended && body != "" && (indent < list.indent || indent == list.indent && !isItem(body)):
			if indent > field {
				return "", list, errNotLong
			}
			ended, end = true, offset
			b.WriteString(l)
		case found && !ended:
			b.WriteString("\n")
		case !found && inSpec && indent > 0 && isKey(body, longField):
			// The first item says how deep the items are.
			at, next := nextContent(text[offset+len(l):])
			if !isItem(next) || at < indent {
				return "", list, errNotLong
			}
			found, field = true, indent
			list.key, list.first, list.indent = line, line+1, at
			start = offset + len(l)
			b.WriteString("\n")
		default:
			if body != "" && indent == 0 {
				inSpec = isKey(body, "spec")
			}
			b.WriteString(l)
		}
		line++
		offset += len(l)
	}
	if !found {
		return "", list, errNotLong
	}
	if !ended {
		end = len(text)
	}
	list.text = text[start:end]
	return b.String(), list, nil
}

// content is what stands in a line, without indentation and comments that fill
// the line, and how deep it stands.
func content(line string) (body string, indent int) {
	body = strings.TrimLeft(line, " ")
	indent = len(line) - len(body)
	if body = strings.TrimRight(body, " \r\n"); strings.HasPrefix(body, "#") {
		body = ""
	}
	return body, indent
}

// nextContent is the first line of a text that holds something.
func nextContent(text string) (indent int, body string) {
	for l := range strings.Lines(text) {
		if body, indent := content(l); body != "" {
			return indent, body
		}
	}
	return 0, ""
}

func isItem(body string) bool { return body == "-" || strings.HasPrefix(body, "- ") }

func isKey(body, key string) bool {
	rest, ok := strings.CutPrefix(body, key+":")
	rest = strings.TrimLeft(rest, " ")
	return ok && (rest == "" || rest[0] == '#')
}

// items reads a long list into the field of a spec.
func (w *walker) items(list longList, spec reflect.Value) {
	key := &yaml.Node{Line: list.key + 1}
	field := spec.FieldByNameFunc(func(name string) bool {
		f, _ := spec.Type().FieldByName(name)
		return jsonName(f) == longField
	})
	if !field.IsValid() || field.Kind() != reflect.Slice {
		w.problem(key, longKey, "", "there is no such field", "leave it out")
		return
	}
	if line := w.at.lines[longKey]; line > 0 {
		w.problem(key, longKey, "", fmt.Sprintf("stands in line %d as well", line), "each field once")
		return
	}
	w.at.lines[longKey] = w.before + list.key + 1
	w.brief = true
	defer func() { w.brief = false }()
	before := w.before
	defer func() { w.before = before }()
	first, line := list.first, list.first
	start, at := 0, 0
	for l := range strings.Lines(list.text) {
		body, indent := content(l)
		if at-start >= batchSize && indent == list.indent && isItem(body) {
			w.before = before + first
			if !w.batch(list.text[start:at], field) {
				return
			}
			start, first = at, line
		}
		at += len(l)
		line++
	}
	w.before = before + first
	w.batch(list.text[start:], field)
}

// batch reads some items of a list and appends them to a field. It is false
// where the rest is not worth reading.
func (w *walker) batch(text string, field reflect.Value) bool {
	if len(text) > MaxDocument {
		w.problem(&yaml.Node{Line: 1}, longKey, "", fmt.Sprintf("has an item of %d bytes; items have at most %d", len(text), MaxDocument), "shorter items")
		return false
	}
	r := yaml.NewDecoder(strings.NewReader(text))
	var root yaml.Node
	err := parse(r, &root)
	if err == nil {
		// Whatever else is there belongs to no item.
		if err = parse(r, &yaml.Node{}); errors.Is(err, io.EOF) {
			err = nil
		} else if err == nil {
			err = errors.New("there is more than a list")
		}
	}
	if err != nil {
		w.malformed(w.source, chunk{text: text, before: w.before}, err)
		return false
	}
	if len(root.Content) != 1 || root.Content[0].Kind != yaml.SequenceNode {
		w.problem(&root, longKey, "", "is no list", "a list")
		return false
	}
	if deep := tooDeep(&root, 1); deep != nil {
		w.problem(deep, longKey, "", fmt.Sprintf("lies deeper than %d levels", MaxDepth), "a flatter document")
		return false
	}
	for _, n := range root.Content[0].Content {
		item, i := reflect.New(field.Type().Elem()).Elem(), len(w.at.items)
		w.at.items = append(w.at.items, int32(w.before+n.Line))
		w.value(n, item, fmt.Sprintf("%s[%d]", longKey, i))
		// Items of what is refused anyway are counted and not kept: they may be
		// two bytes of text and hundreds in memory.
		if len(w.problems) < MaxProblems {
			field.Set(reflect.Append(field, item))
		}
	}
	return true
}
