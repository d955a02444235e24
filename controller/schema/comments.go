package schema

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

// comments are what a Go package says of its types.
type comments struct {
	// types are comments of types; fields those of "Type.Field".
	types, fieldDocs map[string]string
	// values are the constants of a type whose values are text, in the order of
	// the source.
	values map[string][]string
	// notes are what is said of a type's constants beyond what they are.
	notes map[string]string
}

// readComments reads the Go files of a directory, without tests.
func readComments(dir string) (*comments, error) {
	paths, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		return nil, err
	}
	c := &comments{types: map[string]string{}, fieldDocs: map[string]string{}, values: map[string][]string{}, notes: map[string]string{}}
	files := token.NewFileSet()
	for _, p := range paths {
		if strings.HasSuffix(p, "_test.go") {
			continue
		}
		b, err := os.ReadFile(p)
		if err != nil {
			return nil, err
		}
		f, err := parser.ParseFile(files, p, b, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return nil, err
		}
		for _, d := range f.Decls {
			if g, ok := d.(*ast.GenDecl); ok {
				c.declaration(g)
			}
		}
	}
	if len(c.types) == 0 {
		return nil, fmt.Errorf("there are no types")
	}
	return c, nil
}

func (c *comments) declaration(g *ast.GenDecl) {
	for _, s := range g.Specs {
		switch s := s.(type) {
		case *ast.TypeSpec:
			doc := s.Doc
			if doc == nil {
				doc = g.Doc
			}
			c.types[s.Name.Name] = sentence(doc)
			if t, ok := s.Type.(*ast.StructType); ok {
				for _, f := range t.Fields.List {
					for _, n := range f.Names {
						c.fieldDocs[s.Name.Name+"."+n.Name] = sentence(f.Doc)
					}
				}
			}
		case *ast.ValueSpec:
			if g.Tok == token.CONST && g.Lparen.IsValid() {
				c.constant(g, s)
			}
		}
	}
}

// constant keeps an exported constant of a block: these are what a field may say.
func (c *comments) constant(g *ast.GenDecl, s *ast.ValueSpec) {
	typ, ok := s.Type.(*ast.Ident)
	if !ok || len(s.Values) != 1 || !s.Names[0].IsExported() {
		return
	}
	lit, ok := s.Values[0].(*ast.BasicLit)
	if !ok || lit.Kind != token.STRING {
		return
	}
	v, err := strconv.Unquote(lit.Value)
	if err != nil {
		return
	}
	c.values[typ.Name] = append(c.values[typ.Name], v)
	if _, more, ok := strings.Cut(sentence(g.Doc), ". "); ok {
		c.notes[typ.Name] = more
	}
}

// sentence is a comment on one line.
func sentence(g *ast.CommentGroup) string { return strings.Join(strings.Fields(g.Text()), " ") }

// fieldDoc is a field's comment, with the field's name in documents.
func (c *comments) fieldDoc(structure, field, name string) string {
	text := c.fieldDocs[structure+"."+field]
	if rest, ok := strings.CutPrefix(text, field); ok {
		return name + rest
	}
	return text
}

// How comments of fields say bounds and defaults.
var (
	fromTo   = regexp.MustCompile(`(?:^|[ (])(\d[\d,]*[smhd]?) to (\d[\d,]*[smhd]?)\b`)
	atMost   = regexp.MustCompile(`\bat most (\d[\d,]*(?: (?:bytes|characters))?)`)
	defaults = []*regexp.Regexp{
		regexp.MustCompile(`\b[Dd]efault of ([\w.:/-]*\w)`),
		regexp.MustCompile(`([\w.:/-]+) when left out\b`),
		regexp.MustCompile(`([\w.:/-]+) \(the default\)`),
	}
)

func bounds(text string) string {
	if m := fromTo.FindStringSubmatch(text); m != nil {
		return m[1] + " to " + m[2]
	}
	if m := atMost.FindStringSubmatch(text); m != nil {
		return "at most " + m[1]
	}
	return ""
}

func defaultOf(text string) string {
	for _, r := range defaults {
		if m := r.FindStringSubmatch(text); m != nil {
			return m[1]
		}
	}
	return ""
}
