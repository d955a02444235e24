package compile

import (
	"iter"
	"maps"
	"reflect"
	"slices"

	"github.com/circuitseal/circuitseal/controller/model"
)

// reach says which documents name which, as far as it decides who is compiled.
// It goes by references and not by kinds: a field Node of any document names a
// node, and a model.LinkRef anywhere in a node a circuit.
type reach struct {
	nodes set
	// customers have their documents, the Customer document included.
	customers map[string][]model.Key
	// shared are documents of the provider that everybody may depend on.
	shared []model.Key
	// documents have what each of them names.
	documents map[model.Key]names
}

// names is what one document names.
type names struct {
	spec     model.Spec
	nodes    []string
	circuits []model.Key
}

// newReach reads documents; of those that are as before, it knows already.
func newReach(docs map[model.Key]model.Document, before *reach) *reach {
	r := &reach{nodes: set{}, customers: map[string][]model.Key{}, documents: make(map[model.Key]names, len(docs))}
	for k, d := range docs {
		switch {
		case k.Customer != "":
			r.customers[k.Customer] = append(r.customers[k.Customer], k)
		case k.Kind == model.KindCustomer:
			r.customers[k.Name] = append(r.customers[k.Name], k)
		case k.Kind == model.KindNode:
			r.nodes[k.Name] = true
		default:
			r.shared = append(r.shared, k)
		}
		if before != nil {
			if n, ok := before.documents[k]; ok && n.spec == d.Spec {
				r.documents[k] = n
				continue
			}
		}
		n := names{spec: d.Spec}
		n.read(reflect.ValueOf(d.Spec))
		r.documents[k] = n
	}
	return r
}

// serve are the nodes that a customer's documents name.
func (r *reach) serve(customer string) iter.Seq[string] {
	nodes := set{}
	for _, k := range r.customers[customer] {
		for _, node := range r.documents[k].nodes {
			nodes[node] = true
		}
	}
	return maps.Keys(nodes)
}

var (
	linkRef = reflect.TypeFor[model.LinkRef]()
	// opaque are types that name nothing, in lists that may be long.
	opaque = []string{"net/netip", "time"}
)

func (n *names) read(v reflect.Value) {
	switch v.Kind() {
	case reflect.Pointer, reflect.Interface:
		if !v.IsNil() {
			n.read(v.Elem())
		}
	case reflect.Slice, reflect.Array:
		e := v.Type().Elem()
		if e.Kind() < reflect.Array || e.Kind() == reflect.String || slices.Contains(opaque, e.PkgPath()) {
			return
		}
		for i := range v.Len() {
			n.read(v.Index(i))
		}
	case reflect.Map:
		for _, x := range v.Seq2() {
			n.read(x)
		}
	case reflect.Struct:
		if slices.Contains(opaque, v.Type().PkgPath()) {
			return
		}
		if v.Type() == linkRef {
			ref, _ := reflect.TypeAssert[model.LinkRef](v)
			n.circuits = append(n.circuits, model.Key{Kind: model.KindCircuit, Customer: ref.Customer, Name: ref.Circuit})
			return
		}
		for f, x := range v.Fields() {
			n.field(f.Name, x)
		}
	default:
	}
}

func (n *names) field(name string, v reflect.Value) {
	switch {
	case name == "Node" && v.Kind() == reflect.String:
		n.nodes = append(n.nodes, v.String())
	case name == "Nodes" && v.Kind() == reflect.Slice && v.Type().Elem().Kind() == reflect.String:
		for i := range v.Len() {
			n.nodes = append(n.nodes, v.Index(i).String())
		}
	default:
		n.read(v)
	}
}
