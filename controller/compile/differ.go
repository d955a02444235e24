package compile

import (
	"bytes"
	"iter"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/circuitseal/circuitseal/controller/model"
	"github.com/circuitseal/circuitseal/proto/desired"
)

// differ finds the parts that a change reaches.
type differ struct {
	before, after *model.Snapshot
	is            *reach
	// nodes and customers are the parts to compile; some may be gone.
	nodes, customers set
}

func (d *differ) documents() {
	changed := func(yield func(model.Key) bool) {
		for k, old := range d.before.Documents {
			if now, ok := d.after.Documents[k]; (!ok || !same(old.Spec, now.Spec)) && !yield(k) {
				return
			}
		}
		for k := range d.after.Documents {
			if _, ok := d.before.Documents[k]; !ok && !yield(k) {
				return
			}
		}
	}
	circuits, nodes := map[model.Key]bool{}, set{}
	for k := range changed {
		switch {
		case k.Customer != "":
			d.customers[k.Customer] = true
			circuits[k] = k.Kind == model.KindCircuit
		case k.Kind == model.KindCustomer:
			d.customers[k.Name] = true
		case k.Kind == model.KindNode:
			nodes[k.Name] = true
			d.nodes[k.Name] = true
		default:
			d.all()
		}
	}
	d.withCircuits(circuits)
	d.served(nodes, d.seesChange)
}

// served adds the customers of nodes that have changed in their eyes.
func (d *differ) served(nodes set, seen func(customer, node string) bool) {
	if len(nodes) == 0 {
		return
	}
	for customer := range d.is.customers {
		if d.customers[customer] {
			continue
		}
		for node := range d.is.serve(customer) {
			if nodes[node] && seen(customer, node) {
				d.customers[customer] = true
			}
		}
	}
}

// revocations adds whom a node serves that is revoked, or no longer.
func (d *differ) revocations() {
	nodes := set{}
	for name := range d.is.nodes {
		_, was := d.before.Revoked(name)
		_, is := d.after.Revoked(name)
		if was != is {
			nodes[name] = true
		}
	}
	d.served(nodes, func(string, string) bool { return true })
}

// withCircuits adds the nodes at which links of circuits end.
func (d *differ) withCircuits(circuits map[model.Key]bool) {
	if len(circuits) == 0 {
		return
	}
	for name := range d.is.nodes {
		for _, c := range d.is.documents[model.Key{Kind: model.KindNode, Name: name}].circuits {
			if circuits[c] {
				d.nodes[name] = true
			}
		}
	}
}

// seesChange reports whether a changed node is another one in a customer's eyes.
func (d *differ) seesChange(customer, node string) bool {
	key := model.Key{Kind: model.KindNode, Name: node}
	old, had := model.Lookup[*model.NodeSpec](d.before.Documents, key)
	now, has := model.Lookup[*model.NodeSpec](d.after.Documents, key)
	if !had || !has {
		return had != has
	}
	return !same(seenBy(old, customer), seenBy(now, customer))
}

// all gives up on telling what a change reaches.
func (d *differ) all() {
	maps.Copy(d.nodes, d.is.nodes)
	for customer := range d.is.customers {
		d.customers[customer] = true
	}
}

func (d *differ) numbers() {
	old, now := d.before.Numbers, d.after.Numbers
	circuits := map[model.Key]bool{}
	for name := range changedKeys(old.Links, now.Links) {
		d.customers[customerOf(name)] = true
		if parts := strings.Split(name, "/"); len(parts) == 3 {
			circuits[model.Key{Kind: model.KindCircuit, Customer: parts[0], Name: parts[1]}] = true
		}
	}
	d.withCircuits(circuits)
	d.customersOf(changedKeys(old.Tenants, now.Tenants))
	d.customersOf(changedKeys(old.Groups, now.Groups))
	d.customersOf(changedKeys(old.Tunnels, now.Tunnels))
}

func (d *differ) customersOf(names iter.Seq[string]) {
	for name := range names {
		d.customers[customerOf(name)] = true
	}
}

func (d *differ) keys() {
	for end := range changedKeys[model.TunnelEnd, desired.PublicKey](d.before.Keys, d.after.Keys) {
		d.customers[customerOf(end.Tunnel)] = true
	}
}

func (d *differ) presharedKeys() {
	d.customersOf(changedKeys(d.before.PresharedKeys, d.after.PresharedKeys))
}

// identities are compared as they count: one whose node was enrolled anew is none.
func (d *differ) identities() {
	good := func(s *model.Snapshot) map[string]model.IdentityCertificates {
		all := make(map[string]model.IdentityCertificates, len(s.Identities))
		for name := range s.Identities {
			if own, ok := s.Identity(name); ok {
				own.Revision = 0
				all[name] = own
			}
		}
		return all
	}
	for name := range changedKeys(good(d.before), good(d.after)) {
		if k, ok := model.EndpointOfIdentity(name); ok {
			d.customers[k.Customer] = true
		}
	}
	if !slices.EqualFunc(d.before.Authorities, d.after.Authorities, bytes.Equal) {
		for customer := range d.is.customers {
			d.customers[customer] = true
		}
	}
}

// settled does not count at which revision something was.
func (d *differ) settled() {
	good := func(s *model.Snapshot) map[string]model.Settled {
		all := make(map[string]model.Settled, len(s.Settled))
		for id, was := range s.Settled {
			all[id] = model.Settled{Policy: was.Policy}
		}
		return all
	}
	d.customersOf(changedKeys(good(d.before), good(d.after)))
}

// changedKeys are those at which two maps differ.
func changedKeys[K comparable, V any](a, b map[K]V) iter.Seq[K] {
	return func(yield func(K) bool) {
		for k, v := range a {
			if w, ok := b[k]; (!ok || !reflect.DeepEqual(v, w)) && !yield(k) {
				return
			}
		}
		for k := range b {
			if _, ok := a[k]; !ok && !yield(k) {
				return
			}
		}
	}
}

// same reports whether two specs say the same. Nobody changes a spec in place,
// so one pointer is one spec; the store keeps those that have not changed.
func same(a, b model.Spec) bool { return a == b || reflect.DeepEqual(a, b) }
