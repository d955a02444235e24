package document

import (
	"errors"
	"fmt"
	"io"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/circuitseal/circuitseal/controller/model"
)

// decoder goes through all sources of one Decode.
type decoder struct {
	docs     []model.Document
	where    *Text
	problems []model.Problem
	// full is set when nothing more is read.
	full  bool
	seen  map[model.Key]position
	count int
	// long is from which size on a document is read as a long one; total and
	// totalLong are the sizes of what was read.
	long, total, totalLong int
}

// chunk reads the documents of a chunk, which is one unless "..." ends it early.
func (d *decoder) chunk(source string, c chunk) {
	var list *longList
	text := c.text
	if len(text) > d.long {
		head, found, err := cutLong(text)
		if err == nil && len(head)-strings.Count(head, "\n") > MaxDocument {
			err = errNotLong
		}
		if err != nil {
			d.report(model.Problem{
				Source: source, Line: c.before + 1,
				Message: fmt.Sprintf("the document has %d bytes; at most %d are read", len(text), MaxDocument),
				Hint:    "several smaller documents; " + err.Error(),
			})
			return
		}
		text, list = head, &found
	}
	r := yaml.NewDecoder(strings.NewReader(text))
	for !d.full {
		var root yaml.Node
		err := parse(r, &root)
		if errors.Is(err, io.EOF) {
			return
		}
		if d.count++; d.count > MaxDocuments {
			d.stop(model.Problem{
				Source: source, Line: c.before + max(1, root.Line), Value: strconv.Itoa(d.count),
				Message: fmt.Sprintf("there are more than %d documents, counting empty ones, and nothing is read from here on", MaxDocuments), Hint: "several smaller applies",
			})
			return
		}
		if err != nil {
			d.malformed(source, chunk{text, c.before}, err)
			return
		}
		if len(root.Content) == 0 || blank(root.Content[0]) {
			continue
		}
		w := &walker{decoder: d, source: source, before: c.before, at: &positions{source: source, lines: map[string]int{}, meant: map[string]bool{}, malformed: map[string]bool{}, spelled: map[string]bool{}}, apart: list}
		list = nil
		w.document(root.Content[0])
	}
}

// parse reads one document. The parser is foreign code and this is the edge
// where hostile text meets it, so that a panic in it ends the document only.
func parse(r *yaml.Decoder, root *yaml.Node) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("yaml: the parser gave up: %v", p)
		}
	}()
	return r.Decode(root)
}

// blank reports a document that holds nothing, such as a comment only.
func blank(n *yaml.Node) bool {
	return n.Kind == yaml.ScalarNode && n.Tag == "!!null" && n.Value == "" && n.Anchor == ""
}

// ofParser are the errors that the library's parser reports, not its scanner: fail in its
// decode.go adds one to the line of the latter only.
var ofParser = map[string]bool{
	"did not find expected ',' or ']'":       true,
	"did not find expected ',' or '}'":       true,
	"did not find expected '-' indicator":    true,
	"did not find expected key":              true,
	"did not find expected node content":     true,
	"did not find expected <document start>": true,
	"found undefined tag handle":             true,
	"found duplicate %YAML directive":        true,
	"found incompatible YAML document":       true,
	"found duplicate %TAG directive":         true,
}

var yamlLine = regexp.MustCompile(`^(?:line (\d+): )?(.*)$`)

// malformed reports text that is no YAML. It shows the line only where the text
// was meant for a document: anything else may be a secret.
func (d *decoder) malformed(source string, c chunk, err error) {
	text := strings.TrimPrefix(err.Error(), "yaml: ")
	m := yamlLine.FindStringSubmatch(strings.ReplaceAll(text, "\n", " "))
	line, _ := strconv.Atoi(m[1])
	if ofParser[m[2]] {
		// It counts lines from 0, and mostly means where the list or mapping begins.
		line++
	}
	// The parser may point behind the end.
	lines := strings.Split(strings.TrimSuffix(c.text, "\n"), "\n")
	line = min(max(line, 1), len(lines))
	value := ""
	if strings.Contains(c.text, "apiVersion") {
		value = model.Shorten(strings.TrimSpace(lines[line-1]))
	}
	d.report(model.Problem{
		Source: source, Line: c.before + line, Value: value,
		Message: "is no YAML that can be read: " + model.Shorten(m[2]),
		Hint:    "look at indentation, colons, brackets and quotation marks here and in the lines around",
	})
}

// walker reads one document.
type walker struct {
	*decoder
	source string
	before int
	at     *positions
	key    model.Key
	// early are problems found before the document's name was known.
	early []model.Problem
	named bool
	// apart is what was taken out of a long document, if it is one.
	apart *longList
	// brief is set while its items are read: their fields' lines are not kept.
	brief bool
}

// problem reports what is wrong with a field; n says where.
func (w *walker) problem(n *yaml.Node, field, value, message, hint string) {
	p := model.Problem{
		Source: w.source, Line: w.before + max(1, n.Line), Field: field,
		Value: model.Shorten(value), Message: message, Hint: hint,
	}
	// What of a long list is only counted is not validated either.
	if field != "" && (!w.brief || len(w.problems) < MaxProblems) {
		w.at.malformed[field] = true
	}
	if !w.named {
		w.early = append(w.early, p)
		return
	}
	p.Document = w.label()
	w.report(p)
}

// label is the document's key, as far as it could be read.
func (w *walker) label() string {
	if w.key.Name == "" {
		return model.Shorten(string(w.key.Kind))
	}
	return w.key.String()
}

// name ends the time in which the document's name was not known.
func (w *walker) name() {
	w.named = true
	for _, p := range w.early {
		p.Document = w.label()
		w.report(p)
	}
	w.early = nil
}

// header is everything of a document but its spec.
type header struct {
	APIVersion string     `json:"apiVersion"`
	Kind       model.Kind `json:"kind"`
	Metadata   metadata   `json:"metadata"`
	Spec       *yaml.Node `json:"spec"`
}

type metadata struct {
	Name     string `json:"name"`
	Customer string `json:"customer"`
	Revision uint64 `json:"revision"`
}

// document reads one document and keeps it if it can be told from others.
func (w *walker) document(root *yaml.Node) {
	var h header
	w.at.lines[""] = w.before + max(1, root.Line)
	whole := root.Kind == yaml.MappingNode
	if deep := tooDeep(root, 1); deep != nil {
		whole = false
		w.problem(deep, "", "", fmt.Sprintf("lies deeper than %d levels", MaxDepth), "a flatter document")
	} else if whole {
		w.value(root, reflect.ValueOf(&h).Elem(), "")
	} else {
		// Without the text: it may be a key or a token that was named by mistake.
		w.problem(root, "", "", "is "+describe(root)+" and no document", "apiVersion, kind, metadata and spec")
	}
	w.key = model.Key{Kind: h.Kind, Customer: h.Metadata.Customer, Name: h.Metadata.Name}
	if whole {
		whole = w.header(h)
	}
	if whole && h.Spec == nil {
		w.required("spec", "what the "+string(h.Kind)+" should be")
	}
	w.name()
	if _, taken := w.where.documents[w.label()]; !taken {
		w.where.documents[w.label()] = w.at
	}
	spec := model.NewSpec(h.Kind)
	if spec == nil {
		return
	}
	if h.Spec == nil {
		spec = nil
	} else {
		w.value(h.Spec, reflect.ValueOf(spec).Elem(), "spec")
		if w.apart != nil {
			w.items(*w.apart, reflect.ValueOf(spec).Elem())
		}
	}
	if !whole {
		return
	}
	here := position{w.source, w.at.lines[""]}
	if first, ok := w.seen[w.key]; ok {
		w.problem(root, "metadata.name", w.key.Name,
			fmt.Sprintf("%s stands in %s line %d as well", w.key, first.source, first.line), "each document once")
		return
	}
	w.seen[w.key] = here
	w.docs = append(w.docs, model.Document{Key: w.key, Spec: spec, Base: h.Metadata.Revision})
}

// header checks what identifies a document, and reports whether it does.
func (w *walker) header(h header) bool {
	switch h.APIVersion {
	case model.APIVersion:
	case "":
		w.required("apiVersion", model.APIVersion)
	default:
		w.problemAt("apiVersion", h.APIVersion, "is no version that this controller reads", model.APIVersion)
	}
	var kinds []string
	for _, k := range model.Kinds() {
		kinds = append(kinds, string(k))
	}
	if h.Kind == "" {
		w.required("kind", "one of "+strings.Join(kinds, ", "))
		return false
	}
	if !slices.Contains(kinds, string(h.Kind)) {
		hint := "one of " + strings.Join(kinds, ", ")
		if near := model.Nearest(string(h.Kind), kinds); near != "" {
			hint = "did you mean " + strconv.Quote(near) + "?"
		}
		w.problemAt("kind", string(h.Kind), "there is no such kind", hint)
		return false
	}
	ok := true
	if h.Metadata.Name == "" {
		ok = false
		w.required("metadata.name", "a name of a-z, 0-9 and -")
	}
	switch {
	case h.Kind.HasCustomer() && h.Metadata.Customer == "":
		ok = false
		w.required("metadata.customer", "the customer that the "+string(h.Kind)+" belongs to")
	case !h.Kind.HasCustomer() && w.at.lines["metadata.customer"] > 0:
		w.problemAt("metadata.customer", h.Metadata.Customer, "documents of kind "+string(h.Kind)+" belong to the provider and have no customer", "leave it out")
		w.key.Customer = ""
	}
	return ok
}

// required reports a missing field, unless what stands there, or in its place,
// was reported.
func (w *walker) required(field, hint string) {
	for f := field; f != ""; f = parent(f) {
		if w.at.meant[f] || slices.ContainsFunc(w.early, func(p model.Problem) bool { return p.Field == f }) {
			return
		}
	}
	w.problemAt(field, "", "is required", hint)
}

// problemAt reports a field at its own line, or that of the nearest around it.
func (w *walker) problemAt(field, value, message, hint string) {
	w.problem(&yaml.Node{Line: w.at.line(field) - w.before}, field, value, message, hint)
}
