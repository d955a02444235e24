package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// outputKey is the annotation that says which formats a command has.
const outputKey = "output"

// formats declares a command's formats, in the order of help; table comes
// first. Without it a command has table and json.
func formats(cmd *cobra.Command, more ...string) *cobra.Command {
	if cmd.Annotations == nil {
		cmd.Annotations = map[string]string{}
	}
	cmd.Annotations[outputKey] = strings.Join(append([]string{"table"}, more...), " ")
	return cmd
}

// outputs are the formats of a command.
func outputs(cmd *cobra.Command) []string {
	if s := cmd.Annotations[outputKey]; s != "" {
		return strings.Fields(s)
	}
	return []string{"table", "json"}
}

func (o *options) json() bool { return o.output == "json" }
func (o *options) wide() bool { return o.output == "wide" }

// structured reports a format for programs, which print writes.
func (o *options) structured() bool { return o.output == "json" || o.output == "yaml" }

// print prints an answer as JSON or YAML: the API's own names, everything.
func (o *options) print(w io.Writer, m proto.Message) error {
	if o.output != "yaml" {
		return printJSON(w, m)
	}
	b, err := marshal(m)
	if err != nil {
		return err
	}
	return printYAML(w, b)
}

// printValue is print for what is no message.
func (o *options) printValue(w io.Writer, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if o.output == "yaml" {
		return printYAML(w, b)
	}
	var out bytes.Buffer
	if err := json.Indent(&out, b, "", "  "); err != nil {
		return err
	}
	_, err = fmt.Fprintln(w, out.String())
	return err
}

// printJSON prints a message as the API's own JSON, indented. protojson's
// white space changes from build to build on purpose; this does not.
func printJSON(w io.Writer, m proto.Message) error {
	return encode(w, m, func(to *bytes.Buffer, b []byte) error { return json.Indent(to, b, "", "  ") })
}

// printJSONLine is printJSON on one line.
func printJSONLine(w io.Writer, m proto.Message) error { return encode(w, m, json.Compact) }

func marshal(m proto.Message) ([]byte, error) {
	b, err := protojson.MarshalOptions{EmitUnpopulated: true}.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("print answer: %w", err)
	}
	return b, nil
}

func encode(w io.Writer, m proto.Message, layout func(*bytes.Buffer, []byte) error) error {
	b, err := marshal(m)
	if err != nil {
		return err
	}
	var out bytes.Buffer
	if err := layout(&out, b); err != nil {
		return fmt.Errorf("print answer: %w", err)
	}
	out.WriteByte('\n')
	_, err = out.WriteTo(w)
	return err
}

// printYAML prints JSON as YAML, fields in the same order.
func printYAML(w io.Writer, b []byte) error {
	n, err := nodeOf(b)
	if err != nil {
		return fmt.Errorf("print answer: %w", err)
	}
	return printNode(w, n)
}

func printNode(w io.Writer, n *yaml.Node) error {
	e := yaml.NewEncoder(w)
	e.SetIndent(2)
	return errors.Join(e.Encode(n), e.Close())
}

// nodeOf is JSON as a tree of YAML. Text stays text, whatever YAML would take
// it for.
func nodeOf(b []byte) (*yaml.Node, error) {
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	return nextNode(d)
}

func nextNode(d *json.Decoder) (*yaml.Node, error) {
	t, err := d.Token()
	if err != nil {
		return nil, err
	}
	switch t := t.(type) {
	case json.Delim:
		n := &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map"}
		if t == '[' {
			n = &yaml.Node{Kind: yaml.SequenceNode, Tag: "!!seq"}
		}
		for d.More() {
			child, err := nextNode(d)
			if err != nil {
				return nil, err
			}
			n.Content = append(n.Content, child)
		}
		if len(n.Content) == 0 {
			n.Style = yaml.FlowStyle
		}
		_, err := d.Token()
		return n, err
	case string:
		n := &yaml.Node{}
		n.SetString(t)
		return n, nil
	case json.Number:
		tag := "!!int"
		if strings.ContainsAny(t.String(), ".eE") {
			tag = "!!float"
		}
		return &yaml.Node{Kind: yaml.ScalarNode, Tag: tag, Value: t.String()}, nil
	case bool:
		return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!bool", Value: fmt.Sprint(t)}, nil
	}
	return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!null", Value: "null"}, nil
}

// table lays out rows under a head, columns apart by two spaces. Cells are
// foreign text.
type table struct {
	rows [][]string
	// tones colour cells, by row and column; palette says whether they do.
	tones   map[[2]int]tone
	palette palette
}

func newTable(head ...string) *table {
	return &table{rows: [][]string{head}, tones: map[[2]int]tone{}}
}

// paint gives the table colours where the palette has some.
func (t *table) paint(p palette) *table {
	t.palette = p
	return t
}

func (t *table) add(cells ...string) {
	for i, c := range cells {
		if cells[i] = line(c); c == "" {
			cells[i] = "-"
		}
	}
	t.rows = append(t.rows, cells)
}

// mark colours a cell of the last row.
func (t *table) mark(column int, c tone) { t.tones[[2]int{len(t.rows) - 1, column}] = c }

// empty reports a table without rows.
func (t *table) empty() bool { return len(t.rows) == 1 }

func (t *table) print(w io.Writer) error {
	widths := make([]int, len(t.rows[0]))
	for _, row := range t.rows {
		for i, c := range row {
			widths[i] = max(widths[i], utf8.RuneCountInString(c))
		}
	}
	var b strings.Builder
	for r, row := range t.rows {
		for i, c := range row {
			text := t.palette.paint(t.tones[[2]int{r, i}], c)
			if r == 0 {
				text = t.palette.paint(toneHead, c)
			}
			b.WriteString(text)
			if i < len(row)-1 {
				b.WriteString(strings.Repeat(" ", widths[i]-utf8.RuneCountInString(c)+2))
			}
		}
		b.WriteByte('\n')
	}
	_, err := io.WriteString(w, b.String())
	return err
}
