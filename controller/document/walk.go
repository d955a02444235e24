package document

import (
	"encoding"
	"fmt"
	"net/netip"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"sync"

	"go.yaml.in/yaml/v3"

	"github.com/circuitseal/circuitseal/controller/model"
)

var (
	nodeType   = reflect.TypeFor[*yaml.Node]()
	addrType   = reflect.TypeFor[netip.Addr]()
	prefixType = reflect.TypeFor[netip.Prefix]()
	stringType = reflect.TypeFor[string]()
	textType   = reflect.TypeFor[encoding.TextUnmarshaler]()
)

// shape is how a struct type reads: its fields by name, and all names.
type shape struct {
	fields map[string]int
	names  []string
}

// shapes are those of all types that were read, by reflect.Type.
var shapes sync.Map

func shapeOf(t reflect.Type) shape {
	if s, ok := shapes.Load(t); ok {
		return s.(shape)
	}
	s := shape{fields: map[string]int{}}
	for i := range t.NumField() {
		name := jsonName(t.Field(i))
		s.fields[name] = i
		s.names = append(s.names, name)
	}
	shapes.Store(t, s)
	return s
}

func jsonName(f reflect.StructField) string {
	name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
	return name
}

// value reads n into v and reports what does not fit. What cannot be read is
// left zero, so that lists keep their indices.
func (w *walker) value(n *yaml.Node, v reflect.Value, path string) {
	if v.Type() == nodeType {
		v.Set(reflect.ValueOf(n))
		return
	}
	if !w.plain(n, path) {
		return
	}
	switch {
	case v.Type() == addrType:
		if s, ok := w.scalar(n, path, "an address"); ok {
			w.addr(n, v, path, s)
		}
	case v.Type() == prefixType:
		if s, ok := w.scalar(n, path, "a prefix"); ok {
			w.prefix(n, v, path, s)
		}
	case reflect.PointerTo(v.Type()).Implements(textType):
		w.unmarshal(n, v, path)
	case v.Kind() == reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		w.value(n, v.Elem(), path)
	case v.Kind() == reflect.Struct:
		w.structure(n, v, path)
	case v.Kind() == reflect.Slice:
		w.list(n, v, path)
	case v.Kind() == reflect.Int:
		w.integer(n, v, path)
	case v.Kind() == reflect.Uint64:
		w.revision(n, v, path)
	case v.Kind() == reflect.Bool:
		w.boolean(n, v, path)
	case v.Kind() == reflect.String:
		w.text(n, v, path)
	default:
		// A reflection test shows that no spec has a field of another type.
		w.problem(n, path, n.Value, "cannot be set in a document", "leave it out")
	}
}

// plain refuses what a document may not use anywhere.
func (w *walker) plain(n *yaml.Node, path string) bool {
	switch {
	case n.Kind == yaml.AliasNode:
		w.problem(n, path, "*"+n.Value, "is an alias; documents spell everything out", "the value itself")
	case n.Anchor != "":
		w.problem(n, path, "&"+n.Anchor, "is an anchor; documents spell everything out", "leave the anchor out")
	case n.Style&yaml.TaggedStyle != 0:
		w.problem(n, path, n.Tag, "is a tag; the field decides the type", "leave the tag out")
	case n.Kind == yaml.ScalarNode && n.Tag == "!!null":
		w.problem(n, path, n.Value, "has no value", "a value, or leave the field out")
	default:
		return true
	}
	return false
}

// tooDeep finds a node that lies more than MaxDepth levels below n.
func tooDeep(n *yaml.Node, depth int) *yaml.Node {
	if depth > MaxDepth {
		return n
	}
	for _, child := range n.Content {
		if deep := tooDeep(child, depth+1); deep != nil {
			return deep
		}
	}
	return nil
}

// describe says what stands in the text.
func describe(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a group of fields"
	case yaml.SequenceNode:
		return "a list"
	case yaml.AliasNode:
		return "an alias"
	case yaml.ScalarNode, yaml.DocumentNode:
	}
	switch n.Tag {
	case "!!int":
		return "a whole number"
	case "!!float":
		return "a number that is not whole, or too large"
	case "!!bool":
		return "true or false"
	case "!!null":
		return "nothing"
	case "!!timestamp":
		return "a date"
	}
	return "text"
}

// shown is the value that a problem shows for a node.
func shown(n *yaml.Node) string {
	if n.Kind == yaml.ScalarNode {
		return n.Value
	}
	return ""
}

// wrongType reports a node of another type than its field's.
func (w *walker) wrongType(n *yaml.Node, path, want string) {
	hint := want
	switch {
	case want == "text" && n.Kind == yaml.ScalarNode:
		hint = "quotation marks: " + strconv.Quote(model.Shorten(n.Value))
	case want == "a list" && n.Kind == yaml.ScalarNode:
		hint = "a list: [" + model.Shorten(n.Value) + "]"
	}
	w.problem(n, path, shown(n), "is "+describe(n)+", not "+want, hint)
}

func (w *walker) structure(n *yaml.Node, v reflect.Value, path string) {
	if n.Kind != yaml.MappingNode {
		w.wrongType(n, path, "a group of fields")
		return
	}
	shape := shapeOf(v.Type())
	fields, names := shape.fields, shape.names
	first := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, value := n.Content[i], n.Content[i+1]
		if k.Kind != yaml.ScalarNode || k.Anchor != "" || k.Tag == "!!merge" {
			what := "is " + describe(k) + " where the name of a field should stand"
			if k.Tag == "!!merge" {
				what = "is a merge key; documents spell everything out"
			} else if k.Anchor != "" {
				what = "has an anchor; documents spell everything out"
			}
			w.problem(k, path, shown(k), what, "one of "+strings.Join(names, ", "))
			continue
		}
		index, ok := fields[k.Value]
		field := path + "." + k.Value
		if !ok || path == "" {
			field = join(path, k.Value)
		}
		if line, twice := first[k.Value]; twice {
			text := ""
			if ok {
				text = shown(value)
			}
			w.problem(k, field, text, fmt.Sprintf("stands in line %d as well", line), "each field once")
			continue
		}
		first[k.Value] = w.before + k.Line
		if !ok {
			w.unknown(k, path, field, names, n)
			continue
		}
		w.keep(field, k.Line)
		w.value(value, v.Field(index), field)
	}
}

// join is the path of a field in a structure. The names of unknown fields are
// foreign text.
func join(path, field string) string {
	if path == "" {
		return model.Shorten(field)
	}
	return path + "." + model.Shorten(field)
}

func (w *walker) unknown(k *yaml.Node, path, field string, names []string, parent *yaml.Node) {
	hint := "one of " + strings.Join(names, ", ")
	if near := model.Nearest(k.Value, names); near != "" {
		hint = "did you mean " + strconv.Quote(near) + "?"
		present := false
		for i := 0; i+1 < len(parent.Content); i += 2 {
			present = present || parent.Content[i].Value == near
		}
		if !present {
			w.at.meant[join(path, near)] = true
		}
	}
	w.problem(k, field, k.Value, "there is no such field", hint)
}

func (w *walker) list(n *yaml.Node, v reflect.Value, path string) {
	if n.Kind != yaml.SequenceNode {
		w.wrongType(n, path, "a list")
		return
	}
	v.Set(reflect.MakeSlice(v.Type(), len(n.Content), len(n.Content)))
	for i, item := range n.Content {
		field := path + "[" + strconv.Itoa(i) + "]"
		w.keep(field, item.Line)
		w.value(item, v.Index(i), field)
	}
}

// keep remembers the line of a field.
func (w *walker) keep(field string, line int) {
	if !w.brief {
		w.at.lines[field] = w.before + line
	}
}

func (w *walker) boolean(n *yaml.Node, v reflect.Value, path string) {
	if n.Kind != yaml.ScalarNode || n.Tag != "!!bool" || n.Value != "true" && n.Value != "false" {
		w.wrongType(n, path, "true or false")
		return
	}
	v.SetBool(n.Value == "true")
}

// revision reads a number of the store.
func (w *walker) revision(n *yaml.Node, v reflect.Value, path string) {
	i, err := strconv.ParseUint(n.Value, 10, 64)
	if n.Kind != yaml.ScalarNode || n.Tag != "!!int" || err != nil || i == 0 || strconv.FormatUint(i, 10) != n.Value {
		w.problem(n, path, shown(n), "is no revision of a document", "the number that came with the document, or leave it out")
		return
	}
	v.SetUint(i)
}

// unmarshal reads a value that has a spelling of its own, whatever YAML takes it
// for.
func (w *walker) unmarshal(n *yaml.Node, v reflect.Value, path string) {
	hint := "a value"
	if e, ok := reflect.TypeAssert[interface{ Example() string }](v); ok {
		hint = e.Example()
	}
	s, ok := w.scalar(n, path, hint)
	if !ok {
		return
	}
	if err := v.Addr().Interface().(encoding.TextUnmarshaler).UnmarshalText([]byte(s)); err != nil {
		w.problem(n, path, s, err.Error(), hint)
	}
}

func (w *walker) integer(n *yaml.Node, v reflect.Value, path string) {
	if n.Kind != yaml.ScalarNode || n.Tag != "!!int" {
		w.wrongType(n, path, "a whole number")
		return
	}
	i, err := strconv.Atoi(n.Value)
	if err != nil || strconv.Itoa(i) != n.Value {
		w.problem(n, path, n.Value, "is no plain decimal number, or too large a one", "digits only, such as 1000")
		return
	}
	v.SetInt(int64(i))
}

func (w *walker) text(n *yaml.Node, v reflect.Value, path string) {
	switch {
	case n.Kind == yaml.ScalarNode && n.Value != "" && v.Type() != stringType:
		// Who knows the words of this type says what would be right, quotation marks or
		// not.
		v.SetString(n.Value)
	case n.Kind != yaml.ScalarNode || n.Tag != "!!str":
		w.wrongType(n, path, "text")
		// What identifies a document is not tried out.
		if n.Kind == yaml.ScalarNode && strings.HasPrefix(path, "spec.") && w.at.malformed[path] {
			v.SetString(n.Value)
			delete(w.at.malformed, path)
			w.at.spelled[path] = true
		}
	case n.Value == "":
		w.problem(n, path, "", "is empty", "a value, or leave the field out")
	default:
		v.SetString(n.Value)
	}
}

// scalar is the text of an address or a prefix, whatever YAML takes it for.
func (w *walker) scalar(n *yaml.Node, path, want string) (string, bool) {
	if n.Kind != yaml.ScalarNode {
		w.wrongType(n, path, want)
		return "", false
	}
	return n.Value, true
}

func (w *walker) addr(n *yaml.Node, v reflect.Value, path, s string) {
	a, err := netip.ParseAddr(s)
	if err == nil {
		v.Set(reflect.ValueOf(a))
		return
	}
	hint := "an address such as 172.16.10.1"
	if p, err := netip.ParsePrefix(s); err == nil {
		w.problem(n, path, s, "is a prefix and no address", p.Addr().String())
		return
	}
	if a, err := netip.ParseAddr(unpadded(s)); err == nil {
		hint = a.String()
	}
	w.problem(n, path, s, "is no IP address", hint)
}

func (w *walker) prefix(n *yaml.Node, v reflect.Value, path, s string) {
	p, err := netip.ParsePrefix(s)
	if err == nil {
		v.Set(reflect.ValueOf(p))
		return
	}
	if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" {
		w.problem(n, path, s, "is an address without a prefix length", fmt.Sprintf("%s/%d for this address alone", a, a.BitLen()))
		return
	}
	address, length, _ := strings.Cut(s, "/")
	hint := "an address and a length such as 10.1.0.0/16"
	message := "is no prefix"
	if a, err := netip.ParseAddr(address); err == nil {
		message = "has no length that fits: "
		if bits, err := strconv.Atoi(length); err == nil && bits > a.BitLen() {
			message += fmt.Sprintf("an address of this family has %d bits", a.BitLen())
		} else {
			message += "it is a number of bits without sign or leading zeros"
		}
		hint = fmt.Sprintf("%s with a length of 0 to %d", a, a.BitLen())
	} else if p, err := netip.ParsePrefix(unpadded(s)); err == nil {
		hint = p.String()
	}
	w.problem(n, path, s, message, hint)
}

var padding = regexp.MustCompile(`(^|\.)0+(\d)`)

// unpadded takes the leading zeros out of an IPv4 address, which some programs
// take for octal and netip therefore refuses.
func unpadded(s string) string {
	if strings.Contains(s, ":") {
		return s
	}
	return padding.ReplaceAllString(s, "$1$2")
}
