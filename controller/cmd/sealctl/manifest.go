package main

import (
	"fmt"
	"io"
	"slices"
	"strconv"

	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/encoding/protojson"

	v1 "github.com/circuitseal/circuitseal/proto/circuitseal/v1"
)

// printManifests prints documents as files hold them, for sealctl apply.
// Their revisions, where they are wanted, let sealctl apply notice that somebody
// else was faster.
func printManifests(w io.Writer, docs []*v1.Document, revisions bool) error {
	for i, d := range docs {
		if i > 0 {
			if _, err := io.WriteString(w, "---\n"); err != nil {
				return err
			}
		}
		n, err := manifest(d, revisions)
		if err != nil {
			return err
		}
		if err := printNode(w, n); err != nil {
			return err
		}
	}
	return nil
}

// manifest is a document as a tree of YAML, its fields in the schema's order.
func manifest(d *v1.Document, revision bool) (*yaml.Node, error) {
	spec, err := specNode(d)
	if err != nil {
		return nil, err
	}
	metadata := mapping()
	if d.GetCustomer() != "" {
		set(metadata, "customer", text(d.GetCustomer()))
	}
	set(metadata, "name", text(d.GetName()))
	if revision {
		set(metadata, "revision", &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!int", Value: strconv.FormatUint(d.GetRevision(), 10)})
	}
	n := mapping()
	set(n, "apiVersion", text(d.GetApiVersion()))
	set(n, "kind", text(d.GetKind()))
	set(n, "metadata", metadata)
	set(n, "spec", spec)
	return n, nil
}

// specNode is a document's spec as a tree of YAML.
func specNode(d *v1.Document) (*yaml.Node, error) {
	b, err := protojson.Marshal(d.GetSpec())
	if err != nil {
		return nil, fmt.Errorf("print %s: %w", name(d), err)
	}
	n, err := nodeOf(b)
	if err != nil {
		return nil, fmt.Errorf("print %s: %w", name(d), err)
	}
	if k, ok := findKind(d.GetKind()); ok {
		order(n, k.Fields)
	}
	return n, nil
}

// order puts the fields of a tree into the schema's order; what the schema does
// not know comes last.
func order(n *yaml.Node, fields []schemaField) {
	if n.Kind == yaml.SequenceNode {
		for _, item := range n.Content {
			order(item, fields)
		}
		return
	}
	if n.Kind != yaml.MappingNode {
		return
	}
	rank := func(name string) int {
		if i := slices.IndexFunc(fields, func(f schemaField) bool { return f.Name == name }); i >= 0 {
			return i
		}
		return len(fields)
	}
	type pair struct{ key, value *yaml.Node }
	var pairs []pair
	for i := 0; i+1 < len(n.Content); i += 2 {
		pairs = append(pairs, pair{n.Content[i], n.Content[i+1]})
	}
	slices.SortStableFunc(pairs, func(a, b pair) int { return rank(a.key.Value) - rank(b.key.Value) })
	n.Content = n.Content[:0]
	for _, p := range pairs {
		if i := rank(p.key.Value); i < len(fields) {
			order(p.value, fields[i].Fields)
		}
		n.Content = append(n.Content, p.key, p.value)
	}
}

func mapping() *yaml.Node { return &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map"} }

func text(s string) *yaml.Node {
	n := &yaml.Node{}
	n.SetString(s)
	return n
}

func set(n *yaml.Node, key string, value *yaml.Node) {
	n.Content = append(n.Content, text(key), value)
}
