package schema

import (
	"bytes"
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
)

// JSON is the schema as sealctl reads it.
func (s *Schema) JSON() ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", " ")
	if err := e.Encode(s); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// Markdown is the reference for people.
func (s *Schema) Markdown() []byte {
	var b bytes.Buffer
	b.WriteString(`<!-- Written by ` + "`go generate ./controller/schema`" + ` from the comments of controller/model; edit those. -->

# Documents

Documents say what should be. ` + "`sealctl apply -f FILE`" + ` takes them as YAML or JSON, any number
in a file, separated by lines of ` + "`---`" + `; ` + "`sealctl explain KIND`" + ` shows this page for one kind.
Every document has these fields around its ` + "`spec`" + `:

| field | type | meaning |
|---|---|---|
`)
	fmt.Fprintf(&b, "| `apiVersion` | text | `%s`; required |\n", s.APIVersion)
	b.WriteString("| `kind` | text | one of the kinds below; required |\n")
	b.WriteString("| `metadata.name` | text | 1 to 63 characters `a-z`, `0-9` and `-`, the first a letter; unique among documents of the kind and the customer; required |\n")
	b.WriteString("| `metadata.customer` | text | the customer that the document belongs to; required, except where the kind belongs to the provider |\n\n")
	b.WriteString("Names of documents in fields are those of the same customer, unless a field `customer` stands beside them.\n")
	for _, k := range s.Kinds {
		owner := "Belongs to the provider."
		if k.Customer {
			owner = "Belongs to a customer."
		}
		fmt.Fprintf(&b, "\n## %s\n\n%s %s\n\n| field | type | meaning |\n|---|---|---|\n", k.Kind, k.Doc, owner)
		rows(&b, "spec", k.Fields)
		if k.Example != "" {
			fmt.Fprintf(&b, "\n```yaml\n%s```\n", k.Example)
		}
	}
	return b.Bytes()
}

// article is the one of a word.
func article(word string) string {
	if strings.ContainsAny(word[:1], "AEIOUaeiou") {
		return "an"
	}
	return "a"
}

func rows(b *bytes.Buffer, path string, fields []Field) {
	for _, f := range fields {
		at := path + "." + f.Name
		text := f.Doc
		var facts []string
		if len(f.Values) > 0 {
			facts = append(facts, "one of `"+strings.Join(f.Values, "`, `")+"`")
		}
		if f.RefersTo != "" {
			facts = append(facts, fmt.Sprintf("names %s [%s](#%s)", article(f.RefersTo), f.RefersTo, strings.ToLower(f.RefersTo)))
		}
		if f.Default != "" {
			facts = append(facts, "default `"+f.Default+"`")
		}
		if f.Required {
			facts = append(facts, "required")
		}
		if len(facts) > 0 {
			text += " (" + strings.Join(facts, "; ") + ")"
		}
		fmt.Fprintf(b, "| `%s` | %s | %s |\n", at, f.Type, strings.ReplaceAll(text, "|", `\|`))
		if strings.HasPrefix(f.Type, "list of") {
			at += "[]"
		}
		rows(b, at, f.Fields)
	}
}

var kindLine = regexp.MustCompile(`(?m)^kind: *(\w+) *$`)

// examplesOf is the first document of each kind in texts, without the comment
// that stands before it.
func examplesOf(texts []string) map[string]string {
	found := map[string]string{}
	for _, t := range texts {
		for d := range strings.SplitSeq("\n"+t, "\n---\n") {
			d = strings.TrimLeft(d, "\n")
			for strings.HasPrefix(d, "#") {
				_, d, _ = strings.Cut(d, "\n")
			}
			m := kindLine.FindStringSubmatch(d)
			if m == nil || found[m[1]] != "" {
				continue
			}
			found[m[1]] = strings.TrimRight(d, "\n") + "\n"
		}
	}
	return found
}
