package preview

import (
	"cmp"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/circuitseal/circuitseal/controller/model"
)

// Action is what happens to a document, a node or a part of one.
type Action uint8

// The actions. The zero value is none.
const (
	Created Action = iota + 1
	Changed
	Deleted
)

// String is a word.
func (a Action) String() string {
	switch a {
	case Created:
		return "created"
	case Changed:
		return "changed"
	case Deleted:
		return "deleted"
	}
	return "none"
}

// Document is a document that is not what it was.
type Document struct {
	Key    model.Key
	Action Action
	// Fields are what is another one, in the order of the document.
	Fields []Field
}

// Documents compares two sets of documents, in the order in which documents are
// best read.
func Documents(before, after map[model.Key]model.Document) []Document {
	keys := map[model.Key]bool{}
	for k := range before {
		keys[k] = true
	}
	for k := range after {
		keys[k] = true
	}
	kinds := model.Kinds()
	order := slices.SortedFunc(maps.Keys(keys), func(a, b model.Key) int {
		return cmp.Or(cmp.Compare(slices.Index(kinds, a.Kind), slices.Index(kinds, b.Kind)), cmp.Compare(a.Customer, b.Customer), cmp.Compare(a.Name, b.Name))
	})
	var changes []Document
	for _, k := range order {
		old, had := before[k]
		now, has := after[k]
		c := Document{Key: k, Action: Changed}
		switch {
		case !had:
			c.Action = Created
		case !has:
			c.Action = Deleted
		}
		c.Fields = specFields(old.Spec, now.Spec)
		if c.Action == Changed && c.Fields == nil {
			continue
		}
		changes = append(changes, c)
	}
	return changes
}

// specFields compares two specs of one kind; nil stands for none.
func specFields(old, now model.Spec) []Field {
	if old == now {
		return nil
	}
	a, b := reflect.ValueOf(old), reflect.ValueOf(now)
	switch {
	case old == nil:
		a = reflect.Zero(b.Type())
	case now == nil:
		b = reflect.Zero(a.Type())
	}
	d := fields{join: func(path string, f reflect.StructField) string {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		return path + "." + cmp.Or(name, f.Name)
	}}
	d.compare("spec", a, b)
	return d.found
}
