package main

import (
	"strconv"

	"google.golang.org/protobuf/types/known/structpb"

	v1 "github.com/circuitseal/circuitseal/proto/circuitseal/v1"
)

// key identifies a document.
type key struct{ kind, customer, name string }

func keyOf(d *v1.Document) key { return key{d.GetKind(), d.GetCustomer(), d.GetName()} }

// naming is a field of a document that names another one.
type naming struct {
	from  *v1.Document
	field string
	to    key
}

// references are all fields of documents that name others, as the schema says.
func references(documents []*v1.Document) []naming {
	var all []naming
	for _, d := range documents {
		if d.GetCustomer() != "" {
			all = append(all, naming{d, "metadata.customer", key{"Customer", "", d.GetCustomer()}})
		}
		if k, ok := findKind(d.GetKind()); ok {
			w := namer{document: d}
			w.group("spec", k.Fields, d.GetSpec())
			all = append(all, w.all...)
		}
	}
	return all
}

// namer collects the references of one document.
type namer struct {
	document *v1.Document
	all      []naming
}

func (w *namer) group(path string, fields []schemaField, s *structpb.Struct) {
	customer := w.document.GetCustomer()
	if c := s.GetFields()["customer"].GetStringValue(); c != "" {
		customer = c
	}
	for _, f := range fields {
		at, v := path+"."+f.Name, s.GetFields()[f.Name]
		if v == nil {
			continue
		}
		if list := v.GetListValue(); list != nil {
			for i, v := range list.GetValues() {
				w.value(at+"["+strconv.Itoa(i)+"]", f, v, customer)
			}
			continue
		}
		w.value(at, f, v, customer)
	}
}

func (w *namer) value(at string, f schemaField, v *structpb.Value, customer string) {
	if g := v.GetStructValue(); g != nil {
		w.group(at, f.Fields, g)
		return
	}
	k, ok := findKind(f.RefersTo)
	if name := v.GetStringValue(); ok && name != "" {
		if !k.Customer {
			customer = ""
		}
		w.all = append(w.all, naming{w.document, at, key{k.Kind, customer, name}})
	}
}
