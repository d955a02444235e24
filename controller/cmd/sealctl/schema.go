package main

import (
	_ "embed"
	"encoding/json"
	"strings"
	"sync"
)

// schemaJSON is what controller/schema says of documents; its go generate
// writes it.
//
//go:embed schema.json
var schemaJSON []byte

// schemaKind is one type of document.
type schemaKind struct {
	Kind     string        `json:"kind"`
	Customer bool          `json:"customer,omitempty"`
	Doc      string        `json:"doc"`
	Example  string        `json:"example,omitempty"`
	Fields   []schemaField `json:"fields"`
}

// schemaField is a field of a spec or of a group in it.
type schemaField struct {
	Name     string        `json:"name"`
	Type     string        `json:"type"`
	Doc      string        `json:"doc"`
	Required bool          `json:"required,omitempty"`
	Values   []string      `json:"values,omitempty"`
	Bounds   string        `json:"bounds,omitempty"`
	Default  string        `json:"default,omitempty"`
	RefersTo string        `json:"refersTo,omitempty"`
	Fields   []schemaField `json:"fields,omitempty"`
}

type schema struct {
	APIVersion string       `json:"apiVersion"`
	Kinds      []schemaKind `json:"kinds"`
}

// documents is the schema. A test decodes it strictly.
var documents = sync.OnceValue(func() schema {
	var s schema
	if err := json.Unmarshal(schemaJSON, &s); err != nil {
		panic("sealctl was built with a schema that it cannot read: " + err.Error())
	}
	return s
})

func kindNames() []string {
	var names []string
	for _, k := range documents().Kinds {
		names = append(names, k.Kind)
	}
	return names
}

// findKind finds a kind, as the controller does: any case, singular or plural.
func findKind(word string) (schemaKind, bool) {
	for _, k := range documents().Kinds {
		if strings.EqualFold(word, k.Kind) || strings.EqualFold(word, plural(k.Kind)) {
			return k, true
		}
	}
	return schemaKind{}, false
}

func plural(kind string) string {
	if stem, ok := strings.CutSuffix(kind, "y"); ok {
		return stem + "ies"
	}
	return kind + "s"
}
