// Package schema says to their writers what documents look like: every kind and
// every field with its type, meaning, default and bounds. All of that is read
// from the Go types of controller/model and their comments, so that a kind or a
// field that is added there appears here by itself. It knows neither what makes
// documents valid nor how they are shown; what it writes is committed, for
// sealctl, which does not import the controller, and for docs/documents.md.
package schema

import (
	"encoding"
	"fmt"
	"net/netip"
	"reflect"
	"strings"

	"github.com/circuitseal/circuitseal/controller/model"
)

//go:generate go run ./generate

// Schema is all kinds, in the order in which documents are best read.
type Schema struct {
	APIVersion string `json:"apiVersion"`
	Kinds      []Kind `json:"kinds"`
}

// Kind is one type of document.
type Kind struct {
	Kind string `json:"kind"`
	// Customer says whether its documents belong to a customer.
	Customer bool   `json:"customer,omitempty"`
	Doc      string `json:"doc"`
	// Example is a document of the samples, empty where they have none.
	Example string `json:"example,omitempty"`
	// Fields are those of spec.
	Fields []Field `json:"fields"`
}

// Field is one field of a document.
type Field struct {
	Name string `json:"name"`
	// Type is such as "text" or "list of prefixes".
	Type     string `json:"type"`
	Doc      string `json:"doc"`
	Required bool   `json:"required,omitempty"`
	// Values are all that may stand there, where they are few.
	Values  []string `json:"values,omitempty"`
	Bounds  string   `json:"bounds,omitempty"`
	Default string   `json:"default,omitempty"`
	// RefersTo is the kind that a name in this field is of. The document belongs
	// to the customer that a field "customer" beside it names, else to the
	// customer of the document that has the field.
	RefersTo string `json:"refersTo,omitempty"`
	// Fields are those of a group, or of each group of a list.
	Fields []Field `json:"fields,omitempty"`
}

// Build reads the schema from the comments of the Go package in the directory
// source, which is controller/model, and examples from the documents of samples.
func Build(source string, samples []string) (*Schema, error) {
	c, err := readComments(source)
	if err != nil {
		return nil, fmt.Errorf("read comments of %s: %w", source, err)
	}
	examples := examplesOf(samples)
	s := &Schema{APIVersion: model.APIVersion}
	for _, k := range model.Kinds() {
		t := reflect.TypeOf(model.NewSpec(k)).Elem()
		fields, err := c.fields(t, 0)
		if err != nil {
			return nil, fmt.Errorf("kind %s: %w", k, err)
		}
		s.Kinds = append(s.Kinds, Kind{
			Kind: string(k), Customer: k.HasCustomer(), Doc: strings.ReplaceAll(c.types[t.Name()], t.Name(), string(k)),
			Example: examples[string(k)], Fields: fields,
		})
	}
	return s, nil
}

// maxDepth ends types that hold themselves.
const maxDepth = 16

func (c *comments) fields(t reflect.Type, depth int) ([]Field, error) {
	if depth > maxDepth {
		return nil, fmt.Errorf("%s nests more than %d levels", t, maxDepth)
	}
	var all []Field
	for f := range t.Fields() {
		name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name == "" || name == "-" {
			return nil, fmt.Errorf("%s.%s has no name in documents", t.Name(), f.Name)
		}
		text := c.fieldDoc(t.Name(), f.Name, name)
		typ, leaf := typeOf(f.Type)
		field := Field{
			Name: name, Type: typ, Doc: text, Required: options == "",
			Values: c.values[leaf.Name()], RefersTo: refersTo(t.Name(), name, leaf),
		}
		if leaf.Kind() != reflect.Struct || isText(leaf) {
			field.Bounds, field.Default = bounds(text), defaultOf(text)
		}
		if more := c.notes[leaf.Name()]; more != "" {
			field.Doc += " " + more
		}
		if leaf.Kind() == reflect.Struct && !isText(leaf) {
			var err error
			if field.Fields, err = c.fields(leaf, depth+1); err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
		}
		all = append(all, field)
	}
	return all, nil
}

// typeOf is the name of a type for people, and the type of what is in it: of a
// list's items, say.
func typeOf(t reflect.Type) (string, reflect.Type) {
	switch {
	case t.Kind() == reflect.Pointer:
		return typeOf(t.Elem())
	case t == reflect.TypeFor[netip.Addr]():
		return "address", t
	case t == reflect.TypeFor[netip.Prefix]():
		return "prefix", t
	case t.Kind() == reflect.Slice:
		_, leaf := typeOf(t.Elem())
		return "list of " + plural(t.Elem()), leaf
	case isText(t):
		return "text", t
	case t.Kind() == reflect.Struct:
		return "group of fields", t
	case t.Kind() == reflect.Bool:
		return "true or false", t
	case t.Kind() == reflect.Int:
		return "whole number", t
	}
	return "text", t
}

func plural(t reflect.Type) string {
	name, leaf := typeOf(t)
	switch {
	case leaf == reflect.TypeFor[netip.Addr]():
		return "addresses"
	case leaf == reflect.TypeFor[netip.Prefix]():
		return "prefixes"
	case name == "group of fields":
		return "groups of fields"
	case name == "whole number":
		return "whole numbers"
	case name == "text":
		return "texts"
	}
	return name
}

// isText reports a structure that stands in documents as text.
func isText(t reflect.Type) bool {
	p := reflect.PointerTo(t)
	return t.Kind() == reflect.Struct && (p.Implements(reflect.TypeFor[encoding.TextUnmarshaler]()) || p.Implements(reflect.TypeFor[encoding.TextMarshaler]()))
}
