package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

const (
	// maxContextsFile and maxContexts bound the file of contexts.
	maxContextsFile = 256 << 10
	maxContexts     = 1000
)

// contexts are the controllers that a file knows.
type contexts struct {
	current string
	all     map[string]place
}

// place is a controller and who one is there. Keys are named by their files only.
type place struct {
	Server string `json:"server" yaml:"server"`
	// Root is a PEM file; RootPin the SHA-256 of the root. One of them is set.
	Root    string `json:"root,omitempty" yaml:"root,omitempty"`
	RootPin string `json:"rootPin,omitempty" yaml:"rootPin,omitempty"`
	// Identity is a PEM file with the certificate and its chain, and with the key
	// unless Key is another file.
	Identity string `json:"identity" yaml:"identity"`
	Key      string `json:"key,omitempty" yaml:"key,omitempty"`
}

var contextName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$`)

func validContextName(s string) error {
	if !contextName.MatchString(s) {
		return fmt.Errorf("context %q: want 1 to 63 letters, digits, dots, hyphens and underscores, the first a letter or a digit", s)
	}
	return nil
}

// place finds a context, or says which there are.
func (c *contexts) place(name string) (place, error) {
	p, ok := c.all[name]
	if !ok {
		have := "there is none yet: `sealctl context set` makes one"
		if len(c.all) > 0 {
			have = "there are " + strings.Join(c.names(), ", ")
		}
		return place{}, fmt.Errorf("there is no context %q; %s", name, have)
	}
	return p, nil
}

func (c *contexts) names() []string { return slices.Sorted(maps.Keys(c.all)) }

// contextsText reads the text of a file of contexts.
type contextsText struct{ file string }

// parseContexts reads contexts strictly: what it does not know it refuses, with
// the line. Relative paths are those from the directory of file.
func parseContexts(file string, b []byte) (*contexts, error) {
	t := contextsText{file}
	d := yaml.NewDecoder(bytes.NewReader(b))
	var root yaml.Node
	if err := d.Decode(&root); errors.Is(err, io.EOF) {
		return &contexts{all: map[string]place{}}, nil
	} else if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	var more yaml.Node
	if err := d.Decode(&more); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%s: want one document, and there is more after it", file)
	}
	c := &contexts{all: map[string]place{}}
	err := t.group(root.Content[0], "", []string{"current", "contexts"}, func(name string, n *yaml.Node) (err error) {
		if name == "current" {
			c.current, err = t.text(n, name)
			return err
		}
		return t.group(n, name, nil, func(name string, n *yaml.Node) error {
			if err := validContextName(name); err != nil {
				return t.errorf(n, "%w", err)
			}
			if len(c.all) == maxContexts {
				return t.errorf(n, "there are more than %d contexts", maxContexts)
			}
			p, err := t.place(n, "contexts."+name)
			c.all[name] = p
			return err
		})
	})
	if err != nil {
		return nil, err
	}
	if c.current != "" {
		if _, err := c.place(c.current); err != nil {
			return nil, fmt.Errorf("%s: current: %w", file, err)
		}
	}
	return c, nil
}

func (t contextsText) errorf(n *yaml.Node, format string, a ...any) error {
	return fmt.Errorf("%s:%d: %w", t.file, n.Line, fmt.Errorf(format, a...))
}

// place reads one context.
func (t contextsText) place(n *yaml.Node, path string) (place, error) {
	var p place
	fields := map[string]*string{"server": &p.Server, "root": &p.Root, "rootPin": &p.RootPin, "identity": &p.Identity, "key": &p.Key}
	err := t.group(n, path, []string{"server", "root", "rootPin", "identity", "key"}, func(name string, n *yaml.Node) (err error) {
		if *fields[name], err = t.text(n, path+"."+name); err != nil {
			return err
		}
		switch name {
		case "server":
			_, err = parseServer(p.Server)
		case "rootPin":
			_, err = parsePin(p.RootPin)
		}
		if err != nil {
			return t.errorf(n, "%s.%s: %w", path, name, err)
		}
		return nil
	})
	if err != nil {
		return p, err
	}
	if err := p.complete(); err != nil {
		return p, t.errorf(n, "%s: %w", path, err)
	}
	for _, f := range []*string{&p.Root, &p.Identity, &p.Key} {
		if *f != "" && !filepath.IsAbs(*f) {
			*f = filepath.Join(filepath.Dir(t.file), *f)
		}
	}
	return p, nil
}

// complete says what a context lacks.
func (p place) complete() error {
	switch {
	case p.Server == "":
		return errors.New("server is missing: the controller's address, such as " + defaultServer)
	case p.Root == "" && p.RootPin == "":
		return errors.New("root or rootPin is missing: a file with the controller's root certificate, or the root's pin, sha256:…")
	case p.Root != "" && p.RootPin != "":
		return errors.New("root and rootPin are both there: want one of them")
	case p.Identity == "":
		return errors.New("identity is missing: a file with your certificate and key")
	}
	return nil
}

// group reads a group of fields; names are those that it may have, nil for any.
func (t contextsText) group(n *yaml.Node, path string, names []string, each func(name string, n *yaml.Node) error) error {
	if n.Kind != yaml.MappingNode {
		what := "the file"
		if path != "" {
			what = path
		}
		return t.errorf(n, "%s: want a group of fields", what)
	}
	seen := map[string]bool{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k := n.Content[i]
		switch {
		case k.Kind != yaml.ScalarNode || k.Tag != "!!str" && names != nil:
			return t.errorf(k, "want the name of a field")
		case names != nil && !slices.Contains(names, k.Value):
			return t.errorf(k, "there is no field %q; want %s", k.Value, strings.Join(names, ", "))
		case seen[k.Value]:
			return t.errorf(k, "%q is there twice", k.Value)
		}
		seen[k.Value] = true
		if err := each(k.Value, n.Content[i+1]); err != nil {
			return err
		}
	}
	return nil
}

func (t contextsText) text(n *yaml.Node, path string) (string, error) {
	if n.Kind != yaml.ScalarNode || n.Tag != "!!str" || n.Value == "" {
		return "", t.errorf(n, "%s: want text", path)
	}
	return n.Value, nil
}

// encode is the text of contexts; parseContexts reads the same from it.
func (c *contexts) encode() ([]byte, error) {
	var b bytes.Buffer
	b.WriteString("# The controllers that sealctl knows; `sealctl context` edits this file.\n")
	e := yaml.NewEncoder(&b)
	e.SetIndent(2)
	err := e.Encode(struct {
		Current  string           `yaml:"current,omitempty"`
		Contexts map[string]place `yaml:"contexts"`
	}{c.current, c.all})
	if err = errors.Join(err, e.Close()); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}
