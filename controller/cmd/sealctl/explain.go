package main

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"
)

func explainCommand(o *options) *cobra.Command {
	var recursive bool
	cmd := &cobra.Command{
		Use:   "explain [KIND[.FIELD.PATH]]",
		Short: "Say what documents of a kind hold, field by field",
		Long: `Say what documents of a kind hold, field by field: type, meaning, what may stand
there and what is assumed when nothing does. Without a kind it lists the kinds.

Nothing is asked of a controller: this is what this sealctl knows.`,
		Example: `  sealctl explain
  sealctl explain connection
  sealctl explain node.spec.interfaces.link
  sealctl explain circuit --recursive`,
		Args: arguments(0, 1, "a kind, or the path of a field of it"),
		RunE: func(cmd *cobra.Command, args []string) error {
			w := cmd.OutOrStdout()
			if len(args) == 0 {
				return explainKinds(w, o)
			}
			k, path, fields, err := findField(args[0])
			if err != nil {
				return err
			}
			e := explainer{w: w, colours: o.palette(w), recursive: recursive}
			switch {
			case o.structured() && len(fields) > 0:
				return o.printValue(w, fields[len(fields)-1])
			case o.structured():
				return o.printValue(w, k)
			case len(fields) > 0:
				return e.field(k, path, fields[len(fields)-1])
			}
			return e.kind(k)
		},
		ValidArgsFunction: func(_ *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
			if len(args) > 0 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return starting(word, fieldPaths(word)), cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace
		},
	}
	cmd.Flags().BoolVar(&recursive, "recursive", false, "fields of fields, too")
	return formats(cmd, "json", "yaml")
}

func explainKinds(w io.Writer, o *options) error {
	if o.structured() {
		return o.printValue(w, documents())
	}
	t := newTable("KIND", "BELONGS TO", "MEANING").paint(o.palette(w))
	for _, k := range documents().Kinds {
		first, _, _ := strings.Cut(k.Doc, ". ")
		first = strings.TrimSuffix(first, ".")
		if strings.Contains(k.Doc, " as yet") {
			first += "; of no effect as yet"
		}
		t.add(k.Kind, belongs(k), first)
	}
	return t.print(w)
}

func belongs(k schemaKind) string {
	if k.Customer {
		return "a customer"
	}
	return "the provider"
}

// findField finds a kind and the fields that a path of one leads through.
func findField(word string) (k schemaKind, path string, through []schemaField, err error) {
	kind, rest, deep := strings.Cut(word, ".")
	k, ok := findKind(kind)
	if !ok {
		return k, "", nil, fmt.Errorf("%w: there is no kind %q; the kinds are %s", errUsage, kind, or(kindNames()))
	}
	path = k.Kind
	if rest == "spec" || !deep {
		return k, path, nil, nil
	}
	fields := k.Fields
	path += ".spec"
	for part := range strings.SplitSeq(strings.TrimPrefix(rest, "spec."), ".") {
		part, _, _ = strings.Cut(part, "[")
		i := slices.IndexFunc(fields, func(f schemaField) bool { return strings.EqualFold(f.Name, part) })
		if i < 0 {
			have := "it has no fields"
			if len(fields) > 0 {
				have = "it has " + or(fieldNames(fields))
			}
			return k, "", nil, fmt.Errorf("%w: %s has no field %q; %s", errUsage, path, part, have)
		}
		path += "." + fields[i].Name
		through = append(through, fields[i])
		fields = fields[i].Fields
	}
	return k, path, through, nil
}

func fieldNames(fields []schemaField) []string {
	var names []string
	for _, f := range fields {
		names = append(names, f.Name)
	}
	return names
}

// fieldPaths are what a word may go on with.
func fieldPaths(word string) []string {
	at := strings.LastIndexByte(word, '.')
	if at < 0 {
		var all []string
		for _, k := range kindNames() {
			all = append(all, strings.ToLower(k))
		}
		return all
	}
	k, _, through, err := findField(word[:at])
	if err != nil {
		return nil
	}
	fields := k.Fields
	if len(through) > 0 {
		fields = through[len(through)-1].Fields
	}
	var all []string
	for _, name := range fieldNames(fields) {
		all = append(all, word[:at+1]+name)
	}
	return all
}

// explainer prints kinds and fields for people.
type explainer struct {
	w         io.Writer
	colours   palette
	recursive bool
	b         strings.Builder
}

// textWidth is where text is broken, in characters.
const textWidth = 80

func (e *explainer) kind(k schemaKind) error {
	fmt.Fprintf(&e.b, "%s  %s, belongs to %s\n\n", e.colours.paint(toneHead, k.Kind), documents().APIVersion, belongs(k))
	e.paragraph("", k.Doc)
	e.b.WriteString("\n" + e.colours.paint(toneHead, "FIELDS of spec") + "\n")
	e.fields("  ", k.Fields)
	beside := "apiVersion, kind and metadata.name"
	if k.Customer {
		beside = "apiVersion, kind, metadata.customer and metadata.name"
	}
	e.b.WriteString("\n")
	e.paragraph("", "Beside spec, a document has "+beside+".")
	if k.Example != "" {
		e.b.WriteString("\n" + e.colours.paint(toneHead, "EXAMPLE") + "\n")
		for l := range strings.Lines(k.Example) {
			e.b.WriteString("  " + l)
		}
	}
	return e.flush()
}

func (e *explainer) field(k schemaKind, path string, f schemaField) error {
	fmt.Fprintf(&e.b, "%s  <%s>%s  of %s, %s\n\n", e.colours.paint(toneHead, path), f.Type, required(f), k.Kind, documents().APIVersion)
	e.about("", f)
	if len(f.Fields) > 0 {
		e.b.WriteString("\n" + e.colours.paint(toneHead, "FIELDS") + "\n")
		e.fields("  ", f.Fields)
	}
	return e.flush()
}

func (e *explainer) fields(indent string, fields []schemaField) {
	for _, f := range fields {
		fmt.Fprintf(&e.b, "%s%s  <%s>%s\n", indent, e.colours.paint(toneHead, f.Name), f.Type, required(f))
		e.about(indent+"    ", f)
		if e.recursive {
			e.fields(indent+"    ", f.Fields)
		}
	}
}

// article is the one of a word.
func article(word string) string {
	if strings.ContainsAny(word[:1], "AEIOUaeiou") {
		return "an"
	}
	return "a"
}

func required(f schemaField) string {
	if f.Required {
		return "  required"
	}
	return ""
}

// about is a field's meaning and what may stand in it.
func (e *explainer) about(indent string, f schemaField) {
	e.paragraph(indent, f.Doc)
	var facts []string
	if len(f.Values) > 0 {
		facts = append(facts, "One of: "+strings.Join(f.Values, ", ")+".")
	}
	if f.Bounds != "" {
		facts = append(facts, "Bounds: "+f.Bounds+".")
	}
	if f.Default != "" {
		facts = append(facts, "Default: "+f.Default+".")
	}
	if f.RefersTo != "" {
		facts = append(facts, "The name of "+article(f.RefersTo)+" "+f.RefersTo+".")
	}
	if len(facts) > 0 {
		e.paragraph(indent, strings.Join(facts, " "))
	}
}

func (e *explainer) paragraph(indent, text string) { paragraph(&e.b, indent, text) }

// paragraph breaks text at textWidth.
func paragraph(b *strings.Builder, indent, text string) {
	at := 0
	for word := range strings.FieldsSeq(text) {
		switch n := len([]rune(word)); {
		case at == 0:
			b.WriteString(indent + word)
			at = len(indent) + n
		case at+1+n > textWidth:
			b.WriteString("\n" + indent + word)
			at = len(indent) + n
		default:
			b.WriteString(" " + word)
			at += 1 + n
		}
	}
	b.WriteByte('\n')
}

func (e *explainer) flush() error {
	_, err := io.WriteString(e.w, e.b.String())
	return err
}
